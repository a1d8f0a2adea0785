package kube

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// inert reads of an object of a kind without effect what tells whose it is.
func inert(cluster string, k schema.Kind, u *unstructured.Unstructured) *mesh.Inert {
	return &mesh.Inert{
		Meta: mesh.Meta{Cluster: cluster, Namespace: u.GetNamespace(), Name: u.GetName(), Created: u.GetCreationTimestamp().Time},
		Kind: k.Name(), Protects: k.Protects(u.Object), Class: class(k, u), Parents: parents(k, u),
	}
}

func class(k schema.Kind, u *unstructured.Unstructured) string {
	field := map[string]string{"GatewayClass": "controllerName", "IngressClass": "controller", "Ingress": "ingressClassName"}[k.Kind]
	if k.Status == schema.Gateway && k.Kind == "Gateway" {
		field = "gatewayClassName"
	}
	if field == "" {
		return ""
	}
	if a := u.GetAnnotations()["kubernetes.io/ingress.class"]; a != "" && k.Kind == "Ingress" {
		return a // the older form, which wins in Istio as well
	}
	s, _, _ := unstructured.NestedString(u.Object, "spec", field)
	return s
}

// parents returns what a route or ListenerSet is attached to, or a policy is for.
func parents(k schema.Kind, u *unstructured.Unstructured) (all []mesh.Parent) {
	list := "parentRefs"
	switch k.Status {
	case schema.Policy:
		list = "targetRefs"
	case schema.Route, schema.Gateway:
	default:
		return nil
	}
	add := func(field string, ref any) {
		m, ok := ref.(map[string]any)
		if !ok {
			return
		}
		word := func(name, byDefault string) string {
			if s, ok := m[name].(string); ok {
				return s
			}
			return byDefault
		}
		all = append(all, mesh.Parent{Field: field, Group: word("group", schema.GatewayAPI), Kind: word("kind", "Gateway"),
			Namespace: word("namespace", u.GetNamespace()), Name: word("name", "")})
	}
	refs, _, _ := unstructured.NestedFieldNoCopy(u.Object, "spec", list)
	if l, ok := refs.([]any); ok {
		for i, ref := range l {
			add(parentField(list, i), ref)
		}
	}
	if ref, _, _ := unstructured.NestedFieldNoCopy(u.Object, "spec", "parentRef"); ref != nil {
		add("spec.parentRef", ref)
	}
	return all
}

func parentField(list string, i int) string { return fmt.Sprintf("spec.%s[%d]", list, i) }
