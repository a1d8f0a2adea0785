package control

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// Objects without effect are counted by kind, each once; kinds of which there are none count zero, and
// kinds that have an effect are not in it.
func TestObjectsWithoutEffect(t *testing.T) {
	c := New(Config{Mesh: mesh.Settings{Cluster: "cluster1"}, Log: slog.New(slog.DiscardHandler)})
	parents := []mesh.Parent{{Kind: "Service", Name: "a"}, {Kind: "Service", Name: "b"}}
	c.state.Store(&state{snapshot: c.Snapshot().Apply(
		mesh.Event{Object: &mesh.Inert{Meta: mesh.Meta{Cluster: "cluster1", Name: "deny"}, Kind: "AuthorizationPolicy", Protects: true}},
		mesh.Event{Object: &mesh.Inert{Meta: mesh.Meta{Cluster: "cluster1", Name: "route"}, Kind: "HTTPRoute", Parents: parents}},
	)})
	r := prometheus.NewRegistry()
	r.MustRegister(inertMetrics{c})
	families, err := r.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "carrick_objects_without_effect" {
		t.Fatalf("%v, %v", families, err)
	}
	got := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
	}
	for _, k := range schema.Kinds() {
		n, there := got[k.Name()]
		want := map[string]float64{"AuthorizationPolicy": 1, "HTTPRoute": 1}[k.Name()]
		if there == k.Implemented || n != want {
			t.Errorf("%s: %v, %v; want %v", k.Name(), n, there, want)
		}
	}
}
