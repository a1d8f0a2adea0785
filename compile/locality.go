package compile

import (
	"slices"
	"strings"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// prefersLocality reports whether a policy can make the proxy's locality matter. Failover needs outlier
// detection, or nobody would notice that a locality has failed, as in Istio.
func prefersLocality(p *networking.TrafficPolicy) bool {
	s := p.GetLoadBalancer().GetLocalityLbSetting()
	if s != nil && s.GetEnabled() != nil && !s.GetEnabled().GetValue() {
		return false
	}
	return p.GetOutlierDetection() != nil || len(s.GetDistribute()) > 0
}

// prefer orders localities for a proxy: by weights that a policy names, or by distance, nearest first.
func prefer(all []*endpointv3.LocalityLbEndpoints, v endpointView, policy *networking.TrafficPolicy) []*endpointv3.LocalityLbEndpoints {
	setting := policy.GetLoadBalancer().GetLocalityLbSetting()
	if setting == nil {
		setting = v.prefer
	}
	if !prefersLocality(policy) || v.locality.Region == "" || setting.GetEnabled() != nil && !setting.GetEnabled().GetValue() {
		return all
	}
	for _, d := range setting.GetDistribute() {
		if localityMatches(d.GetFrom(), v.locality) {
			return distribute(all, d.GetTo())
		}
	}
	if policy.GetOutlierDetection() == nil {
		return all
	}
	distances := make([]uint32, len(all))
	for i, l := range all {
		distances[i] = distance(v.locality, mesh.Locality{Region: l.Locality.Region, Zone: l.Locality.Zone, Subzone: l.Locality.SubZone}, setting)
	}
	order := slices.Compact(slices.Sorted(slices.Values(distances)))
	for i, l := range all {
		l.Priority = uint32(slices.Index(order, distances[i]))
	}
	slices.SortStableFunc(all, func(a, b *endpointv3.LocalityLbEndpoints) int { return int(a.Priority) - int(b.Priority) })
	return all
}

func distance(from, to mesh.Locality, s *networking.LocalityLoadBalancerSetting) uint32 {
	switch {
	case from == to:
		return 0
	case from.Region == to.Region && from.Zone == to.Zone:
		return 1
	case from.Region == to.Region:
		return 2
	}
	for _, f := range s.GetFailover() {
		if f.GetFrom() == from.Region && f.GetTo() != to.Region {
			return 4
		}
	}
	return 3
}

// localityMatches reports whether a locality is what a pattern such as "region/zone/*" or "*" says.
func localityMatches(pattern string, l mesh.Locality) bool {
	have := []string{l.Region, l.Zone, l.Subzone}
	for i, want := range strings.Split(pattern, "/") {
		if want == "*" {
			return true
		}
		if i >= len(have) || have[i] != want {
			return false
		}
	}
	return true
}

// distribute gives the localities that a pattern matches its weight, in proportion to what they have.
// What no pattern matches gets nothing.
func distribute(all []*endpointv3.LocalityLbEndpoints, to map[string]uint32) (out []*endpointv3.LocalityLbEndpoints) {
	taken := map[int]bool{}
	patterns := sortedKeys(to)
	slices.SortStableFunc(patterns, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	for _, pattern := range patterns {
		var mine []int
		var total uint32
		for i, l := range all {
			if !taken[i] && localityMatches(pattern, mesh.Locality{Region: l.Locality.Region, Zone: l.Locality.Zone, Subzone: l.Locality.SubZone}) {
				mine, total, taken[i] = append(mine, i), total+l.LoadBalancingWeight.Value, true
			}
		}
		for _, i := range mine {
			all[i].LoadBalancingWeight = u32((to[pattern]*all[i].LoadBalancingWeight.Value + total - 1) / total)
			out = append(out, all[i])
		}
	}
	return out
}
