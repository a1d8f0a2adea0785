package compile

import (
	"cmp"
	"slices"
	"strings"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// preference says which of its endpoints a proxy prefers, and so by what they are ordered. The zero value
// prefers none.
type preference struct {
	distribute []*networking.LocalityLoadBalancerSetting_Distribute // shares by locality, which rule the rest out
	labels     []string                                             // "key", or "key=value": failoverPriority
	distances  bool                                                 // regions, zones and subzones near to it before others
	regions    bool                                                 // its region before others, and no finer
	failover   []failover
}

// failover is the region that stands in for another.
type failover struct{ from, to string }

// preferenceOf returns what a policy says, or MeshConfig where it says nothing of localities. Failover needs
// outlier detection, or nobody would notice that a locality has failed, as in Istio.
func preferenceOf(p *networking.TrafficPolicy, byDefault *networking.LocalityLoadBalancerSetting) (x preference) {
	lb := p.GetLoadBalancer()
	if z := lb.GetZoneAwareLbSetting(); z != nil {
		if z.GetEnabled() != nil && !z.GetEnabled().GetValue() {
			return x
		}
		x.labels, x.regions = z.GetFailoverPriority(), true
		for _, f := range z.GetFailover() {
			x.failover = append(x.failover, failover{f.GetFrom(), f.GetTo()})
		}
		return x
	}
	s := lb.GetLocalityLbSetting()
	if s == nil {
		s = byDefault
	}
	switch {
	case s.GetEnabled() != nil && !s.GetEnabled().GetValue():
	case len(s.GetDistribute()) > 0:
		x.distribute = s.GetDistribute()
	case p.GetOutlierDetection() != nil:
		for _, f := range s.GetFailover() {
			x.failover = append(x.failover, failover{f.GetFrom(), f.GetTo()})
		}
		x.labels = s.GetFailoverPriority()
		x.distances = len(x.labels) == 0 || len(x.failover) > 0
	}
	return x
}

// preferenceFor returns what a policy says, or the Service where it says nothing of localities, or MeshConfig.
func preferenceFor(s *mesh.HostService, p *networking.TrafficPolicy, byDefault *networking.LocalityLoadBalancerSetting) preference {
	if lb := p.GetLoadBalancer(); s.Distribution == "" || lb.GetZoneAwareLbSetting() != nil || lb.GetLocalityLbSetting() != nil {
		return preferenceOf(p, byDefault)
	}
	x := preference{labels: []string{networkLabel, "topology.kubernetes.io/region", "topology.kubernetes.io/zone"}}
	if s.Distribution == mesh.SameNode {
		x.labels = append(x.labels, "topology.istio.io/subzone", mesh.HostnameLabel)
	}
	return x
}

// any reports whether the proxy's place, or its labels, can matter.
func (x preference) any() bool {
	return len(x.distribute)+len(x.labels) > 0 || x.distances || x.regions
}

// keys returns the labels of the proxy that matter.
func (x preference) keys() (keys []string) {
	for _, l := range x.labels {
		if key, _, valued := strings.Cut(l, "="); !valued {
			keys = append(keys, key)
		}
	}
	return keys
}

// networkLabel as the first label to prefer by divides endpoints before all others do.
const networkLabel = "topology.istio.io/network"

// tier returns how far down the list of labels an endpoint ceases to be like the proxy: 0 is alike in all.
func (x preference) tier(v endpointView, label func(key string) string) uint32 {
	var labels map[string]string
	adjust := 0
	for i, l := range x.labels {
		key, want, valued := strings.Cut(l, "=")
		if !valued {
			if labels == nil {
				labels = labelMap(v.labels)
			}
			want = v.label(labels, key)
		}
		if label(key) == want {
			continue
		}
		if i == 0 && key == networkLabel {
			adjust = len(x.labels)
			continue
		}
		return uint32(len(x.labels) - i + adjust)
	}
	return uint32(adjust)
}

// label returns a label of the proxy, or its place where that is what the key means.
func (v endpointView) label(labels map[string]string, key string) string {
	switch key {
	case "topology.istio.io/cluster":
		return v.cluster
	case networkLabel:
		return v.network
	case "topology.kubernetes.io/region":
		return v.locality.Region
	case "topology.kubernetes.io/zone":
		return v.locality.Zone
	case "topology.istio.io/subzone":
		return v.locality.Subzone
	case mesh.HostnameLabel:
		return v.node
	}
	return labels[key]
}

// order gives localities, whose priority is their tier so far, priorities without gaps and the nearest
// first, or weights.
func (x preference) order(all []*endpointv3.LocalityLbEndpoints, v endpointView) []*endpointv3.LocalityLbEndpoints {
	for _, d := range x.distribute {
		if v.locality.Region != "" && localityMatches(d.GetFrom(), v.locality) {
			return distribute(all, d.GetTo())
		}
	}
	if len(x.distribute) > 0 {
		return all
	}
	places := make([]uint32, len(all))
	for i, l := range all {
		places[i] = l.Priority * farthest
		if v.locality.Region != "" {
			places[i] += x.distance(v.locality, mesh.Locality{Region: l.Locality.Region, Zone: l.Locality.Zone, Subzone: l.Locality.SubZone})
		}
	}
	order := slices.Compact(slices.Sorted(slices.Values(places)))
	for i, l := range all {
		l.Priority = uint32(slices.Index(order, places[i]))
	}
	slices.SortStableFunc(all, func(a, b *endpointv3.LocalityLbEndpoints) int { return cmp.Compare(a.Priority, b.Priority) })
	return all
}

// farthest is above all distances.
const farthest = 5

func (x preference) distance(from, to mesh.Locality) uint32 {
	switch {
	case !x.distances && !x.regions, x.regions && from.Region == to.Region, from == to:
		return 0
	case from.Region == to.Region && from.Zone == to.Zone:
		return 1
	case from.Region == to.Region:
		return 2
	}
	for _, f := range x.failover {
		if f.from == from.Region && f.to == to.Region {
			return 3
		}
	}
	if x.regions || slices.ContainsFunc(x.failover, func(f failover) bool { return f.from == from.Region }) {
		return 4
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
