package debug

import (
	"encoding/json"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// configRow is an object as the API server would show it, as far as it is kept.
type configRow struct {
	Kind       string          `json:"kind"`
	APIVersion string          `json:"apiVersion"`
	Metadata   map[string]any  `json:"metadata"`
	Spec       json.RawMessage `json:"spec"`
	NoEffect   string          `json:"noEffect,omitempty"` // why the object has no effect
}

// configz lists users' objects, and last those without effect, whose specs are not kept.
func configz(s *mesh.Snapshot) []configRow {
	rows := []configRow{}
	for o := range s.UserObjects() {
		k, _ := schema.Named(o.Key().Kind)
		m, spec := o.Written()
		b, err := protojson.Marshal(spec)
		if err != nil {
			b = []byte("null")
		}
		meta := map[string]any{"namespace": m.Namespace, "name": m.Name, "generation": m.Generation, "creationTimestamp": m.Created}
		if len(m.Labels) > 0 {
			meta["labels"] = m.Labels
		}
		rows = append(rows, configRow{Kind: k.Kind, APIVersion: k.APIVersion(), Metadata: meta, Spec: b})
	}
	var last mesh.Key
	for _, f := range s.WithoutEffect() {
		if f.Object == last { // another parent of a route
			continue
		}
		last = f.Object
		k, _ := schema.Named(f.Object.Kind)
		meta := map[string]any{"name": f.Object.Name}
		if f.Object.Namespace != "" {
			meta["namespace"] = f.Object.Namespace
		}
		rows = append(rows, configRow{Kind: k.Kind, APIVersion: k.APIVersion(), Metadata: meta, Spec: json.RawMessage("null"), NoEffect: f.Message})
	}
	return rows
}
