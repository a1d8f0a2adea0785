package compile

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// size of a mesh: of two clusters, on two networks, in three zones; a service in both, with five pods
// in all; a DestinationRule for every 4th, a VirtualService for every 10th; every 20th is private.
type size struct{ services, proxies, namespaces int }

func (z size) String() string { return fmt.Sprintf("%d-%d-%d", z.services, z.proxies, z.namespaces) }

func (z size) meta(i int) mesh.Meta {
	return mesh.Meta{Cluster: "c0", Namespace: space(i % z.namespaces), Name: fmt.Sprintf("svc-%05d", i)}
}

func (z size) world() *mesh.Snapshot {
	events := []mesh.Event{}
	add := func(o mesh.Object) { events = append(events, mesh.Event{Object: o}) }
	for c := range 2 {
		cluster := fmt.Sprint("c", c)
		add(&mesh.Namespace{Cluster: cluster, Name: "istio-system", Labels: map[string]string{"topology.istio.io/network": fmt.Sprint("net-", c)}})
		for n := range 3 {
			add(&mesh.Node{Cluster: cluster, Name: fmt.Sprint("n", n), Locality: mesh.Locality{Region: fmt.Sprint("r", c), Zone: fmt.Sprint("z", n)}})
		}
		add(&mesh.Service{Cluster: cluster, Namespace: "istio-system", Name: "eastwest", Labels: map[string]string{"topology.istio.io/network": fmt.Sprint("net-", c)},
			Addresses: []string{fmt.Sprint("192.0.2.", c)}, Ports: []mesh.ServicePort{{Name: "tls", Number: 15443}}})
	}
	for i := range z.services {
		for c := range 2 {
			add(z.service(i, c))
			add(z.slice(i, c, 0))
		}
		for j := range 5 {
			add(z.pod(i, j))
		}
		if i%4 == 0 {
			add(z.rule(i, 1))
		}
		if i%10 == 0 {
			add(z.route(i, 1))
		}
	}
	return mesh.New(mesh.Settings{Cluster: "c0"}).Apply(events...)
}

func (z size) service(i, c int) *mesh.Service {
	m := z.meta(i)
	s := &mesh.Service{Cluster: fmt.Sprint("c", c), Namespace: m.Namespace, Name: m.Name, Type: mesh.ClusterIP, ClusterIPs: []string{fmt.Sprintf("10.%d.%d.%d", c, i/250, i%250)},
		Selector: map[string]string{"app": m.Name}, Ports: []mesh.ServicePort{{Name: "http", Number: 80, TargetPort: 8080}}}
	if i%20 == 19 {
		s.ExportTo = []string{"."}
	}
	return s
}

// slice of a service in a cluster: three pods in the first, two in the second; skip is how many are not ready.
func (z size) slice(i, c, skip int) *mesh.EndpointSlice {
	m := z.meta(i)
	s := &mesh.EndpointSlice{Cluster: fmt.Sprint("c", c), Namespace: m.Namespace, Name: m.Name + "-x", Service: m.Name, Ports: []mesh.SlicePort{{Name: "http", Number: 8080}}}
	for j := range 5 {
		if j%2 == c {
			p := z.pod(i, j)
			s.Endpoints = append(s.Endpoints, mesh.SliceEndpoint{Addresses: p.IPs, Ready: len(s.Endpoints) >= skip, Pod: p.Name, Node: p.Node})
		}
	}
	return s
}

func (z size) pod(i, j int) *mesh.Pod {
	m := z.meta(i)
	return &mesh.Pod{Cluster: fmt.Sprint("c", j%2), Namespace: m.Namespace, Name: fmt.Sprint(m.Name, "-", j), Node: fmt.Sprint("n", j%3), ServiceAccount: m.Name,
		IPs: []string{fmt.Sprintf("10.%d.%d.%d", 100+i/250, i%250, j)}, Workload: m.Name,
		Labels: map[string]string{"app": m.Name, "version": fmt.Sprint("v", j%2), "security.istio.io/tlsMode": "istio"}}
}

func (z size) rule(i, n int) *mesh.DestinationRule {
	return &mesh.DestinationRule{Meta: z.meta(i), Spec: &networking.DestinationRule{Host: z.meta(i).Name, TrafficPolicy: &networking.TrafficPolicy{
		ConnectionPool: &networking.ConnectionPoolSettings{Tcp: &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: int32(n)}}}}}
}

func (z size) route(i, n int) *mesh.VirtualService {
	name := z.meta(i).Name
	return &mesh.VirtualService{Meta: z.meta(i), Spec: &networking.VirtualService{Hosts: []string{name}, Http: []*networking.HTTPRoute{{
		Timeout: durationpb.New(time.Duration(n) * time.Second), Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: name}}}}}}}
}

// proxies returns those of the first pods, without repetitions.
func (z size) clients(s *mesh.Snapshot) (ps []Proxy) {
	seen := map[Proxy]bool{}
	for n := range z.proxies {
		i, j := n%z.services, n/z.services
		pod := z.pod(i, (i+j)%5)
		if p := Of(s, pod, Node{Dialect: Dialect(n % 2)}); !seen[p] {
			seen[p] = true
			ps = append(ps, p)
		}
	}
	return ps
}

// builds counts what is built for each xDS type from now on.
func builds(c *Compiler) *[4]int {
	n := &[4]int{}
	b0, b1, b2, b3 := c.clusters.build, c.endpoints.build, c.listeners.build, c.routes.build
	c.clusters.build = func(r clusterRow, v clusterView) made { n[0]++; return b0(r, v) }
	c.endpoints.build = func(r endpointRow, v endpointView) made { n[1]++; return b1(r, v) }
	c.listeners.build = func(r listenerRow, v listenerView) made { n[2]++; return b2(r, v) }
	c.routes.build = func(r routeRow, v routeView) made { n[3]++; return b3(r, v) }
	return n
}

// A change costs exactly the builds of what it touches, however many proxies there are, and moves no
// other list.
func TestBuilds(t *testing.T) {
	z := size{300, 200, 20}
	s, c := z.world(), New()
	ps := z.clients(s)
	held := c.Pass(s, ps)
	n := builds(c)
	i := 107 // no rule, no route, not private
	far := mesh.Meta{Cluster: "c0", Namespace: "istio-system", Name: "far"}
	for _, step := range []struct {
		what  string
		event mesh.Event
		want  [4]int  // builds
		moved [4]bool // resources of that type changed; of the others, lists are the same pointers,
		rows  bool    // but where all types have a row of what changed
	}{
		// 2 networks are 2 clusters. Routes are built for both, and for the one that has clients in the
		// service's namespace; endpoints for both networks; listeners for HTTP are alike everywhere.
		{"endpoint of one cluster", mesh.Event{Object: z.slice(i, 0, 1)}, [4]int{0, 2, 0, 0}, [4]bool{1: true}, false},
		{"the same again", mesh.Event{Object: z.slice(i, 0, 1)}, [4]int{}, [4]bool{}, false},
		{"rule", mesh.Event{Object: z.rule(i, 5)}, [4]int{2, 0, 0, 0}, [4]bool{0: true}, false},
		{"route", mesh.Event{Object: z.route(i, 5)}, [4]int{0, 0, 0, 3}, [4]bool{3: true}, false},
		{"route again", mesh.Event{Object: z.route(i, 6)}, [4]int{0, 0, 0, 3}, [4]bool{3: true}, false},
		{"service of one cluster", mesh.Event{Object: z.service(5000, 0)}, [4]int{1, 2, 1, 3}, [4]bool{true, true, false, true}, true},
		{"service gone", mesh.Gone(z.service(5000, 0).Key()), [4]int{}, [4]bool{true, true, false, true}, true},
		{"label of a namespace", mesh.Event{Object: &mesh.Namespace{Cluster: "c0", Name: space(1), Labels: map[string]string{"a": "b"}}}, [4]int{}, [4]bool{}, false},
		{"a gateway that nobody is", mesh.Event{Object: &mesh.Gateway{Meta: far, Spec: &networking.Gateway{Selector: map[string]string{"a": "b"},
			Servers: []*networking.Server{{Port: &networking.Port{Number: 80, Protocol: "HTTP"}, Hosts: []string{"*"}}}}}}, [4]int{}, [4]bool{}, false},
	} {
		*n = [4]int{}
		s = s.Apply(step.event)
		now := c.Pass(s, ps)
		if *n != step.want {
			t.Errorf("%s: %v builds, want %v", step.what, *n, step.want)
		}
		var moved [4]bool
		for k := range moved {
			for j := range now {
				d := now[j].lists()[k].Since(held[j].lists()[k])
				moved[k] = moved[k] || len(d.Changed)+len(d.Removed) > 0
				if !step.rows && !step.moved[k] && now[j].lists()[k] != held[j].lists()[k] {
					t.Fatalf("%s: list %d of %+v is another, its resources are not", step.what, k, ps[j])
				}
			}
		}
		if moved != step.moved {
			t.Errorf("%s: lists %v changed, want %v", step.what, moved, step.moved)
		}
		held = now
	}
	*n = [4]int{}
	p := ps[0]
	p.Namespace, p.Labels = "elsewhere", "app=new"
	if c.Pass(s, append(slices.Clip(ps), p)); *n != [4]int{} {
		t.Errorf("a proxy of a new workload in a new namespace: %v builds, want none", *n)
	}
}

func eachWorld(b *testing.B, f func(*testing.B, size, *mesh.Snapshot, []Proxy)) {
	for _, z := range []size{{1000, 500, 50}} {
		s := z.world()
		ps := z.clients(s)
		b.Run(z.String(), func(b *testing.B) { f(b, z, s, ps) })
	}
}

func BenchmarkCold(b *testing.B) {
	eachWorld(b, func(b *testing.B, _ size, s *mesh.Snapshot, ps []Proxy) {
		b.ReportAllocs()
		for b.Loop() {
			New().Pass(s, ps)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		c := New()
		bs := c.Pass(s, ps)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/1e6, "live-MB")
		runtime.KeepAlive(c)
		runtime.KeepAlive(bs)
	})
}

// changes times what a change costs from event to deltas, each found once for all proxies that go from
// one list to another.
func changes(b *testing.B, change func(r *rand.Rand, z size, n int) (do, undo mesh.Event)) {
	eachWorld(b, func(b *testing.B, z size, s *mesh.Snapshot, ps []Proxy) {
		b.ReportAllocs()
		r, c := rand.New(rand.NewPCG(1, 2)), New()
		held := c.Pass(s, ps)
		count := builds(c)
		sent, n := 0, 0
		for b.Loop() {
			n++
			do, undo := change(r, z, n)
			s = s.Apply(do)
			now := c.Pass(s, ps)
			deltas := map[[2]*resource.List]bool{}
			for j := range now {
				was := held[j].lists()
				for k, l := range now[j].lists() {
					if key := [2]*resource.List{was[k], l}; l != was[k] && !deltas[key] {
						deltas[key] = true
						sent += len(l.Since(was[k]).Changed)
					}
				}
			}
			held = now
			if undo.Object != nil {
				b.StopTimer()
				m := *count
				s = s.Apply(undo)
				held = c.Pass(s, ps)
				*count = m
				b.StartTimer()
			}
		}
		b.ReportMetric(float64(count[0]+count[1]+count[2]+count[3])/float64(n), "builds/op")
		b.ReportMetric(float64(sent)/float64(n), "sent/op")
	})
}

func BenchmarkEndpoint(b *testing.B) {
	changes(b, func(r *rand.Rand, z size, n int) (mesh.Event, mesh.Event) {
		return mesh.Event{Object: z.slice(r.IntN(z.services), 0, n%3)}, mesh.Event{}
	})
}

func BenchmarkNewService(b *testing.B) {
	changes(b, func(r *rand.Rand, z size, n int) (mesh.Event, mesh.Event) {
		s := z.service(z.services+r.IntN(z.services), 0)
		return mesh.Event{Object: s}, mesh.Gone(s.Key())
	})
}

func BenchmarkVirtualService(b *testing.B) {
	changes(b, func(r *rand.Rand, z size, n int) (mesh.Event, mesh.Event) {
		return mesh.Event{Object: z.route(r.IntN(z.services), n)}, mesh.Event{}
	})
}

func BenchmarkDestinationRule(b *testing.B) {
	changes(b, func(r *rand.Rand, z size, n int) (mesh.Event, mesh.Event) {
		return mesh.Event{Object: z.rule(r.IntN(z.services), n)}, mesh.Event{}
	})
}
