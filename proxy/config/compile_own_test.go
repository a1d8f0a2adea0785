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
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/resource"
)

// TestOwnControlPlane compiles all that Carrick's control plane makes in its golden tests: each
// document begins with "--- # PROXY: KIND NAME".
func TestOwnControlPlane(t *testing.T) {
	paths, err := filepath.Glob("../../compile/testdata/*.out.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatal("no goldens of package compile", err)
	}
	kinds := map[string]struct {
		url string
		mk  func() proto.Message
	}{
		"clusters":  {resource.ClusterType, func() proto.Message { return &cluster.Cluster{} }},
		"endpoints": {resource.EndpointType, func() proto.Message { return &endpoint.ClusterLoadAssignment{} }},
		"listeners": {resource.ListenerType, func() proto.Message { return &listener.Listener{} }},
		"routes":    {resource.RouteType, func() proto.Message { return &route.RouteConfiguration{} }},
	}
	n := 0
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range strings.Split("\n"+string(b), "\n--- # ") {
			head, body, _ := strings.Cut(doc, "\n")
			who, what, _ := strings.Cut(head, ": ")
			if strings.HasPrefix(who, "grpc") {
				continue // its certificate providers are those of gRPC's own client
			}
			kind, name, _ := strings.Cut(what, " ")
			k, ok := kinds[kind]
			if !ok {
				continue
			}
			var v any
			if err := yaml.Unmarshal([]byte(body), &v); err != nil {
				t.Fatalf("%s: %s: %v", path, head, err)
			}
			j, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			m := k.mk()
			if err := protojson.Unmarshal(j, m); err != nil {
				t.Fatalf("%s: %s: %v", path, head, err)
			}
			var c Compiler
			if _, err := c.Decode(k.url, resource.New(name, marshal(t, m))); err != nil {
				t.Errorf("%s: %s: %v", path, head, err)
			}
			n++
		}
	}
	if n < 20 {
		t.Errorf("only %d resources", n)
	}
}
