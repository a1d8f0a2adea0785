package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// Check returns what does not fit together in a mesh, though each object is right by itself: routes that
// lead nowhere, gateways that nobody is, networks that cannot be reached, fields without effect. It changes nothing that is
// compiled; Snapshot.Findings has what is refused. Unreadable is the namespaces whose Secrets may not be
// read, with what would allow it.
func Check(s *mesh.Snapshot, unreadable map[string]string) []mesh.Finding {
	c := &checker{s: s, unreadable: unreadable}
	c.networks()
	c.services()
	c.found = append(c.found, s.UnusedFields()...)
	for v := range s.VirtualServices().All() {
		c.virtualService(v)
		c.unreachable(v)
	}
	for g := range s.Gateways().All() {
		c.gateway(g)
	}
	c.meshConfig()
	for p := range s.Policies().All().All() {
		c.peerAuthentication(p)
	}
	for r := range s.DestinationRules().All() {
		c.unheeded(r)
		c.destinationRule(r)
	}
	slices.SortStableFunc(c.found, func(a, b mesh.Finding) int {
		return cmp.Or(strings.Compare(a.Object.String(), b.Object.String()), strings.Compare(a.Field, b.Field))
	})
	return c.found
}

type checker struct {
	s          *mesh.Snapshot
	unreadable map[string]string
	found      []mesh.Finding
	parts      map[string]bool // see delegated
}

// Codes of Istio's messages (pkg/config/analysis/msg), which its users know.
const (
	notFound          = "IST0101" // ReferencedResourceNotFound
	conflictingRoutes = "IST0109" // ConflictingMeshGatewayVirtualServiceHosts
	portRequired      = "IST0112" // VirtualServiceDestinationPortSelectorRequired
	hostNotInGateway  = "IST0132" // VirtualServiceHostNotFoundInGateway
	conflictingServer = "IST0145" // ConflictingGateways
)

// add takes a code of Istio's, or "".
func (c *checker) add(code string, o mesh.Key, field, fix, format string, args ...any) {
	c.found = append(c.found, mesh.Finding{Object: o, Field: field, Message: fmt.Sprintf(format, args...), Fix: fix, Code: code})
}

// networks finds endpoints that other networks cannot reach.
func (c *checker) networks() {
	type behind struct{ cluster, network string }
	hidden := map[behind]int{} // services that some other network has, too
	inMesh := c.inMesh()
	for h := range c.s.Hosts() {
		if h.Service == nil || h.Service.ClusterLocal || len(h.Service.Parts) < 2 {
			continue
		}
		networks := map[string]bool{}
		for _, p := range h.Service.Parts {
			networks[c.s.Networks().Of(p.Cluster)] = true
		}
		if len(networks) < 2 {
			continue
		}
		plain := map[string]int{} // endpoints without mutual TLS, by cluster
		seen := map[behind]bool{}
		for i := range h.Endpoints.List {
			e := &h.Endpoints.List[i]
			if !e.Ready {
				continue
			}
			if b := (behind{e.Cluster, e.Network}); len(c.s.Networks().To(e.Network)) == 0 && !seen[b] {
				seen[b] = true
				hidden[b]++
			}
			if !e.TLS {
				plain[e.Cluster]++
			}
		}
		if !inMesh[h.Service.Namespace] {
			continue
		}
		for _, cluster := range sortedKeys(plain) {
			c.add("", h.Service.In(cluster).Key(), "", "inject a sidecar into its pods, or let PeerAuthentication allow mutual TLS",
				"%d of its endpoints take no mutual TLS, so other networks cannot reach them", plain[cluster])
		}
	}
	for b, n := range hidden {
		c.add("", mesh.Key{Cluster: b.cluster, Kind: mesh.KindCluster, Name: b.cluster}, "",
			"label the Service of its east-west gateway topology.istio.io/network and see that it has an address",
			"network %s has no gateway, so other networks cannot reach %d services in it", b.network, n)
	}
}

// inMesh returns the namespaces that have sidecars in some cluster. Where there are none, as in that of
// the gateways, none were meant to be.
func (c *checker) inMesh() map[string]bool {
	out := map[string]bool{}
	for h := range c.s.Hosts() {
		if h.Service == nil || out[h.Service.Namespace] {
			continue
		}
		out[h.Service.Namespace] = slices.ContainsFunc(h.Endpoints.List, func(e mesh.Endpoint) bool { return e.TLS })
	}
	return out
}

// services finds Services of one name that are not alike.
func (c *checker) services() {
	inMesh := c.inMesh()
	for h := range c.s.Hosts() {
		if h.Service == nil || h.Service.ClusterLocal {
			continue
		}
		first := h.Service.Parts[0]
		for i, port := range first.Ports {
			if port.Protocol() == mesh.GRPCWeb && inMesh[h.Service.Namespace] {
				c.add("", first.Key(), fmt.Sprintf("spec.ports[%d]", i), "run Envoy beside its pods (carrick.dev/proxy: envoy), or let the application take gRPC-Web",
					"port %d speaks gRPC-Web, of which only sidecars and gateways that run Envoy make gRPC", port.Number)
			}
		}
		for _, p := range h.Service.Parts[1:] {
			for i, port := range p.Ports {
				j := slices.IndexFunc(first.Ports, func(q mesh.ServicePort) bool {
					return q.Number == port.Number && (q.Protocol() == mesh.UDP) == (port.Protocol() == mesh.UDP)
				})
				if j >= 0 && first.Ports[j].Protocol() != port.Protocol() {
					c.add("", p.Key(), fmt.Sprintf("spec.ports[%d]", i), "name the port alike in all clusters",
						"port %d speaks %s here and %s in cluster %s", port.Number, nameOf(port.Protocol()), nameOf(first.Ports[j].Protocol()), first.Cluster)
				}
			}
			if p.Headless != first.Headless {
				c.add("", p.Key(), "spec.clusterIP", "make it alike in all clusters", "the Service is headless in one of clusters %s and %s only", p.Cluster, first.Cluster)
			}
		}
	}
}

func nameOf(p mesh.Protocol) string { return cmp.Or(string(p), "whatever its first bytes say") }

func (c *checker) virtualService(v *mesh.VirtualService) {
	key := v.Key()
	c.gatewaysOf(v)
	c.delegates(v)
	if v.InMesh() {
		for i, name := range v.Spec.GetHosts() {
			host := c.s.Resolve(name, v.Namespace)
			h := c.s.Host(host)
			if h == nil || len(h.Routes) == 0 {
				c.unrouted(v, i, host)
				continue
			}
			if h.Routes[0].Key() == key {
				continue
			}
			c.add(conflictingRoutes, key, fmt.Sprintf("spec.hosts[%d]", i), "write the routes into one of them",
				"VirtualService %s/%s is older and holds for %s", h.Routes[0].Namespace, h.Routes[0].Name, host)
		}
	}
	check := func(field string, d *networking.Destination) {
		if d != nil {
			c.destination(key, field, d, c.s.Resolve(d.GetHost(), v.Namespace))
		}
	}
	for i, r := range v.Spec.GetHttp() {
		c.matches(key, fmt.Sprintf("spec.http[%d]", i), r)
		for j, d := range r.GetRoute() {
			check(fmt.Sprintf("spec.http[%d].route[%d].destination", i, j), d.GetDestination())
		}
		check(fmt.Sprintf("spec.http[%d].mirror", i), r.GetMirror())
		for j, m := range r.GetMirrors() {
			check(fmt.Sprintf("spec.http[%d].mirrors[%d].destination", i, j), m.GetDestination())
		}
	}
	subnets := func(field string, subnets, gateways []string) {
		if len(gateways) == 0 {
			gateways = v.Spec.GetGateways()
		}
		if len(subnets) > 0 && slices.ContainsFunc(gateways, func(g string) bool { return g != "mesh" }) {
			c.add("", key, field+".destinationSubnets", "match by port", "it has no effect at gateways, whose clients connect to the gateway's own address")
		}
	}
	for i, r := range v.Spec.GetTcp() {
		for j, m := range r.GetMatch() {
			subnets(fmt.Sprintf("spec.tcp[%d].match[%d]", i, j), m.GetDestinationSubnets(), m.GetGateways())
		}
		for j, d := range r.GetRoute() {
			check(fmt.Sprintf("spec.tcp[%d].route[%d].destination", i, j), d.GetDestination())
		}
	}
	for i, r := range v.Spec.GetTls() {
		for j, m := range r.GetMatch() {
			subnets(fmt.Sprintf("spec.tls[%d].match[%d]", i, j), m.GetDestinationSubnets(), m.GetGateways())
		}
		for j, d := range r.GetRoute() {
			check(fmt.Sprintf("spec.tls[%d].route[%d].destination", i, j), d.GetDestination())
		}
	}
}

func (c *checker) destination(key mesh.Key, field string, d *networking.Destination, host string) {
	h := c.s.Host(host)
	if h == nil || h.Service == nil {
		c.add(notFound, key, field+".host", "name a Service; one of another namespace by its full name", "host %s does not exist", host)
		return
	}
	svc := h.Service.Concrete()
	has := func(n uint32) bool {
		return slices.ContainsFunc(svc.Parts, func(p *mesh.Service) bool {
			return slices.ContainsFunc(p.Ports, func(q mesh.ServicePort) bool { return uint32(q.Number) == n })
		})
	}
	if ports := svc.Parts[0].Ports; d.GetPort().GetNumber() == 0 && len(ports) > 1 {
		c.add(portRequired, key, field+".port", "name the port that is meant", "%s has %d ports, and the destination names none", host, len(ports))
	}
	if n := d.GetPort().GetNumber(); n != 0 && !has(n) {
		c.add(notFound, key, field+".port.number", "name a port of the Service", "%s has no port %d", host, n)
	}
	if d.GetSubset() == "" {
		return
	}
	if !slices.ContainsFunc(h.Rules, func(r *mesh.Rule) bool {
		return slices.ContainsFunc(r.Spec.GetSubsets(), func(s *networking.Subset) bool { return s.GetName() == d.GetSubset() })
	}) {
		c.add(notFound, key, field+".subset", "define it in a DestinationRule of the host", "no DestinationRule of %s has a subset %s", host, d.GetSubset())
	}
}

func (c *checker) gateway(g *mesh.Gateway) {
	key := g.Key()
	namespaces := map[string]bool{}
	for p := range c.s.Pods(c.s.Local()) {
		if mesh.Selects(g.Spec.GetSelector(), p.Labels) {
			namespaces[p.Namespace] = true
		}
	}
	if len(namespaces) == 0 {
		c.add(notFound, key, "spec.selector", "select the labels of a gateway's pods", "no pod has the labels %s", joinLabels(g.Spec.GetSelector()))
		return
	}
	for i, srv := range g.Spec.GetServers() {
		field := fmt.Sprintf("spec.servers[%d]", i)
		c.server(key, field, srv, sortedKeys(namespaces))
		if t := srv.GetTls(); t.GetMode() == networking.ServerTLSSettings_PASSTHROUGH && (t.GetCredentialName() != "" || t.GetServerCertificate() != "") {
			c.add("", key, field+".tls.mode", "set it to SIMPLE, or take the certificate out",
				"it is PASSTHROUGH, also where it is not set: TLS is not ended here and the certificate is not used")
		}
		c.overlap(g, i, srv)
		c.mixed(g, i, srv)
	}
}

// mixed finds a server whose port an older Gateway of the same pods serves with TLS and it without, or the
// other way round. Both work, told apart by the first bytes, but hardly anybody means it.
func (c *checker) mixed(g *mesh.Gateway, i int, srv *networking.Server) {
	tls := func(s *networking.Server) bool { return (&server{Server: s}).protocol().IsTLS() }
	for o := range c.s.Gateways().All() {
		if o == g || older(&o.Meta, &g.Meta) > 0 || joinLabels(o.Spec.GetSelector()) != joinLabels(g.Spec.GetSelector()) {
			continue
		}
		for _, x := range o.Spec.GetServers() {
			if x.GetPort().GetNumber() == srv.GetPort().GetNumber() && tls(x) != tls(srv) {
				c.add(conflictingServer, g.Key(), fmt.Sprintf("spec.servers[%d].port", i), "take another port",
					"port %d speaks %s here and %s in Gateway %s/%s, which is older", x.GetPort().GetNumber(), srv.GetPort().GetProtocol(), x.GetPort().GetProtocol(), o.Namespace, o.Name)
				return
			}
		}
	}
}

// overlap finds a server for which an older Gateway of the same pods already has one.
func (c *checker) overlap(g *mesh.Gateway, i int, srv *networking.Server) {
	if !terminates(srv.GetTls()) {
		return
	}
	for o := range c.s.Gateways().All() {
		if o == g || older(&o.Meta, &g.Meta) > 0 || joinLabels(o.Spec.GetSelector()) != joinLabels(g.Spec.GetSelector()) {
			continue
		}
		for _, x := range o.Spec.GetServers() {
			if x.GetPort().GetNumber() != srv.GetPort().GetNumber() || !terminates(x.GetTls()) {
				continue
			}
			mine, theirs := (&server{Server: srv}).patterns(), (&server{Server: x}).patterns()
			for _, h := range mine {
				if slices.Contains(theirs, h) {
					c.add(conflictingServer, g.Key(), fmt.Sprintf("spec.servers[%d].hosts", i), "remove the host from one of them",
						"Gateway %s/%s is older and serves %s on port %d", o.Namespace, o.Name, h, srv.GetPort().GetNumber())
				}
			}
		}
	}
}

func (c *checker) destinationRule(r *mesh.DestinationRule) {
	host := c.s.Resolve(r.Spec.GetHost(), r.Namespace)
	if strings.HasPrefix(host, "*") {
		return
	}
	h := c.s.Host(host)
	if h == nil || h.Service == nil {
		c.add(notFound, r.Key(), "spec.host", "name a Service; one of another namespace by its full name", "host %s does not exist", host)
		return
	}
	if a := h.Service.Alias; a != nil {
		c.add("", r.Key(), "spec.host", "write the rule for "+a.Host, "it has no effect: %s is another name of %s", host, a.Host)
		return
	}
	c.credentials(r, h)
}

// credentials finds a rule that has clients originate TLS with a Secret, which sidecars may not read.
func (c *checker) credentials(r *mesh.DestinationRule, h *mesh.Host) {
	i := slices.IndexFunc(h.Rules, func(x *mesh.Rule) bool { return x.Namespace == r.Namespace && x.Name == r.Name })
	if len(ruleCredentials(r.Spec)) == 0 || i < 0 {
		return
	}
	for p := range c.s.Pods(c.s.Local()) {
		if h.Rules[i].Visible(p.Namespace) && h.Service.Visible(p.Namespace) && p.Labels[tlsModeLabel] == "istio" {
			for field, t := range mesh.ClientTLS(r.Spec) {
				if t.GetCredentialName() != "" {
					c.add("", r.Key(), field+".credentialName", "name files that the pods have (clientCertificate, privateKey, caCertificates), or call by an egress gateway",
						"sidecars may not read Secrets, so their connections to %s are plaintext", h.Service.Host)
				}
			}
			return
		}
	}
}
