package kube

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// Each kind is told in its own form; what others wrote stays; the same again changes nothing; and what
// is right again is taken back.
func TestTell(t *testing.T) {
	const at = "2026-01-02T03:04:05Z"
	for _, x := range []struct{ name, kind, object, told, well string }{
		{"Istio", "AuthorizationPolicy", `{}`,
			`conditions: [{type: Reconciled, status: "False", reason: NotImplemented, message: m, lastTransitionTime: ` + at + `}]`,
			`conditions: [{type: Reconciled, status: "True", reason: Accepted, lastTransitionTime: ` + at + `}]`},
		{"Istio, beside another's", "Sidecar", `{status: {validationMessages: [], conditions: [{type: Other, status: "True"}]}}`,
			`{validationMessages: [], conditions: [{type: Other, status: "True"}, {type: Reconciled, status: "False", reason: NotImplemented, message: m, lastTransitionTime: ` + at + `}]}`,
			`{validationMessages: [], conditions: [{type: Other, status: "True"}, {type: Reconciled, status: "True", reason: Accepted, lastTransitionTime: ` + at + `}]}`},
		{"class", "GatewayClass", `{status: {conditions: [{type: Accepted, status: Unknown, reason: Pending, lastTransitionTime: "1970-01-01T00:00:00Z"}]}}`,
			`conditions: [{type: Accepted, status: "False", reason: NotImplemented, message: m, observedGeneration: 2, lastTransitionTime: ` + at + `}]`,
			`conditions: []`},
		{"gateway", "Gateway." + schema.GatewayAPI, `{}`,
			`conditions: [{type: Accepted, status: "False", reason: NotImplemented, message: m, observedGeneration: 2, lastTransitionTime: ` + at + `},
			  {type: Programmed, status: "False", reason: NotImplemented, message: m, observedGeneration: 2, lastTransitionTime: ` + at + `}]`,
			`conditions: []`},
		{"route", "HTTPRoute", `{spec: {parentRefs: [{name: theirs}, {name: ours, sectionName: web}]}, status: {parents: [{parentRef: {name: theirs}, controllerName: example.com/x, conditions: []}]}}`,
			`parents: [{parentRef: {name: theirs}, controllerName: example.com/x, conditions: []}, {parentRef: {name: ours, sectionName: web}, controllerName: istio.io/gateway-controller,
			  conditions: [{type: Accepted, status: "False", reason: NotImplemented, message: m, observedGeneration: 2, lastTransitionTime: ` + at + `}]}]`,
			`parents: [{parentRef: {name: theirs}, controllerName: example.com/x, conditions: []}]`},
		{"policy", "BackendTLSPolicy", `{spec: {targetRefs: [{kind: Service, name: a}, {kind: Service, name: b}]}}`,
			`ancestors: [{ancestorRef: {kind: Service, name: b}, controllerName: istio.io/gateway-controller,
			  conditions: [{type: Accepted, status: "False", reason: NotImplemented, message: m, observedGeneration: 2, lastTransitionTime: ` + at + `}]}]`,
			`ancestors: []`},
		{"export", "ServiceExport", `{}`,
			`conditions: [{type: Valid, status: "False", reason: NotImplemented, message: m, observedGeneration: 2, lastTransitionTime: ` + at + `}]`,
			`conditions: []`},
		{"export that another controller serves", "ServiceExport", `{status: {conditions: [{type: Valid, status: "True", reason: Valid}]}}`, "", ""},
		{"no status", "ReferenceGrant", `{}`, "", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			k := kindOf(x.kind)
			u := parse(t, x.object)
			u.SetGeneration(2)
			status := func(want string) {
				t.Helper()
				var w any
				if err := yaml.Unmarshal([]byte(want), &w); err != nil {
					t.Fatal(err)
				}
				got := any(nil)
				if b := must(yaml.Marshal(u.Object["status"]))(t); string(b) != "null\n" {
					if err := yaml.Unmarshal(b, &got); err != nil {
						t.Fatal(err)
					}
				}
				if d := cmp.Diff(w, got); d != "" {
					t.Errorf("status (-want +got):\n%s", d)
				}
			}
			if x.told == "" {
				before := must(yaml.Marshal(u.Object))(t)
				if changed, err := tell(u, k, verdict{reason: mesh.NotImplemented, message: "m"}, time.Now()); changed || err != nil || string(before) != string(must(yaml.Marshal(u.Object))(t)) {
					t.Errorf("changed %v, %v: %v", changed, err, u.Object)
				}
				return
			}
			v := verdict{reason: mesh.NotImplemented, message: "m", fields: map[string]bool{"spec.parentRefs[1]": true, "spec.targetRefs[1]": true}}
			when := must(time.Parse(time.RFC3339, at))(t)
			if isTold(u, k) {
				t.Error("told before")
			}
			if changed, err := tell(u, k, v, when); !changed || err != nil {
				t.Errorf("changed %v, %v", changed, err)
			}
			status(x.told)
			if !isTold(u, k) {
				t.Error("it does not count as told")
			}
			if changed, err := tell(u, k, v, when.Add(time.Hour)); changed || err != nil {
				t.Errorf("the same again: changed %v, %v", changed, err)
			}
			if changed, err := tell(u, k, verdictOf(nil), when); !changed || err != nil {
				t.Errorf("taken back: changed %v, %v", changed, err)
			}
			status(x.well)
			if isTold(u, k) {
				t.Error("it still counts as told")
			}
		})
	}
}

// What is said of several parents of a route is said once, and by the whole of it.
func TestVerdict(t *testing.T) {
	one := mesh.Finding{Field: "spec.parentRefs[0]", Message: "HTTPRoute has NO effect", Reason: mesh.NotImplemented}
	two := one
	two.Field = "spec.parentRefs[2]"
	v := verdictOf([]mesh.Finding{one, two})
	if v.message != "HTTPRoute has NO effect" || v.reason != "NotImplemented" || !v.fields["spec.parentRefs[0]"] || !v.fields["spec.parentRefs[2]"] {
		t.Errorf("%+v", v)
	}
	v = verdictOf([]mesh.Finding{{Field: "spec.a", Message: "is wrong", Fix: "change it"}, {Message: "and more"}})
	if v.message != "spec.a: is wrong (change it); and more" || v.reason != "Invalid" {
		t.Errorf("%+v", v)
	}
}
