package kube

import (
	"encoding/json"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/mesh"
)

// meshConfig reads keys mesh and meshNetworks of the mesh's ConfigMap, field by field: what cannot be read is
// told, and is in Unread, or absent from Networks; all else is there.
func meshConfig(about mesh.Key, data map[string]string) (*mesh.MeshConfig, []mesh.Finding) {
	m := &mesh.MeshConfig{Cluster: about.Cluster, Namespace: about.Namespace, Name: about.Name, Spec: &meshconfig.MeshConfig{}, Networks: &meshconfig.MeshNetworks{}}
	found, unread := readFields(about, "data.mesh", data["mesh"], m.Spec)
	m.Unread = unread
	more, unread := readFields(about, "data.meshNetworks", data["meshNetworks"], m.Networks)
	m.KeepNetworks = slices.Contains(unread, "")
	return m, append(found, more...)
}

// maxBadFields bounds how many fields of one document are looked for one by one.
const maxBadFields = 100

// readFields reads a YAML document into a message without the fields that cannot be read, of which it returns
// the paths: "" if that is the whole.
func readFields(about mesh.Key, field, document string, to proto.Message) (found []mesh.Finding, unread []string) {
	tell := func(field, message string) {
		found = append(found, mesh.Finding{
			Object: about, Field: field, Message: message,
			Fix: "correct it; until then its last good value holds, or after a start its default, or where it protects its strictest value",
		})
	}
	if strings.TrimSpace(document) == "" {
		return nil, nil
	}
	var raw any
	j, err := yaml.YAMLToJSON([]byte(document))
	if err == nil {
		err = json.Unmarshal(j, &raw)
	}
	if err != nil {
		tell(field, err.Error())
		return found, []string{""}
	}
	if raw == nil {
		return nil, nil
	}
	var c cleaner
	raw = c.clean(to.ProtoReflect().Descriptor(), field, raw)
	found = c.findings(about)
	for range maxBadFields {
		proto.Reset(to)
		if j, err = json.Marshal(raw); err == nil {
			err = fromJSON(j, to)
		}
		if err == nil {
			return found, unread
		}
		path, message := located(err)
		if raw, path = withoutField(raw, path); path == "" {
			break
		}
		tell(join(field, path), message)
		unread = append(unread, path)
	}
	proto.Reset(to)
	tell(field, err.Error())
	return found, []string{""}
}

// withoutField returns a JSON value without what a path names, "a.b[0].c", as far as single objects lead to it: of a
// list with a bad element nothing is left, for what the others mean may depend on it. It returns the path of
// what it has taken out, "" if that is nothing.
func withoutField(v any, path string) (rest any, taken string) {
	name, below, _ := strings.Cut(path, ".")
	name, _, indexed := strings.Cut(name, "[")
	m, ok := v.(map[string]any)
	if !ok || name == "" {
		return v, ""
	}
	x, ok := m[name]
	if !ok {
		return v, ""
	}
	if _, object := x.(map[string]any); object && below != "" && !indexed {
		if rest, taken := withoutField(x, below); taken != "" {
			m[name] = rest
			return m, name + "." + taken
		}
	}
	delete(m, name)
	return m, name
}

// networkNames returns the host names among the addresses of gateways of networks.
func networkNames(n *meshconfig.MeshNetworks) (names []string) {
	for _, x := range n.GetNetworks() {
		for _, g := range x.GetGateways() {
			if a := g.GetAddress(); a != "" && !isIP(a) && !slices.Contains(names, a) {
				names = append(names, a)
			}
		}
	}
	slices.Sort(names)
	return names
}
