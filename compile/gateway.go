package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// gateway is what the own resources of a gateway depend on.
type gateway struct {
	families  Family
	namespace string
	http      httpSettings
	settings  clusterSettings
	retry     *networking.HTTPRetry
	web       bool // translates gRPC-Web, as Envoy can
	topology  Topology
	servers   []*server
	secrets   []*mesh.Credential // of which some server makes use, by name
	labels    string             // of the pods, as far as matches of services name them
}

// server is one server of a Gateway that selects the proxy.
type server struct {
	*networking.Server
	gateway  *mesh.Gateway
	bind     uint16 // where the proxy listens
	services []*binding
}

// binding is a VirtualService bound to a server, the oldest first, and what it leads to.
type binding struct {
	*mesh.VirtualService
	hosts   []string // of its own, that the server serves
	targets map[string]*mesh.HostService
	rules   map[string]*mesh.Rule // that hash requests or limit connections, by host
	resolve func(host string) string
}

// gatewayOf looks up the Gateways that select a proxy, the VirtualServices bound to them, and what these
// lead to.
func gatewayOf(s *mesh.Snapshot, p Proxy) *gateway {
	c := s.Config()
	g := &gateway{
		families: p.Families, namespace: p.Namespace, http: httpSettingsOf(c, p), settings: clusterSettingsOf(c, p), retry: c.Retry,
		topology: p.topology(c),
	}
	g.web = p.Dialect == Envoy
	labels := labelMap(p.Labels)
	named := "" // keys of labels
	ports := bindPorts(s, p)
	gateways := slices.SortedFunc(s.Gateways().All(), func(a, b *mesh.Gateway) int { return older(&a.Meta, &b.Meta) })
	routes := slices.SortedFunc(s.MergedVirtualServices().All(), func(a, b *mesh.VirtualService) int { return older(&a.Meta, &b.Meta) })
	for _, gw := range gateways {
		if !mesh.Selects(gw.Spec.GetSelector(), labels) {
			continue
		}
		for _, x := range gw.Spec.GetServers() {
			n := uint16(x.GetPort().GetNumber())
			srv := &server{Server: x, gateway: gw, bind: cmp.Or(ports[n], n)}
			for _, v := range routes {
				if b := bindTo(s, srv, v, p); b != nil {
					srv.services = append(srv.services, b)
					named = union(named, sourceLabels(v))
				}
			}
			g.servers = append(g.servers, srv)
			for _, name := range serverCredentials(x.GetTls()) {
				g.addSecrets(s, p, name)
			}
		}
	}
	g.labels = pick(p.Labels, named)
	if len(g.servers) > 0 {
		for r := range s.DestinationRules().All() {
			for _, name := range ruleCredentials(r.Spec) {
				g.addSecrets(s, p, name)
			}
		}
	}
	return g
}

// ruleCredentials returns the Secrets that a rule has gateways originate TLS with.
func ruleCredentials(r *networking.DestinationRule) (names []string) {
	for _, t := range mesh.ClientTLS(r) {
		if n := t.GetCredentialName(); n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// CredentialNamespaces returns the namespaces of the local cluster with a pod that a Gateway selects and
// that serves with a Secret, as the Gateway says, or may call with one, as some DestinationRule says.
func CredentialNamespaces(s *mesh.Snapshot) []string {
	var selectors []map[string]string
	calls := false
	for r := range s.DestinationRules().All() {
		calls = calls || len(ruleCredentials(r.Spec)) > 0
	}
	for g := range s.Gateways().All() {
		named := calls || slices.ContainsFunc(g.Spec.GetServers(), func(x *networking.Server) bool { return len(serverCredentials(x.GetTls())) > 0 })
		if named && !slices.ContainsFunc(selectors, func(m map[string]string) bool { return maps.Equal(m, g.Spec.GetSelector()) }) {
			selectors = append(selectors, g.Spec.GetSelector())
		}
	}
	if len(selectors) == 0 {
		return nil
	}
	namespaces := map[string]bool{}
	for p := range s.Pods(s.Local()) {
		if !namespaces[p.Namespace] {
			namespaces[p.Namespace] = slices.ContainsFunc(selectors, func(m map[string]string) bool { return mesh.Selects(m, p.Labels) })
		}
	}
	maps.DeleteFunc(namespaces, func(_ string, serves bool) bool { return !serves })
	return sortedKeys(namespaces)
}

// bindPorts maps the ports of the services that select a gateway to where these lead to.
func bindPorts(s *mesh.Snapshot, p Proxy) map[uint16]uint16 {
	ports := map[uint16]uint16{}
	for _, svc := range instances(s, p) {
		for _, port := range svc.Ports {
			if n := targetPort(p, port); n != 0 && ports[port.Number] == 0 {
				ports[port.Number] = n
			}
		}
	}
	return ports
}

// addSecrets adds the Secret of that name, if the gateway is of the local cluster: the Secrets of a
// namespace are for its gateways here, not for those of its namesakes elsewhere.
func (g *gateway) addSecrets(s *mesh.Snapshot, p Proxy, name string) {
	if name == "" || p.Cluster != s.Local() {
		return
	}
	name = strings.TrimPrefix(name, secretScheme)
	for _, n := range []string{name, name + "-cacert"} {
		if c := s.Credential(g.namespace, n); c != nil && !slices.Contains(g.secrets, c) {
			g.secrets = append(g.secrets, c)
		}
	}
}

// bindTo returns what of a VirtualService is for a server, or nil.
func bindTo(s *mesh.Snapshot, srv *server, v *mesh.VirtualService, p Proxy) *binding {
	name := srv.gateway.Namespace + "/" + srv.gateway.Name
	if !slices.ContainsFunc(v.Spec.GetGateways(), func(g string) bool { return qualify(g, v.Namespace) == name }) ||
		!s.SeesRoute(v, p.Namespace) {
		return nil
	}
	resolve := func(host string) string { return s.Resolve(host, v.Namespace) }
	b := &binding{VirtualService: v, resolve: resolve, targets: map[string]*mesh.HostService{}, rules: map[string]*mesh.Rule{}}
	for _, h := range v.Spec.GetHosts() {
		for _, x := range srv.GetHosts() {
			if host, ok := serves(x, s.Resolve(h, v.Namespace), v.Namespace, srv.gateway.Namespace); ok && !slices.Contains(b.hosts, host) {
				b.hosts = append(b.hosts, host)
			}
		}
	}
	if len(b.hosts) == 0 {
		return nil
	}
	for d := range v.Destinations() {
		host := s.Resolve(d.GetHost(), v.Namespace)
		h := s.Host(host)
		if h == nil || h.Service == nil {
			continue
		}
		b.targets[host] = h.Service
		if r := choiceOf(h, p.Namespace).of(p.Labels).rule; r != nil && (hashes(r) || anyPolicy(r, limitsTCP)) {
			b.rules[h.Service.Concrete().Host] = r
		}
	}
	return b
}

// serves returns the more particular of what a server serves (as "namespace/host" or "host") and a host of
// a VirtualService, if they have something in common.
func serves(pattern, host, namespace, gatewayNamespace string) (string, bool) {
	if ns, rest, ok := strings.Cut(pattern, "/"); ok {
		if ns == "." {
			ns = gatewayNamespace
		}
		if ns != "*" && ns != namespace {
			return "", false
		}
		pattern = rest
	}
	pattern = strings.ToLower(pattern)
	switch {
	case mesh.MatchHost(pattern, host):
		return host, true
	case strings.HasPrefix(host, "*") && mesh.MatchHost(host, pattern):
		return pattern, true
	}
	return "", false
}

func older(a, b *mesh.Meta) int {
	return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// key says what the gateway is made of: the pointers of the mesh, which are equal for equal content only.
func (g *gateway) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %q %q %#v %#v %p %#v %v", g.families, g.namespace, g.labels, g.http, g.settings, g.retry, g.topology, g.web)
	for _, s := range g.servers {
		fmt.Fprintf(&b, " server %p %p %d", s.Server, s.gateway, s.bind)
		for _, v := range s.services {
			fmt.Fprintf(&b, " service %p %q", v.VirtualService, v.hosts)
			for _, h := range sortedKeys(v.targets) {
				fmt.Fprintf(&b, " %p %p", v.targets[h], v.rules[v.targets[h].Concrete().Host])
			}
		}
	}
	for _, c := range g.secrets {
		fmt.Fprintf(&b, " secret %p", c)
	}
	return b.String()
}

// isPassthrough reports whether a server exposes services to other networks by SNI.
func (s *server) isPassthrough() bool {
	return s.GetTls().GetMode() == networking.ServerTLSSettings_AUTO_PASSTHROUGH
}

// protocol of a server, as its port says.
func (s *server) protocol() mesh.Protocol {
	p, _ := mesh.ParseProtocol(s.GetPort().GetProtocol())
	return p
}

// patterns returns the hosts of a server, without namespaces.
func (s *server) patterns() (hosts []string) {
	for _, h := range s.GetHosts() {
		if _, rest, ok := strings.Cut(h, "/"); ok {
			h = rest
		}
		hosts = append(hosts, strings.ToLower(h))
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// listenAddress is where a gateway listens: on one of its addresses, or on all.
type listenAddress struct {
	ip   string // "" for all
	port uint16
}

func (s *server) listenAddress() listenAddress {
	if ip := s.GetBind(); ip != "0.0.0.0" && ip != "::" {
		return listenAddress{ip, s.bind}
	}
	return listenAddress{port: s.bind}
}

// on returns the name and the addresses of the listener.
func (a listenAddress) on(f Family) (name string, first *core.Address, more []*listenerv3.AdditionalAddress) {
	if a.ip == "" {
		return listenOn(f, a.port)
	}
	return a.ip + "_" + strconv.Itoa(int(a.port)), socketAddress(a.ip, uint32(a.port)), nil
}

// routeName is the name of the route table of the servers without TLS.
func (a listenAddress) routeName() string {
	name := "http." + strconv.Itoa(int(a.port))
	if a.ip != "" {
		name += "." + a.ip
	}
	return name
}

// passthrough returns workload.passthrough of a gateway.
func (g *gateway) passthrough() string {
	byListener := map[string][]string{}
	for _, s := range g.servers {
		if s.isPassthrough() {
			name, _, _ := listenOn(g.families, s.bind)
			byListener[name] = append(byListener[name], s.patterns()...)
		}
	}
	var specs []string
	for _, name := range sortedKeys(byListener) {
		hosts := byListener[name]
		slices.Sort(hosts)
		specs = append(specs, name+"="+strings.Join(slices.Compact(hosts), "|"))
	}
	return strings.Join(specs, ";")
}

// routeName is the name of the route table of a server that terminates TLS: each has its own.
func (s *server) routeName() string {
	return "https." + strconv.Itoa(int(s.GetPort().GetNumber())) + "." + s.GetPort().GetName() + "." + s.gateway.Name + "." + s.gateway.Namespace
}
