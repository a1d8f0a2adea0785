package mesh

import (
	"testing"

	networking "istio.io/api/networking/v1alpha3"
)

func named(namespace, name string) *Service {
	return &Service{Cluster: "c1", Namespace: namespace, Name: name, Type: ClusterIP, Ports: []ServicePort{{Name: "http", Number: 80}}}
}

func leadsTo(namespace, name, other string) *Service {
	return &Service{Cluster: "c1", Namespace: namespace, Name: name, Type: ExternalName, ExternalName: other}
}

func routed(name string, hosts ...string) *VirtualService {
	return &VirtualService{Meta: Meta{Cluster: "c1", Namespace: "shop", Name: name}, Spec: &networking.VirtualService{
		Hosts: hosts, Http: []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: "web"}}}}},
	}}
}

// TestNamesComeAndGo: whether a name is a Service's, or a host by itself, follows whether there is the Service.
func TestNamesComeAndGo(t *testing.T) {
	const full = "web.shop.svc.cluster.local"
	s := New(Settings{Cluster: "c1"}).Apply(Event{Object: routed("v", "web.shop", "*.web.shop", "*-x.shop.svc.cluster.local", "c.example.com")})
	routes := func(when string, want map[string]int) {
		t.Helper()
		for host, n := range want {
			got := 0
			if h := s.Host(host); h != nil {
				got = len(h.Routes)
			}
			if got != n {
				t.Errorf("%s: %s has %d routes, want %d", when, host, got, n)
			}
		}
	}
	alone := map[string]int{"web.shop": 1, full: 0, "*.web.shop": 1, "*-x.shop.svc.cluster.local": 1, "c.example.com": 1}
	routes("no Service", alone)
	s = s.Apply(Event{Object: named("shop", "web")}, Event{Object: named("shop", "a-x")})
	routes("with the Services", map[string]int{"web.shop": 0, full: 1, "*.web.shop": 0, "*-x.shop.svc.cluster.local": 0,
		"a-x.shop.svc.cluster.local": 1, "c.example.com": 1})
	s = s.Apply(Gone(named("shop", "web").Key()), Gone(named("shop", "a-x").Key()))
	routes("without them again", alone)
}

// TestAliases: what a name of type ExternalName means follows what is there, through other names, never in a circle.
func TestAliases(t *testing.T) {
	s := New(Settings{Cluster: "c1"}).Apply(
		Event{Object: leadsTo("a", "one", "two.a.svc.cluster.local")}, Event{Object: leadsTo("a", "two", "Web.shop.svc.cluster.local.")},
		Event{Object: leadsTo("a", "self", "self.a.svc.cluster.local")}, Event{Object: leadsTo("a", "out", "www.example.com")})
	alias := func(when string, want map[string]string) {
		t.Helper()
		for name, w := range want {
			got := ""
			if x := s.Host(name + ".a.svc.cluster.local").Service.Alias; x != nil {
				got = x.Host
			}
			if got != w {
				t.Errorf("%s: %s means %q, want %q", when, name, got, w)
			}
		}
	}
	alias("nothing there", map[string]string{"one": "", "two": "", "self": "", "out": ""})
	const web = "web.shop.svc.cluster.local"
	s = s.Apply(Event{Object: named("shop", "web")})
	alias("there", map[string]string{"one": web, "two": web, "self": "", "out": ""})
	s = s.Apply(Event{Object: leadsTo("a", "two", "one.a.svc.cluster.local")})
	alias("a circle", map[string]string{"one": "", "two": ""})
	s = s.Apply(Event{Object: named("a", "two")})
	alias("a Service", map[string]string{"one": "two.a.svc.cluster.local", "two": ""})
	s = s.Apply(Gone(named("a", "two").Key()))
	if x := s.Host("one.a.svc.cluster.local").Service.Alias; x != nil {
		t.Errorf("gone: one means %s", x.Host)
	}
}

// TestPodNode: on which node a client is matters while some Service says so.
func TestPodNode(t *testing.T) {
	pod := &Pod{Cluster: "c1", Namespace: "shop", Name: "client", Node: "n1"}
	s := New(Settings{Cluster: "c1"})
	local, near := named("shop", "local"), named("shop", "near")
	local.NodeLocal, near.Distribution = true, SameNode
	for i, step := range []struct {
		event Event
		want  string
	}{
		{Event{Object: named("shop", "web")}, ""},
		{Event{Object: local}, "n1"},
		{Event{Object: near}, "n1"},
		{Gone(local.Key()), "n1"},
		{Event{Object: named("shop", "near")}, ""},
	} {
		if s = s.Apply(step.event); s.PodNode(pod) != step.want {
			t.Errorf("step %d: %q, want %q", i, s.PodNode(pod), step.want)
		}
	}
}
