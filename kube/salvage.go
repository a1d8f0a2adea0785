package kube

import (
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// salvage reads what can be read of an object that protects something. Each field that cannot be is told and named
// in Unread, for the mesh to take the strictest that it may have meant.
func salvage(k schema.Kind, m mesh.Meta, raw any) (mesh.Object, []mesh.Finding) {
	spec := k.Spec()
	key := mesh.NewUserObject(m, spec).Key()
	var c cleaner
	raw = c.clean(spec.ProtoReflect().Descriptor(), "spec", raw)
	found := c.findings(key)
	m.Unread = append(m.Unread, c.unknown...)
	for {
		proto.Reset(spec)
		data, err := json.Marshal(raw)
		if err == nil {
			if err = fromJSON(data, spec); err == nil {
				break
			}
		}
		field, message := located(err)
		rest, removed := without(raw, field)
		raw = rest
		at := join("spec", removed)
		m.Unread = append(m.Unread, at)
		found = append(found, mesh.Finding{Object: key, Field: at, Message: message, Fix: "correct it; until then the strictest that it may mean holds"})
	}
	return mesh.NewUserObject(m, spec), found
}

// without returns JSON without the entry of an object that holds the value at a path, and the path of that entry:
// elements of arrays stay where they are. Without such an entry nothing is left.
func without(raw any, path string) (rest any, removed string) {
	top, ok := raw.(map[string]any)
	if !ok {
		return map[string]any{}, ""
	}
	steps := strings.Split(path, ".")
	in := top
	for i, step := range steps {
		if _, there := in[step]; !there {
			return map[string]any{}, ""
		}
		var next map[string]any
		if i+1 < len(steps) {
			next, _ = in[step].(map[string]any)
		}
		if _, deeper := next[steps[min(i+1, len(steps)-1)]]; !deeper {
			delete(in, step)
			return top, strings.Join(steps[:i+1], ".")
		}
		in = next
	}
	return top, ""
}
