package kube

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// controllerName is under which Istio, and so Carrick, tells of objects of Gateway API.
const controllerName = "istio.io/gateway-controller"

// Types of conditions.
const (
	reconciled = "Reconciled" // Istio's: istio.meta.v1alpha1.IstioCondition
	accepted   = "Accepted"   // Gateway API's
	programmed = "Programmed"
	valid      = "Valid" // MCS'
)

// verdict is what an object is told: what is wrong with it, or that nothing is.
type verdict struct {
	reason, message string // of a condition with status False; an empty message is for nothing wrong
	fields          map[string]bool
}

func verdictOf(now []mesh.Finding) verdict {
	v := verdict{reason: "Invalid", fields: map[string]bool{}}
	said := map[string]bool{}
	for _, f := range now {
		v.fields[f.Field] = true
		if f.Reason != "" {
			v.reason, f.Field = f.Reason, "" // it holds for the whole object
		}
		text := f.Text()
		if said[text] {
			continue
		}
		said[text] = true
		if v.message != "" {
			v.message += "; "
		}
		v.message += text
	}
	return v
}

// tell writes a verdict into an object's status, in its kind's form, and reports whether that changes it.
func tell(u *unstructured.Unstructured, k schema.Kind, v verdict, at time.Time) (bool, error) {
	before, _, _ := unstructured.NestedFieldCopy(u.Object, "status")
	var err error
	switch k.Status {
	case schema.Istio:
		err = v.istio(u, at)
	case schema.GatewayClass:
		err = v.conditions(u, at, accepted)
	case schema.Gateway:
		err = v.conditions(u, at, accepted, programmed)
	case schema.Export:
		if theirs(u, valid) {
			return false, nil
		}
		err = v.conditions(u, at, valid)
	case schema.Route:
		err = v.entries(u, at, entries{"parents", "parentRef", "parentRefs"})
	case schema.Policy:
		err = v.entries(u, at, entries{"ancestors", "ancestorRef", "targetRefs"})
	case schema.NoStatus:
	}
	if err != nil {
		return false, fmt.Errorf("setting its conditions: %w", err)
	}
	after, _, _ := unstructured.NestedFieldNoCopy(u.Object, "status")
	return !reflect.DeepEqual(before, after), nil
}

// isTold reports whether an object holds a verdict that something is wrong, of ours.
func isTold(u *unstructured.Unstructured, k schema.Kind) bool {
	ours := func(c any) bool {
		m, _ := c.(map[string]any)
		if k.Status == schema.Istio {
			return m["type"] == reconciled && m["status"] == "False"
		}
		return m["reason"] == mesh.NotImplemented && m["status"] == "False"
	}
	for _, list := range []string{"parents", "ancestors"} {
		all, _, _ := unstructured.NestedSlice(u.Object, "status", list)
		for _, e := range all {
			if m, _ := e.(map[string]any); m["controllerName"] == controllerName {
				cs, _ := m["conditions"].([]any)
				if slices.ContainsFunc(cs, ours) {
					return true
				}
			}
		}
	}
	cs, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	return slices.ContainsFunc(cs, ours)
}

// istio sets the condition that Istio has for all its kinds. What is right again says so.
func (v verdict) istio(u *unstructured.Unstructured, at time.Time) error {
	c := map[string]any{"type": reconciled, "status": "True", "reason": "Accepted"}
	if v.message != "" {
		c = map[string]any{"type": reconciled, "status": "False", "reason": v.reason, "message": v.message}
	}
	cs, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	return unstructured.SetNestedSlice(u.Object, set(cs, c, at), "status", "conditions")
}

// conditions sets conditions of the API's common form, or takes ours away.
func (v verdict) conditions(u *unstructured.Unstructured, at time.Time, types ...string) error {
	cs, found, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, t := range types {
		if v.message != "" {
			cs = set(cs, v.condition(t, u.GetGeneration()), at)
		} else {
			cs = slices.DeleteFunc(cs, func(c any) bool {
				m, _ := c.(map[string]any)
				return m["type"] == t && m["reason"] == mesh.NotImplemented
			})
		}
	}
	if len(cs) == 0 && !found {
		return nil
	}
	return unstructured.SetNestedSlice(u.Object, cs, "status", "conditions")
}

func (v verdict) condition(typ string, generation int64) map[string]any {
	return map[string]any{"type": typ, "status": "False", "reason": v.reason, "message": v.message, "observedGeneration": generation}
}

// theirs reports whether another controller has set a condition.
func theirs(u *unstructured.Unstructured, typ string) bool {
	cs, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	return slices.ContainsFunc(cs, func(c any) bool {
		m, _ := c.(map[string]any)
		return m["type"] == typ && m["reason"] != mesh.NotImplemented
	})
}

// entries is where an object has one entry for each object that it names and each controller: the list
// in its status, the reference in an entry, and the list in its spec.
type entries struct{ list, ref, names string }

// entries sets our entries, one for each reference that the verdict names, and leaves those of other
// controllers alone.
func (v verdict) entries(u *unstructured.Unstructured, at time.Time, in entries) error {
	all, _, _ := unstructured.NestedSlice(u.Object, "status", in.list)
	var old, kept []any
	for _, e := range all {
		if m, _ := e.(map[string]any); m["controllerName"] == controllerName {
			old = append(old, e)
		} else {
			kept = append(kept, e)
		}
	}
	refs, _, _ := unstructured.NestedSlice(u.Object, "spec", in.names)
	for i, ref := range refs {
		if v.message == "" || !v.fields[parentField(in.names, i)] {
			continue
		}
		var cs []any
		for _, e := range old {
			if m, _ := e.(map[string]any); reflect.DeepEqual(m[in.ref], ref) {
				cs, _ = m["conditions"].([]any)
			}
		}
		c := v.condition(accepted, u.GetGeneration())
		kept = append(kept, map[string]any{in.ref: ref, "controllerName": controllerName, "conditions": set(cs, c, at)})
	}
	if len(all) == 0 && len(kept) == 0 {
		return nil
	}
	if kept == nil {
		kept = []any{}
	}
	return unstructured.SetNestedSlice(u.Object, kept, "status", in.list)
}

// set returns conditions with c among them. One that says the same keeps its time.
func set(cs []any, c map[string]any, at time.Time) []any {
	c["lastTransitionTime"] = at.UTC().Format(time.RFC3339)
	i := slices.IndexFunc(cs, func(x any) bool { m, _ := x.(map[string]any); return m["type"] == c["type"] })
	if i < 0 {
		return append(cs, c)
	}
	if m := cs[i].(map[string]any); m["status"] == c["status"] && m["lastTransitionTime"] != nil {
		c["lastTransitionTime"] = m["lastTransitionTime"]
	}
	cs = slices.Clone(cs)
	cs[i] = c
	return cs
}
