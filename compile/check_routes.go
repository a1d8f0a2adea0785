package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// gatewaysOf finds Gateways that a VirtualService names and that are not there or serve none of its hosts, and
// hosts that none of them serves.
func (c *checker) gatewaysOf(v *mesh.VirtualService) {
	served := map[string]bool{}
	some := false // some Gateway serves some host
	for i, name := range v.Spec.GetGateways() {
		if name == "mesh" {
			continue
		}
		field := fmt.Sprintf("spec.gateways[%d]", i)
		g := c.s.Gateways().Get(qualify(name, v.Namespace))
		if g == nil {
			c.add(notFound, v.Key(), field, "create it, or write namespace/name of another", "Gateway %s does not exist",
				qualify(name, v.Namespace))
			continue
		}
		here := false
		for _, host := range v.Spec.GetHosts() {
			if slices.ContainsFunc(g.Spec.GetServers(), func(s *networking.Server) bool {
				return slices.ContainsFunc(s.GetHosts(), func(h string) bool {
					_, ok := serves(h, c.s.Resolve(host, v.Namespace), v.Namespace, g.Namespace)
					return ok
				})
			}) {
				served[host], here, some = true, true, true
			}
		}
		if !here && len(v.Spec.GetHosts()) > 0 {
			c.add(hostNotInGateway, v.Key(), field, "add them to the hosts of one of its servers, or take the gateway out",
				"Gateway %s/%s serves none of its hosts %s", g.Namespace, g.Name, strings.Join(v.Spec.GetHosts(), ", "))
		}
	}
	if !some {
		return
	}
	for i, host := range v.Spec.GetHosts() {
		inMesh := v.InMesh() && c.s.Host(c.s.Resolve(host, v.Namespace)) != nil
		if !served[host] && !inMesh {
			c.add(hostNotInGateway, v.Key(), fmt.Sprintf("spec.hosts[%d]", i),
				"add it to the hosts of one of their servers, or take it out", "none of its Gateways serves %s", host)
		}
	}
}

// pseudoHeaders are the headers with a colon that requests have.
var pseudoHeaders = []string{":method", ":path", ":authority", ":scheme"}

// matches finds matches by a header that no request has.
func (c *checker) matches(key mesh.Key, field string, r *networking.HTTPRoute) {
	for i, m := range r.GetMatch() {
		for _, name := range slices.Concat(sortedKeys(m.GetHeaders()), sortedKeys(m.GetWithoutHeaders())) {
			if mesh.IsClaim(name) {
				c.add("", key, fmt.Sprintf("%s.match[%d].headers.%s", field, i, name), "match by a header that requests have",
					"JWTs are not validated in this version of Carrick, so it is as if no request had the claim")
			}
		}
		for _, name := range sortedKeys(m.GetHeaders()) {
			if strings.HasPrefix(name, ":") && !slices.Contains(pseudoHeaders, strings.ToLower(name)) {
				c.add("", key, fmt.Sprintf("%s.match[%d].headers.%s", field, i, name),
					"match by uri, method, authority or scheme, or by a header's name without the colon",
					"it matches nothing: requests have no header %s", name)
			}
		}
	}
}

// unrouted finds a host in the mesh that no client can mean.
func (c *checker) unrouted(v *mesh.VirtualService, i int, host string) {
	field := fmt.Sprintf("spec.hosts[%d]", i)
	if _, err := netip.ParseAddr(host); err == nil {
		c.add("", v.Key(), field, "name the Service", "sidecars do not route by address %s", host)
	}
	name, _ := strings.CutPrefix(host, "*.")
	if h := c.s.Host(name); h != nil && h.Service != nil && name != host {
		c.add("", v.Key(), field, "name the Service, "+name,
			"it has no effect in the mesh: what is called so is the pods of Service %s, each for itself", name)
	}
}

// delegates finds routes that are left out since another VirtualService does not say them, and a VirtualService
// without hosts that no other names.
func (c *checker) delegates(v *mesh.VirtualService) {
	for i, r := range v.Spec.GetHttp() {
		if r.GetDelegate() == nil {
			continue
		}
		field := fmt.Sprintf("spec.http[%d].delegate", i)
		d := c.s.Delegate(v, r.Delegate)
		if d == nil {
			c.add(notFound, v.Key(), field, "create it without hosts, and export it to this namespace",
				"the route is left out: there is no VirtualService %s/%s that can be its delegate",
				cmp.Or(r.Delegate.GetNamespace(), v.Namespace), r.Delegate.GetName())
			continue
		}
		for j := range d.Spec.GetHttp() {
			if c.s.MergeRoute(r, d, j) == nil {
				c.add("", v.Key(), field, "let each of its matches be within one of this route's",
					"route %d of VirtualService %s/%s is left out: it matches what this route does not", j, d.Namespace, d.Name)
			}
		}
	}
	if len(v.Spec.GetHosts()) == 0 && !c.delegated()[v.Namespace+"/"+v.Name] {
		c.add("", v.Key(), "spec.hosts", "name hosts, or name it as the delegate of a route",
			"it has no effect: there are no hosts, and no VirtualService delegates to it")
	}
}

// delegated returns the VirtualServices that are the delegate of some other.
func (c *checker) delegated() map[string]bool {
	if c.parts == nil {
		c.parts = map[string]bool{}
		for v := range c.s.VirtualServices().All() {
			for _, r := range v.Spec.GetHttp() {
				if r.GetDelegate() == nil {
					continue
				}
				if d := c.s.Delegate(v, r.Delegate); d != nil {
					c.parts[d.Namespace+"/"+d.Name] = true
				}
			}
		}
	}
	return c.parts
}
