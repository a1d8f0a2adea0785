package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// Decode reads a user's object as the control plane of the cluster does. Known is false if the mesh
// has nothing to do with its kind. Findings without an object mean that it cannot be read; findings
// with one, that something in it is not understood and left out.
func Decode(cluster string, u *unstructured.Unstructured) (o mesh.Object, found []mesh.Finding, known bool) {
	gvk := u.GroupVersionKind()
	k, ok := schema.Of(gvk.Group, gvk.Kind)
	if !ok {
		return nil, nil, false
	}
	if !k.Serves(gvk.Version) {
		return nil, []mesh.Finding{{Object: keyOf(cluster, k, u), Field: "apiVersion",
			Message: "there is no version " + gvk.Version + " of " + k.Group, Fix: "use " + k.APIVersion()}}, true
	}
	o, found = decode(cluster, k, u)
	return o, found, true
}

func keyOf(cluster string, k schema.Kind, u metav1.Object) mesh.Key {
	return mesh.Key{Cluster: cluster, Kind: k.Name(), Namespace: u.GetNamespace(), Name: u.GetName()}
}

// decode reads a user's object. Findings without an object mean that it cannot be read; findings
// with one, that something in it is not understood and left out.
func decode(cluster string, k schema.Kind, u *unstructured.Unstructured) (mesh.Object, []mesh.Finding) {
	if !k.Implemented {
		return inert(cluster, k, u), nil
	}
	m := mesh.Meta{Cluster: cluster, Namespace: u.GetNamespace(), Name: u.GetName(), Labels: u.GetLabels(),
		Created: u.GetCreationTimestamp().Time, Generation: u.GetGeneration()}
	spec := k.Spec()
	o, key := mesh.NewUserObject(m, spec), keyOf(cluster, k, u)
	finding := func(err error) []mesh.Finding {
		field, message := located(err)
		return []mesh.Finding{{Object: key, Field: join("spec", field), Message: message}}
	}
	raw, ok := u.Object["spec"]
	if !ok || raw == nil {
		return o, nil
	}
	if mesh.Protects(o) {
		return salvage(k, m, raw)
	}
	var c cleaner
	data, err := json.Marshal(c.clean(spec.ProtoReflect().Descriptor(), "spec", raw))
	if err != nil {
		return nil, finding(err)
	}
	if err := fromJSON(data, spec); err != nil {
		return nil, finding(err)
	}
	return o, c.findings(key)
}

// DecodeMeshConfig reads what ConfigMap istio of a cluster holds. Findings are about settings that are
// not understood and left out.
func DecodeMeshConfig(about mesh.Key, data map[string]string) (*mesh.MeshConfig, []mesh.Finding) {
	return meshConfig(about, data)
}

// cleaner makes of users' JSON what protojson takes.
type cleaner struct{ unknown []string } // fields that were left out

// clean returns v, the JSON form of a message, with Go's durations ("1m30s"), which Istio takes, in
// protobuf's form ("90s"), and without fields that the message does not have. Anything else stays
// as it is, for protojson to judge. v is not changed.
func (c *cleaner) clean(d protoreflect.MessageDescriptor, path string, v any) any {
	if d.FullName() == "google.protobuf.Duration" {
		if s, ok := v.(string); ok {
			if x, err := time.ParseDuration(s); err == nil {
				return strconv.FormatFloat(x.Seconds(), 'f', -1, 64) + "s"
			}
		}
		return v
	}
	m, ok := v.(map[string]any)
	if !ok || d.ParentFile().Package() == "google.protobuf" {
		return v
	}
	out := make(map[string]any, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		x, at := m[name], join(path, name)
		f := d.Fields().ByJSONName(name)
		if f == nil {
			f = d.Fields().ByTextName(name)
		}
		if f == nil {
			c.unknown = append(c.unknown, at)
			continue
		}
		out[name] = x
		switch {
		case f.IsMap():
			if entries, ok := x.(map[string]any); ok && f.MapValue().Message() != nil {
				copied := make(map[string]any, len(entries))
				for k, e := range entries {
					copied[k] = c.clean(f.MapValue().Message(), join(at, k), e)
				}
				out[name] = copied
			}
		case f.Message() == nil:
		case f.IsList():
			if elements, ok := x.([]any); ok {
				copied := make([]any, len(elements))
				for i, e := range elements {
					copied[i] = c.clean(f.Message(), fmt.Sprintf("%s[%d]", at, i), e)
				}
				out[name] = copied
			}
		default:
			out[name] = c.clean(f.Message(), at, x)
		}
	}
	return out
}

// findings are about the fields that were left out.
func (c *cleaner) findings(about mesh.Key) (fs []mesh.Finding) {
	for _, field := range c.unknown {
		fs = append(fs, mesh.Finding{Object: about, Field: field, Message: "unknown field, which is ignored", Fix: "correct its name or remove it"})
	}
	return fs
}

// jsonError is protojson's complaint, with the place.
type jsonError struct {
	field   string
	message string
}

func (e *jsonError) Error() string { return join(e.field, e.message) }

var jsonPlace = regexp.MustCompile(`\(line (\d+):(\d+)\): (.*)$`)

// fromJSON reads protobuf's JSON form. An error is a *jsonError where protojson says the place.
func fromJSON(data []byte, to proto.Message) error {
	err := protojson.Unmarshal(data, to)
	if err == nil {
		return nil
	}
	m := jsonPlace.FindStringSubmatch(err.Error())
	if m == nil {
		return errors.New(strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: "))
	}
	line, _ := strconv.Atoi(m[1])
	col, _ := strconv.Atoi(m[2])
	return &jsonError{field: fieldAt(data, offset(data, line, col)), message: strings.ReplaceAll(m[3], "\u00a0", " ")}
}

func located(err error) (field, message string) {
	var e *jsonError
	if errors.As(err, &e) {
		return e.field, e.message
	}
	return "", err.Error()
}

func join(prefix, field string) string {
	switch {
	case field == "":
		return prefix
	case strings.HasPrefix(field, "["):
		return prefix + field
	}
	return prefix + "." + field
}

// offset returns where line and column (from 1) are.
func offset(data []byte, line, col int) int {
	at := 0
	for ; line > 1; line-- {
		i := bytes.IndexByte(data[at:], '\n')
		if i < 0 {
			break
		}
		at += i + 1
	}
	return min(at+col-1, len(data))
}

// fieldAt returns the path of the JSON value or name at an offset: "http[0].route[1].weight".
func fieldAt(data []byte, at int) string {
	type level struct {
		array bool
		index int
		name  string
		value bool // the name has been read, its value is next
	}
	var path []level
	d := json.NewDecoder(bytes.NewReader(data))
	show := func() string {
		var b strings.Builder
		for _, l := range path {
			switch {
			case l.array:
				fmt.Fprintf(&b, "[%d]", l.index)
			case l.name != "":
				if b.Len() > 0 {
					b.WriteByte('.')
				}
				b.WriteString(l.name)
			}
		}
		return b.String()
	}
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) || err != nil {
			return show()
		}
		top := len(path) - 1
		if top >= 0 && !path[top].array && !path[top].value {
			if s, ok := t.(string); ok {
				path[top].name, path[top].value = s, true
				if int(d.InputOffset()) > at {
					return show()
				}
				continue
			}
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if int(d.InputOffset()) > at {
				return show()
			}
			path = append(path, level{array: t == json.Delim('[')})
			continue
		case json.Delim('}'), json.Delim(']'):
			path = path[:top]
			top--
		}
		if int(d.InputOffset()) > at {
			return show()
		}
		if top >= 0 {
			if path[top].array {
				path[top].index++
			} else {
				path[top].name, path[top].value = "", false
			}
		}
	}
}
