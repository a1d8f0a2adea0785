package compile

import (
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// clusterRow is what the clusters of a host depend on.
type clusterRow struct {
	svc      *mesh.HostService
	accounts *mesh.Accounts
	choice
	networks string // of the endpoints, sorted, joined by commas
	tls      bool   // where clients connect to the endpoints' own addresses: all of these take mutual TLS
}

// clusterView is what of a proxy its clusters depend on.
type clusterView struct {
	dialect  Dialect
	router   bool
	cluster  string
	network  string
	labels   string
	sni      bool // it passes connections through to clusters named by SNI
	settings clusterSettings
}

// clusterSettings are those of MeshConfig that clusters depend on.
type clusterSettings struct {
	timeout time.Duration
	autoTLS bool
	upgrade bool   // HTTP/1.1 of ports named http becomes HTTP/2, where no rule says otherwise
	trust   string // trust domains, the own one first, joined by commas

	policy     *meshconfig.MeshConfig_DefaultTrafficPolicy // of rules that say nothing; nil for none
	prefer     *networking.LocalityLoadBalancerSetting
	keepalive  *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive
	dnsRefresh time.Duration                    // 0 for the proxy's default
	tls        *meshconfig.MeshConfig_TLSConfig // of all TLS but that between workloads
	meshTLS    *meshconfig.MeshConfig_TLSConfig // of TLS between workloads

	keepCase bool // of the names of HTTP/1 headers

	inboundStats, outboundStats string // patterns; "" for the cluster's name
}

func toClusterRow(h *mesh.Host, client string) (r clusterRow, ok bool) {
	if h.Service == nil || h.Service.Alias != nil || !h.Service.Visible(client) {
		return r, false
	}
	var networks []string
	for i := range h.Endpoints.List {
		if n := h.Endpoints.List[i].Network; !slices.Contains(networks, n) {
			networks = append(networks, n)
		}
	}
	slices.Sort(networks)
	rules := choiceOf(h, client)
	direct := headless(h.Service) || rules.any(func(x *mesh.Rule) bool { return anyPolicy(x, passesThrough) })
	return clusterRow{h.Service, h.Accounts, rules, strings.Join(networks, ","), direct && allTLS(h.Endpoints)}, true
}

func headless(s *mesh.HostService) bool {
	return slices.ContainsFunc(s.Parts, func(p *mesh.Service) bool { return p.Headless })
}

func allTLS(e *mesh.Endpoints) bool {
	return len(e.List) > 0 && !slices.ContainsFunc(e.List, func(x mesh.Endpoint) bool { return !x.TLS })
}

func toClusterView(s *mesh.Snapshot, p Proxy, w *workload) clusterView {
	return clusterView{p.Dialect.form(), p.Router, p.Cluster, p.Network, p.Labels, w.passthrough != "", clusterSettingsOf(s.Config(), p)}
}

func clusterSettingsOf(c *mesh.Config, p Proxy) clusterSettings {
	return clusterSettings{
		timeout: c.ConnectTimeout, autoTLS: c.AutoMTLS, upgrade: c.UpgradeHTTP, trust: trustOf(c),
		policy: c.DefaultPolicy, prefer: c.LocalityLB, keepalive: c.Keepalive, dnsRefresh: c.Spec.GetDnsRefreshRate().AsDuration(),
		tls: c.TLSDefaults, meshTLS: c.MeshTLS, inboundStats: c.Spec.GetInboundClusterStatName(), outboundStats: c.Spec.GetOutboundClusterStatName(),
		keepCase: p.HTTP1.KeepCase,
	}
}

// passesThrough reports whether a policy says that connections go where the client was going.
func passesThrough(p *networking.TrafficPolicy) bool {
	return p.GetLoadBalancer().GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH
}

func trustOf(c *mesh.Config) string {
	return strings.Join(append([]string{c.TrustDomain}, c.TrustAliases...), ",")
}

func (r clusterRow) need() need {
	router := headless(r.svc) || hasAuto(r.svc) || r.any(func(x *mesh.Rule) bool { return len(ruleCredentials(x.Spec)) > 0 })
	return need{cluster: differ(r.svc), network: r.networks != "", router: router, labels: r.labels()}
}

func hasAuto(s *mesh.HostService) bool {
	return slices.ContainsFunc(s.Parts, func(p *mesh.Service) bool {
		return slices.ContainsFunc(p.Ports, func(p mesh.ServicePort) bool { return p.Protocol() == mesh.Auto })
	})
}

// differ reports whether a service does not look the same in all clusters that have it.
func differ(s *mesh.HostService) bool {
	for _, p := range s.Parts[1:] {
		first := s.Parts[0]
		if p.Headless != first.Headless || p.Type != first.Type || p.ExternalName != first.ExternalName || !slices.Equal(p.Ports, first.Ports) {
			return true
		}
	}
	return false
}

func (v clusterView) narrow(n need) clusterView {
	if !n.cluster {
		v.cluster = ""
	}
	if !n.network {
		v.network = ""
	}
	if !n.router {
		v.router = false
	}
	v.labels = pick(v.labels, n.labels)
	return v
}

func buildClusters(r clusterRow, v clusterView) (m made) {
	r.choice = r.of(v.labels)
	part := r.svc.In(v.cluster)
	for _, p := range part.Ports {
		if p.Protocol() == mesh.UDP {
			continue
		}
		for _, subset := range subsetsOf(r.rule) {
			m.add(r, subset, func(r clusterRow) *clusterv3.Cluster { return r.cluster(v, part, p, subset) })
			if v.sni && part.Type != mesh.ExternalName {
				m.add(r, subset, func(r clusterRow) *clusterv3.Cluster { return r.sniCluster(v, part, p, subset) })
			}
		}
	}
	return m
}

// add adds a cluster that proxies take: one that they would refuse for what its rule says is made without the
// rule if it is the whole host's, and left out if it is a subset's.
func (m *made) add(r clusterRow, subset *networking.Subset, build func(clusterRow) *clusterv3.Cluster) {
	c := build(r)
	if r.rule != nil {
		if err := refusal(c); err != nil {
			m.faults.add(r.rule.Key(), err)
			if subset != nil {
				return
			}
			r.choice = choice{}
			c = build(r)
		}
	}
	m.resources = append(m.resources, newResource(c.Name, c))
}

// cluster returns the cluster of one port and subset (nil is the whole) of a host.
func (r clusterRow) cluster(v clusterView, part *mesh.Service, p mesh.ServicePort, subset *networking.Subset) *clusterv3.Cluster {
	name := clusterName(p.Number, subset.GetName(), r.svc.Host)
	if v.dialect == GRPC {
		return r.grpcCluster(v, name, p, subset)
	}
	c := r.edsCluster(v, name, p, subset)
	c.AltStatName = statName(v.settings.outboundStats, statOf{
		host: r.svc.Host, service: r.svc.Name, namespace: r.svc.Namespace, port: p.Number, portName: p.Name, subset: subset.GetName(),
	})
	policy := withDefaults(policyFor(r.rule, subset, p.Number), v.settings.policy)
	http := &httpv3.HttpProtocolOptions{}
	applyPool(c, http, policy)
	applyOutlier(c, policy.GetOutlierDetection())
	applyBalancer(c, policy.GetLoadBalancer())
	r.locality(c, v, policy)
	switch {
	case part.Type == mesh.ExternalName:
		dnsCluster(c, part.ExternalName, p, v.settings.dnsRefresh)
	case part.Headless && !v.router:
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		c.LbPolicy, c.EdsClusterConfig, c.LbConfig = clusterv3.Cluster_CLUSTER_PROVIDED, nil, nil
	}
	if r.wide(v) {
		keepWideAlive(c)
		splitOutliers(c.OutlierDetection)
	}
	pool := policy.GetConnectionPool().GetHttp()
	http2 := p.Protocol().IsHTTP2() || upgrades(p.Protocol(), pool, v.settings.upgrade)
	r.secure(c, v, p, subset, policy.GetTls(), http2)
	if c.TransportSocket != nil {
		verifyByName(http, policy.GetTls())
	}
	proto := p.Protocol()
	if proto == mesh.Auto && v.router {
		proto = mesh.TCP // a gateway does not look into what it forwards: its routes say what it is
	}
	setProtocol(c, http, upstreamHTTP{proto, http2, pool.GetUseClientProtocol(), http2Options(pool), v.settings.keepCase})
	return c
}

// edsCluster returns a cluster whose endpoints come by EDS under its own name, with what all have.
func (r clusterRow) edsCluster(v clusterView, name string, p mesh.ServicePort, subset *networking.Subset) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: name},
		ConnectTimeout:       span(v.settings.timeout),
		LbPolicy:             clusterv3.Cluster_LEAST_REQUEST,
		CommonLbConfig:       &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}},
		CircuitBreakers:      breakers(noLimit()),
		Metadata:             r.metadata(subset),
	}
	keepAlive(c, v.settings.keepalive)
	return c
}

// sniCluster is what the chains of a gateway between networks lead to: connections that are passed
// through as they are.
func (r clusterRow) sniCluster(v clusterView, part *mesh.Service, p mesh.ServicePort, subset *networking.Subset) *clusterv3.Cluster {
	c := r.edsCluster(v, sniName(p.Number, subset.GetName(), r.svc.Host), p, subset)
	policy := withDefaults(policyFor(r.rule, subset, p.Number), v.settings.policy)
	applyPool(c, &httpv3.HttpProtocolOptions{}, policy)
	applyOutlier(c, policy.GetOutlierDetection())
	applyBalancer(c, policy.GetLoadBalancer())
	r.locality(c, v, policy)
	return c
}

func (r clusterRow) metadata(subset *networking.Subset) *core.Metadata {
	kv := []any{"services", listOf(structOf("host", text(r.svc.Host), "name", text(r.svc.Name), "namespace", text(r.svc.Namespace)))}
	if r.rule != nil {
		kv = append(kv, "config", text("/apis/networking.istio.io/v1alpha3/namespaces/"+r.rule.Namespace+"/destination-rule/"+r.rule.Name))
		if subset != nil {
			kv = append(kv, "subset", text(subset.Name))
		}
	}
	return &core.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": fields(kv...)}}
}

// wide reports whether some endpoints are behind another network's gateway.
func (r clusterRow) wide(v clusterView) bool { return r.networks != "" && r.networks != v.network }

// keepWideAlive sees to it that a cut between networks, of which no packet tells, is noticed within
// five seconds, idle (keepalive) or not (TCP_USER_TIMEOUT).
func keepWideAlive(c *clusterv3.Cluster) {
	if c.UpstreamConnectionOptions == nil {
		c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{
			TcpKeepalive: &core.TcpKeepalive{KeepaliveProbes: u32(3), KeepaliveTime: u32(2), KeepaliveInterval: u32(1)},
		}
	}
	const tcp, userTimeout = 6, 18
	c.UpstreamBindConfig = &core.BindConfig{SocketOptions: []*core.SocketOption{{
		Description: "TCP_USER_TIMEOUT, ms", Level: tcp, Name: userTimeout,
		Value: &core.SocketOption_IntValue{IntValue: 5000}, State: core.SocketOption_STATE_PREBIND,
	}}}
}

// splitOutliers lets the failures to connect of another network's gateway count by themselves, as often as
// answers: those are of the pods behind it. d may be nil.
func splitOutliers(d *clusterv3.OutlierDetection) {
	if d == nil || d.SplitExternalLocalOriginErrors {
		return
	}
	d.SplitExternalLocalOriginErrors, d.EnforcingLocalOriginSuccessRate = true, u32(0)
	answers := d.EnforcingConsecutive_5Xx == nil || d.EnforcingConsecutive_5Xx.Value > 0
	gateway := d.EnforcingConsecutiveGatewayFailure.GetValue() > 0
	switch n, g := d.Consecutive_5Xx, d.ConsecutiveGatewayFailure; {
	case !answers && !gateway:
		d.EnforcingConsecutiveLocalOriginFailure = u32(0)
	case gateway && g != nil && (!answers || n == nil || g.Value < n.Value):
		d.ConsecutiveLocalOriginFailure = u32(g.Value)
	case n != nil:
		d.ConsecutiveLocalOriginFailure = u32(n.Value)
	}
}

// locality makes the weights of localities count where endpoints are ordered by locality.
func (r clusterRow) locality(c *clusterv3.Cluster, v clusterView, policy *networking.TrafficPolicy) {
	if x := preferenceFor(r.svc, policy, v.settings.prefer); x.any() && !x.regions {
		c.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}
	}
}

func dnsCluster(c *clusterv3.Cluster, host string, p mesh.ServicePort, refresh time.Duration) {
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	if refresh > 0 {
		c.DnsRefreshRate = span(refresh)
	}
	c.EdsClusterConfig = nil
	c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: c.Name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, uint32(p.Number))}},
			LoadBalancingWeight: u32(1),
		}},
		LoadBalancingWeight: u32(1),
	}}}
}

// secure sets how connections are encrypted: as the rule says or, if it says nothing, mutual TLS to
// each endpoint that is marked to take it.
func (r clusterRow) secure(c *clusterv3.Cluster, v clusterView, p mesh.ServicePort, subset *networking.Subset, tls *networking.ClientTLSSettings, http2 bool) {
	alpn := alpnTCP
	switch {
	case http2:
		alpn = alpnHTTP2
	case p.Protocol() == mesh.HTTP:
		alpn = alpnHTTP
	}
	sni := sniName(p.Number, subset.GetName(), r.svc.Host)
	peers := accountSANs(r.accounts, strings.Split(v.settings.trust, ","))
	if tls != nil {
		switch tls.Mode {
		case networking.ClientTLSSettings_DISABLE:
		case networking.ClientTLSSettings_ISTIO_MUTUAL:
			if tls.Sni != "" {
				sni = tls.Sni
			}
			if len(tls.SubjectAltNames) > 0 {
				peers = anySAN(tls.SubjectAltNames)
			}
			c.TransportSocket = clientTLS(sni, alpn, peers)
		default:
			if tls.CredentialName != "" && !v.router {
				return // a sidecar may not read Secrets, and would wait for this one: plaintext, as in Istio
			}
			c.TransportSocket = ruleTLS(tls, http2, v.settings.tls)
		}
		return
	}
	if !v.settings.autoTLS {
		return
	}
	if c.GetType() == clusterv3.Cluster_ORIGINAL_DST { // whose endpoints nobody can mark
		if r.tls {
			c.TransportSocket = clientTLS(sni, alpn, peers)
		}
		return
	}
	c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{
		{Name: "tlsMode-istio", Match: fields("tlsMode", text("istio")), TransportSocket: clientTLS(sni, alpn, peers)},
		{Name: "tlsMode-disabled", Match: fields(), TransportSocket: plaintext()},
	}
}

// upgrades reports whether HTTP/1.1 requests become HTTP/2 on their way to a port: as its rule says or, if
// it says nothing and the port is named http, as the mesh does.
func upgrades(p mesh.Protocol, rule *networking.ConnectionPoolSettings_HTTPSettings, byDefault bool) bool {
	if rule.GetUseClientProtocol() {
		return false
	}
	switch rule.GetH2UpgradePolicy() {
	case networking.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		return p == mesh.HTTP || p == mesh.Auto
	case networking.ConnectionPoolSettings_HTTPSettings_DO_NOT_UPGRADE:
		return false
	}
	return p == mesh.HTTP && byDefault
}

const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// upstreamHTTP is which HTTP an upstream speaks.
type upstreamHTTP struct {
	protocol mesh.Protocol
	http2    bool // whatever protocol says
	asClient bool // the same as the client
	options  *core.Http2ProtocolOptions
	keepCase bool // of the names of HTTP/1 headers
}

// setProtocol says which HTTP the upstream speaks: what the port's protocol says, or what the client does
// where the protocol is looked for in the first bytes.
func setProtocol(c *clusterv3.Cluster, http *httpv3.HttpProtocolOptions, u upstreamHTTP) {
	http1 := http1Options(HTTP1{KeepCase: u.keepCase})
	switch {
	case u.protocol == mesh.Auto && !u.http2 || u.asClient:
		http.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions: http1, Http2ProtocolOptions: u.options,
			},
		}
	case u.http2:
		http.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: u.options},
		}}
	case http.CommonHttpProtocolOptions != nil || http.UpstreamHttpProtocolOptions != nil || u.keepCase && u.protocol != mesh.TCP:
		http.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: http1},
		}}
	default:
		return
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: toAny(http)}
}

// Clusters that do not depend on services.

func blackHoleCluster(v clusterSettings) *resource.Resource {
	return newResource(blackHole, &clusterv3.Cluster{
		Name: blackHole, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout: span(v.timeout), LbPolicy: clusterv3.Cluster_ROUND_ROBIN,
	})
}

// originalDst returns a cluster that leads to where the connection was going before it was redirected.
func originalDst(name string, v clusterSettings, bind *core.BindConfig, asClient bool) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		ConnectTimeout: span(v.timeout), LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED,
		CircuitBreakers: breakers(noLimit()), UpstreamBindConfig: bind,
	}
	if asClient {
		http := &httpv3.HttpProtocolOptions{CommonHttpProtocolOptions: &core.HttpProtocolOptions{IdleTimeout: seconds(300)}}
		setProtocol(c, http, upstreamHTTP{asClient: true, options: &core.Http2ProtocolOptions{}, keepCase: v.keepCase})
	}
	return c
}
