package mesh

import (
	"testing"

	"github.com/carrick-mesh/carrick/schema"
)

// Whatever is told to be gone, known or not, seen before or not, is gone and nothing else happens.
func TestGoneOfAnyKind(t *testing.T) {
	s := New(Settings{Cluster: "c1"}).Apply(set(svc("c1", "sample", "a"))...)
	kinds := []string{KindCluster, KindService, KindEndpointSlice, KindPod, KindNode, KindNamespace, KindMeshConfig, KindCredential, KindGatewayHealth, "NeverHeardOf"}
	for _, k := range schema.Kinds() {
		kinds = append(kinds, k.Name())
	}
	for _, kind := range kinds {
		for _, cluster := range []string{"c1", "c2"} {
			next := s.Apply(Gone(Key{Cluster: cluster, Kind: kind, Namespace: "sample", Name: "none"}))
			if kind != KindCluster && next.Host("a.sample.svc.cluster.local") == nil {
				t.Errorf("%s of %s: its end took a Service away", kind, cluster)
			}
		}
	}
}

// Every kind that schema calls implemented has a type here, a place in the mesh, and leaves it again.
func TestImplementedKinds(t *testing.T) {
	for _, k := range schema.Kinds() {
		if !k.Implemented {
			continue
		}
		o := NewUserObject(Meta{Cluster: "c1", Namespace: "ns", Name: "x"}, k.Spec())
		if o == nil {
			t.Errorf("%s is implemented, and the mesh has no type for it", k.Name())
			continue
		}
		if got := o.Key(); got != (Key{"c1", k.Name(), "ns", "x"}) {
			t.Errorf("%s: key %v", k.Name(), got)
		}
		if m, spec := o.Written(); m.Name != "x" || spec == nil {
			t.Errorf("%s: Written() = %v, %v", k.Name(), m, spec)
		}
	}
}
