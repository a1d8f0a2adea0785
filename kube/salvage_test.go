package kube

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/mesh"
)

// A PeerAuthentication of which something cannot be read means the strictest that it may have meant, from the first
// time it is seen, and is told of.
func TestProtectiveObjectsFailStrict(t *testing.T) {
	labels := map[string]string{"app": "web"}
	for _, c := range []struct {
		spec  string
		mode  mesh.MTLS         // of the workload
		ports map[uint16]string // where they differ
	}{
		{"{mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}", mesh.Strict, nil},
		{"{mtls: {mode: PERMISSIVE}, portLevelMtls: {8080: {mode: STRICT}}}", mesh.Permissive, map[uint16]string{8080: "STRICT"}},
		{"{mtls: {mode: STRICTLY}}", mesh.Strict, nil},
		{"{mtls: {mode: 7}}", mesh.Strict, nil},
		{"{mtls: STRICT}", mesh.Strict, nil},
		{"{mtls: {mdoe: STRICT}}", mesh.Strict, nil},
		{"STRICT", mesh.Strict, nil},
		{"{selector: {matchLabels: {app: web}}, portLevelMtls: {70000: {mode: STRICT}}}", mesh.Strict, nil},
		{"{selector: {matchLabels: {app: web}}, portLevelMtls: {70000: {mode: DISABLE}, 80: {mode: STRICT}}}", mesh.Permissive, map[uint16]string{80: "STRICT"}},
		{"{selector: {matchLabels: {app: web}}, portLevelMtls: {http: {mode: STRICT}}}", mesh.Strict, nil},
		{"{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: STRCT}}}", mesh.Strict, map[uint16]string{80: "STRICT"}},
		{"{selector: {matchLabels: [app]}, mtls: {mode: STRICT}}", mesh.Strict, nil},
		{"{selector: {matchLabels: [app]}, mtls: {mode: DISABLE}}", mesh.Permissive, nil},
	} {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte("{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: shop}, spec: "+c.spec+"}"), &u.Object); err != nil {
			t.Fatal(err)
		}
		o, found, _ := Decode("c1", u)
		if o == nil {
			t.Errorf("%s: it is not in the mesh", c.spec)
			continue
		}
		s := mesh.New(mesh.Settings{Cluster: "c1"}).Apply(mesh.Event{Object: o})
		mode, ports := s.Policies().Modes("shop", labels)
		if mode != c.mode || len(ports) != len(c.ports) {
			t.Errorf("%s: %v %v, want %v %v", c.spec, mode, ports, c.mode, c.ports)
		}
		for n, m := range c.ports {
			if ports[n].String() != m {
				t.Errorf("%s: port %d is %v", c.spec, n, ports[n])
			}
		}
		if len(found)+len(s.Findings()) == 0 {
			t.Errorf("%s: nobody is told", c.spec)
		}
	}
}
