package compile

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/test/envoytest"
)

// TestEnvoyTakesAll has a genuine Envoy load all resources of all proxies of testdata.
func TestEnvoyTakesAll(t *testing.T) {
	envoy := envoytest.Program(t)
	files, _ := filepath.Glob("testdata/*.in.yaml")
	for _, in := range files {
		text, err := os.ReadFile(in)
		if err != nil {
			t.Fatal(err)
		}
		s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, text)...)
		for line := range strings.Lines(string(text)) {
			who, ok := strings.CutPrefix(strings.TrimSpace(line), "# ask: ")
			if !ok || strings.HasPrefix(who, "grpc") { // the form for gRPC names certificate providers, which Envoy does not have
				continue
			}
			t.Run(filepath.Base(in)+" "+who, func(t *testing.T) {
				b := bootstrap(t, decode(t, New().Pass(s, []Proxy{ask(t, s, who)})[0]))
				j, err := protojson.Marshal(b)
				if err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(t.TempDir(), "bootstrap.json")
				if err := os.WriteFile(file, j, 0o600); err != nil {
					t.Fatal(err)
				}
				out, err := exec.Command(envoy, "--mode", "validate", "-c", file, "--log-level", "warning").CombinedOutput()
				if err != nil {
					t.Fatalf("envoy: %v\n%s", err, out)
				}
				for warning := range strings.Lines(string(out)) {
					expected := strings.Contains(warning, "max_grpc_timeout") || // which 1.15 has in allow_any
						strings.Contains(warning, "dns_refresh_rate") // whose successor older proxies do not know
					if strings.Contains(warning, "Deprecated") && !expected {
						t.Errorf("envoy: %s", warning)
					}
				}
			})
		}
	}
}

// bootstrap makes static resources of all: route tables and endpoints, which cannot be static by
// themselves, inside listeners and clusters of their own.
func bootstrap(t *testing.T, all map[string]map[string]proto.Message) *bootstrapv3.Bootstrap {
	static := &bootstrapv3.Bootstrap_StaticResources{}
	for _, name := range []string{"xds-grpc", "sds-grpc"} {
		c := originalDst(name, clusterSettings{timeout: 1e9}, nil, false)
		c.ClusterDiscoveryType, c.LbPolicy = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, clusterv3.Cluster_ROUND_ROBIN
		static.Clusters = append(static.Clusters, c)
	}
	for _, m := range all["clusters"] {
		static.Clusters = append(static.Clusters, m.(*clusterv3.Cluster))
	}
	for name, m := range all["endpoints"] {
		static.Clusters = append(static.Clusters, &clusterv3.Cluster{
			Name: "endpoints of " + name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			LoadAssignment: m.(*endpointv3.ClusterLoadAssignment),
		})
	}
	port := uint32(20000)
	for _, m := range all["listeners"] {
		static.Listeners = append(static.Listeners, m.(*listenerv3.Listener))
	}
	for name, m := range all["routes"] {
		port++
		static.Listeners = append(static.Listeners, &listenerv3.Listener{
			Name: "routes of " + name, Address: socketAddress("127.0.0.1", port),
			FilterChains: []*listenerv3.FilterChain{{Filters: httpChain(inline(httpSettings{}.connectionManager("x"), m.(*routev3.RouteConfiguration)))}},
		})
	}
	return &bootstrapv3.Bootstrap{
		Node:            &core.Node{Id: "sidecar~10.0.0.1~a.b~b.svc.cluster.local", Cluster: "a.b"},
		StaticResources: static,
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{AdsConfig: &core.ApiConfigSource{
			ApiType: core.ApiConfigSource_DELTA_GRPC, TransportApiVersion: core.ApiVersion_V3,
			GrpcServices: []*core.GrpcService{{TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: "xds-grpc"}}}},
		}},
	}
}
