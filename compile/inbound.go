package compile

import (
	"cmp"
	"slices"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// sidecar is what the own resources of a sidecar depend on.
type sidecar struct {
	families Family
	allowAny bool
	web      bool // translates gRPC-Web where some port speaks it: Envoy can
	loopback bool // applications listen there, whatever their clients connected to
	http     httpSettings
	settings clusterSettings
	mode     mesh.MTLS // of ports that are not in ports
	ports    []inboundPort
}

// inboundPort is a port of the workload, with the oldest service that leads to it.
type inboundPort struct {
	port                     uint16
	protocol                 mesh.Protocol
	mode                     mesh.MTLS
	host, namespace, service string // "" if no service leads to it, but a policy names it
	servicePort              uint16
	portName                 string
	pool                     string // encoded ConnectionPoolSettings of the service's rule
}

// target is a port of a workload and the first Service that leads to it.
type target struct {
	port    uint16
	service *mesh.Service
	of      mesh.ServicePort
}

// targets returns the TCP ports of a workload that Services lead to, each once.
func targets(s *mesh.Snapshot, p Proxy) (all []target) {
	seen := map[uint16]bool{}
	for _, svc := range instances(s, p) {
		for _, port := range svc.Ports {
			n := targetPort(p, port)
			if n == 0 || seen[n] || port.Protocol() == mesh.UDP {
				continue
			}
			seen[n] = true
			all = append(all, target{n, svc, port})
		}
	}
	return all
}

func sidecarOf(s *mesh.Snapshot, p Proxy) sidecar {
	c := s.Config()
	r := sidecar{families: p.Families, allowAny: c.AllowAny, loopback: c.InboundLoopback, http: httpSettingsOf(c, p), settings: clusterSettingsOf(c, p)}
	mode, modes := s.Policies().Modes(p.Namespace, labelMap(p.Labels))
	r.mode = mode
	seen := map[uint16]bool{}
	for _, t := range targets(s, p) {
		n, svc := t.port, t.service
		seen[n] = true
		r.web = r.web || p.Dialect == Envoy && t.of.Protocol() == mesh.GRPCWeb
		host := s.HostName(svc.Namespace, svc.Name)
		r.ports = append(r.ports, inboundPort{
			n, t.of.Protocol(), modeOn(n, mode, modes), host, svc.Namespace, svc.Name, t.of.Number, t.of.Name,
			inboundPool(s, p, host, t.of.Number),
		})
	}
	for n, m := range modes {
		if !seen[n] && m != mode {
			r.ports = append(r.ports, inboundPort{port: n, mode: m})
		}
	}
	slices.SortFunc(r.ports, func(a, b inboundPort) int { return cmp.Compare(a.port, b.port) })
	return r
}

// inboundPool returns what the rule of a service says of connections to one of its ports, for they are
// limited on the server's side as well as on the client's. It is encoded, so that equal content is equal.
func inboundPool(s *mesh.Snapshot, p Proxy, host string, port uint16) string {
	var rule *mesh.Rule
	if h := s.Host(host); h != nil && h.Service != nil {
		rule = choiceOf(h, p.Namespace).of(p.Labels).rule
	}
	pool := withDefaults(policyFor(rule, nil, port), s.Config().DefaultPolicy).GetConnectionPool()
	if pool == nil {
		return ""
	}
	return string(encode(pool))
}

func modeOn(port uint16, mode mesh.MTLS, ports map[uint16]mesh.MTLS) mesh.MTLS {
	if m, ok := ports[port]; ok {
		return m
	}
	return mode
}

func (r sidecar) build() *workload {
	w := &workload{from: r}
	bind := r.bind()
	clusters := []*resource.Resource{blackHoleCluster(r.settings)}
	for _, c := range []*clusterv3.Cluster{originalDst(passthrough, r.settings, nil, true), originalDst(inboundPassthrough, r.settings, bind, true)} {
		clusters = append(clusters, newResource(c.Name, c))
	}
	for _, p := range r.ports {
		if p.host != "" {
			c := r.cluster(p, bind)
			clusters = append(clusters, newResource(c.Name, c))
		}
	}
	w.clusters = partOf(clusters)
	w.listeners = partOf([]*resource.Resource{
		newResource("virtualOutbound", virtualOutbound(r.families, r.allowAny, r.http)),
		newResource("virtualInbound", r.listener()),
	})
	return w
}

// bind makes connections to the application come from 127.0.0.6 or ::6, by which redirection knows not to
// redirect them again.
func (r sidecar) bind() *core.BindConfig {
	address := func(ip string) *core.SocketAddress {
		return &core.SocketAddress{Address: ip, PortSpecifier: &core.SocketAddress_PortValue{PortValue: 0}}
	}
	if r.families == IPv6 {
		return &core.BindConfig{SourceAddress: address("::6")}
	}
	b := &core.BindConfig{SourceAddress: address("127.0.0.6")}
	if r.families&IPv6 != 0 {
		b.ExtraSourceAddresses = []*core.ExtraSourceAddress{{Address: address("::6")}}
	}
	return b
}

func (r sidecar) cluster(p inboundPort, bind *core.BindConfig) *clusterv3.Cluster {
	c := originalDst(inboundName(p.port), r.settings, bind, false)
	if r.loopback {
		toLoopback(c, r.families, p.port)
	} else {
		c.CleanupInterval = seconds(9223372035) // the longest there is: an application's address does not age
	}
	c.AltStatName = statName(r.settings.inboundStats, statOf{
		host: p.host, service: p.service, namespace: p.namespace, port: p.servicePort, portName: p.portName, target: p.port,
	})
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{}
	c.Metadata = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"istio": fields("services", listOf(structOf("host", text(p.host), "name", text(p.service), "namespace", text(p.namespace)))),
	}}
	http := &httpv3.HttpProtocolOptions{}
	keepAlive(c, r.settings.keepalive)
	pool := &networking.ConnectionPoolSettings{}
	_ = proto.Unmarshal([]byte(p.pool), pool) // inboundPool has encoded it
	applyPool(c, http, &networking.TrafficPolicy{ConnectionPool: pool})
	setProtocol(c, http, upstreamHTTP{p.protocol, p.protocol.IsHTTP2(), pool.GetHttp().GetUseClientProtocol(), http2Options(pool.GetHttp()), r.settings.keepCase})
	return c
}

// toLoopback makes a cluster lead to a port of the loopback address.
func toLoopback(c *clusterv3.Cluster, f Family, port uint16) {
	ip := "127.0.0.1"
	if f == IPv6 {
		ip = "::1"
	}
	c.ClusterDiscoveryType, c.LbPolicy = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, clusterv3.Cluster_ROUND_ROBIN
	c.UpstreamBindConfig = nil
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: c.Name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(ip, uint32(port))}},
		}},
	}}}
}

// listener takes all redirected connections to the workload.
func (r sidecar) listener() *listenerv3.Listener {
	_, a, more := listenOn(r.families, 15006)
	l := &listenerv3.Listener{
		Name: "virtualInbound", Address: a, AdditionalAddresses: more, TrafficDirection: core.TrafficDirection_INBOUND,
		MaxConnectionsToAcceptPerSocketEvent: u32(1), AccessLog: r.http.log.accessLogs(true),
		ContinueOnListenerFiltersTimeout: true, ListenerFiltersTimeout: outboundListener("", nil, r.http).ListenerFiltersTimeout,
		FilterChains: []*listenerv3.FilterChain{{
			Name: "virtualInbound-blackhole", FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: u32(15006)}, Filters: silentBlackHole(),
		}},
	}
	l.FilterChains = append(l.FilterChains, r.chains(inboundPort{mode: r.mode})...)
	known := []uint16{15006}
	for _, p := range r.ports {
		l.FilterChains = append(l.FilterChains, r.chains(p)...)
		if p.protocol != mesh.Auto {
			known = append(known, p.port)
		}
	}
	l.ListenerFilters = []*listenerv3.ListenerFilter{originalDestination(), sniffTLS(onPorts(15006)), sniffHTTP(onPorts(known...))}
	return l
}

// onPorts matches connections to any of these ports.
func onPorts(ports ...uint16) *listenerv3.ListenerFilterChainMatchPredicate {
	slices.Sort(ports)
	var rules []*listenerv3.ListenerFilterChainMatchPredicate
	for _, p := range ports {
		rules = append(rules, &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
			DestinationPortRange: &typev3.Int32Range{Start: int32(p), End: int32(p) + 1},
		}})
	}
	if len(rules) == 1 {
		return rules[0]
	}
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
}

// chains returns how connections to one port are treated, by what their first bytes say. Port 0 is all
// that no other chain is for.
func (r sidecar) chains(p inboundPort) (chains []*listenerv3.FilterChain) {
	const anyTransport, tls, raw = "", "tls", "raw_buffer"
	add := func(http, terminate bool, transport string, alpn []string) {
		chains = append(chains, r.chain(p, http, terminate, &listenerv3.FilterChainMatch{TransportProtocol: transport, ApplicationProtocols: alpn}))
	}
	isHTTP, auto := p.protocol.IsHTTP(), p.protocol == mesh.Auto
	switch {
	case auto && p.mode == mesh.Permissive:
		add(true, true, tls, meshALPNHTTP)
		add(true, false, raw, plainHTTP)
		add(false, true, tls, meshALPNTCP)
		add(false, false, raw, nil)
		add(false, false, tls, nil)
	case auto && p.mode == mesh.Strict:
		add(true, true, tls, meshALPNHTTP)
		add(false, true, tls, nil)
	case auto:
		add(true, false, raw, plainHTTP)
		add(false, false, anyTransport, nil)
	case p.mode == mesh.Permissive:
		add(isHTTP, true, tls, meshALPN)
		add(isHTTP, false, raw, nil)
		if !isHTTP {
			add(false, false, tls, nil) // the application's own TLS
		}
	case p.mode == mesh.Strict:
		add(isHTTP, true, tls, nil)
	default:
		add(isHTTP, false, anyTransport, nil)
	}
	return chains
}

func (r sidecar) chain(p inboundPort, http, terminate bool, match *listenerv3.FilterChainMatch) *listenerv3.FilterChain {
	c := &listenerv3.FilterChain{FilterChainMatch: match, Name: "virtualInbound"}
	to := inboundPassthrough
	if http && p.port == 0 {
		c.Name = "virtualInbound-catchall-http"
	}
	if p.port != 0 {
		match.DestinationPort = u32(uint32(p.port))
		c.Name, _, _ = listenOn(r.families, p.port)
		if p.host != "" {
			to = inboundName(p.port)
		}
	}
	if http {
		c.Filters = httpChain(r.connectionManager(p, to))
	} else {
		c.Filters = r.http.tcp(to, weighted{to, 1})
	}
	if terminate {
		alpn := serverALPN
		if !http {
			alpn = nil
		}
		c.TransportSocket = serverTLS(alpn, r.settings)
	}
	return c
}

func (r sidecar) connectionManager(p inboundPort, to string) *hcmv3.HttpConnectionManager {
	name := to
	if p.host != "" {
		n, _, _ := listenOn(r.families, p.port)
		name = "inbound_" + n
	}
	m := r.http.connectionManager(name)
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_APPEND_FORWARD
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Subject: boolean(true), Dns: true, Uri: true}
	m.ServerName = "istio-envoy"
	if r.web && p.protocol == mesh.GRPCWeb {
		translateWeb(m)
	}
	port := strconv.Itoa(int(p.servicePort))
	action := &routev3.RouteAction{
		ClusterSpecifier:  &routev3.RouteAction_Cluster{Cluster: to},
		Timeout:           seconds(0),
		MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: seconds(0), GrpcTimeoutHeaderMax: seconds(0)},
	}
	if p.protocol != mesh.GRPC && p.protocol != mesh.GRPCWeb {
		// The application may end a kept connection just as a request comes, of which it has read nothing then.
		action.RetryPolicy = &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: u32(2)}
	}
	table := &routev3.RouteConfiguration{
		Name: to, ValidateClusters: boolean(false),
		VirtualHosts: []*routev3.VirtualHost{{
			Name: "inbound|http|" + port, Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Name:      "default",
				Match:     &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Decorator: &routev3.Decorator{Operation: p.host + ":" + port + "/*"},
				Action:    &routev3.Route_Route{Route: action},
			}},
		}},
	}
	return inline(m, table)
}

// sniffedHTTP is the chain of connections that turn out to speak HTTP, and have their routes by RDS.
func sniffedHTTP(m *hcmv3.HttpConnectionManager, routes string) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		FilterChainMatch:              &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: plainHTTP},
		Filters:                       httpChain(byRDS(m, routes)),
		TransportSocketConnectTimeout: seconds(15),
	}
}
