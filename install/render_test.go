package install

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var update = flag.Bool("update", false, "write golden files")

// golden compares got with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func resolve(t *testing.T, file string, sets ...string) *Config {
	t.Helper()
	var files []map[string]any
	if file != "" {
		b, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		if files, err = Parse(file, b); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Resolve(files, sets, "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withoutCRDs leaves the CRDs out of a manifest: they have tests of their own.
func withoutCRDs(m *Manifest) *Manifest {
	out := *m
	out.Parts = nil
	for _, p := range m.Parts {
		q := Part{Name: p.Name}
		for _, o := range p.Objects {
			if o.GetKind() != "CustomResourceDefinition" {
				q.Objects = append(q.Objects, o)
			}
		}
		out.Parts = append(out.Parts, q)
	}
	return &out
}

func TestRender(t *testing.T) {
	for _, tt := range []struct {
		golden, file string
		sets         []string
	}{
		{"default.golden.yaml", "", nil},
		{"demo.golden.yaml", "", []string{"profile=demo"}},
		{"minimal.golden.yaml", "", []string{"profile=minimal"}},
		{"empty.golden.yaml", "", []string{"profile=empty"}},
		{"cluster1.golden.yaml", "cluster1.yaml", nil},
		{"eastwest.golden.yaml", "eastwest-1.15.yaml", nil},
		{"revision.golden.yaml", "", []string{"profile=minimal", "revision=canary"}},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			m, err := resolve(t, tt.file, tt.sets...).Render()
			if err != nil {
				t.Fatal(err)
			}
			b, err := withoutCRDs(m).YAML()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, tt.golden, b)
		})
	}
	t.Run("lb", func(t *testing.T) {
		m, err := LoadBalancer(LBConfig{Tag: "1.0.0"})
		if err != nil {
			t.Fatal(err)
		}
		b, err := withoutCRDs(m).YAML()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "lb.golden.yaml", b)
	})
}

func TestCRDs(t *testing.T) {
	for component, want := range map[string]int{"base": 15, "lb": 2} {
		objs, err := crdObjects(component)
		if err != nil {
			t.Fatal(err)
		}
		if len(objs) != want {
			t.Errorf("component %s has %d CRDs, want %d", component, len(objs), want)
		}
	}
}

func TestSets(t *testing.T) {
	c := resolve(t, "", "profile=demo", "hub=example.com/x", "tag=2.0",
		"components.egressGateways[0].enabled=false",
		"components.ingressGateways[name:istio-ingressgateway].k8s.replicaCount=3",
		`values.gateways.istio-ingressgateway.serviceAnnotations.metallb\.io/address-pool=first`,
		"meshConfig.accessLogEncoding=JSON", "values.global.network=network9", "values.global.proxy.clusterDomain=corp.internal")
	m, err := c.Render()
	if err != nil {
		t.Fatal(err)
	}
	b, err := withoutCRDs(m).YAML()
	if err != nil {
		t.Fatal(err)
	}
	out := string(b)
	for _, want := range []string{"image: example.com/x/carrick:2.0", "replicas: 3", "metallb.io/address-pool: first", "accessLogEncoding: JSON", "topology.istio.io/network: network9", "accessLogFile: /dev/stdout",
		"- discovery\n        - --domain\n        - corp.internal\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("rendered manifest lacks %q", want)
		}
	}
	if strings.Contains(out, "name: istio-egressgateway") {
		t.Error("the egress gateway was switched off and is rendered")
	}
}

func TestErrors(t *testing.T) {
	const head = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n"
	for _, tt := range []struct {
		name, file, set, want string
	}{
		{"kind", "apiVersion: v1\nkind: ConfigMap\n", "", `kind: is "ConfigMap", want IstioOperator`},
		{"yaml", "a: [", "", "not YAML"},
		{"empty", "# nothing\n", "", "holds no IstioOperator"},
		{"unknown field", head + "spec:\n  componets: {}\n", "", "spec.componets: no such field"},
		{"unknown component field", head + "spec:\n  components: {pilot: {enable: true}}\n", "", "spec.components.pilot.enable: no such field"},
		{"unknown value", head + "spec:\n  values: {global: {meshId: m}}\n", "", "spec.values.global.meshId: no such field"},
		{"mesh config", head + "spec:\n  meshConfig: {accesLogFile: x}\n", "", `spec.meshConfig: unknown field "accesLogFile"`},
		{"gateway name", head + "spec:\n  components: {ingressGateways: [{enabled: true}]}\n", "", "spec.components.ingressGateways[0].name: is missing"},
		{"profile", head + "spec: {profile: big}\n", "", `spec.profile: "big" is not one of default, demo`},
		{"cni", head + "spec: {components: {cni: {enabled: true}}}\n", "", "spec.components.cni.enabled"},
		{"float tag", head + "spec: {tag: 1.15}\n", "", "spec.tag: 1.15 is not a string; put it in quotes"},
		{"set without value", head, "profile", "want PATH=VALUE"},
		{"set bad index", head, "components.ingressGateways[9].enabled=true", "has 1 items, no [9]"},
		{"set into scalar", head, "profile.x=1", "spec.profile: is object, want string"},
		{"set unknown", head, "values.globl.network=x", "spec.values.globl: no such field"},
		{"set wrong type", head, "components.pilot.enabled=maybe", "spec.components.pilot.enabled: is string, want bool"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := Parse("f.yaml", []byte(tt.file))
			if err == nil {
				var sets []string
				if tt.set != "" {
					sets = append(sets, tt.set)
				}
				_, err = Resolve(docs, sets, "1.0.0")
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	b, _ := os.ReadFile("testdata/eastwest-1.15.yaml")
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		docs, err := Parse("f", b)
		if err != nil {
			return
		}
		if c, err := Resolve(docs, nil, "1"); err == nil {
			_, _ = c.Render()
		}
	})
}

func FuzzSet(f *testing.F) {
	f.Add("a.b[0].c=v")
	f.Add(`x[name:y].z\.w={"a":1}`)
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = Set(map[string]any{"a": map[string]any{"b": []any{map[string]any{"c": 1}}}}, s)
	})
}

// A gateway elsewhere comes with what the control plane needs to read its certificates there.
func TestGatewayNamespace(t *testing.T) {
	files, err := Parse("gw.yaml", []byte(`
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: edge}
spec:
  profile: empty
  revision: canary
  components:
    ingressGateways:
    - {name: edge-gateway, namespace: edge, enabled: true, label: {istio: edge}}
`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Resolve(files, nil, "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Render()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*rbacv1.RoleBinding{}
	for _, o := range m.Objects() {
		switch o.GetKind() {
		case "ClusterRole", "ClusterRoleBinding":
			t.Errorf("%s %s is for the whole cluster", o.GetKind(), o.GetName())
		case "Role":
			var r rbacv1.Role
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &r); err != nil {
				t.Fatal(err)
			}
			if r.Namespace != "edge" || len(r.Rules) != 1 || !slices.Equal(r.Rules[0].Resources, []string{"secrets"}) || !slices.Equal(r.Rules[0].Verbs, []string{"list", "watch"}) {
				t.Errorf("role %+v", r)
			}
		case "RoleBinding":
			var b rbacv1.RoleBinding
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &b); err != nil {
				t.Fatal(err)
			}
			found[b.Namespace+"/"+b.RoleRef.Name] = &b
		}
	}
	b := found["edge/edge-gateway-sds"]
	if b == nil || !slices.Contains(b.Subjects, rbacv1.Subject{Kind: "ServiceAccount", Name: "istiod-canary", Namespace: "istio-system"}) {
		t.Errorf("bindings %+v", found)
	}
}
