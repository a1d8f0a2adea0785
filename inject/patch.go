package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// operation is one of RFC 6902.
type operation struct {
	Op    string `json:"op"` // add, replace, remove
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// MarshalJSON keeps an empty value where the operation needs one.
func (o operation) MarshalJSON() ([]byte, error) {
	if o.Op == "remove" {
		return json.Marshal(map[string]any{"op": o.Op, "path": o.Path})
	}
	return json.Marshal(map[string]any{"op": o.Op, "path": o.Path, "value": o.Value})
}

// jsonPatch returns what leads from one pod to the other. It touches only what differs, so
// that fields that this build does not know stay as they are.
func jsonPatch(from, to *corev1.Pod) ([]operation, error) {
	a, err := generic(from)
	if err != nil {
		return nil, err
	}
	b, err := generic(to)
	if err != nil {
		return nil, err
	}
	return diffObjects("", a, b), nil
}

func generic(pod *corev1.Pod) (map[string]any, error) {
	data, err := json.Marshal(pod)
	if err != nil {
		return nil, fmt.Errorf("encoding pod: %w", err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("encoding pod: %w", err)
	}
	return out, nil
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

func diffObjects(path string, a, b map[string]any) []operation {
	var ops []operation
	for _, k := range slices.Sorted(maps.Keys(a)) {
		p := path + "/" + escape.Replace(k)
		if v, ok := b[k]; ok {
			ops = append(ops, diff(p, a[k], v)...)
		} else {
			ops = append(ops, operation{Op: "remove", Path: p})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b)) {
		if _, ok := a[k]; !ok {
			ops = append(ops, operation{Op: "add", Path: path + "/" + escape.Replace(k), Value: b[k]})
		}
	}
	return ops
}

func diff(path string, a, b any) []operation {
	if reflect.DeepEqual(a, b) {
		return nil
	}
	if x, ok := a.(map[string]any); ok {
		if y, ok := b.(map[string]any); ok {
			return diffObjects(path, x, y)
		}
	}
	if x, ok := a.([]any); ok {
		if y, ok := b.([]any); ok {
			if ops, ok := diffLists(path, x, y); ok {
				return ops
			}
		}
	}
	return []operation{{Op: "replace", Path: path, Value: b}}
}

// diffLists handles lists of named objects (containers, volumes) of which none is moved: some
// go, those that stay change in place, then the new ones are inserted. ok is false otherwise.
func diffLists(path string, a, b []any) (ops []operation, ok bool) {
	inB := map[string]map[string]any{}
	var order []string
	for _, v := range b {
		o, name := named(v)
		if name == "" || inB[name] != nil {
			return nil, false
		}
		inB[name] = o
		order = append(order, name)
	}
	var kept []string
	var removals []operation
	for i, v := range a {
		o, name := named(v)
		if name == "" || slices.Contains(kept, name) {
			return nil, false
		}
		p := path + "/" + strconv.Itoa(i)
		if inB[name] == nil {
			removals = append([]operation{{Op: "remove", Path: p}}, removals...) // from the end, so that indices hold
			continue
		}
		kept = append(kept, name)
		ops = append(ops, diffObjects(p, o, inB[name])...)
	}
	ops = append(ops, removals...)
	next := 0
	for i, name := range order {
		if next < len(kept) && kept[next] == name {
			next++
			continue
		}
		if slices.Contains(kept, name) {
			return nil, false // moved
		}
		ops = append(ops, operation{Op: "add", Path: path + "/" + strconv.Itoa(i), Value: inB[name]})
	}
	return ops, true
}

func named(v any) (map[string]any, string) {
	o, ok := v.(map[string]any)
	if !ok {
		return nil, ""
	}
	name, _ := o["name"].(string)
	return o, name
}
