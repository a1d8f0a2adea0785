package mesh

import (
	"testing"

	networking "istio.io/api/networking/v1alpha3"
)

func svc(cluster, ns, name string) *Service {
	return &Service{Cluster: cluster, Namespace: ns, Name: name, Type: ClusterIP, ClusterIPs: []string{"10.0.0.1"},
		Selector: map[string]string{"app": name}, Ports: []ServicePort{{Name: "http", Number: 5000}}}
}

func pod(cluster, ns, name, ip string) *Pod {
	return &Pod{Cluster: cluster, Namespace: ns, Name: name, IPs: []string{ip}, Node: "n1", ServiceAccount: "default",
		Labels: map[string]string{"app": "helloworld", "security.istio.io/tlsMode": "istio"}}
}

func slice(cluster, ns, service, pod, ip string) *EndpointSlice {
	return &EndpointSlice{Cluster: cluster, Namespace: ns, Name: service + "-x", Service: service, Ports: []SlicePort{{"http", 5000}},
		Endpoints: []SliceEndpoint{{Addresses: []string{ip}, Ready: true, Serving: true, Pod: pod}}}
}

func set(objects ...Object) (es []Event) {
	for _, o := range objects {
		es = append(es, Event{Object: o})
	}
	return es
}

// Services of one name are one host, wherever they are, in whatever order events come.
func TestSameness(t *testing.T) {
	network := func(c string) *Namespace {
		return &Namespace{Cluster: c, Name: "istio-system", Labels: map[string]string{"topology.istio.io/network": "net-" + c}}
	}
	objects := []Object{
		svc("c1", "sample", "helloworld"), svc("c2", "sample", "helloworld"),
		slice("c1", "sample", "helloworld", "p1", "10.1.0.1"), slice("c2", "sample", "helloworld", "p2", "10.1.0.1"),
		pod("c1", "sample", "p1", "10.1.0.1"), pod("c2", "sample", "p2", "10.1.0.1"),
		network("c1"), network("c2"), &Node{Cluster: "c2", Name: "n1", Locality: Locality{"r", "z", ""}},
	}
	for shift := range objects {
		s := New(Settings{Cluster: "c2"})
		for i := range objects {
			s = s.Apply(Event{Object: objects[(i+shift)%len(objects)]})
		}
		h := s.Host("helloworld.sample.svc.cluster.local")
		if h == nil || h.Service == nil || len(h.Service.Parts) != 2 || h.Service.Parts[0].Cluster != "c2" {
			t.Fatalf("host %+v", h)
		}
		es := h.Endpoints.On(5000)
		if len(es) != 2 || es[0].Network != "net-c1" || es[1].Network != "net-c2" || es[1].Locality.Zone != "z" || !es[0].TLS {
			t.Fatalf("shift %d: endpoints %+v", shift, es)
		}
		if s.Apply(set(objects...)...) != s {
			t.Errorf("a repetition is a change")
		}
		s = s.Apply(Gone((&Cluster{ID: "c1"}).Key()))
		if es := s.Host(h.Name).Endpoints.On(5000); len(es) != 1 || es[0].Cluster != "c2" {
			t.Errorf("after c1 is gone: %+v", es)
		}
	}
}

// A host's targets follow the Services that its routes lead to.
func TestTargets(t *testing.T) {
	v := &VirtualService{Meta: Meta{Cluster: "c1", Namespace: "sample", Name: "v"}, Spec: &networking.VirtualService{
		Hosts: []string{"a"}, Http: []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: "b"}}}}}}}
	s := New(Settings{Cluster: "c1"}).Apply(set(v, svc("c1", "sample", "a"))...)
	a := s.Host("a.sample.svc.cluster.local")
	if a.Targets.Service("b.sample.svc.cluster.local") != nil || len(a.Routes) != 1 {
		t.Fatalf("%+v", a)
	}
	s = s.Apply(set(svc("c1", "sample", "b"))...)
	if b := s.Host(a.Name).Targets.Service("b.sample.svc.cluster.local"); b == nil || b.Name != "b" {
		t.Errorf("target %+v", b)
	}
	s = s.Apply(Gone(svc("c1", "sample", "b").Key()), Gone(v.Key()))
	if h := s.Host(a.Name); len(h.Routes) != 0 || h.Targets != nil {
		t.Errorf("%+v", h)
	}
}
