package compile

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// policyFor returns what a rule's traffic policy says about a port, with a subset's before the rule's, field
// by field. What a port has settings of its own for takes nothing of its level's: a subset's port nothing of
// the rule either, as in Istio. Only what no port can say (tunnel, PROXY protocol, retry budget) comes
// through. May be nil.
func policyFor(rule *mesh.Rule, subset *networking.Subset, port uint16) *networking.TrafficPolicy {
	if rule == nil {
		return nil
	}
	base, _ := atPort(rule.Spec.GetTrafficPolicy(), port)
	over, whole := atPort(subset.GetTrafficPolicy(), port)
	switch {
	case over == nil:
		return base
	case base == nil:
		return over
	}
	p := &networking.TrafficPolicy{
		LoadBalancer: base.LoadBalancer, ConnectionPool: base.ConnectionPool, OutlierDetection: base.OutlierDetection,
		Tls: base.Tls, Tunnel: base.Tunnel, ProxyProtocol: base.ProxyProtocol, RetryBudget: base.RetryBudget,
	}
	if whole || over.LoadBalancer != nil {
		p.LoadBalancer = over.LoadBalancer
	}
	if whole || over.ConnectionPool != nil {
		p.ConnectionPool = over.ConnectionPool
	}
	if whole || over.OutlierDetection != nil {
		p.OutlierDetection = over.OutlierDetection
	}
	if whole || over.Tls != nil {
		p.Tls = over.Tls
	}
	if over.Tunnel != nil {
		p.Tunnel = over.Tunnel
	}
	if over.ProxyProtocol != nil {
		p.ProxyProtocol = over.ProxyProtocol
	}
	if over.RetryBudget != nil {
		p.RetryBudget = over.RetryBudget
	}
	return p
}

// atPort returns a policy with what it says about one port instead of the rest, and whether it says any.
func atPort(p *networking.TrafficPolicy, port uint16) (*networking.TrafficPolicy, bool) {
	for _, s := range p.GetPortLevelSettings() {
		if s.GetPort().GetNumber() == uint32(port) {
			return &networking.TrafficPolicy{
				LoadBalancer: s.LoadBalancer, ConnectionPool: s.ConnectionPool, OutlierDetection: s.OutlierDetection, Tls: s.Tls,
				Tunnel: p.Tunnel, ProxyProtocol: p.ProxyProtocol, RetryBudget: p.RetryBudget,
			}, true
		}
	}
	return p, false
}

// withDefaults returns a policy with MeshConfig's defaultTrafficPolicy, each block whole, for what it does not
// say. May be nil.
func withDefaults(p *networking.TrafficPolicy, d *meshconfig.MeshConfig_DefaultTrafficPolicy) *networking.TrafficPolicy {
	pool, outlier := p.GetConnectionPool(), p.GetOutlierDetection()
	if pool == nil {
		pool = d.GetConnectionPool()
	}
	if outlier == nil {
		outlier = d.GetOutlierDetection()
	}
	if pool == p.GetConnectionPool() && outlier == p.GetOutlierDetection() {
		return p
	}
	return &networking.TrafficPolicy{
		LoadBalancer: p.GetLoadBalancer(), ConnectionPool: pool, OutlierDetection: outlier,
		Tls: p.GetTls(), Tunnel: p.GetTunnel(), ProxyProtocol: p.GetProxyProtocol(), RetryBudget: p.GetRetryBudget(),
	}
}

// anyPolicy reports whether f holds for some part of a rule: its policy, a subset's, or what either says about
// a port.
func anyPolicy(r *mesh.Rule, f func(*networking.TrafficPolicy) bool) bool {
	is := func(p *networking.TrafficPolicy) bool {
		return p != nil && (f(p) || slices.ContainsFunc(p.GetPortLevelSettings(), func(s *networking.TrafficPolicy_PortTrafficPolicy) bool {
			at, _ := atPort(p, uint16(s.GetPort().GetNumber()))
			return f(at)
		}))
	}
	return is(r.Spec.GetTrafficPolicy()) || slices.ContainsFunc(r.Spec.GetSubsets(), func(s *networking.Subset) bool { return is(s.GetTrafficPolicy()) })
}

// subsetsOf returns nil for the host as a whole, and then each subset.
func subsetsOf(rule *mesh.Rule) []*networking.Subset {
	subsets := []*networking.Subset{nil}
	if rule != nil {
		subsets = append(subsets, rule.Spec.GetSubsets()...)
	}
	return subsets
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
	if o.SplitExternalLocalOriginErrors {
		d.EnforcingLocalOriginSuccessRate = u32(0)
	}
	if o.MaxEjectionPercent > 0 {
		d.MaxEjectionPercent = u32(uint32(o.MaxEjectionPercent))
	}
	c.OutlierDetection = d
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: float64(max(0, o.MinHealthPercent))}
}

// applyBalancer writes how endpoints are chosen. The default is the one with the fewest requests.
func applyBalancer(c *clusterv3.Cluster, lb *networking.LoadBalancerSettings) {
	slow := warmup(lb)
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

// warmup returns how a new endpoint gets its share little by little, or nil if it has it at once.
func warmup(lb *networking.LoadBalancerSettings) *clusterv3.Cluster_SlowStartConfig {
	w := lb.GetWarmup()
	switch {
	case w != nil:
		slow := &clusterv3.Cluster_SlowStartConfig{
			SlowStartWindow:  w.GetDuration(),
			Aggression:       &core.RuntimeDouble{DefaultValue: 1, RuntimeKey: "("}, // Envoy wants a key; nothing sets this one
			MinWeightPercent: &typev3.Percent{Value: 10},
		}
		if w.Aggression != nil {
			slow.Aggression.DefaultValue = w.Aggression.Value
		}
		if w.MinimumPercent != nil {
			slow.MinWeightPercent.Value = w.MinimumPercent.Value
		}
		return slow
	case lb.GetWarmupDurationSecs() != nil: //nolint:staticcheck // users still write it
		return &clusterv3.Cluster_SlowStartConfig{SlowStartWindow: lb.WarmupDurationSecs} //nolint:staticcheck
	}
	return nil
}
