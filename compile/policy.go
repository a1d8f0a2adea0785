package compile

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
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
