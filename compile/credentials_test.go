package compile

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// The Secrets of a namespace are for its gateways in the local cluster: those that Gateways serve with
// and that rules call with.
func TestCredentials(t *testing.T) {
	secret := func(ns, name string) mesh.Event {
		return mesh.Event{Object: &mesh.Credential{Cluster: "c1", Namespace: ns, Name: name, Cert: []byte(ns + "/" + name), PrivateKey: []byte("k"), CA: []byte("r")}}
	}
	pod := func(cluster, ns string, labels map[string]string) *mesh.Pod {
		return &mesh.Pod{Cluster: cluster, Namespace: ns, Name: "gw", IPs: []string{"10.0.0.1"}, Labels: labels, Ready: true}
	}
	gw := map[string]string{"istio": "gw"}
	rule := &mesh.DestinationRule{Meta: mesh.Meta{Cluster: "c1", Namespace: "shop", Name: "bank"}, Spec: &networking.DestinationRule{
		Host: "bank.example.com", Subsets: []*networking.Subset{{Name: "s", TrafficPolicy: &networking.TrafficPolicy{
			PortLevelSettings: []*networking.TrafficPolicy_PortTrafficPolicy{{Port: &networking.PortSelector{Number: 443},
				Tls: &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_MUTUAL, CredentialName: "client"}}}}}}}}
	gateway := &mesh.Gateway{Meta: mesh.Meta{Cluster: "c1", Namespace: "shop", Name: "web"}, Spec: &networking.Gateway{Selector: gw,
		Servers: []*networking.Server{{Port: &networking.Port{Number: 443, Name: "https", Protocol: "HTTPS"}, Hosts: []string{"*"},
			Tls: &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_SIMPLE, CredentialName: "web"}}}}}
	plain := &mesh.Gateway{Meta: mesh.Meta{Cluster: "c1", Namespace: "shop", Name: "out"}, Spec: &networking.Gateway{Selector: map[string]string{"istio": "out"},
		Servers: []*networking.Server{{Port: &networking.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*"}}}}}
	s := mesh.New(mesh.Settings{Cluster: "c1"}).Apply(mesh.Event{Object: gateway}, mesh.Event{Object: plain}, mesh.Event{Object: rule},
		mesh.Event{Object: pod("c1", "edge", gw)}, mesh.Event{Object: pod("c1", "exit", map[string]string{"istio": "out"})}, mesh.Event{Object: pod("c1", "shop", nil)},
		mesh.Event{Object: pod("c2", "far", gw)},
		secret("edge", "web"), secret("edge", "other"), secret("edge", "client-cacert"), secret("exit", "client"), secret("far", "web"))
	for _, x := range []struct {
		pod  *mesh.Pod
		want []string
	}{
		{s.Pod("c1", "edge", "gw"), []string{"edge/web", "edge/client-cacert"}},
		{s.Pod("c1", "exit", "gw"), []string{"exit/client"}},
		{s.Pod("c2", "far", "gw"), nil},
		{pod("c2", "edge", gw), nil}, // a namesake of the namespace
		{s.Pod("c1", "shop", "gw"), nil},
	} {
		var got []string
		for _, c := range gatewayOf(s, Of(s, x.pod, Node{Router: true})).secrets {
			got = append(got, string(c.Cert))
		}
		if d := cmp.Diff(x.want, got); d != "" {
			t.Errorf("gateway %s in %s (-want +got):\n%s", x.pod.Namespace, x.pod.Cluster, d)
		}
	}
	if got := CredentialNamespaces(s); !slices.Equal(got, []string{"edge", "exit"}) {
		t.Errorf("namespaces %v", got)
	}
	if got := CredentialNamespaces(s.Apply(mesh.Gone(rule.Key()))); !slices.Equal(got, []string{"edge"}) {
		t.Errorf("namespaces without the rule: %v", got)
	}
	// A rule that comes later reaches the gateway.
	var w workloads
	p := []Proxy{Of(s, s.Pod("c1", "exit", "gw"), Node{Router: true})}
	before := w.pass(s.Apply(mesh.Gone(rule.Key())), p)[0]
	if after := w.pass(s, p)[0]; after == before {
		t.Error("a gateway does not see a rule's credential that came later")
	}
}
