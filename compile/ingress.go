package compile

import (
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// build makes the listeners and routes of a gateway. A server that cannot be honoured is left out, and so
// is a second one for the same connections: the others stay.
func (g *gateway) build() *workload {
	w := &workload{from: g, passthrough: g.passthrough()}
	w.clusters = partOf([]*resource.Resource{blackHoleCluster(g.settings)})
	byAddress := map[listenAddress][]*server{}
	for _, s := range g.servers {
		a := s.listenAddress()
		byAddress[a] = append(byAddress[a], s)
	}
	var listeners, routes []*resource.Resource
	for at, servers := range byAddress {
		l, tables := g.listener(at, servers, &w.faults)
		if l == nil {
			continue
		}
		listeners = append(listeners, newResource(l.Name, l))
		for _, t := range tables {
			routes = append(routes, newResource(t.Name, t))
		}
	}
	w.listeners, w.routes = partOf(listeners), partOf(routes)
	w.secrets = g.secretList()
	return w
}

// listener returns the listener of one address and the route tables that it asks for, or nil if the port only
// passes through.
func (g *gateway) listener(at listenAddress, servers []*server, f *faults) (*listenerv3.Listener, []*routev3.RouteConfiguration) {
	if slices.ContainsFunc(servers, (*server).isPassthrough) {
		return nil, nil // the listener is the aggregate of all that is exposed
	}
	name, a, more := at.on(g.families)
	l := &listenerv3.Listener{
		Name: name, Address: a, AdditionalAddresses: more, TrafficDirection: core.TrafficDirection_OUTBOUND,
		MaxConnectionsToAcceptPerSocketEvent: u32(1), AccessLog: g.http.log.accessLogs(true),
	}
	if g.topology.ProxyProtocol {
		l.ListenerFilters = []*listenerv3.ListenerFilter{proxyProtocol()}
	}
	chains := chainSet{l: l, taken: map[string]bool{}, faults: f}
	var plain []*server
	var tables []*routev3.RouteConfiguration
	for _, s := range servers {
		chains.about = s.gateway.Key()
		switch proto := s.protocol(); {
		case proto.IsHTTP():
			plain = append(plain, s)
		case proto == mesh.HTTPS && terminates(s.GetTls()):
			m := g.connectionManager(name, s.routeName())
			if chains.add(s.serverNames(), httpChain(m), g.downstreamTLS(s.GetTls(), true)) {
				tables = append(tables, g.table(s.routeName(), []*server{s}, f))
			}
		case proto.IsTLS() && terminates(s.GetTls()):
			if to, limits, ok := g.tcpRoute(s); ok {
				chains.add(s.serverNames(), g.http.tcpWithin(limits, to[0].cluster, to...), g.downstreamTLS(s.GetTls(), false))
			}
		case proto.IsTLS():
			g.sniChains(&chains, s)
		default:
			if to, limits, ok := g.tcpRoute(s); ok {
				chains.add(nil, g.http.tcpWithin(limits, to[0].cluster, to...), nil)
			}
		}
	}
	if len(plain) > 0 {
		table := g.table(at.routeName(), plain, f)
		chains.about = plain[0].gateway.Key()
		m := g.connectionManager(name, table.Name)
		if g.web && slices.ContainsFunc(plain, func(s *server) bool { return s.protocol() == mesh.GRPCWeb }) {
			translateWeb(m)
		}
		if chains.add(nil, httpChain(m), nil) {
			tables = append(tables, table)
		}
	}
	if len(l.FilterChains) == 0 {
		return nil, nil
	}
	return l, tables
}

func terminates(t *networking.ServerTLSSettings) bool {
	switch t.GetMode() {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_OPTIONAL_MUTUAL, networking.ServerTLSSettings_ISTIO_MUTUAL:
		return t != nil
	}
	return false
}

// chainSet is the filter chains of a listener, no two of which may be for the same connections.
type chainSet struct {
	sniffs bool // the listener looks for TLS
	l      *listenerv3.Listener
	taken  map[string]bool
	about  mesh.Key // the object that the next chain is for
	faults *faults
}

// add adds a chain for server names (none: all), those left out that another chain has. One that proxies would
// refuse the listener for is left out.
func (c *chainSet) add(names []string, filters []*listenerv3.Filter, tls *core.TransportSocket) bool {
	key := func(name string) string { return name + "/" + strconv.FormatBool(tls != nil || len(names) > 0) }
	if len(names) == 0 {
		if c.taken[key("")] {
			return false
		}
		c.taken[key("")] = true
	}
	var free []string
	for _, n := range names {
		if !c.taken[key(n)] {
			c.taken[key(n)] = true
			free = append(free, n)
		}
	}
	if len(names) > 0 && len(free) == 0 {
		return false
	}
	chain := &listenerv3.FilterChain{Filters: filters, TransportSocket: tls, TransportSocketConnectTimeout: seconds(15)}
	chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: free}
	if err := refusal(chain); err != nil {
		c.faults.add(c.about, err)
		for _, n := range free {
			delete(c.taken, key(n))
		}
		if len(names) == 0 {
			delete(c.taken, key(""))
		}
		return false
	}
	chain.FilterChainMatch = nil
	if tls != nil || len(free) > 0 {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: free, TransportProtocol: "tls"}
		c.sniffTLS()
	}
	c.l.FilterChains = append(c.l.FilterChains, chain)
	return true
}

// sniffTLS has the listener look for TLS, once.
func (c *chainSet) sniffTLS() {
	if !c.sniffs {
		c.sniffs = true
		c.l.ListenerFilters = append(c.l.ListenerFilters, sniffTLS(nil))
	}
}

// serverNames returns the SNI names of a server; none is all.
func (s *server) serverNames() []string {
	hosts := s.patterns()
	if slices.Contains(hosts, "*") {
		return nil
	}
	return hosts
}

func (g *gateway) connectionManager(listener, routes string) *hcmv3.HttpConnectionManager {
	m := byRDS(g.http.connectionManager("outbound_"+listener), routes)
	m.UseRemoteAddress = boolean(true)
	m.XffNumTrustedHops = g.topology.Hops
	var adds bool
	if m.ForwardClientCertDetails, adds = clientCertDetails(g.topology.ClientCert); adds {
		m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Subject: boolean(true), Cert: true, Dns: true, Uri: true}
	}
	m.ServerName = "istio-envoy"
	m.HttpProtocolOptions = http1Options(g.http.http1)
	return m
}

// table returns the routes of servers that share one: a virtual host for each host.
func (g *gateway) table(name string, servers []*server, f *faults) *routev3.RouteConfiguration {
	t := routeTable(name)
	t.IgnorePortInHostMatching = true
	byHost := map[string]*routev3.VirtualHost{}
	host := func(s *server, name string) *routev3.VirtualHost {
		h := byHost[name]
		if h == nil {
			h = &routev3.VirtualHost{
				Name: name + ":" + strconv.Itoa(int(s.GetPort().GetNumber())), Domains: []string{name}, IncludeRequestAttemptCount: true,
			}
			byHost[name], t.VirtualHosts = h, append(t.VirtualHosts, h)
		}
		if s.GetTls().GetHttpsRedirect() {
			h.RequireTls = routev3.VirtualHost_ALL
		}
		return h
	}
	for _, s := range servers {
		for _, b := range s.services {
			if len(b.Spec.GetHttp()) == 0 {
				continue
			}
			routes := g.routes(s, b)
			if err := firstRefusal(routes); err != nil {
				f.add(b.Key(), err)
				continue
			}
			for _, name := range b.hosts {
				h := host(s, name)
				h.Routes = appendRoutes(h.Routes, routes)
			}
		}
		if s.GetTls().GetHttpsRedirect() {
			for _, name := range s.patterns() {
				host(s, name)
			}
		}
	}
	if len(t.VirtualHosts) == 0 {
		t.VirtualHosts = []*routev3.VirtualHost{{Name: "blackhole:" + strconv.Itoa(int(servers[0].GetPort().GetNumber())), Domains: []string{"*"}}}
	}
	slices.SortFunc(t.VirtualHosts, func(a, b *routev3.VirtualHost) int { return strings.Compare(a.Name, b.Name) })
	return t
}

// appendRoutes appends the routes of another VirtualService; a route that takes everything stays last.
func appendRoutes(all, more []*routev3.Route) []*routev3.Route {
	if n := len(all); n > 0 && takesAll(all[n-1].Match) {
		var particular []*routev3.Route
		for _, r := range more {
			if !takesAll(r.Match) {
				particular = append(particular, r)
			}
		}
		return slices.Concat(all[:n-1], particular, all[n-1:])
	}
	return slices.Concat(all, more)
}

func (g *gateway) routes(s *server, b *binding) []*routev3.Route {
	t := translation{
		service: b.VirtualService, resolve: b.resolve, port: uint16(s.GetPort().GetNumber()), retry: g.retry,
		target:   func(host string) *mesh.HostService { return b.targets[host] },
		rule:     func(host string) *mesh.Rule { return b.rules[host] },
		gateways: []string{s.gateway.Namespace + "/" + s.gateway.Name},
		labels:   labelMap(g.labels), client: g.namespace, tls: terminates(s.GetTls()),
	}
	return t.routes()
}

// tcpRoute returns where the VirtualServices of a server send connections, and within which limits.
func (g *gateway) tcpRoute(s *server) ([]weighted, connectionLimits, bool) {
	for _, b := range s.services {
		for _, r := range b.Spec.GetTcp() {
			if len(r.GetMatch()) > 0 && !slices.ContainsFunc(r.GetMatch(), func(m *networking.L4MatchAttributes) bool {
				return (m.GetPort() == 0 || m.GetPort() == s.GetPort().GetNumber()) && s.named(m.GetGateways(), b.Namespace)
			}) {
				continue
			}
			if to := b.spread(r.GetRoute(), s); len(to) > 0 {
				return to, g.limits(b, r.GetRoute(), s), true
			}
		}
	}
	return nil, connectionLimits{}, false
}

// limits returns the limits that the rule of the first destination, or MeshConfig, has for connections.
func (g *gateway) limits(b *binding, routes []*networking.RouteDestination, s *server) connectionLimits {
	d := routes[0].GetDestination()
	port := s.GetPort().GetNumber()
	if n := d.GetPort().GetNumber(); n != 0 {
		port = n
	}
	host := b.resolve(d.GetHost())
	if s := b.targets[host]; s != nil {
		host = s.Concrete().Host
	}
	rule := b.rules[host]
	for _, subset := range subsetsOf(rule) {
		if subset.GetName() == d.GetSubset() {
			return connectionLimitsOf(withDefaults(policyFor(rule, subset, uint16(port)), g.settings.policy))
		}
	}
	return connectionLimitsOf(withDefaults(nil, g.settings.policy))
}

// named reports whether a match is for the server's gateway.
func (s *server) named(gateways []string, namespace string) bool {
	return len(gateways) == 0 || slices.ContainsFunc(gateways, func(g string) bool {
		return qualify(g, namespace) == s.gateway.Namespace+"/"+s.gateway.Name
	})
}

func (b *binding) spread(routes []*networking.RouteDestination, s *server) (to []weighted) {
	for _, d := range routes {
		w := uint32(d.GetWeight())
		if w == 0 && len(routes) > 1 {
			continue
		}
		target := func(host string) *mesh.HostService { return b.targets[host] }
		to = append(to, weighted{destinationCluster(d.GetDestination(), target, b.resolve, uint16(s.GetPort().GetNumber())), max(w, 1)})
	}
	return to
}

// sniChains adds a chain for each TLS route of a server that passes TLS through.
func (g *gateway) sniChains(chains *chainSet, s *server) {
	for _, b := range s.services {
		chains.about = b.Key()
		for _, r := range b.Spec.GetTls() {
			for _, m := range r.GetMatch() {
				if m.GetPort() != 0 && m.GetPort() != s.GetPort().GetNumber() || !s.named(m.GetGateways(), b.Namespace) {
					continue
				}
				names := m.GetSniHosts()
				if slices.Contains(names, "*") {
					names = nil
				}
				if to := b.spread(r.GetRoute(), s); len(to) > 0 {
					chains.addSNI(names, g.http.tcpWithin(g.limits(b, r.GetRoute(), s), to[0].cluster, to...))
				}
			}
		}
		if len(b.Spec.GetTls()) == 0 { // TCP routes, whatever the name
			only := &server{Server: s.Server, gateway: s.gateway, bind: s.bind, services: []*binding{b}}
			if to, limits, ok := g.tcpRoute(only); ok {
				chains.addSNI(s.serverNames(), g.http.tcpWithin(limits, to[0].cluster, to...))
			}
		}
	}
}

// addSNI adds a chain that does not end TLS.
func (c *chainSet) addSNI(names []string, filters []*listenerv3.Filter) {
	if c.add(names, filters, nil) && len(names) == 0 {
		chain := c.l.FilterChains[len(c.l.FilterChains)-1]
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls"}
		c.sniffTLS()
	}
}
