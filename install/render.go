package install

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/carrick-mesh/carrick/install/crds"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// Labels on every object that is installed.
const (
	ManagedBy      = "app.kubernetes.io/managed-by" // always "carrick"
	InstallLabel   = "carrick.dev/install"          // the install that owns the object
	ComponentLabel = "carrick.dev/component"
	// VersionAnnotation is on the pods of gateways: the version that the injector gave them.
	VersionAnnotation = "carrick.dev/version"
	OwningResource    = "install.operator.istio.io/owning-resource" // the same owner, as Istio's tools look for it
)

// Manifest is what an install consists of, in the order of application.
type Manifest struct {
	Name      string // of the install
	Namespace string // of its inventory
	Version   string
	Revision  string // of the control plane; "" for the default
	Parts     []Part
	Operator  map[string]any // the user's IstioOperator files, merged, to be stored; nil for the load balancer
	Sets      []string       // the user's --set arguments, to be stored
	Mesh      string         // the MeshConfig as rendered, to tell hand edits from ours; "" without one
	Network   string         // label of the namespace that must hold, if not ""
}

// Part is a component's objects.
type Part struct {
	Name     string // "Istio core"; the last line of its installation is "✔ NAME installed"
	Objects  []*unstructured.Unstructured
	Together bool // with the part before: that one is not waited for first
}

// Objects returns all objects in the order of application.
func (m *Manifest) Objects() (all []*unstructured.Unstructured) {
	for _, p := range m.Parts {
		all = append(all, p.Objects...)
	}
	return all
}

// YAML returns all objects as a stream of documents.
func (m *Manifest) YAML() ([]byte, error) {
	var b bytes.Buffer
	for i, o := range m.Objects() {
		y, err := yaml.Marshal(o.Object)
		if err != nil {
			return nil, fmt.Errorf("encoding %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		if i > 0 {
			b.WriteString("---\n")
		}
		b.Write(y)
	}
	return b.Bytes(), nil
}

// Render returns the objects that the config asks for.
func (c *Config) Render() (*Manifest, error) {
	m := &Manifest{Name: c.Name, Namespace: c.Namespace, Version: c.tag, Revision: c.Revision, Operator: c.file, Sets: c.sets}
	cs := c.spec.Components
	if cs.Base.enabled() {
		objs, err := base(c)
		if err != nil {
			return nil, err
		}
		m.Parts = append(m.Parts, Part{Name: "Istio core", Objects: objs})
	}
	if cs.Pilot.enabled() {
		m.Network = c.Network
		objs, mesh, err := istiod(c)
		if err != nil {
			return nil, err
		}
		m.Mesh = mesh
		m.Parts = append(m.Parts, Part{Name: "Istiod", Objects: objs})
	}
	gateways := 0
	for _, kind := range []struct {
		name, field string
		list        []Gateway
		vals        gatewayValues
	}{
		{"Egress gateways", "egressGateways", cs.EgressGateways, c.vals.Gateways.Egress},
		{"Ingress gateways", "ingressGateways", cs.IngressGateways, c.vals.Gateways.Ingress},
	} {
		var objs []*unstructured.Unstructured
		for i, g := range kind.list {
			if !g.enabled() {
				continue
			}
			os, err := gateway(c, g, kind.vals, fmt.Sprintf("spec.components.%s[%d]", kind.field, i))
			if err != nil {
				return nil, err
			}
			objs = append(objs, os...)
		}
		if len(objs) > 0 {
			m.Parts = append(m.Parts, Part{Name: kind.name, Objects: objs, Together: gateways > 0})
			gateways++
		}
	}
	m.label()
	return m, nil
}

// label marks every object as the install's. CRDs and the rest of the base, which all control planes
// of a cluster share, and namespaces belong to no single install.
func (m *Manifest) label() {
	for _, o := range m.Objects() {
		l := o.GetLabels()
		if l == nil {
			l = map[string]string{}
		}
		if o.GetKind() == "Namespace" {
			continue
		}
		l[ManagedBy] = "carrick"
		if o.GetKind() != "CustomResourceDefinition" && l[ComponentLabel] != baseComponent {
			l[InstallLabel] = m.Name
			l[OwningResource] = m.Name
		}
		o.SetLabels(l)
	}
}

// crdObjects returns the CRDs of a component.
func crdObjects(component string) ([]*unstructured.Unstructured, error) {
	entries, err := crds.Files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	var objs []*unstructured.Unstructured
	for _, e := range entries {
		b, err := crds.Files.ReadFile(e.Name())
		if err != nil {
			return nil, err
		}
		o := &unstructured.Unstructured{}
		j, err := yaml.YAMLToJSON(b)
		if err == nil {
			err = o.UnmarshalJSON(j) // with whole numbers as such, as API servers' answers have them
		}
		if err != nil {
			return nil, fmt.Errorf("reading CRD %s: %w", e.Name(), err)
		}
		if o.GetLabels()[ComponentLabel] == component {
			objs = append(objs, o)
		}
	}
	return objs, nil
}

// object converts a typed object, without the fields that only servers fill.
func object(v runtime.Object) (*unstructured.Unstructured, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON(b); err != nil {
		return nil, err
	}
	delete(o.Object, "status")
	dropNull(o.Object)
	return o, nil
}

func objects(vs ...runtime.Object) ([]*unstructured.Unstructured, error) {
	var objs []*unstructured.Unstructured
	for _, v := range vs {
		o, err := object(v)
		if err != nil {
			return nil, fmt.Errorf("rendering %T: %w", v, err)
		}
		objs = append(objs, o)
	}
	return objs, nil
}

// dropNull removes creationTimestamp: null and the empty structs that typed objects leave behind.
func dropNull(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			m, isMap := x.(map[string]any)
			switch {
			case x == nil, isMap && len(m) == 0 && (k == "resources" || k == "strategy" || k == "spec"):
				delete(v, k)
			default:
				dropNull(x)
			}
		}
	case []any:
		for _, x := range v {
			dropNull(x)
		}
	}
}

// patch applies the overlays of a component to its objects.
func patch(objs []*unstructured.Unstructured, overlays []Overlay, field string) error {
	for i, ov := range overlays {
		var target *unstructured.Unstructured
		for _, o := range objs {
			if o.GetKind() == ov.Kind && o.GetName() == ov.Name {
				target = o
			}
		}
		if target == nil {
			return fmt.Errorf("%s.k8s.overlays[%d]: there is no %s %s in this component", field, i, ov.Kind, ov.Name)
		}
		for j, p := range ov.Patches {
			out, err := setPath(target.Object, strings.TrimPrefix(p.Path, "."), p.Value)
			if err != nil {
				return fmt.Errorf("%s.k8s.overlays[%d].patches[%d].path: %w", field, i, j, err)
			}
			target.Object = out.(map[string]any)
		}
	}
	return nil
}
