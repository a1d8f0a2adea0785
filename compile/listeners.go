package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// listenerRow is what the outbound listeners of a host depend on. A host that is not a Service has none of them but
// the one that all of port 80 share.
type listenerRow struct {
	svc     *mesh.HostService // nil if it is none
	eps     *mesh.Endpoints   // of headless services only
	choice                    // for connection limits, and the subsets that SNI names
	route   *mesh.Route       // that has TCP or TLS routes
	targets *mesh.Targets
	client  string // its namespace, where a match of route names it
}

// listenerView is what of a proxy its outbound listeners depend on.
type listenerView struct {
	dialect  Dialect
	router   bool
	cluster  string
	network  string
	families Family
	pass     string // the ports and hosts that it passes through by SNI, see workload.passthrough
	allowAny bool
	http     httpSettings
	labels   string
	proxied  bool // connections begin with a PROXY header
}

func toListenerRow(h *mesh.Host, client string) (r listenerRow, ok bool) {
	if h.Service == nil {
		x := routeOf(h, client)
		return r, x != nil && len(x.Spec.GetHttp()) > 0
	}
	if !h.Service.Visible(client) {
		return r, false
	}
	if r.svc = h.Service; r.svc.Alias != nil {
		return r, true // its listeners are those of what it is another name of
	}
	if headless(h.Service) {
		r.eps = h.Endpoints
	}
	r.choice = choiceOf(h, client).where(func(x *mesh.Rule) bool { return len(x.Spec.GetSubsets()) > 0 || anyPolicy(x, limitsTCP) })
	if x := routeOf(h, client); x != nil && len(x.Spec.GetTcp())+len(x.Spec.GetTls()) > 0 {
		r.route, r.targets = x, h.Targets
		if namesNamespace(x.VirtualService, client) {
			r.client = client
		}
	}
	return r, true
}

func toListenerView(s *mesh.Snapshot, p Proxy, w *workload) listenerView {
	return listenerView{p.Dialect.form(), p.Router, p.Cluster, p.Network, p.Families, w.passthrough, s.Config().AllowAny, httpSettingsOf(s.Config(), p), p.Labels, p.topology(s.Config()).ProxyProtocol}
}

func (r listenerRow) need() need {
	if r.svc == nil {
		return need{}
	}
	n := need{cluster: differ(r.svc) || r.hasAddresses(), network: r.eps != nil, labels: r.labels()}
	if r.route != nil {
		n.labels = union(n.labels, sourceLabels(r.route.VirtualService))
	}
	return n
}

// hasAddresses reports whether some port has listeners for the service's addresses, which are those of
// one cluster, or does for gRPC.
func (r listenerRow) hasAddresses() bool {
	return slices.ContainsFunc(r.svc.Parts, func(p *mesh.Service) bool {
		return slices.ContainsFunc(p.Ports, func(p mesh.ServicePort) bool { return !p.Protocol().IsHTTP() })
	})
}

func (v listenerView) narrow(n need) listenerView {
	if v.router && v.dialect != GRPC {
		// A gateway has no listener of its own for a service, but those that SNI chooses by.
		return listenerView{dialect: v.dialect, router: true, cluster: v.cluster, families: v.families, pass: v.pass, http: v.http, labels: pick(v.labels, n.labels), proxied: v.proxied}
	}
	if !n.cluster && v.dialect != GRPC { // a gRPC client's listeners all have an address
		v.cluster = ""
	}
	if !n.network {
		v.network = ""
	}
	v.labels = pick(v.labels, n.labels)
	return v
}

func buildListeners(r listenerRow, v listenerView) (m made) {
	switch {
	case r.svc == nil:
		if v.dialect != GRPC && !v.router {
			name, _, _ := listenOn(v.families, namedPort)
			m.fragments = []fragment{{group: name}}
		}
		return m
	case r.svc.Alias != nil:
		if v.dialect == GRPC { // its clients ask by name
			m = grpcListeners(r, v, r.svc.Alias.In(v.cluster))
		}
		return m
	}
	r.choice = r.of(v.labels)
	part := r.svc.In(v.cluster)
	switch {
	case v.dialect == GRPC:
		return grpcListeners(r, v, part)
	case v.router:
		return r.passthroughChains(v, part)
	}
	for _, p := range part.Ports {
		switch proto := p.Protocol(); {
		case proto == mesh.UDP:
		case proto.IsHTTP() && slices.Contains(ownPorts, p.Number):
			// A listener for all addresses would be in the way of the proxy's own.
		case proto.IsHTTP():
			name, _, _ := listenOn(v.families, p.Number)
			m.fragments = append(m.fragments, fragment{group: name})
		case part.Cluster != v.cluster:
			// Its addresses are of another cluster, and may be another service's here.
		case part.Headless:
			m.fragments = append(m.fragments, r.headless(v, p, &m.faults)...)
		default:
			for _, ip := range part.ClusterIPs {
				if hasFamily(ip, v.families) {
					l := r.taken(v, p, ip, p.Number, &m.faults)
					m.resources = append(m.resources, newResource(l.Name, l))
				}
			}
		}
	}
	return m
}

func hasFamily(ip string, f Family) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && (a.Is4() && f&IPv4 != 0 || a.Is6() && f&IPv6 != 0)
}

// ownPorts are those that a sidecar itself listens on, on all addresses.
var ownPorts = []uint16{15001, 15006, 15021, 15090}

// headless returns a listener for each pod of the proxy's own network: clients connect to these. Several
// services may have the same pods; the first holds.
func (r listenerRow) headless(v listenerView, p mesh.ServicePort, f *faults) (fs []fragment) {
	if r.eps == nil {
		return nil
	}
	seen := map[string]bool{}
	for _, e := range r.eps.On(p.Number) {
		ip := address(&e, v.families)
		if !e.Ready || ip == "" || e.Network != v.network || seen[ip] {
			continue
		}
		seen[ip] = true
		l := r.taken(v, p, ip, e.Port, f) // a client that resolves a pod connects to where it listens
		fs = append(fs, fragment{group: l.Name, bytes: encode(l), whole: true})
	}
	return fs
}

// taken returns the listener that proxies take: without the routes that they would refuse.
func (r listenerRow) taken(v listenerView, p mesh.ServicePort, ip string, port uint16, f *faults) *listenerv3.Listener {
	l := r.listenerOf(v, p, ip, port)
	if r.route == nil {
		return l
	}
	if err := refusal(l); err != nil {
		f.add(r.route.Key(), err)
		r.route = nil
		l = r.listenerOf(v, p, ip, port)
	}
	return l
}

// listenerOf returns the listener of one address of a service whose port is not known to speak HTTP.
func (r listenerRow) listenerOf(v listenerView, p mesh.ServicePort, ip string, port uint16) *listenerv3.Listener {
	name := ip + "_" + strconv.Itoa(int(port))
	l := outboundListener(name, socketAddress(ip, uint32(port)), v.http)
	own := weighted{clusterName(p.Number, "", r.svc.Host), 1}
	to := []weighted{own}
	if p.Protocol().IsTLS() {
		if l.FilterChains = r.tlsChains(v, p, ip); len(l.FilterChains) > 0 {
			l.ListenerFilters = []*listenerv3.ListenerFilter{sniffTLS(nil)}
			if !v.allowAny {
				own.cluster = blackHole // the routes say which names may be reached
				to = []weighted{own}
			}
		}
	} else if x := r.tcpRoute(v, p, ip); x != nil {
		to = x
	}
	chain := &listenerv3.FilterChain{
		TransportSocketConnectTimeout: seconds(15), Filters: v.http.tcpWithin(r.limits(v, nil, p), own.cluster, to...),
	}
	if p.Protocol() == mesh.Auto {
		route := r.svc.Host + ":" + strconv.Itoa(int(p.Number))
		l.FilterChains = []*listenerv3.FilterChain{sniffedHTTP(v.http.connectionManager("outbound_"+name), route)}
		l.ListenerFilters = []*listenerv3.ListenerFilter{sniffHTTP(nil)}
		l.DefaultFilterChain = chain
		return l
	}
	if len(l.FilterChains) > 0 {
		l.DefaultFilterChain = chain
		return l
	}
	l.FilterChains = []*listenerv3.FilterChain{chain}
	return l
}

// limits returns the limits that the host's rule, or MeshConfig, has for connections to a port.
func (r listenerRow) limits(v listenerView, subset *networking.Subset, p mesh.ServicePort) connectionLimits {
	return connectionLimitsOf(withDefaults(policyFor(r.rule, subset, p.Number), v.http.policy))
}

func outboundListener(name string, a *core.Address, s httpSettings) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: name, Address: a, BindToPort: boolean(false), TrafficDirection: core.TrafficDirection_OUTBOUND,
		ContinueOnListenerFiltersTimeout: true, ListenerFiltersTimeout: &durationpb.Duration{Seconds: s.detect / 1e9, Nanos: int32(s.detect % 1e9)},
	}
}

// listenerFrame returns the listener that all services of one HTTP port share. Which service is meant,
// the request's Host says.
func listenerFrame(group string, v listenerView) frame {
	_, portText, _ := strings.Cut(group, "_")
	n, _ := strconv.ParseUint(portText, 10, 16)
	name, a, more := listenOn(v.families, uint16(n))
	if v.router {
		return frame{head: encode(passthroughListener(name, a, more, v))}
	}
	l := outboundListener(name, a, v.http)
	l.AdditionalAddresses = more
	l.ListenerFilters = []*listenerv3.ListenerFilter{sniffHTTP(nil)}
	l.FilterChains = []*listenerv3.FilterChain{sniffedHTTP(v.http.connectionManager("outbound_"+name), portText)}
	to := otherwise(v.allowAny)
	l.DefaultFilterChain = &listenerv3.FilterChain{Name: "PassthroughFilterChain", Filters: v.http.tcp(to, weighted{to, 1})}
	return frame{head: encode(l)}
}

// otherwise is where traffic goes that the mesh knows nothing of.
func otherwise(allowAny bool) string {
	if allowAny {
		return passthrough
	}
	return blackHole
}

// virtualOutbound takes all redirected connections, hands those that some listener is for over to it,
// and lets the others through, or not.
func virtualOutbound(f Family, allowAny bool, s httpSettings) *listenerv3.Listener {
	_, a, more := listenOn(f, 15001)
	to := otherwise(allowAny)
	return &listenerv3.Listener{
		Name: "virtualOutbound", Address: a, AdditionalAddresses: more, TrafficDirection: core.TrafficDirection_OUTBOUND,
		UseOriginalDst: boolean(true), MaxConnectionsToAcceptPerSocketEvent: u32(1), AccessLog: s.log.accessLogs(true),
		FilterChains: []*listenerv3.FilterChain{
			{Name: "virtualOutbound-blackhole", FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: u32(15001)}, Filters: silentBlackHole()},
			{Name: "virtualOutbound-catchall-tcp", Filters: s.tcp(to, weighted{to, 1})},
		},
	}
}

// tcpRoute returns where the host's VirtualService sends TCP connections to an address, or nil if it does
// not say.
func (r listenerRow) tcpRoute(v listenerView, p mesh.ServicePort, ip string) []weighted {
	if r.route == nil {
		return nil
	}
	for _, t := range r.route.Spec.GetTcp() {
		if len(t.GetMatch()) == 0 || slices.ContainsFunc(t.GetMatch(), func(m *networking.L4MatchAttributes) bool {
			return (m.GetPort() == 0 || m.GetPort() == uint32(p.Number)) && inMesh(m.GetGateways()) &&
				inSubnets(ip, m.GetDestinationSubnets()) && r.from(v, m.GetSourceNamespace(), m.GetSourceLabels())
		}) {
			return r.spread(t.GetRoute(), p.Number)
		}
	}
	return nil
}

// from reports whether a match by namespace and labels is for the client.
func (r listenerRow) from(v listenerView, namespace string, labels map[string]string) bool {
	return (namespace == "" || namespace == r.client) && mesh.Selects(labels, labelMap(v.labels))
}

func inMesh(gateways []string) bool { return len(gateways) == 0 || slices.Contains(gateways, "mesh") }

// inSubnets reports whether an address is in one of the subnets, or there are none. A listener for one address
// has no connections to others, so what a match says of them is known without them.
func inSubnets(ip string, subnets []string) bool {
	if len(subnets) == 0 {
		return true
	}
	a, err := netip.ParseAddr(ip)
	return err == nil && slices.ContainsFunc(subnets, func(s string) bool {
		if one, err := netip.ParseAddr(s); err == nil {
			return one == a
		}
		p, err := netip.ParsePrefix(s)
		return err == nil && p.Contains(a)
	})
}

func (r listenerRow) spread(routes []*networking.RouteDestination, port uint16) (to []weighted) {
	for _, d := range routes {
		w := uint32(d.GetWeight())
		if w == 0 {
			if len(routes) > 1 {
				continue
			}
			w = 1
		}
		to = append(to, weighted{destinationCluster(d.GetDestination(), r.targets.Service, r.route.Resolve, port), w})
	}
	return to
}

// tlsChains returns a chain for each TLS route of the host's VirtualService that holds for an address: chosen
// by SNI.
func (r listenerRow) tlsChains(v listenerView, p mesh.ServicePort, ip string) (chains []*listenerv3.FilterChain) {
	if r.route == nil {
		return nil
	}
	taken := map[string]bool{} // server names, each of which one chain may have
	for _, t := range r.route.Spec.GetTls() {
		for _, m := range t.GetMatch() {
			if m.GetPort() != 0 && m.GetPort() != uint32(p.Number) || !inMesh(m.GetGateways()) ||
				!inSubnets(ip, m.GetDestinationSubnets()) || !r.from(v, m.GetSourceNamespace(), m.GetSourceLabels()) {
				continue
			}
			to := r.spread(t.GetRoute(), p.Number)
			var names []string
			for _, name := range m.GetSniHosts() {
				if name = strings.ToLower(name); !taken[name] {
					taken[name], names = true, append(names, name)
				}
			}
			if len(to) == 0 || len(names) == 0 {
				continue
			}
			chains = append(chains, &listenerv3.FilterChain{
				FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: names},
				Filters:          v.http.tcpWithin(r.limits(v, nil, p), to[0].cluster, to...), TransportSocketConnectTimeout: seconds(15),
			})
		}
	}
	return chains
}
