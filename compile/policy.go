package compile

import (
	"math"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// policyFor returns what a rule's traffic policy says about a port, with a subset's before the rule's,
// field by field; a port's own settings replace both as a whole, as in Istio. May be nil.
func policyFor(rule *mesh.Rule, subset *networking.Subset, port uint16) *networking.TrafficPolicy {
	if rule == nil {
		return nil
	}
	base := atPort(rule.Spec.GetTrafficPolicy(), port)
	over := atPort(subset.GetTrafficPolicy(), port)
	switch {
	case over == nil:
		return base
	case base == nil:
		return over
	}
	p := &networking.TrafficPolicy{
		LoadBalancer: base.LoadBalancer, ConnectionPool: base.ConnectionPool, OutlierDetection: base.OutlierDetection,
		Tls: base.Tls,
	}
	if over.LoadBalancer != nil {
		p.LoadBalancer = over.LoadBalancer
	}
	if over.ConnectionPool != nil {
		p.ConnectionPool = over.ConnectionPool
	}
	if over.OutlierDetection != nil {
		p.OutlierDetection = over.OutlierDetection
	}
	if over.Tls != nil {
		p.Tls = over.Tls
	}
	return p
}

func atPort(p *networking.TrafficPolicy, port uint16) *networking.TrafficPolicy {
	for _, s := range p.GetPortLevelSettings() {
		if s.GetPort().GetNumber() == uint32(port) {
			return &networking.TrafficPolicy{
				LoadBalancer: s.LoadBalancer, ConnectionPool: s.ConnectionPool, OutlierDetection: s.OutlierDetection, Tls: s.Tls,
			}
		}
	}
	return p
}

// subsetsOf returns nil for the host as a whole, and then each subset.
func subsetsOf(rule *mesh.Rule) []*networking.Subset {
	subsets := []*networking.Subset{nil}
	if rule != nil {
		subsets = append(subsets, rule.Spec.GetSubsets()...)
	}
	return subsets
}

// noLimit is what Istio sets where Envoy's own defaults would be low.
func noLimit() *clusterv3.CircuitBreakers_Thresholds {
	return &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections: u32(math.MaxUint32), MaxPendingRequests: u32(math.MaxUint32),
		MaxRequests: u32(math.MaxUint32), MaxRetries: u32(math.MaxUint32),
	}
}

func breakers(t *clusterv3.CircuitBreakers_Thresholds) *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
}

// applyPool writes a connection pool's settings into a cluster and its HTTP options.
func applyPool(c *clusterv3.Cluster, http *httpv3.HttpProtocolOptions, pool *networking.ConnectionPoolSettings) {
	limits := noLimit()
	c.CircuitBreakers = breakers(limits)
	if tcp := pool.GetTcp(); tcp != nil {
		if tcp.MaxConnections > 0 {
			limits.MaxConnections = u32(uint32(tcp.MaxConnections))
		}
		if tcp.ConnectTimeout != nil {
			c.ConnectTimeout = tcp.ConnectTimeout
		}
		if k := tcp.TcpKeepalive; k != nil {
			c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: keepalive(k)}
		}
		if tcp.MaxConnectionDuration != nil {
			common(http).MaxConnectionDuration = tcp.MaxConnectionDuration
		}
	}
	h := pool.GetHttp()
	if h == nil {
		return
	}
	if h.Http2MaxRequests > 0 {
		limits.MaxRequests = u32(uint32(h.Http2MaxRequests))
	}
	if h.Http1MaxPendingRequests > 0 {
		limits.MaxPendingRequests = u32(uint32(h.Http1MaxPendingRequests))
	}
	if h.MaxRetries > 0 {
		limits.MaxRetries = u32(uint32(h.MaxRetries))
	}
	if h.MaxRequestsPerConnection > 0 {
		common(http).MaxRequestsPerConnection = u32(uint32(h.MaxRequestsPerConnection))
	}
	if h.IdleTimeout != nil {
		common(http).IdleTimeout = h.IdleTimeout
	}
}

func common(h *httpv3.HttpProtocolOptions) *core.HttpProtocolOptions {
	if h.CommonHttpProtocolOptions == nil {
		h.CommonHttpProtocolOptions = &core.HttpProtocolOptions{}
	}
	return h.CommonHttpProtocolOptions
}

func keepalive(k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) *core.TcpKeepalive {
	out := &core.TcpKeepalive{}
	if k.Probes > 0 {
		out.KeepaliveProbes = u32(k.Probes)
	}
	if s := k.GetTime().GetSeconds(); s > 0 {
		out.KeepaliveTime = u32(uint32(s))
	}
	if s := k.GetInterval().GetSeconds(); s > 0 {
		out.KeepaliveInterval = u32(uint32(s))
	}
	return out
}

// applyOutlier switches on what the rule names, and nothing else of Envoy's.
func applyOutlier(c *clusterv3.Cluster, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	d := &clusterv3.OutlierDetection{
		Interval: o.Interval, BaseEjectionTime: o.BaseEjectionTime,
		EnforcingSuccessRate: u32(0), SplitExternalLocalOriginErrors: o.SplitExternalLocalOriginErrors,
	}
	count := func(n interface{ GetValue() uint32 }, set bool) (value, enforcing uint32, ok bool) {
		if !set {
			return 0, 0, false
		}
		if v := n.GetValue(); v > 0 {
			return v, 100, true
		}
		return 0, 0, true
	}
	if v, e, ok := count(o.Consecutive_5XxErrors, o.Consecutive_5XxErrors != nil); ok {
		if d.EnforcingConsecutive_5Xx = u32(e); v > 0 {
			d.Consecutive_5Xx = u32(v)
		}
	}
	if v, e, ok := count(o.ConsecutiveGatewayErrors, o.ConsecutiveGatewayErrors != nil); ok {
		if d.EnforcingConsecutiveGatewayFailure = u32(e); v > 0 {
			d.ConsecutiveGatewayFailure = u32(v)
		}
	}
	if v, e, ok := count(o.ConsecutiveLocalOriginFailures, o.ConsecutiveLocalOriginFailures != nil); ok && o.SplitExternalLocalOriginErrors {
		if d.EnforcingConsecutiveLocalOriginFailure = u32(e); v > 0 {
			d.ConsecutiveLocalOriginFailure = u32(v)
		}
	}
	if o.MaxEjectionPercent > 0 {
		d.MaxEjectionPercent = u32(uint32(o.MaxEjectionPercent))
	}
	c.OutlierDetection = d
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: float64(max(0, o.MinHealthPercent))}
}

// applyBalancer writes how endpoints are chosen. The default is the one with the fewest requests.
func applyBalancer(c *clusterv3.Cluster, lb *networking.LoadBalancerSettings) {
	var slow *clusterv3.Cluster_SlowStartConfig
	if lb.GetWarmupDurationSecs() != nil {
		slow = &clusterv3.Cluster_SlowStartConfig{SlowStartWindow: lb.WarmupDurationSecs}
	}
	switch lb.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		if slow != nil {
			c.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{SlowStartConfig: slow}}
		}
	case networking.LoadBalancerSettings_RANDOM:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case networking.LoadBalancerSettings_PASSTHROUGH:
		c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		c.EdsClusterConfig = nil
	default:
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		if slow != nil {
			c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{SlowStartConfig: slow}}
		}
	}
	hash := lb.GetConsistentHash()
	if hash == nil {
		return
	}
	if m := hash.GetMaglev(); m != nil {
		c.LbPolicy = clusterv3.Cluster_MAGLEV
		if m.TableSize > 0 {
			c.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapU64(m.TableSize)}}
		}
		return
	}
	size := uint64(1024)
	if n := hash.GetRingHash().GetMinimumRingSize(); n > 0 {
		size = n
	} else if n := hash.GetMinimumRingSize(); n > 0 { //nolint:staticcheck // users still write it
		size = n
	}
	c.LbPolicy = clusterv3.Cluster_RING_HASH
	c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapU64(size)}}
}

// ruleTLS is the transport socket of a rule that says how to do TLS itself (SIMPLE and MUTUAL).
func ruleTLS(t *networking.ClientTLSSettings, http2 bool) *core.TransportSocket {
	tls := &tlsv3.CommonTlsContext{TlsParams: nil}
	if http2 {
		tls.AlpnProtocols = []string{"h2"}
	}
	if t.Mode == networking.ClientTLSSettings_MUTUAL {
		if t.CredentialName != "" {
			tls.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{{Name: "kubernetes://" + t.CredentialName, SdsConfig: ads()}}
		} else {
			tls.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(t.ClientCertificate), PrivateKey: file(t.PrivateKey)}}
		}
	}
	validation := &tlsv3.CertificateValidationContext{}
	for _, name := range t.SubjectAltNames {
		for _, kind := range []tlsv3.SubjectAltNameMatcher_SanType{tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI} {
			validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: exact(name)})
		}
	}
	switch {
	case t.CredentialName != "":
		tls.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         validation,
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: "kubernetes://" + t.CredentialName + "-cacert", SdsConfig: ads()},
			},
		}
	case t.CaCertificates != "":
		validation.TrustedCa = file(t.CaCertificates)
		tls.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	}
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: tls, Sni: t.Sni,
	})}}
}

func file(path string) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: path}}
}
