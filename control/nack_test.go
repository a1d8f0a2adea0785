package control

import (
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// What a proxy refuses is said of the object that it came of: the one that the refusal quotes from, all if they are few,
// or the proxy's Pod.
func TestRefusalsLeadToObjects(t *testing.T) {
	meta := func(name string) mesh.Meta { return mesh.Meta{Cluster: "c1", Namespace: "shop", Name: name} }
	route := func(name, host, uri string) *mesh.VirtualService {
		return &mesh.VirtualService{Meta: meta(name), Spec: &networking.VirtualService{Hosts: []string{host}, Gateways: []string{"edge"},
			Http: []*networking.HTTPRoute{{Match: []*networking.HTTPMatchRequest{{Uri: &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: uri}}}},
				Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: "web"}}}}}}}
	}
	pod := &mesh.Pod{Cluster: "c1", Namespace: "shop", Name: "edge-1", Labels: map[string]string{"app": "edge"}, IPs: []string{"10.0.0.1"}}
	var events []mesh.Event
	for _, o := range []mesh.Object{
		&mesh.Gateway{Meta: meta("edge"), Spec: &networking.Gateway{Selector: map[string]string{"app": "edge"},
			Servers: []*networking.Server{{Port: &networking.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*"}}}}},
		pod, route("a", "a.example.com", "/a+"), route("b", "b.example.com", `/b\d`), route("c", "c.example.com", "/c"), route("d", "d.example.com", "/d"),
	} {
		events = append(events, mesh.Event{Object: o})
	}
	s := mesh.New(mesh.Settings{Cluster: "c1"}).Apply(events...)
	if f := s.Findings(); len(f) > 0 {
		t.Fatal(f)
	}
	p := compile.Of(s, pod, compile.Node{Router: true})
	b := compile.New().Pass(s, []compile.Proxy{p})[0]
	l := &loop{Control: &Control{}, snap: s}
	table, listener := named(b.Routes, "http.80"), named(b.Listeners, "0.0.0.0_80")
	for _, c := range []struct {
		typeURL string
		r       *resource.Resource
		said    string
		want    string
	}{
		{resource.RouteType, table, `regex '/b\d' is not good`, "VirtualService/shop/b@c1"},
		{resource.RouteType, table, `virtual host "c.example.com:80": no`, "Pod/shop/edge-1@c1"}, // no object says this
		{resource.RouteType, table, `host "c.example.com" is not good`, "VirtualService/shop/c@c1"},
		{resource.RouteType, table, "out of memory", "Pod/shop/edge-1@c1"},
		{resource.ListenerType, listener, "no such filter", "Gateway/shop/edge@c1"},
	} {
		var got []string
		for _, k := range l.blamed(&seen{pod: pod, proxy: p}, c.typeURL, c.r, c.said) {
			got = append(got, k.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", c.said, got, c.want)
		}
	}
	if said := plainText("a\x1b[31m\n" + strings.Repeat("é", 400)); strings.ContainsAny(said, "\x1b\n") || len(said) > 310 {
		t.Errorf("what a proxy says is not bounded: %q", said)
	}
}
