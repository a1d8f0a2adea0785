package mesh

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/schema"
)

func inertOf(kind, namespace, name, class string, parents ...Parent) *Inert {
	return &Inert{Meta: Meta{Cluster: "c1", Namespace: namespace, Name: name}, Kind: kind, Class: class, Parents: parents}
}

func parentOf(i int, group, kind, namespace, name string) Parent {
	return Parent{fmt.Sprintf("spec.parentRefs[%d]", i), group, kind, namespace, name}
}

// told returns what is said: KIND/NAME, with the field behind a space.
func told(s *Snapshot) (all []string) {
	for _, f := range s.WithoutEffect() {
		all = append(all, strings.TrimSpace(f.Object.Kind+"/"+f.Object.Name+" "+f.Field))
	}
	slices.Sort(all)
	return all
}

// Every object of a kind of Istio's without effect is told of, until it is gone.
func TestWithoutEffect(t *testing.T) {
	s := New(Settings{Cluster: "c1"})
	deny := inertOf("AuthorizationPolicy", "sample", "deny", "")
	deny.Protects = true
	s = s.Apply(set(deny, inertOf("ServiceEntry", "sample", "db", ""), &Inert{Meta: Meta{Cluster: "other", Namespace: "sample", Name: "deny"}, Kind: "AuthorizationPolicy"})...)
	if got := told(s); !slices.Equal(got, []string{"AuthorizationPolicy/deny", "ServiceEntry/db"}) {
		t.Fatalf("told of %v", got)
	}
	for _, f := range s.WithoutEffect() {
		want := "Warning"
		if f.Object.Kind == "AuthorizationPolicy" {
			want = "Error"
		}
		if f.Level != want || f.Reason != NotImplemented || !strings.HasPrefix(f.Message, f.Object.Kind+" has NO effect in this version of Carrick: ") || (f.Fix != "") != (want == "Error") {
			t.Errorf("%+v", f)
		}
	}
	if next := s.Apply(set(svc("c1", "sample", "a"))...); !next.SameFindings(s) {
		t.Error("a Service changes what is wrong with objects")
	}
	for _, o := range []Object{inertOf("ServiceEntry", "sample", "other", ""), &Gateway{Meta: Meta{Cluster: "c1", Namespace: "sample", Name: "bad"},
		Spec: &networking.Gateway{Servers: []*networking.Server{{Port: &networking.Port{Number: 70000}}}}}} {
		if next := s.Apply(set(o)...); next.SameFindings(s) {
			t.Errorf("%v is not among what is wrong", o.Key())
		}
	}
	if same := s.Apply(set(inertOf("ServiceEntry", "sample", "db", ""))...); same != s {
		t.Error("the same object again makes another Snapshot")
	}
	s = s.Apply(Gone(deny.Key()))
	if got := told(s); !slices.Equal(got, []string{"ServiceEntry/db"}) {
		t.Errorf("after its end: told of %v", got)
	}
}

// Objects of Gateway API and Ingress that other controllers serve are not spoken of.
func TestWithoutEffectOfOthers(t *testing.T) {
	const gateway = "Gateway." + schema.GatewayAPI
	const api = schema.GatewayAPI
	s := New(Settings{Cluster: "c1"}).Apply(set(
		inertOf("GatewayClass", "", "ours", "istio.io/gateway-controller"),
		inertOf("GatewayClass", "", "nginx", "example.com/nginx"),
		inertOf(gateway, "ns", "ours", "ours"),
		inertOf(gateway, "ns", "byname", "istio"), // the class that Istio makes by itself
		inertOf(gateway, "ns", "nginx", "nginx"),
		inertOf("ListenerSet", "ns", "more", "", Parent{"spec.parentRef", api, "Gateway", "ns", "ours"}),
		inertOf("ListenerSet", "ns", "nginx", "", Parent{"spec.parentRef", api, "Gateway", "ns", "nginx"}),
		inertOf("HTTPRoute", "ns", "both", "", parentOf(0, api, "Gateway", "ns", "nginx"), parentOf(1, api, "Gateway", "ns", "ours"), parentOf(2, api, "ListenerSet", "ns", "more")),
		inertOf("HTTPRoute", "ns", "nginx", "", parentOf(0, api, "Gateway", "ns", "nginx")),
		inertOf("HTTPRoute", "ns", "mesh", "", parentOf(0, "", "Service", "ns", "a")),
		inertOf("ReferenceGrant", "ns", "grant", ""),
		inertOf("BackendTLSPolicy", "ns", "tls", "", Parent{"spec.targetRefs[0]", "", "Service", "ns", "a"}),
		inertOf("IngressClass", "", "web", "istio.io/ingress-controller"),
		inertOf("IngressClass", "", "nginx", "k8s.io/ingress-nginx"),
		inertOf("Ingress", "ns", "web", "web"),
		inertOf("Ingress", "ns", "byname", "istio"),
		inertOf("Ingress", "ns", "nginx", "nginx"),
		inertOf("Ingress", "ns", "none", ""),
	)...)
	want := []string{
		"BackendTLSPolicy/tls spec.targetRefs[0]", gateway + "/byname", gateway + "/ours", "GatewayClass/ours",
		"HTTPRoute/both spec.parentRefs[1]", "HTTPRoute/both spec.parentRefs[2]", "HTTPRoute/mesh spec.parentRefs[0]",
		"Ingress/byname", "Ingress/web", "IngressClass/web", "ListenerSet/more", "ReferenceGrant/grant",
	}
	slices.Sort(want)
	if got := told(s); !slices.Equal(got, want) {
		t.Errorf("told of\n%v\nwant\n%v", got, want)
	}
	mode := func(m meshconfig.MeshConfig_IngressControllerMode) *MeshConfig {
		return &MeshConfig{Cluster: "c1", Spec: &meshconfig.MeshConfig{IngressControllerMode: m, IngressClass: "mine"}}
	}
	s = s.Apply(set(mode(meshconfig.MeshConfig_DEFAULT))...)
	got := told(s)
	if !slices.Contains(got, "Ingress/none") || slices.Contains(got, "Ingress/byname") {
		t.Errorf("mode DEFAULT, class mine: told of %v", got)
	}
	if s = s.Apply(set(mode(meshconfig.MeshConfig_OFF))...); slices.Contains(told(s), "Ingress/web") {
		t.Errorf("mode OFF: told of %v", told(s))
	}
	// Where somebody else serves Gateway API alone, what names no controller is theirs.
	s = New(Settings{Cluster: "c1"}).Apply(set(inertOf("GatewayClass", "", "nginx", "example.com/nginx"), inertOf(gateway, "ns", "nginx", "nginx"), inertOf("ReferenceGrant", "ns", "grant", ""))...)
	if got := told(s); len(got) != 0 {
		t.Errorf("told of %v", got)
	}
}
