package compile

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

var update = flag.Bool("update", false, "write testdata/*.out.yaml anew")

// ask is who asks in a test: "sidecar cluster1/sample/sleep-1". grpc-sni is a gRPC client that sends
// server names, router+topology a gateway that says what stands before it.
func ask(t testing.TB, s *mesh.Snapshot, who string) Proxy {
	t.Helper()
	words := strings.Fields(who)
	at := strings.Split(words[1], "/")
	pod := s.Pod(at[0], at[1], at[2])
	if pod == nil {
		t.Fatalf("no pod %s", words[1])
	}
	n := Node{Router: strings.HasPrefix(words[0], "router")}
	if words[0] == "router+topology" {
		n.Topology = Topology{Said: true, Hops: 2, ClientCert: meshconfig.ForwardClientCertDetails_FORWARD_ONLY, ProxyProtocol: true}
	}
	if words[0] == "grpc" || words[0] == "grpc-sni" {
		n.Dialect, n.SNI = GRPC, words[0] == "grpc-sni"
	}
	if len(words) > 2 {
		n.View = words[2]
	}
	return Of(s, pod, n)
}

func kinds(b Bundle) []struct {
	name string
	list *resource.List
	of   func() proto.Message
} {
	return []struct {
		name string
		list *resource.List
		of   func() proto.Message
	}{
		{"clusters", b.Clusters, func() proto.Message { return &clusterv3.Cluster{} }},
		{"endpoints", b.Endpoints, func() proto.Message { return &endpointv3.ClusterLoadAssignment{} }},
		{"listeners", b.Listeners, func() proto.Message { return &listenerv3.Listener{} }},
		{"routes", b.Routes, func() proto.Message { return &routev3.RouteConfiguration{} }},
		{"secrets", b.Secrets, func() proto.Message { return &tlsv3.Secret{} }},
	}
}

// decode reads the resources of a bundle, each of which must be valid.
func decode(t testing.TB, b Bundle) map[string]map[string]proto.Message {
	t.Helper()
	out := map[string]map[string]proto.Message{}
	for _, k := range kinds(b) {
		out[k.name] = map[string]proto.Message{}
		for r := range k.list.All() {
			m := k.of()
			if err := proto.Unmarshal(r.Bytes(), m); err != nil {
				t.Fatalf("%s %s: %v", k.name, r.Name, err)
			}
			check(t, k.name+" "+r.Name, m)
			if out[k.name][r.Name] != nil {
				t.Errorf("%s: two of the name %s", k.name, r.Name)
			}
			out[k.name][r.Name] = m
		}
	}
	return out
}

// check validates a message and all that are packed into it.
func check(t testing.TB, what string, m proto.Message) {
	t.Helper()
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	inside(m.ProtoReflect(), func(a *anypb.Any) {
		x, err := a.UnmarshalNew()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		check(t, what+" "+string(x.ProtoReflect().Descriptor().FullName()), x)
	})
}

func inside(m protoreflect.Message, f func(*anypb.Any)) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		f(a)
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { inside(v.Message(), f); return true })
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				inside(v.List().Get(i).Message(), f)
			}
		default:
			inside(v.Message(), f)
		}
		return true
	})
}

func toYAML(t testing.TB, m proto.Message) string {
	t.Helper()
	j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var x any
	if err := json.Unmarshal(j, &x); err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return string(y)
}

// TestGolden compiles testdata/NAME.in.yaml for the proxies that its comments "# ask: ..." name, and
// compares with NAME.out.yaml. A line "# show: TYPE NAME" restricts what is shown.
func TestGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.in.yaml")
	if len(files) == 0 {
		t.Fatal("no testdata")
	}
	for _, in := range files {
		t.Run(strings.TrimSuffix(filepath.Base(in), ".in.yaml"), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			var asks, shows []string
			for line := range strings.Lines(string(text)) {
				if who, ok := strings.CutPrefix(strings.TrimSpace(line), "# ask: "); ok {
					asks = append(asks, who)
				}
				if what, ok := strings.CutPrefix(strings.TrimSpace(line), "# show: "); ok {
					shows = append(shows, what)
				}
			}
			s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, text)...)
			for _, f := range s.Findings() {
				t.Log(f)
			}
			var out bytes.Buffer
			c := New()
			for _, who := range asks {
				b := c.Pass(s, []Proxy{ask(t, s, who)})[0]
				got := decode(t, b)
				for _, k := range kinds(b) {
					for _, name := range sortedKeys(got[k.name]) {
						if len(shows) == 0 || shown(shows, k.name, name) {
							fmt.Fprintf(&out, "--- # %s: %s %s\n%s", who, k.name, name, toYAML(t, got[k.name][name]))
						}
					}
				}
			}
			golden := strings.TrimSuffix(in, ".in.yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(out.String(), "\n")); d != "" {
				t.Errorf("%s differs (-want +got; run with -update to accept):\n%s", golden, d)
			}
		})
	}
}

func shown(shows []string, kind, name string) bool {
	for _, s := range shows {
		k, n, _ := strings.Cut(s, " ")
		if k == kind && (n == "*" || strings.HasPrefix(name, n)) {
			return true
		}
	}
	return false
}
