package schema

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The rows of Istio's kinds are what Istio's own CRDs say.
func TestKindsAreThoseOfTheCRDs(t *testing.T) {
	files, err := filepath.Glob("../install/crds/*.istio.io.yaml")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d CRDs of Istio, want 15 or more: %v", len(files), err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Group, Scope string
				Names        struct{ Kind, Plural string }
				Versions     []struct {
					Name         string
					Served       bool
					Subresources map[string]any
				}
			}
		}
		if err := yaml.Unmarshal(b, &crd); err != nil {
			t.Fatal(err)
		}
		s := crd.Spec
		k, ok := Of(s.Group, s.Names.Kind)
		if !ok {
			t.Errorf("%s %s is in no row", s.Group, s.Names.Kind)
			continue
		}
		seen[k.Name()] = true
		var versions []string
		for _, v := range s.Versions {
			if v.Served {
				versions = append(versions, v.Name)
			}
			if _, status := v.Subresources["status"]; status != (k.Status != NoStatus) {
				t.Errorf("%s %s: status subresource %v, Status %v", k.Kind, v.Name, status, k.Status)
			}
		}
		if got := slices.Sorted(slices.Values(k.Versions)); !slices.Equal(got, slices.Sorted(slices.Values(versions))) {
			t.Errorf("%s has versions %v, its CRD %v", k.Kind, got, versions)
		}
		if k.Plural != s.Names.Plural || k.ClusterScoped != (s.Scope == "Cluster") {
			t.Errorf("%s: plural %s, cluster-scoped %v; its CRD has %s, %s", k.Kind, k.Plural, k.ClusterScoped, s.Names.Plural, s.Scope)
		}
	}
	for _, k := range Kinds() {
		if strings.HasSuffix(k.Group, ".istio.io") && !seen[k.Name()] {
			t.Errorf("%s is of Istio, and install brings no CRD of it", k.Name())
		}
	}
}

func TestRowsAreComplete(t *testing.T) {
	names := map[string]bool{}
	for _, k := range Kinds() {
		name := k.Name()
		if names[name] {
			t.Errorf("two kinds are called %s", name)
		}
		names[name] = true
		if k.Implemented != (k.Without == "") {
			t.Errorf("%s: a kind that is not implemented says what is missing, and only that", name)
		}
		if k.Group == "" || k.Kind == "" || k.Plural == "" || len(k.Versions) == 0 {
			t.Errorf("%s: a column is empty", name)
		}
		if strings.HasSuffix(k.Group, ".istio.io") {
			if k.Spec == nil {
				t.Errorf("%s: Spec is missing", name)
			} else if got := string(k.Spec().ProtoReflect().Descriptor().Name()); got != k.Kind {
				t.Errorf("%s: Spec makes a %s", name, got)
			}
		}
		if got, ok := Named(name); !ok || got.Group != k.Group {
			t.Errorf("Named(%s) = %s, %v", name, got.Group, ok)
		}
		if got, ok := Of(k.Group, k.Kind); !ok || got.Name() != name {
			t.Errorf("Of(%s, %s) = %s, %v", k.Group, k.Kind, got.Name(), ok)
		}
	}
}

func TestProtects(t *testing.T) {
	for _, c := range []struct {
		kind, object string
		want         bool
	}{
		{"AuthorizationPolicy", `{}`, true},
		{"AuthorizationPolicy", `metadata: {annotations: {istio.io/dry-run: "true"}}`, false},
		{"RequestAuthentication", `spec: {}`, true},
		{"Sidecar", `spec: {egress: [{hosts: ["./*"]}]}`, false},
		{"Sidecar", `spec: {outboundTrafficPolicy: {mode: ALLOW_ANY}}`, false},
		{"Sidecar", `spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}`, true},
		{"Sidecar", `spec: {outboundTrafficPolicy: {}}`, true}, // the mode's zero value
		{"Sidecar", `spec: {outboundTrafficPolicy: {mode: 0}}`, true},
		{"EnvoyFilter", `{}`, true},
		{"EnvoyFilter", `metadata: {name: stats-filter-1.15, labels: {istio.io/rev: default}}`, false},
		{"EnvoyFilter", `metadata: {name: ratelimit, labels: {istio.io/rev: default}}`, true},
		{"EnvoyFilter", `metadata: {name: stats-filter-mine}`, true},
		{"ProxyConfig", `{}`, false},
		{"ServiceEntry", `{}`, false},
	} {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(c.object), &object); err != nil {
			t.Fatal(err)
		}
		k, ok := Named(c.kind)
		if !ok || k.Protects(object) != c.want {
			t.Errorf("%s %s: protects %v, want %v", c.kind, c.object, !c.want, c.want)
		}
	}
}
