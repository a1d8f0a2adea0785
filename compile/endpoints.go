package compile

import (
	"cmp"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// endpointRow is what the endpoints of a host depend on.
type endpointRow struct {
	svc *mesh.HostService
	eps *mesh.Endpoints
	choice
}

// endpointView is what of a proxy its endpoints depend on.
type endpointView struct {
	dialect  Dialect
	router   bool
	cluster  string
	network  string
	labels   string
	only     string // the networks, joined by commas, of which alone it sees endpoints; "" is all
	locality mesh.Locality
	node     string
	families Family
	networks *mesh.Networks
	prefer   *networking.LocalityLoadBalancerSetting     // MeshConfig's
	policy   *meshconfig.MeshConfig_DefaultTrafficPolicy // of rules that say nothing; nil for none
	autoTLS  bool
	sni      bool
	wide     bool // reaches other networks: all do but gRPC clients that send no server names
}

func toEndpointRow(h *mesh.Host, client string) (r endpointRow, ok bool) {
	if h.Service == nil || h.Service.Alias != nil || !h.Service.Visible(client) {
		return r, false
	}
	return endpointRow{h.Service, h.Endpoints, choiceOf(h, client).where(placesEndpoints)}, true
}

// placesEndpoints reports whether a rule says anything that endpoints depend on.
func placesEndpoints(r *mesh.Rule) bool {
	says := func(tls *networking.ClientTLSSettings, o *networking.OutlierDetection, lb *networking.LoadBalancerSettings) bool {
		return tls != nil || o != nil || lb.GetLocalityLbSetting() != nil || lb.GetZoneAwareLbSetting() != nil || lb.GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH
	}
	p := r.Spec.GetTrafficPolicy()
	return len(r.Spec.GetSubsets()) > 0 || says(p.GetTls(), p.GetOutlierDetection(), p.GetLoadBalancer()) ||
		slices.ContainsFunc(p.GetPortLevelSettings(), func(s *networking.TrafficPolicy_PortTrafficPolicy) bool {
			return says(s.GetTls(), s.GetOutlierDetection(), s.GetLoadBalancer())
		})
}

func toEndpointView(s *mesh.Snapshot, p Proxy, w *workload) endpointView {
	return endpointView{
		p.Dialect.form(), p.Router, p.Cluster, p.Network, p.Labels, p.View, p.Locality, p.Node, p.Families,
		s.Networks(), s.Config().LocalityLB, s.Config().DefaultPolicy, s.Config().AutoMTLS, w.passthrough != "",
		p.Dialect != GRPC || p.SNI,
	}
}

func (r endpointRow) need() need {
	n := need{
		cluster: differ(r.svc) || r.svc.ClusterLocal || r.svc.ByNode(), network: true, router: headless(r.svc), labels: r.labels(),
		locality: r.svc.Distribution != "", node: r.svc.ByNode(),
	}
	r.any(func(rule *mesh.Rule) bool {
		return anyPolicy(rule, func(p *networking.TrafficPolicy) bool {
			x := preferenceOf(p, nil)
			n.locality = n.locality || x.any()
			n.cluster = n.cluster || slices.Contains(x.labels, clusterLabel)
			n.labels = union(n.labels, sortedSet(strings.Join(x.keys(), ",")))
			return false
		})
	})
	return n
}

const clusterLabel = "topology.istio.io/cluster"

func (v endpointView) narrow(n need) endpointView {
	// What MeshConfig has all services prefer, all need.
	mine := preferenceOf(&networking.TrafficPolicy{OutlierDetection: v.policy.GetOutlierDetection()}, v.prefer)
	if n.locality { // its rule may have outlier detection
		mine = preferenceOf(&networking.TrafficPolicy{OutlierDetection: &networking.OutlierDetection{}}, v.prefer)
	}
	n.locality = n.locality || mine.any()
	n.cluster = n.cluster || slices.Contains(mine.labels, clusterLabel)
	n.labels = union(n.labels, sortedSet(strings.Join(mine.keys(), ",")))
	if !n.cluster {
		v.cluster = ""
	}
	if !n.router {
		v.router = false
	}
	if !n.locality {
		v.locality, v.prefer = mesh.Locality{}, nil
	}
	if !n.node {
		v.node = ""
	}
	v.labels = pick(v.labels, n.labels)
	return v
}

func buildEndpoints(r endpointRow, v endpointView) (m made) {
	r.choice = r.of(v.labels)
	part := r.svc.In(v.cluster)
	if part.Type == mesh.ExternalName || part.Headless && !v.router && v.dialect != GRPC {
		return m // these clusters do not ask for endpoints
	}
	for _, p := range part.Ports {
		if p.Protocol() == mesh.UDP {
			continue
		}
		for _, subset := range subsetsOf(r.rule) {
			policy := withDefaults(policyFor(r.rule, subset, p.Number), v.policy)
			if policy.GetLoadBalancer().GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH {
				continue
			}
			add := func(name string, onlyTLS bool) {
				localities := r.localities(v, p.Number, subset, policy, onlyTLS)
				m.resources = append(m.resources, newResource(name, &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: localities}))
			}
			add(clusterName(p.Number, subset.GetName(), r.svc.Host), false)
			if v.sni {
				add(sniName(p.Number, subset.GetName(), r.svc.Host), true)
			}
		}
	}
	return m
}

// remote is what stands behind the gateways of one network.
type remote struct {
	weight   uint32
	cluster  string // "" if several
	locality mesh.Locality
	tier     uint32 // of the least preferred: a gateway can be listed once only
	held     bool   // all of it: see mesh.Endpoint
}

// localities returns the endpoints of one port and subset as a proxy sees them: those of its own network
// by their addresses, and for each other network its gateways, with the weight of what is behind them.
// Where connections are passed through by SNI only endpoints that take mutual TLS are of use.
func (r endpointRow) localities(v endpointView, port uint16, subset *networking.Subset, policy *networking.TrafficPolicy, onlyTLS bool) []*endpointv3.LocalityLbEndpoints {
	// group is endpoints of one locality that a proxy prefers alike.
	type group struct {
		mesh.Locality
		tier uint32
	}
	groups, preferred := map[group][]*endpointv3.LbEndpoint{}, preferenceFor(r.svc, policy, v.prefer)
	remotes := map[string]*remote{}
	scale := uint32(1)
	if v.wide {
		scale = gatewayScale(v.networks)
	}
	list := r.eps.On(port)
	for i := range list {
		e := &list[i]
		if !e.Ready || onlyTLS && !e.TLS || !r.sees(v, e) || !selects(subset, e) {
			continue
		}
		if e.Network != v.network {
			if e.TLS && v.wide && r.encrypts(v, policy.GetTls()) {
				count(remotes, e, preferred.tier(v, e.Label))
			}
			continue
		}
		if ip := address(e, v.families); ip != "" {
			g := group{e.Locality, preferred.tier(v, e.Label)}
			groups[g] = append(groups[g], podEndpoint(e, ip, scale))
		}
	}
	for _, network := range sortedKeys(remotes) {
		x := remotes[network]
		g := group{x.locality, x.tier}
		groups[g] = append(groups[g], gatewayEndpoints(v, network, x, scale)...)
	}
	out := make([]*endpointv3.LocalityLbEndpoints, 0, len(groups))
	for g, eps := range groups {
		if len(eps) == 0 {
			continue
		}
		var weight uint32
		for _, e := range eps {
			weight += e.LoadBalancingWeight.Value
		}
		out = append(out, &endpointv3.LocalityLbEndpoints{
			Locality:    &core.Locality{Region: g.Region, Zone: g.Zone, SubZone: g.Subzone},
			LbEndpoints: eps, LoadBalancingWeight: u32(weight), Priority: g.tier,
		})
	}
	slices.SortFunc(out, func(a, b *endpointv3.LocalityLbEndpoints) int {
		x, y := a.Locality, b.Locality
		return cmp.Or(strings.Compare(x.Region, y.Region), strings.Compare(x.Zone, y.Zone), strings.Compare(x.SubZone, y.SubZone), cmp.Compare(a.Priority, b.Priority))
	})
	return preferred.order(out, v)
}

func (r endpointRow) sees(v endpointView, e *mesh.Endpoint) bool {
	if r.svc.In(v.cluster).NodeLocal && (e.Cluster != v.cluster || e.Node != v.node) {
		return false
	}
	if r.svc.ClusterLocal && e.Cluster != v.cluster {
		return false
	}
	return v.only == "" || slices.Contains(strings.Split(v.only, ","), e.Network)
}

func selects(subset *networking.Subset, e *mesh.Endpoint) bool {
	for k, want := range subset.GetLabels() {
		if e.Label(k) != want {
			return false
		}
	}
	return true
}

// encrypts reports whether a rule's TLS settings let a connection pass a gateway between networks. A
// gRPC client does nothing by itself.
func (r endpointRow) encrypts(v endpointView, t *networking.ClientTLSSettings) bool {
	mutual := t.GetMode() == networking.ClientTLSSettings_ISTIO_MUTUAL
	if v.dialect == GRPC {
		return mutual
	}
	return v.autoTLS && (t == nil || mutual)
}

func address(e *mesh.Endpoint, f Family) string {
	if f&IPv4 != 0 && e.IPv4 != "" {
		return e.IPv4
	}
	if f&IPv6 != 0 {
		return e.IPv6
	}
	return ""
}

func count(remotes map[string]*remote, e *mesh.Endpoint, tier uint32) {
	x := remotes[e.Network]
	if x == nil {
		remotes[e.Network] = &remote{1, e.Cluster, e.Locality, tier, e.Held}
		return
	}
	x.weight++
	x.tier = max(x.tier, tier)
	x.held = x.held && e.Held
	if x.cluster != e.Cluster {
		x.cluster = ""
	}
	x.locality = commonLocality(x.locality, e.Locality)
}

// commonLocality returns as much as two localities share: a gateway can be listed once only, whatever is
// behind it, for Envoy drops the second of two equal addresses.
func commonLocality(a, b mesh.Locality) mesh.Locality {
	switch {
	case a.Region != b.Region:
		return mesh.Locality{}
	case a.Zone != b.Zone:
		return mesh.Locality{Region: a.Region}
	case a.Subzone != b.Subzone:
		return mesh.Locality{Region: a.Region, Zone: a.Zone}
	}
	return a
}

func podEndpoint(e *mesh.Endpoint, ip string, weight uint32) *endpointv3.LbEndpoint {
	meta := map[string]*structpb.Struct{"istio": fields("workload", text(workloadOf(e)))}
	if e.TLS {
		meta["envoy.transport_socket_match"] = fields("tlsMode", text("istio"))
	}
	health := core.HealthStatus_HEALTHY
	if e.Held {
		health = core.HealthStatus_DEGRADED
	}
	return &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(ip, uint32(e.Port))}},
		HealthStatus:        health,
		LoadBalancingWeight: u32(weight),
		Metadata:            &core.Metadata{FilterMetadata: meta},
	}
}

// workloadOf returns "workload;namespace;canonical name;canonical revision;cluster".
func workloadOf(e *mesh.Endpoint) string {
	if e.Pod == nil {
		return ";;;;" + e.Cluster
	}
	l, name := e.Pod.Labels, e.Pod.Workload
	if name == "" {
		name = e.Pod.Name
	}
	canonical := cmp.Or(l["service.istio.io/canonical-name"], l["app.kubernetes.io/name"], l["app"], name)
	revision := cmp.Or(l["service.istio.io/canonical-revision"], l["app.kubernetes.io/version"], l["version"])
	return strings.Join([]string{name, e.Pod.Namespace, canonical, revision, e.Cluster}, ";")
}

// gatewayEndpoints returns the gateways of a network that answer, the weight split among them; if none
// answers, all, marked so that requests fail at once rather than hang.
func gatewayEndpoints(v endpointView, network string, x *remote, scale uint32) (out []*endpointv3.LbEndpoint) {
	gateways := usable(v.networks.To(network))
	for _, g := range gateways {
		e := &endpointv3.LbEndpoint{
			HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(g.Address, uint32(g.Port))}},
			LoadBalancingWeight: u32(x.weight * scale / uint32(len(gateways))),
			Metadata: &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
				"istio":                        fields("workload", text(";;;;"+cmp.Or(x.cluster, g.Cluster))),
				"envoy.transport_socket_match": fields("tlsMode", text("istio")),
			}},
		}
		if x.held {
			e.HealthStatus = core.HealthStatus_DEGRADED
		}
		if g.Down {
			e.HealthStatus = core.HealthStatus_UNHEALTHY
		}
		out = append(out, e)
	}
	return out
}

func usable(all []mesh.NetworkGateway) []mesh.NetworkGateway {
	var up []mesh.NetworkGateway
	for _, g := range all {
		if !g.Down {
			up = append(up, g)
		}
	}
	if up == nil {
		return all
	}
	return up
}

// gatewayScale returns what all weights are multiplied by, so that they can be split evenly among the
// gateways of each network: the least common multiple of their numbers, bounded.
func gatewayScale(n *mesh.Networks) uint32 {
	scale := uint32(1)
	for i := 0; i < len(n.Gateways); {
		all := n.To(n.Gateways[i].Network)
		k := uint32(len(usable(all)))
		if next := scale / gcd(scale, k) * k; next <= 1<<12 {
			scale = next
		}
		i += len(all)
	}
	return scale
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
