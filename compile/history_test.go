package compile

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// history is a mesh as plain objects, which random changes of one field at a time go through.
type history struct {
	*rand.Rand
	objects map[mesh.Key]mesh.Object
	asking  map[string]bool // who is connected
}

const small, spaces = 120, 5

func space(i int) string   { return fmt.Sprintf("ns-%d", i) }
func service(i int) string { return fmt.Sprintf("svc-%03d", i) }

func oneOf[T any](r *rand.Rand, all ...T) T { return all[r.IntN(len(all))] }

func (h *history) exportTo() []string {
	return oneOf(h.Rand, nil, nil, []string{"*"}, []string{"."}, []string{space(h.IntN(spaces))}, []string{space(h.IntN(spaces)), "."})
}

func (h *history) cluster() string { return oneOf(h.Rand, "c1", "c2", "c3") }

// created is before and after, so that age decides something.
func (h *history) created() time.Time { return time.Unix(int64(h.IntN(3)), 0) }

// change returns an event that adds an object, removes it, or changes it.
func (h *history) change() mesh.Event {
	o := h.object()
	k := o.Key()
	if old := h.objects[k]; old != nil && h.IntN(4) == 0 {
		delete(h.objects, k)
		return mesh.Gone(k)
	}
	h.objects[k] = o
	return mesh.Event{Object: o}
}

func (h *history) object() mesh.Object {
	i := h.IntN(small)
	ns, name := space(i%spaces), service(i)
	meta := mesh.Meta{Cluster: "c1", Namespace: oneOf(h.Rand, ns, space(h.IntN(spaces)), "istio-system"), Name: oneOf(h.Rand, "x", "y"), Created: h.created()}
	switch h.IntN(16) {
	case 0, 1, 2:
		return h.service(ns, name, i)
	case 3, 4, 5:
		return h.slice(ns, name, i)
	case 6, 7:
		return h.pod(ns, i)
	case 8:
		return &mesh.Node{Cluster: h.cluster(), Name: "n" + strconv.Itoa(h.IntN(2)), Locality: mesh.Locality{Region: oneOf(h.Rand, "r1", "r2"), Zone: oneOf(h.Rand, "z1", "z2")},
			Address: oneOf(h.Rand, "", "192.0.2.11"), Labels: map[string]string{"edge": oneOf(h.Rand, "0", "1")}}
	case 9:
		return &mesh.Namespace{Cluster: h.cluster(), Name: oneOf(h.Rand, "istio-system", "istio-system", ns), Labels: map[string]string{"topology.istio.io/network": oneOf(h.Rand, "", "net-1", "net-2")}, Distribution: oneOf(h.Rand, "", mesh.SameZone)}
	case 10:
		c := h.cluster()
		return &mesh.Service{Cluster: c, Namespace: "istio-system", Name: "eastwest", Labels: map[string]string{"topology.istio.io/network": oneOf(h.Rand, "net-1", "net-2")},
			Addresses: oneOf(h.Rand, nil, []string{"192.0.2." + strconv.Itoa(h.IntN(4))}, []string{"192.0.2.8", "192.0.2.9"}), ClusterIPs: []string{"10.9.9.9"},
			Type: oneOf(h.Rand, mesh.LoadBalancer, mesh.NodePort), NodeSelector: oneOf(h.Rand, nil, map[string]string{}, map[string]string{"edge": "1"}),
			Ports: []mesh.ServicePort{{Name: "tls", Number: 15443, NodePort: 31443}}}
	case 11:
		return h.rule(meta, name, ns)
	case 12:
		return h.route(meta, name, ns)
	case 13:
		p := &security.PeerAuthentication{Mtls: &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_Mode(h.IntN(4))}}
		return &mesh.PeerAuthentication{Meta: meta, Spec: p}
	case 14:
		g := &networking.Gateway{Selector: map[string]string{"app": oneOf(h.Rand, "gw", "ew")}, Servers: []*networking.Server{{
			Port: &networking.Port{Number: oneOf[uint32](h.Rand, 80, 8080), Name: "http", Protocol: "HTTP"}, Hosts: []string{oneOf(h.Rand, "*", "a.example.com")}}}}
		if h.IntN(2) == 0 {
			g.Selector = map[string]string{"app": "ew"}
			g.Servers = []*networking.Server{{Port: &networking.Port{Number: 15443, Name: "tls", Protocol: "TLS"}, Hosts: []string{oneOf(h.Rand, "*.local", "*."+ns+".svc.cluster.local")},
				Tls: &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_AUTO_PASSTHROUGH}}}
		}
		return &mesh.Gateway{Meta: meta, Spec: g}
	}
	m := &meshconfig.MeshConfig{AccessLogFile: oneOf(h.Rand, "", "/dev/stdout"), TrustDomain: oneOf(h.Rand, "", "td")}
	if h.IntN(3) == 0 {
		m.OutboundTrafficPolicy = &meshconfig.MeshConfig_OutboundTrafficPolicy{Mode: meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY}
		m.DefaultServiceExportTo = oneOf(h.Rand, nil, []string{"."})
		m.ServiceSettings = []*meshconfig.MeshConfig_ServiceSettings{{Settings: &meshconfig.MeshConfig_ServiceSettings_Settings{ClusterLocal: true}, Hosts: []string{"*." + ns + ".svc.cluster.local"}}}
	}
	return &mesh.MeshConfig{Cluster: "c1", Spec: m}
}

func (h *history) service(ns, name string, i int) *mesh.Service {
	s := &mesh.Service{Cluster: h.cluster(), Namespace: ns, Name: name, Type: mesh.ClusterIP, ClusterIPs: []string{"10.1.0." + strconv.Itoa(i)},
		Selector: map[string]string{"app": name}, Ports: []mesh.ServicePort{{Name: "http", Number: 80, TargetPort: 8080}}}
	if old, ok := h.objects[s.Key()].(*mesh.Service); ok {
		*s = *old
	}
	switch h.IntN(7) {
	case 6:
		s.NodeLocal = h.IntN(4) == 0
		s.Distribution = oneOf(h.Rand, "", "", mesh.SameZone, mesh.SameNode)
	case 5: // another name of some Service, itself perhaps, or no longer
		s.Type = oneOf(h.Rand, mesh.ClusterIP, mesh.ExternalName)
		j := h.IntN(small)
		s.ExternalName = oneOf(h.Rand, "www.example.com", service(j)+"."+space(j%spaces)+".svc.cluster.local")
	case 0:
		s.ExportTo = h.exportTo()
	case 1:
		s.Ports = oneOf(h.Rand, []mesh.ServicePort{{Name: "http", Number: 80}}, []mesh.ServicePort{{Name: "tcp", Number: 90}}, []mesh.ServicePort{{Name: "http", Number: 80}, {Name: "x", Number: 90}}, nil)
	case 2:
		s.ClusterIPs = []string{"10.1.1." + strconv.Itoa(i)}
		s.Headless = false
	case 3:
		if h.IntN(4) == 0 {
			s.ClusterIPs, s.Headless = nil, true
		}
	}
	return s
}

func (h *history) slice(ns, name string, i int) *mesh.EndpointSlice {
	s := &mesh.EndpointSlice{Cluster: h.cluster(), Namespace: ns, Name: name + oneOf(h.Rand, "-a", "-b"), Service: name,
		Ports: oneOf(h.Rand, []mesh.SlicePort{{Name: "http", Number: 8080}}, []mesh.SlicePort{{Name: "http", Number: 8080}, {Name: "x", Number: 90}, {Name: "tcp", Number: 91}})}
	for j := range h.IntN(4) {
		e := mesh.SliceEndpoint{Addresses: []string{fmt.Sprintf("10.0.%d.%d", i/2, j)}, Ready: h.IntN(5) > 0, Pod: fmt.Sprintf("pod-%d-%d", i, h.IntN(3))} // i/2: two services have the same
		if h.IntN(6) == 0 {
			e.Pod = ""
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func (h *history) pod(ns string, i int) *mesh.Pod {
	p := &mesh.Pod{Cluster: h.cluster(), Namespace: ns, Name: fmt.Sprintf("pod-%d-%d", i, h.IntN(3)), IPs: []string{"10.0.0.1"}, ServiceAccount: oneOf(h.Rand, "default", "other"),
		Node: "n" + strconv.Itoa(h.IntN(2)), Labels: map[string]string{"app": service(i), "version": oneOf(h.Rand, "v1", "v2")}}
	if h.IntN(4) > 0 {
		p.Labels["security.istio.io/tlsMode"] = "istio"
	}
	if h.IntN(8) == 0 {
		p.Labels["topology.istio.io/network"] = "net-2"
	}
	return p
}

func (h *history) rule(meta mesh.Meta, name, ns string) *mesh.DestinationRule {
	host := oneOf(h.Rand, name+"."+ns+".svc.cluster.local", name+"."+ns+".svc.cluster.local", "*."+ns+".svc.cluster.local")
	r := &networking.DestinationRule{Host: host, ExportTo: h.exportTo(), TrafficPolicy: &networking.TrafficPolicy{}}
	switch h.IntN(4) {
	case 0:
		r.TrafficPolicy.ConnectionPool = &networking.ConnectionPoolSettings{Tcp: &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: int32(h.IntN(9))}}
	case 1:
		r.Subsets = []*networking.Subset{{Name: "v1", Labels: map[string]string{"version": "v1"}}}
	case 2:
		r.TrafficPolicy.OutlierDetection = &networking.OutlierDetection{Consecutive_5XxErrors: wrapperspb.UInt32(3)}
	case 3:
		r.TrafficPolicy.Tls = &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_DISABLE}
	}
	if h.IntN(3) == 0 {
		r.WorkloadSelector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"version": oneOf(h.Rand, "v1", "v2")}}
	}
	return &mesh.DestinationRule{Meta: meta, Spec: r}
}

func (h *history) route(meta mesh.Meta, name, ns string) *mesh.VirtualService {
	host := oneOf(h.Rand, name+"."+ns+".svc.cluster.local", name+"."+ns+".svc.cluster.local", "*."+ns+".svc.cluster.local",
		name+"."+ns, name+"."+ns+".svc", "c.example.com", "*.example.com", "*."+name+"."+ns, "*."+name, "*-"+name[4:]+"."+ns+".svc.cluster.local")
	j := h.IntN(small)
	to := service(j) + "." + space(j%spaces) + ".svc.cluster.local"
	r := &networking.HTTPRoute{Timeout: durationpb.New(time.Duration(1+h.IntN(3)) * time.Second), Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: to}}}}
	v := &networking.VirtualService{Hosts: []string{host}, ExportTo: h.exportTo(), Http: []*networking.HTTPRoute{r}}
	switch h.IntN(8) {
	case 5: // a delegate
		v.Hosts = nil
		r.Match = oneOf(h.Rand, nil, []*networking.HTTPMatchRequest{{Uri: &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "/a/b"}}}})
	case 6, 7:
		r.Route, r.Delegate = nil, &networking.Delegate{Name: oneOf(h.Rand, "x", "y"), Namespace: oneOf(h.Rand, "", "istio-system")}
		r.Match = oneOf(h.Rand, nil, []*networking.HTTPMatchRequest{{Uri: &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "/a"}}}})
		v.Http = append(v.Http, &networking.HTTPRoute{Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: to}}}})
	case 0:
		r.Match = []*networking.HTTPMatchRequest{{SourceLabels: map[string]string{"version": "v1"}}}
	case 1:
		r.Match = []*networking.HTTPMatchRequest{{SourceNamespace: space(h.IntN(spaces))}}
	case 2:
		v.Gateways = []string{space(h.IntN(spaces)) + "/x"}
		v.Hosts = []string{oneOf(h.Rand, "a.example.com", "b.example.com")}
	case 3:
		v.Tcp = []*networking.TCPRoute{{Route: []*networking.RouteDestination{{Destination: &networking.Destination{Host: to}}}}}
	}
	return &mesh.VirtualService{Meta: meta, Spec: v}
}

// proxies returns all that ask, each with pods that the snapshot may or may not have.
func (h *history) proxies(s *mesh.Snapshot) (ps []Proxy) {
	if len(h.asking) < 10 || h.IntN(4) == 0 { // one comes or goes
		who := fmt.Sprint(h.IntN(60))
		if h.asking[who] {
			delete(h.asking, who)
		} else {
			h.asking[who] = true
		}
	}
	for _, who := range slices.Sorted(maps.Keys(h.asking)) {
		i, _ := strconv.Atoi(who)
		pod := &mesh.Pod{Cluster: []string{"c1", "c2"}[i%2], Namespace: space(i % (spaces + 1)), Name: who, IPs: []string{"10.0.0.1"}, Node: "n0",
			Labels: map[string]string{"app": service(i), "version": []string{"v1", "v2", "v3"}[i%3]}}
		n := Node{Dialect: []Dialect{Envoy, Envoy, Envoy, GRPC}[i/2%4]}
		if i%7 == 0 {
			pod.Labels["app"], n.Router, n.Dialect = "gw", true, Envoy
		} else if i%7 == 1 {
			pod.Labels["app"], n.Router, n.Dialect, n.View = "ew", true, Envoy, "net-1"
		}
		if p := Of(s, pod, n); !slices.Contains(ps, p) {
			ps = append(ps, p)
		}
	}
	return ps
}

// plain is what p should hold, found the plain way: each host for itself, with no leaves, lenses, narrowing
// or memory.
func plain(s *mesh.Snapshot, p Proxy) (out [4]map[string]*resource.Resource) {
	var own *workload
	switch {
	case p.Dialect == GRPC:
		own = grpcServerOf(s, p).build()
	case p.Router:
		own = gatewayOf(s, p).build()
	default:
		own = sidecarOf(s, p).build()
	}
	out[0] = plainKind(s, p, own, own.clusters, toClusterRow, toClusterView, buildClusters, nil)
	out[1] = plainKind(s, p, own, nil, toEndpointRow, toEndpointView, buildEndpoints, nil)
	out[2] = plainKind(s, p, own, own.listeners, toListenerRow, toListenerView, buildListeners, listenerFrame)
	out[3] = plainKind(s, p, own, own.routes, toRouteRow, toRouteView, buildRoutes, routeFrame)
	return out
}

func plainKind[R, V comparable](s *mesh.Snapshot, p Proxy, own *workload, part *resource.Part, row func(*mesh.Host, string) (R, bool),
	view func(*mesh.Snapshot, Proxy, *workload) V, build func(R, V) made, frame func(string, V) frame,
) map[string]*resource.Resource {
	out := map[string]*resource.Resource{}
	bodies := map[string][]byte{}
	v := view(s, p, own)
	for h := range s.Hosts() {
		r, ok := row(h, p.Namespace)
		if !ok {
			continue
		}
		m := build(r, v)
		for _, r := range m.resources {
			out[r.Name] = r
		}
		for _, f := range m.fragments {
			if f.whole {
				if out[f.group] == nil {
					out[f.group] = resource.New(f.group, f.bytes)
				}
				continue
			}
			bodies[f.group] = append(bodies[f.group], f.bytes...)
		}
	}
	for name, body := range bodies {
		f := frame(name, v)
		out[name] = resource.New(name, slices.Concat(f.head, body, f.tail))
	}
	if part != nil {
		for _, r := range part.Resources {
			out[r.Name] = r
		}
	}
	return out
}

func (b Bundle) lists() [4]*resource.List {
	return [4]*resource.List{b.Clusters, b.Endpoints, b.Listeners, b.Routes}
}

func lines(t *testing.T, m proto.Message, r *resource.Resource) []string {
	t.Helper()
	if err := proto.Unmarshal(r.Bytes(), m); err != nil {
		t.Fatal(err)
	}
	return strings.Split(toYAML(t, m), "\n")
}

func same(t *testing.T, what string, of func() proto.Message, got, want map[string]*resource.Resource) {
	t.Helper()
	for name, w := range want {
		g := got[name]
		if g == nil {
			t.Fatalf("%s: %s is missing", what, name)
		}
		if !bytes.Equal(g.Bytes(), w.Bytes()) {
			t.Fatalf("%s: %s (-want +got):\n%s", what, name, cmp.Diff(lines(t, of(), w), lines(t, of(), g)))
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Fatalf("%s: %s should not be there", what, name)
		}
	}
}

// Whatever happened before, the mesh is what its objects give in any order; what a proxy gets is what the
// plain way gives; and deltas lead to it.
func TestHistories(t *testing.T) {
	steps := 40
	if testing.Short() {
		steps = 10
	}
	for seed := range uint64(3) {
		h := &history{rand.New(rand.NewPCG(seed, 7)), map[mesh.Key]mesh.Object{}, map[string]bool{}}
		settings := mesh.Settings{Cluster: "c1"}
		s, c := mesh.New(settings), New()
		state := map[Proxy][4]map[string]*resource.Resource{}
		held := map[Proxy]Bundle{}
		for step := range steps {
			n := 1 + h.IntN(3)
			if step == 0 {
				n = 900 // begin with many
			}
			var events []mesh.Event
			for range n {
				events = append(events, h.change())
			}
			if h.IntN(40) == 0 { // a cluster leaves
				gone := oneOf(h.Rand, "c2", "c3")
				maps.DeleteFunc(h.objects, func(k mesh.Key, _ mesh.Object) bool { return k.Cluster == gone })
				events = append(events, mesh.Gone((&mesh.Cluster{ID: gone}).Key()))
			}
			s = s.Apply(events...)
			var all []mesh.Event
			for _, o := range h.objects { // in no order
				all = append(all, mesh.Event{Object: o})
			}
			scratch := mesh.New(settings).Apply(all...)
			if f := s.Findings(); len(f) > 0 {
				t.Fatal(f)
			}
			proxies := h.proxies(s)
			next := map[Proxy][4]map[string]*resource.Resource{}
			nextHeld := map[Proxy]Bundle{}
			for i, b := range c.Pass(s, proxies) {
				p := proxies[i]
				want := plain(scratch, p)
				var got [4]map[string]*resource.Resource
				for k, l := range b.lists() {
					what := fmt.Sprintf("seed %d step %d list %d of %+v", seed, step, k, p)
					m := maps.Clone(state[p][k])
					if m == nil {
						m = map[string]*resource.Resource{}
					}
					d := l.Since(held[p].lists()[k])
					for _, name := range d.Removed {
						if m[name] == nil {
							t.Fatalf("%s: removed %s, which was not there", what, name)
						}
						delete(m, name)
					}
					for _, r := range d.Changed {
						m[r.Name] = r
					}
					same(t, what, kinds(b)[k].of, m, want[k])
					got[k] = m
				}
				next[p], nextHeld[p] = got, b
			}
			state, held = next, nextHeld
		}
		fresh := New()
		fresh.Pass(s, h.proxies(s))
		if got, want := results(c), results(fresh); got > 3*want {
			t.Errorf("seed %d: %d results remembered, %d in use", seed, got, want)
		}
	}
}

func results(c *Compiler) int {
	return c.clusters.remembered() + c.endpoints.remembered() + c.listeners.remembered() + c.routes.remembered() + len(c.workloads.proxies) + len(c.lists)
}

func (k *kind[R, V]) remembered() (n int) {
	for _, c := range k.columns {
		n += len(c.chunks)
		for _, x := range c.cells {
			n += 1 + len(x.built)
		}
		for _, ch := range c.chunks {
			n += len(ch.parts)
		}
	}
	for _, sc := range k.scopes {
		n += len(sc.lists)
	}
	return n
}

// Settings that change again and again leave nothing behind, though no host changes.
func TestFormerViewsAreForgotten(t *testing.T) {
	z := size{100, 40, 5}
	s, c := z.world(), New()
	ps := z.clients(s)
	c.Pass(s, ps)
	want := results(c)
	for i := range 60 {
		s = s.Apply(mesh.Event{Object: &mesh.MeshConfig{Cluster: "c0", Spec: &meshconfig.MeshConfig{
			AccessLogFile: "/dev/stdout", AccessLogFormat: fmt.Sprint("format ", i), TrustDomain: fmt.Sprint("td", i)}}})
		c.Pass(s, ps)
	}
	if got := results(c); got > 6*want {
		t.Errorf("%d results remembered, %d at first", got, want)
	}
}
