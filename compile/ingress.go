package compile

import (
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// build makes the listeners and routes of a gateway. A server that cannot be honoured is left out, and so
// is a second one for the same connections: the others stay.
func (g *gateway) build() *workload {
	w := &workload{from: g, passthrough: g.passthrough()}
	w.clusters = partOf([]*resource.Resource{blackHoleCluster(g.settings)})
	byPort := map[uint16][]*server{}
	for _, s := range g.servers {
		byPort[s.bind] = append(byPort[s.bind], s)
	}
	var listeners, routes []*resource.Resource
	for port, servers := range byPort {
		l, tables := g.listener(port, servers)
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

// listener returns the listener of one port and the route tables that it asks for, or nil if the port only
// passes through.
func (g *gateway) listener(port uint16, servers []*server) (*listenerv3.Listener, []*routev3.RouteConfiguration) {
	if slices.ContainsFunc(servers, (*server).isPassthrough) {
		return nil, nil // the listener is the aggregate of all that is exposed
	}
	name, a, more := listenOn(g.families, port)
	l := &listenerv3.Listener{
		Name: name, Address: a, AdditionalAddresses: more, TrafficDirection: core.TrafficDirection_OUTBOUND,
		MaxConnectionsToAcceptPerSocketEvent: u32(1), AccessLog: g.http.log.accessLogs(true),
	}
	chains := chainSet{l: l, taken: map[string]bool{}}
	var plain []*server
	var tables []*routev3.RouteConfiguration
	for _, s := range servers {
		switch proto := s.protocol(); {
		case proto.IsHTTP():
			plain = append(plain, s)
		case proto == mesh.HTTPS && terminates(s.GetTls()):
			m := g.connectionManager(name, s.routeName())
			if chains.add(s.serverNames(), httpChain(m), g.downstreamTLS(s.GetTls(), true)) {
				tables = append(tables, g.table(s.routeName(), []*server{s}))
			}
		case proto.IsTLS() && terminates(s.GetTls()):
			if to, ok := g.tcpRoute(s); ok {
				chains.add(s.serverNames(), g.http.tcp(to[0].cluster, to...), g.downstreamTLS(s.GetTls(), false))
			}
		case proto.IsTLS():
			g.sniChains(&chains, s)
		default:
			if to, ok := g.tcpRoute(s); ok {
				chains.add(nil, g.http.tcp(to[0].cluster, to...), nil)
			}
		}
	}
	if len(plain) > 0 {
		table := g.table("http."+strconv.Itoa(int(port)), plain)
		if chains.add(nil, httpChain(g.connectionManager(name, table.Name)), nil) {
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
	l     *listenerv3.Listener
	taken map[string]bool
}

// add adds a chain for server names (none: all), those left out that another chain has.
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
	if tls != nil || len(free) > 0 {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: free, TransportProtocol: "tls"}
		if len(c.l.ListenerFilters) == 0 {
			c.l.ListenerFilters = []*listenerv3.ListenerFilter{sniffTLS(nil)}
		}
	}
	c.l.FilterChains = append(c.l.FilterChains, chain)
	return true
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
	m.XffNumTrustedHops = g.hops
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Subject: boolean(true), Cert: true, Dns: true, Uri: true}
	m.ServerName = "istio-envoy"
	m.HttpProtocolOptions = &core.Http1ProtocolOptions{}
	return m
}

// table returns the routes of servers that share one: a virtual host for each host.
func (g *gateway) table(name string, servers []*server) *routev3.RouteConfiguration {
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

// tcpRoute returns where the VirtualServices of a server send connections.
func (g *gateway) tcpRoute(s *server) ([]weighted, bool) {
	for _, b := range s.services {
		for _, r := range b.Spec.GetTcp() {
			if len(r.GetMatch()) > 0 && !slices.ContainsFunc(r.GetMatch(), func(m *networking.L4MatchAttributes) bool {
				return (m.GetPort() == 0 || m.GetPort() == s.GetPort().GetNumber()) && s.named(m.GetGateways(), b.Namespace)
			}) {
				continue
			}
			if to := b.spread(r.GetRoute(), s); len(to) > 0 {
				return to, true
			}
		}
	}
	return nil, false
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
					chains.addSNI(names, g.http.tcp(to[0].cluster, to...))
				}
			}
		}
		if len(b.Spec.GetTls()) == 0 { // TCP routes, whatever the name
			if to, ok := g.tcpRoute(&server{Server: s.Server, gateway: s.gateway, bind: s.bind, services: []*binding{b}}); ok {
				chains.addSNI(s.serverNames(), g.http.tcp(to[0].cluster, to...))
			}
		}
	}
}

// addSNI adds a chain that does not end TLS.
func (c *chainSet) addSNI(names []string, filters []*listenerv3.Filter) {
	if c.add(names, filters, nil) && len(names) == 0 {
		chain := c.l.FilterChains[len(c.l.FilterChains)-1]
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls"}
		if len(c.l.ListenerFilters) == 0 {
			c.l.ListenerFilters = []*listenerv3.ListenerFilter{sniffTLS(nil)}
		}
	}
}

var tlsVersion = map[networking.ServerTLSSettings_TLSProtocol]tlsv3.TlsParameters_TlsProtocol{
	networking.ServerTLSSettings_TLSV1_2: tlsv3.TlsParameters_TLSv1_2,
	networking.ServerTLSSettings_TLSV1_3: tlsv3.TlsParameters_TLSv1_3,
}

// cipherSuites are those of TLS 1.2 that a server may name, as OpenSSL calls them. Proxies refuse a whole
// listener for any other.
var cipherSuites = []string{
	"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
	"ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
	"ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA",
}

// downstreamTLS returns the transport socket of a server that ends TLS. Versions below 1.2 are not offered,
// whatever the server says.
func (g *gateway) downstreamTLS(t *networking.ServerTLSSettings, http bool) *core.TransportSocket {
	if t.Mode == networking.ServerTLSSettings_ISTIO_MUTUAL {
		alpn := serverALPN
		if !http {
			alpn = nil
		}
		return serverTLS(alpn, g.settings.trust)
	}
	c := &tlsv3.CommonTlsContext{TlsParams: serverTLSParams()}
	if http {
		c.AlpnProtocols = serverALPN
	}
	if known := slices.DeleteFunc(slices.Clone(t.GetCipherSuites()), func(n string) bool { return !slices.Contains(cipherSuites, n) }); len(known) > 0 {
		c.TlsParams.CipherSuites = known
	}
	if v, ok := tlsVersion[t.GetMinProtocolVersion()]; ok {
		c.TlsParams.TlsMinimumProtocolVersion = v
	}
	if v, ok := tlsVersion[t.GetMaxProtocolVersion()]; ok {
		c.TlsParams.TlsMaximumProtocolVersion = v
	}
	name := "kubernetes://" + t.GetCredentialName()
	if t.GetCredentialName() != "" {
		c.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{{Name: name, SdsConfig: ads()}}
	} else {
		c.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(t.GetServerCertificate()), PrivateKey: file(t.GetPrivateKey())}}
	}
	mutual := t.Mode == networking.ServerTLSSettings_MUTUAL || t.Mode == networking.ServerTLSSettings_OPTIONAL_MUTUAL
	if mutual {
		v := &tlsv3.CertificateValidationContext{}
		for _, san := range t.GetSubjectAltNames() {
			v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames, uriSAN(exact(san)), &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exact(san)})
		}
		if t.GetCredentialName() != "" {
			c.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: v, ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: name + "-cacert", SdsConfig: ads()},
			}}
		} else {
			v.TrustedCa = file(t.GetCaCertificates())
			c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}
		}
	}
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.DownstreamTlsContext{
		CommonTlsContext: c, RequireClientCertificate: boolean(t.Mode == networking.ServerTLSSettings_MUTUAL),
	})}}
}

// secretList returns the TLS material that servers name, for the gateway alone.
func (g *gateway) secretList() *resource.List {
	var rs []*resource.Resource
	add := func(s *tlsv3.Secret) { rs = append(rs, newResource(s.Name, s)) }
	seen := map[string]bool{}
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	for _, c := range g.secrets {
		name := "kubernetes://" + c.Name
		if len(c.Cert) > 0 && len(c.PrivateKey) > 0 {
			add(&tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
				CertificateChain: inline(c.Cert), PrivateKey: inline(c.PrivateKey),
			}}})
		}
		if !strings.HasSuffix(name, "-cacert") {
			name += "-cacert"
		}
		if len(c.CA) > 0 && !seen[name] {
			seen[name] = true
			add(&tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(c.CA)}}})
		}
	}
	if p := partOf(rs); p != nil {
		return &resource.List{Parts: []*resource.Part{p}}
	}
	return nil
}
