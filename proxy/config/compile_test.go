package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/carrick-mesh/carrick/resource"
)

// marshal encodes deterministically, so that equal messages have equal versions.
func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// opaque replaces Any values whose type has no Go code by one that has, the URL of the type in a
// StringValue, so that protojson can read a dump; foreign makes it that type again.
func opaque(v any) any {
	switch x := v.(type) {
	case map[string]any:
		if url, ok := x["@type"].(string); ok {
			name := protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:])
			if _, err := protoregistry.GlobalTypes.FindMessageByName(name); err != nil {
				return map[string]any{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": url}
			}
		}
		for k := range x {
			x[k] = opaque(x[k])
		}
	case []any:
		for i := range x {
			x[i] = opaque(x[i])
		}
	}
	return v
}

// foreign gives the Any values that opaque replaced in m, also those within an Any, their types.
func foreign(t testing.TB, m protoreflect.Message) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		x, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := x.(*wrapperspb.StringValue); ok {
			a.TypeUrl, a.Value = v.Value, nil
			return
		}
		foreign(t, x.ProtoReflect())
		if a.Value, err = proto.Marshal(x); err != nil {
			t.Fatal(err)
		}
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil || fd.IsMap() && fd.MapValue().Message() == nil:
		case fd.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { foreign(t, v.Message()); return true })
		case fd.IsList():
			for i := range v.List().Len() {
				foreign(t, v.List().Get(i).Message())
			}
		default:
			foreign(t, v.Message())
		}
		return true
	})
}

// readDump returns the resources of a dump: an object of lists, by kind.
func readDump(t testing.TB, path string) []Source {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var dump map[string][]any
	if err := json.Unmarshal(b, &dump); err != nil {
		t.Fatal(err)
	}
	var out []Source
	add := func(key, typeURL string, m proto.Message, name func() string) {
		for _, x := range dump[key] {
			b, err := json.Marshal(opaque(x))
			if err != nil {
				t.Fatal(err)
			}
			proto.Reset(m)
			if err := protojson.Unmarshal(b, m); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			foreign(t, m.ProtoReflect())
			out = append(out, Source{Type: typeURL, Resource: resource.New(name(), marshal(t, m))})
		}
	}
	c, e, l, r := &cluster.Cluster{}, &endpoint.ClusterLoadAssignment{}, &listener.Listener{}, &route.RouteConfiguration{}
	add("clusters", resource.ClusterType, c, func() string { return c.Name })
	add("endpoints", resource.EndpointType, e, func() string { return e.ClusterName })
	add("listeners", resource.ListenerType, l, func() string { return l.Name })
	add("routes", resource.RouteType, r, func() string { return r.Name })
	return out
}

func dumps(t testing.TB) []string {
	paths, err := filepath.Glob("../../compile/testdata/istiod/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatal("no dumps", err)
	}
	return paths
}

// TestIstiod compiles all that a genuine istiod sends.
func TestIstiod(t *testing.T) {
	for _, path := range dumps(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			sources := readDump(t, path)
			var c Compiler
			cfg, err := c.Compile(sources)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(cfg.Clusters) + len(cfg.Endpoints) + len(cfg.Listeners) + len(cfg.Routes); n != len(sources) {
				t.Errorf("compiled %d of %d", n, len(sources))
			}
			for name, cl := range cfg.Clusters {
				if cl.Type == EDS && cfg.Assignment(cl) == nil {
					t.Errorf("%s has no endpoints", name)
				}
			}
			again, err := c.Compile(sources)
			if err != nil {
				t.Fatal(err)
			}
			for name, cl := range again.Clusters {
				if cl != cfg.Clusters[name] {
					t.Errorf("cluster %s was compiled again", name)
				}
			}
			for i, l := range again.Listeners {
				if l != cfg.Listeners[i] {
					t.Errorf("listener %s was compiled again", l.Name)
				}
			}
		})
	}
}
