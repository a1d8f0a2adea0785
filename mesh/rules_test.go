package mesh

import (
	"fmt"
	"slices"
	"testing"
	"time"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
)

func TestProtocol(t *testing.T) {
	for _, c := range []struct {
		port ServicePort
		want Protocol
	}{
		{ServicePort{Name: "http"}, HTTP},
		{ServicePort{Name: "HTTP-web"}, HTTP},
		{ServicePort{Name: "http2"}, HTTP2},
		{ServicePort{Name: "grpc-web-x"}, GRPCWeb},
		{ServicePort{Name: "grpc-api"}, GRPC},
		{ServicePort{Name: "https"}, HTTPS},
		{ServicePort{Name: "tcp-pg"}, TCP},
		{ServicePort{Name: "status-port"}, Auto},
		{ServicePort{}, Auto},
		{ServicePort{Number: 3306}, TCP},
		{ServicePort{Name: "db", Number: 3306}, TCP},
		{ServicePort{Name: "http", Number: 3306}, HTTP},
		{ServicePort{Name: "tcp", AppProtocol: "http"}, HTTP},
		{ServicePort{AppProtocol: "kubernetes.io/h2c"}, HTTP2},
		{ServicePort{Name: "http", AppProtocol: "example.com/custom"}, Auto},
		{ServicePort{Name: "dns", Transport: "UDP"}, UDP},
		{ServicePort{Name: "udp-x", Transport: "TCP"}, Auto},
	} {
		if got := c.port.Protocol(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.port, got, c.want)
		}
	}
}

func TestPolicies(t *testing.T) {
	old, young := time.Unix(1, 0), time.Unix(2, 0)
	pa := func(ns, name string, created time.Time, mode security.PeerAuthentication_MutualTLS_Mode, selector map[string]string, ports map[uint32]security.PeerAuthentication_MutualTLS_Mode) *PeerAuthentication {
		p := &PeerAuthentication{Meta: Meta{Cluster: "c1", Namespace: ns, Name: name, Created: created}, Spec: &security.PeerAuthentication{Mtls: &security.PeerAuthentication_MutualTLS{Mode: mode}}}
		if selector != nil {
			p.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: selector}
		}
		for n, m := range ports {
			if p.Spec.PortLevelMtls == nil {
				p.Spec.PortLevelMtls = map[uint32]*security.PeerAuthentication_MutualTLS{}
			}
			p.Spec.PortLevelMtls[n] = &security.PeerAuthentication_MutualTLS{Mode: m}
		}
		return p
	}
	const unset, disable, permissive, strict = security.PeerAuthentication_MutualTLS_UNSET, security.PeerAuthentication_MutualTLS_DISABLE,
		security.PeerAuthentication_MutualTLS_PERMISSIVE, security.PeerAuthentication_MutualTLS_STRICT
	app := map[string]string{"app": "a"}
	for i, c := range []struct {
		all  []*PeerAuthentication
		want MTLS // of app a in ns, port 80
	}{
		{nil, Permissive},
		{[]*PeerAuthentication{pa("istio-system", "m", old, strict, nil, nil)}, Strict},
		{[]*PeerAuthentication{pa("istio-system", "m", old, strict, app, nil)}, Permissive}, // selects in its own namespace only
		{[]*PeerAuthentication{pa("other", "m", old, strict, nil, nil)}, Permissive},
		{[]*PeerAuthentication{pa("istio-system", "m", old, strict, nil, nil), pa("ns", "n", old, permissive, nil, nil)}, Permissive},
		{[]*PeerAuthentication{pa("istio-system", "m", old, strict, nil, nil), pa("ns", "n", old, unset, nil, nil)}, Strict},
		{[]*PeerAuthentication{pa("ns", "n", young, disable, nil, nil), pa("ns", "m", old, strict, nil, nil)}, Strict},
		{[]*PeerAuthentication{pa("ns", "n", old, strict, nil, nil), pa("ns", "w", old, disable, app, nil)}, Disabled},
		{[]*PeerAuthentication{pa("ns", "w", old, strict, map[string]string{"app": "b"}, nil)}, Permissive},
		{[]*PeerAuthentication{pa("ns", "w", old, strict, app, map[uint32]security.PeerAuthentication_MutualTLS_Mode{80: disable, 81: permissive})}, Disabled},
		{[]*PeerAuthentication{pa("ns", "w", old, strict, app, map[uint32]security.PeerAuthentication_MutualTLS_Mode{80: unset})}, Strict},
	} {
		s := New(Settings{Cluster: "c1"})
		for _, p := range c.all {
			s = s.Apply(set(p)...)
		}
		if got := s.Policies().Mode("ns", app, 80); got != c.want {
			t.Errorf("case %d: %v, want %v", i, got, c.want)
		}
	}
}

// Endpoints lose their mutual TLS where a policy forbids it, and get it back.
func TestPolicyReachesEndpoints(t *testing.T) {
	s := New(Settings{Cluster: "c1"}).Apply(set(svc("c1", "ns", "a"), slice("c1", "ns", "a", "p", "10.0.0.1"), pod("c1", "ns", "p", "10.0.0.1"))...)
	tls := func() bool { return s.Host("a.ns.svc.cluster.local").Endpoints.On(5000)[0].TLS }
	if !tls() {
		t.Error("no TLS at first")
	}
	off := &PeerAuthentication{Meta: Meta{Cluster: "c1", Namespace: "istio-system", Name: "x"}, Spec: &security.PeerAuthentication{
		Mtls: &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_DISABLE}}}
	if s = s.Apply(set(off)...); tls() {
		t.Error("TLS though the mesh's policy forbids it")
	}
	if s = s.Apply(Gone(off.Key())); !tls() {
		t.Error("no TLS after the policy is gone")
	}
}

func TestNetworks(t *testing.T) {
	gw := func(cluster, network string, labels map[string]string, addresses ...string) *Service {
		l := map[string]string{"topology.istio.io/network": network}
		for k, v := range labels {
			l[k] = v
		}
		return &Service{Cluster: cluster, Namespace: "istio-system", Name: "eastwest", Labels: l, Addresses: addresses}
	}
	s := New(Settings{Cluster: "c1"}).Apply(set(
		gw("c1", "net-1", nil, "192.0.2.1"), gw("c2", "net-2", map[string]string{"networking.istio.io/gatewayPort": "31443"}, "192.0.2.3", "192.0.2.2"),
		&Namespace{Cluster: "c1", Name: "istio-system", Labels: map[string]string{"topology.istio.io/network": "net-1"}},
		&GatewayHealth{Address: "192.0.2.3", Port: 31443, Down: true},
		&MeshConfig{Cluster: "c1", Spec: &meshconfig.MeshConfig{}, Networks: &meshconfig.MeshNetworks{Networks: map[string]*meshconfig.Network{
			"net-3": {Endpoints: []*meshconfig.Network_NetworkEndpoints{{Ne: &meshconfig.Network_NetworkEndpoints_FromRegistry{FromRegistry: "c3"}}},
				Gateways: []*meshconfig.Network_IstioNetworkGateway{{Gw: &meshconfig.Network_IstioNetworkGateway_Address{Address: "192.0.2.9"}, Port: 15443}}},
			"net-4": {Endpoints: []*meshconfig.Network_NetworkEndpoints{{Ne: &meshconfig.Network_NetworkEndpoints_FromCidr{FromCidr: "10.4.0.0/16"}}}},
		}}},
	)...)
	n := s.Networks()
	want := []NetworkGateway{{"net-1", "c1", "192.0.2.1", 15443, false}, {"net-2", "c2", "192.0.2.2", 31443, false}, {"net-2", "c2", "192.0.2.3", 31443, true}, {"net-3", "", "192.0.2.9", 15443, false}}
	if !slices.Equal(n.Gateways, want) {
		t.Errorf("gateways %+v", n.Gateways)
	}
	if len(n.To("net-2")) != 2 || len(n.To("net-5")) != 0 {
		t.Errorf("to net-2: %v", n.To("net-2"))
	}
	for cluster, want := range map[string]string{"c1": "net-1", "c2": "cluster/c2", "c3": "net-3"} {
		if got := n.Of(cluster); got != want {
			t.Errorf("network of %s: %q, want %q", cluster, got, want)
		}
	}
	if got := s.PodNetwork(&Pod{Cluster: "c2", IPs: []string{"10.4.1.1"}}); got != "net-4" {
		t.Errorf("network by address: %q", got)
	}
	if next := s.Apply(set(&GatewayHealth{Address: "198.51.100.1", Port: 1, Down: true})...); next.Networks() != n {
		t.Error("the health of what is no gateway changes the networks")
	}
}

// Of rules for one host the more particular comes first, those of one namespace are one, and a rule is
// kept as long as its parts are.
func TestRules(t *testing.T) {
	rule := func(name, host string, created int64, subsets ...string) *DestinationRule {
		d := &DestinationRule{Meta: Meta{Cluster: "c1", Namespace: "ns", Name: name, Created: time.Unix(created, 0)}, Spec: &networking.DestinationRule{Host: host}}
		for _, x := range subsets {
			d.Spec.Subsets = append(d.Spec.Subsets, &networking.Subset{Name: x})
		}
		return d
	}
	s := New(Settings{Cluster: "c1"}).Apply(set(svc("c1", "ns", "a"), svc("c1", "ns", "b"),
		rule("all", "*.ns.svc.cluster.local", 0, "w"), rule("young", "a", 2, "v2", "v1"), rule("old", "a", 1, "v1"))...)
	names := func(host string) (all []string) {
		for _, r := range s.Host(host + ".ns.svc.cluster.local").Rules {
			line := r.Name
			for _, x := range r.Spec.Subsets {
				line += " " + x.Name
			}
			all = append(all, line)
		}
		return all
	}
	if got := fmt.Sprint(names("a"), names("b")); got != "[old v1 v2 all w] [all w]" {
		t.Errorf("rules %s", got)
	}
	before := s.Host("a.ns.svc.cluster.local").Rules
	s = s.Apply(set(rule("all", "*.ns.svc.cluster.local", 0, "x"))...)
	if after := s.Host("a.ns.svc.cluster.local").Rules; after[0] != before[0] || after[1] == before[1] {
		t.Error("a rule that has not changed is another")
	}
	s = s.Apply(Gone(rule("old", "a", 1).Key()), Gone(rule("all", "", 0).Key()))
	if got := fmt.Sprint(names("a"), names("b")); got != "[young v2 v1] []" {
		t.Errorf("rules after two are gone: %s", got)
	}
}

// Rules of one host and namespace that select workloads come before that for all of them, are merged where they
// select the same, and lead from one to the next.
func TestSelectingRules(t *testing.T) {
	rule := func(name string, created int64, app string, subsets ...string) *DestinationRule {
		d := &DestinationRule{Meta: Meta{Cluster: "c1", Namespace: "ns", Name: name, Created: time.Unix(created, 0)}, Spec: &networking.DestinationRule{Host: "a"}}
		if app != "" {
			d.Spec.WorkloadSelector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
		}
		for _, x := range subsets {
			d.Spec.Subsets = append(d.Spec.Subsets, &networking.Subset{Name: x})
		}
		return d
	}
	elsewhere := rule("elsewhere", 0, "x")
	elsewhere.Spec.ExportTo = []string{"other"} // no workload of its namespace sees it
	s := New(Settings{Cluster: "c1"}).Apply(set(svc("c1", "ns", "a"), rule("all", 0, ""), rule("y", 3, "y"), rule("x2", 2, "x", "v2"), rule("x", 1, "x", "v1"), elsewhere)...)
	rules := func() []*Rule { return s.Host("a.ns.svc.cluster.local").Rules }
	describe := func() (out string) {
		for _, r := range rules() {
			out += fmt.Sprint(r.Name, len(r.Spec.Subsets), " ")
			for n := r.Next(); n != nil; n = n.Next() {
				out += "> " + n.Name + " "
			}
		}
		return out
	}
	if got, want := describe(), "elsewhere0 > x > y x2 > y y0 all0 "; got != want {
		t.Errorf("rules %q, want %q", got, want)
	}
	before := rules()
	s = s.Apply(set(rule("y", 3, "z"))...)
	if after := rules(); after[1] == before[1] || after[3] != before[3] {
		t.Errorf("rules %s", describe())
	}
}

func FuzzValidate(f *testing.F) {
	for _, x := range []string{"%REQ(:METHOD)% 100%%", "%START_TIME(%Y)%", "%", "a.b-c", "*.x", "[::1]"} {
		f.Add(x)
	}
	f.Fuzz(func(t *testing.T, x string) {
		v := &validator{}
		v.format("f", x)
		v.host("h", x)
		v.regex("r", x)
		_ = ServicePort{Name: x, AppProtocol: x}.Protocol()
		_ = resolve(x, "ns", "cluster.local")
		_ = v.found
	})
}

func BenchmarkApplyEndpoint(b *testing.B) {
	s := New(Settings{Cluster: "c1"})
	var events []Event
	for i := range 1000 {
		ns, name := fmt.Sprint("ns-", i%50), fmt.Sprint("svc-", i)
		events = append(events, set(svc("c1", ns, name))...)
		for j := range 5 {
			events = append(events, set(pod("c1", ns, fmt.Sprint(name, "-", j), "10.0.0.1"))...)
		}
		events = append(events, set(slice("c1", ns, name, name+"-0", "10.0.0.1"))...)
	}
	s = s.Apply(events...)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n := i % 1000
		s = s.Apply(set(slice("c1", fmt.Sprint("ns-", n%50), fmt.Sprint("svc-", n), fmt.Sprint("svc-", n, "-", i%5), fmt.Sprint("10.0.0.", i%200)))...)
	}
}
