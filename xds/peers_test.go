package xds

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	grpcxds "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/test/envoytest"
)

func encoded(t testing.TB, name string, m proto.Message) *resource.Resource {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return resource.New(name, b)
}

func wrap(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var overADS = &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3, ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}

func clusterOf(name string, timeout time.Duration) *cluster.Cluster {
	ads := proto.Clone(overADS).(*core.ConfigSource)
	ads.InitialFetchTimeout = durationpb.New(0) // as in a mesh: it waits until the endpoints come
	return &cluster.Cluster{Name: name, ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS}, ConnectTimeout: durationpb.New(timeout),
		EdsClusterConfig: &cluster.Cluster_EdsClusterConfig{EdsConfig: ads, ServiceName: name}}
}

func endpointsOf(t testing.TB, name, addr string) *endpoint.ClusterLoadAssignment {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	var n uint32
	fmt.Sscan(port, &n)
	return &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{
		Locality: &core.Locality{Region: "r"}, LoadBalancingWeight: wrapperspb.UInt32(1),
		LbEndpoints: []*endpoint.LbEndpoint{{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: socket(host, n)}}}}}}}
}

func socket(host string, port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}
}

func routeOf(name, to string) *route.RouteConfiguration {
	return &route.RouteConfiguration{Name: name, VirtualHosts: []*route.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*route.Route{{
		Match: &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{}}, Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: to}}}}}}}}
}

func managerOf(t testing.TB, routeName string) *hcm.HttpConnectionManager {
	return &hcm.HttpConnectionManager{StatPrefix: "x",
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{RouteConfigName: routeName, ConfigSource: overADS}},
		HttpFilters:    []*hcm.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: wrap(t, &router.Router{})}}}}
}

// everybody publishes to whoever comes, until the test ends.
func everybody(t testing.TB, s *Server) (set func(map[string]*resource.List)) {
	var mu sync.Mutex
	p := &publisher{t: t, s: s}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-s.Connected():
				mu.Lock()
				p.publish()
				mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func(l map[string]*resource.List) { mu.Lock(); defer mu.Unlock(); p.set(l) }
}

// TestGRPCClient is grpc-go's own xDS client: state of the world, listeners and clusters by name.
func TestGRPCClient(t *testing.T) {
	backend := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		g := grpc.NewServer()
		healthpb.RegisterHealthServer(g, health.NewServer())
		go g.Serve(l)
		t.Cleanup(g.Stop)
		return l.Addr().String()
	}
	one, two := backend(), backend()
	s := New(Config{})
	addr := serve(t, s)
	set := everybody(t, s)
	lists := map[string]*resource.List{
		lds: resource.Of(encoded(t, "svc:80", &listener.Listener{Name: "svc:80", ApiListener: &listener.ApiListener{ApiListener: wrap(t, managerOf(t, "80"))}})),
		rds: resource.Of(encoded(t, "80", routeOf("80", "c"))),
		cds: resource.Of(encoded(t, "c", clusterOf("c", time.Second)), encoded(t, "other", clusterOf("other", time.Second))),
		eds: resource.Of(encoded(t, "c", endpointsOf(t, "c", one))),
	}
	set(lists)
	resolver, err := grpcxds.NewXDSResolverWithConfigForTesting([]byte(fmt.Sprintf(
		`{"xds_servers":[{"server_uri":%q,"channel_creds":[{"type":"insecure"}],"server_features":["xds_v3"]}],"node":{"id":"sidecar~10.0.0.1~a.ns~ns.svc.cluster.local"}}`, addr)))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///svc:80", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(resolver))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		return err
	}
	eventually(t, "a call is answered", func() bool { return call() == nil })
	// The endpoint moves; the cluster changes; the listener goes.
	set(map[string]*resource.List{eds: resource.Of(encoded(t, "c", endpointsOf(t, "c", two))), cds: resource.Of(encoded(t, "c", clusterOf("c", 3*time.Second)))})
	eventually(t, "all that was sent is taken", func() bool {
		for _, c := range s.Clients() {
			for _, st := range c.Status() {
				if st.Nack != "" {
					t.Fatalf("refused: %s", st.Nack)
				}
				if !st.Synced() {
					return false
				}
			}
		}
		return len(s.Clients()) == 1
	})
	if err := call(); err != nil {
		t.Error(err)
	}
	set(map[string]*resource.List{lds: resource.Of()})
	eventually(t, "calls fail without the listener", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		return err != nil
	})
}

// envoy starts a genuine Envoy that takes everything from ADS at addr, and returns its admin
// address.
func envoy(t *testing.T, addr string, delta bool) string {
	t.Helper()
	api := "GRPC"
	if delta {
		api = "DELTA_GRPC"
	}
	_, port, _ := net.SplitHostPort(addr)
	config := fmt.Sprintf(`
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
node: {id: sidecar~10.0.0.1~a.ns~ns.svc.cluster.local, cluster: c}
dynamic_resources:
  ads_config: {api_type: %s, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}
`, api, port)
	return envoytest.Start(t, config)
}

func get(url string) (string, error) {
	c := http.Client{Timeout: 2 * time.Second}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if r.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}

func freePort(t testing.TB) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

func TestEnvoyDelta(t *testing.T) { testEnvoy(t, true) }

func TestEnvoyStateOfTheWorld(t *testing.T) { testEnvoy(t, false) }

func testEnvoy(t *testing.T, delta bool) {
	backend := func(name string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	one, two := backend("one"), backend("two")
	port := freePort(t)

	// A server of our own, so that it can go and come back at its address.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	start := func(l net.Listener) (*Server, *grpc.Server) {
		s := New(Config{})
		g := grpc.NewServer(Options()...)
		s.Register(g)
		go g.Serve(l)
		t.Cleanup(g.Stop)
		return s, g
	}
	s, g := start(l)
	set := everybody(t, s)
	lists := map[string]*resource.List{
		lds: resource.Of(encoded(t, "l", &listener.Listener{Name: "l", Address: socket("127.0.0.1", port), FilterChains: []*listener.FilterChain{{
			Filters: []*listener.Filter{{Name: "hcm", ConfigType: &listener.Filter_TypedConfig{TypedConfig: wrap(t, managerOf(t, "80"))}}}}}})),
		rds: resource.Of(encoded(t, "80", routeOf("80", "c1"))),
		cds: resource.Of(encoded(t, "c1", clusterOf("c1", time.Second)), encoded(t, "c2", clusterOf("c2", time.Second))),
		eds: resource.Of(encoded(t, "c1", endpointsOf(t, "c1", one)), encoded(t, "c2", endpointsOf(t, "c2", two))),
	}
	set(lists)
	admin := envoy(t, addr, delta)
	page := func() string { b, _ := get(fmt.Sprintf("http://127.0.0.1:%d/", port)); return b }
	eventually(t, "a request goes through", func() bool { return page() == "one" })

	timeout := func(name string) string {
		b, err := get("http://" + admin + "/config_dump?resource=dynamic_active_clusters")
		if err != nil {
			return ""
		}
		var d struct {
			Configs []struct {
				Cluster struct {
					Name           string
					ConnectTimeout string `json:"connect_timeout"`
				}
			}
		}
		if err := json.Unmarshal([]byte(b), &d); err != nil {
			t.Fatal(err)
		}
		for _, c := range d.Configs {
			if c.Cluster.Name == name {
				return c.Cluster.ConnectTimeout
			}
		}
		return ""
	}
	// A cluster changes, its endpoints do not: it must not warm for ever.
	set(map[string]*resource.List{cds: resource.Of(encoded(t, "c1", clusterOf("c1", 2*time.Second)), encoded(t, "c2", clusterOf("c2", time.Second)))})
	eventually(t, "the changed cluster is in use", func() bool { return timeout("c1") == "2s" })
	if page() != "one" {
		t.Error("no answer after the change of the cluster")
	}
	// The route moves to another cluster and the first one goes, under load: nothing is lost.
	stop := make(chan struct{})
	lost := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				lost <- n
				return
			default:
				if p := page(); p != "one" && p != "two" {
					n++
				}
			}
		}
	}()
	set(map[string]*resource.List{
		cds: resource.Of(encoded(t, "c2", clusterOf("c2", time.Second)), encoded(t, "c3", clusterOf("c3", time.Second))),
		eds: resource.Of(encoded(t, "c2", endpointsOf(t, "c2", two)), encoded(t, "c3", endpointsOf(t, "c3", two))),
		rds: resource.Of(encoded(t, "80", routeOf("80", "c3"))),
	})
	eventually(t, "the new route and its new cluster", func() bool { return page() == "two" })
	eventually(t, "the old cluster is gone", func() bool { return timeout("c1") == "" })
	close(stop)
	if n := <-lost; n > 0 && delta {
		t.Errorf("%d requests lost while the route moved", n)
	}
	for _, c := range s.Clients() {
		for typ, st := range c.Status() {
			if st.Nack != "" {
				t.Errorf("Envoy refused %s: %s", short(typ), st.Nack)
			}
		}
	}
	// The server goes and another comes, with the same resources but for one cluster.
	g.Stop()
	if page() != "two" {
		t.Error("no answer without a control plane")
	}
	if l, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	s, _ = start(l)
	set = everybody(t, s)
	lists[cds] = resource.Of(encoded(t, "c2", clusterOf("c2", time.Second)), encoded(t, "c3", clusterOf("c3", 3*time.Second)))
	lists[eds] = resource.Of(encoded(t, "c2", endpointsOf(t, "c2", two)), encoded(t, "c3", endpointsOf(t, "c3", two)))
	lists[rds] = resource.Of(encoded(t, "80", routeOf("80", "c3")))
	set(lists)
	eventually(t, "the cluster that changed meanwhile is in use", func() bool { return timeout("c3") == "3s" })
	eventually(t, "all is synced after the reconnect", func() bool {
		for _, c := range s.Clients() {
			st := c.Status()
			return st[cds].Synced() && st[eds].Synced() && st[lds].Synced() && st[rds].Synced()
		}
		return false
	})
	if page() != "two" {
		t.Error("no answer after the reconnect")
	}
}
