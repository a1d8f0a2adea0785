package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/stats"
	"github.com/carrick-mesh/carrick/resource"
)

func mustAny(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// testConfig has one resource of each kind, a filter of an unknown type, and a key.
func testConfig(t *testing.T) *config.Config {
	t.Helper()
	source := func(typeURL, name string, m proto.Message) config.Source {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return config.Source{Type: typeURL, Resource: resource.New(name, b), Version: "v1", Updated: time.Unix(1000, 0)}
	}
	router := &hcm.HttpFilter{Name: "envoy.filters.http.router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: mustAny(t, &routerv3.Router{})}}
	alpn := &hcm.HttpFilter{Name: "istio.alpn", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", Value: []byte{1, 2}}}}
	table := func(name string) *routev3.RouteConfiguration {
		return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "c1"}}},
		}}}}}
	}
	eds := &clusterv3.Cluster{
		Name: "c1", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &core.ConfigSource{ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}},
	}
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: "c1", Endpoints: []*endpointv3.LocalityLbEndpoints{{
		Locality: &core.Locality{Region: "r1", Zone: "z1"},
		LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress("10.0.0.1", 5000)}},
			LoadBalancingWeight: wrapperspb.UInt32(2),
		}},
	}}}
	l := &listenerv3.Listener{Name: "l1", Address: socketAddress("0.0.0.0", 15006), FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
		Name: "http", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(t, &hcm.HttpConnectionManager{
			StatPrefix: "x", RouteSpecifier: &hcm.HttpConnectionManager_RouteConfig{RouteConfig: table("inbound|5000||")}, HttpFilters: []*hcm.HttpFilter{alpn, router},
		})},
	}}}}}
	chain, key := certificate(t)
	secret := &tlsv3.Secret{Name: "kubernetes://gw", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}}
	var c config.Compiler
	cfg, err := c.Compile([]config.Source{
		source(resource.ClusterType, "c1", eds), source(resource.EndpointType, "c1", cla),
		source(resource.ListenerType, "l1", l), source(resource.RouteType, "5000", table("5000")),
		source(resource.SecretType, secret.Name, secret),
	})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// certificate makes a certificate and its key, in PEM.
func certificate(t *testing.T) (cert, private []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("spiffe://cluster.local/ns/sample/sa/sleep")
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(0xabc), Subject: pkix.Name{Organization: []string{"x"}}, NotBefore: time.Now(), NotAfter: time.Now().Add(49 * time.Hour), URIs: []*url.URL{u}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})
}

type fixture struct {
	t     *testing.T
	srv   *httptest.Server
	state State
	did   []string
	level slog.LevelVar
}

func start(t *testing.T) *fixture {
	cfg := testConfig(t)
	cert, _ := certificate(t)
	f := &fixture{t: t}
	st := stats.NewStore(1, stats.Local{})
	st.Cluster("c1").Shard(0).RqTotal.Add(7)
	f.srv = httptest.NewServer(New(Options{
		Version: "1.2.3", Started: time.Unix(500, 0), Node: &core.Node{Id: "sidecar~10.0.0.2~p.ns~ns.svc.cluster.local"}, Concurrency: 2,
		State:  func() State { return f.state },
		Config: func() *config.Config { return cfg },
		Listeners: func() []Listener {
			return []Listener{{"l1", []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:15006")}}}
		},
		Secrets: func() []Secret {
			return []Secret{{Name: "default", Chain: cert, Version: "1"}, {Name: "ROOTCA", Roots: cert}}
		},
		Stats:      st,
		Level:      &f.level,
		Drain:      func(graceful, inbound bool) { f.did = append(f.did, "drain") },
		FailHealth: func(failed bool) { f.did = append(f.did, map[bool]string{true: "fail", false: "ok"}[failed]) },
		Quit:       func() { f.did = append(f.did, "quit") },
		ReopenLogs: func() error { f.did = append(f.did, "reopen"); return nil },
	}))
	t.Cleanup(f.srv.Close)
	return f
}

func (f *fixture) do(method, path string, status int) string {
	f.t.Helper()
	req, err := http.NewRequest(method, f.srv.URL+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	if resp.StatusCode != status {
		f.t.Errorf("%s %s: status %d, want %d: %s", method, path, resp.StatusCode, status, b)
	}
	return string(b)
}

func (f *fixture) get(path string) string { return f.do("GET", path, 200) }

func (f *fixture) dump(path string) *adminv3.ConfigDump {
	f.t.Helper()
	d := &adminv3.ConfigDump{}
	if err := protojson.Unmarshal([]byte(f.get(path)), d); err != nil {
		f.t.Fatalf("%s: %v", path, err)
	}
	return d
}

func types(d *adminv3.ConfigDump) string {
	var out []string
	for _, c := range d.Configs {
		out = append(out, string(c.MessageName().Name()))
	}
	return strings.Join(out, " ")
}

func TestConfigDump(t *testing.T) {
	f := start(t)
	if got, want := types(f.dump("/config_dump")), "BootstrapConfigDump ClustersConfigDump ListenersConfigDump ScopedRoutesConfigDump RoutesConfigDump SecretsConfigDump"; got != want {
		t.Errorf("parts %s, want %s", got, want)
	}
	d := f.dump("/config_dump?include_eds")
	if got := types(d); !strings.Contains(got, "EndpointsConfigDump") {
		t.Errorf("no endpoints in %s", got)
	}
	routes := &adminv3.RoutesConfigDump{}
	for _, c := range d.Configs {
		if c.MessageIs(routes) {
			if err := c.UnmarshalTo(routes); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(routes.StaticRouteConfigs) != 1 || len(routes.DynamicRouteConfigs) != 1 || routes.DynamicRouteConfigs[0].VersionInfo != "v1" {
		t.Errorf("routes: %v", routes)
	}
	text := f.get("/config_dump?include_eds")
	// base64 of the beginning of a key's PEM
	if strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("-----BEGIN PRIVATE KEY"))[:24]) {
		t.Error("the dump has a private key")
	}
	// base64 of [redacted]
	if !strings.Contains(text, "W3JlZGFjdGVkXQ==") || !strings.Contains(text, `"kubernetes://gw"`) || !strings.Contains(text, `"ROOTCA"`) {
		t.Errorf("secrets are missing:\n%s", text)
	}
	if !strings.Contains(text, "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig") {
		t.Error("a filter of unknown type is lost")
	}
}

func TestConfigDumpParts(t *testing.T) {
	f := start(t)
	for path, want := range map[string]string{
		"/config_dump?resource=dynamic_active_clusters":                "DynamicCluster",
		"/config_dump?resource=dynamic_listeners":                      "DynamicListener",
		"/config_dump?resource=dynamic_route_configs":                  "DynamicRouteConfig",
		"/config_dump?resource=dynamic_active_secrets":                 "DynamicSecret DynamicSecret DynamicSecret",
		"/config_dump?resource=dynamic_endpoint_configs":               "DynamicEndpointConfig",
		"/config_dump?resource=static_clusters":                        "",
		"/config_dump?resource=dynamic_active_secrets&name_regex=^ROO": "DynamicSecret",
	} {
		if got := types(f.dump(path)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := f.get("/config_dump?resource=dynamic_active_clusters&mask=cluster.name"); !strings.Contains(got, `"c1"`) || strings.Contains(got, "eds_cluster_config") || strings.Contains(got, "version_info") {
		t.Errorf("masked: %s", got)
	}
	f.do("GET", "/config_dump?resource=nope", 404)
	f.do("GET", "/config_dump?name_regex=(", 400)
}

func TestClusters(t *testing.T) {
	f := start(t)
	text := f.get("/clusters")
	for _, want := range []string{"c1::default_priority::max_connections::1024\n", "c1::added_via_api::true\n", "c1::eds_service_name::c1\n",
		"c1::10.0.0.1:5000::rq_total::0\n", "c1::10.0.0.1:5000::health_flags::healthy\n", "c1::10.0.0.1:5000::weight::2\n", "c1::10.0.0.1:5000::region::r1\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	var c adminv3.Clusters
	if err := protojson.Unmarshal([]byte(f.get("/clusters?format=json")), &c); err != nil {
		t.Fatal(err)
	}
	h := c.ClusterStatuses[0].HostStatuses[0]
	if h.Address.GetSocketAddress().GetPortValue() != 5000 || h.HealthStatus.EdsHealthStatus != core.HealthStatus_HEALTHY || h.Weight != 2 || h.Locality.Zone != "z1" {
		t.Errorf("host %v", h)
	}
}

func TestOthers(t *testing.T) {
	f := start(t)
	for path, want := range map[string]string{
		"/listeners": "l1::0.0.0.0:15006\n", "/listeners?format=json": `"port_value": 15006`, "/ready": "LIVE\n",
		"/server_info": "carrick/1.2.3/", "/memory": "allocated", "/help": "  /config_dump: dump", "/": "admin commands",
		"/stats?filter=c1.*rq_total": "cluster.c1.upstream_rq_total: 7\n", "/stats?format=json&usedonly": "cluster.c1.upstream_rq_total",
		"/stats/prometheus": `envoy_cluster_upstream_rq_total{envoy_cluster_name="c1"} 7`, "/stats?format=prometheus": "# TYPE",
		"/hot_restart_version": "disabled", "/runtime": "entries", "/debug/pprof/": "goroutine",
	} {
		if got := strings.ReplaceAll(f.get(path), "  ", " "); !strings.Contains(got, strings.ReplaceAll(want, "  ", " ")) {
			t.Errorf("%s: no %q in %s", path, want, got)
		}
	}
	var certs adminv3.Certificates
	if err := protojson.Unmarshal([]byte(f.get("/certs")), &certs); err != nil {
		t.Fatal(err)
	}
	if d := certs.Certificates[0].CertChain[0]; d.SerialNumber != "abc" || d.DaysUntilExpiration != 2 || d.SubjectAltNames[0].GetUri() != "spiffe://cluster.local/ns/sample/sa/sleep" {
		t.Errorf("certificate %v", d)
	}
	f.state = Draining
	if got := f.do("GET", "/ready", 503); got != "DRAINING\n" {
		t.Errorf("/ready: %q", got)
	}
	f.do("GET", "/stats?filter=(", 400)
	f.do("GET", "/stats?type=x", 400)
	f.do("GET", "/nope", 404)
	var js any
	if err := json.Unmarshal([]byte(f.get("/stats?format=json")), &js); err != nil {
		t.Error(err)
	}
}

func TestActions(t *testing.T) {
	f := start(t)
	f.do("GET", "/quitquitquit", 405)
	for _, p := range []string{"/drain_listeners?graceful", "/healthcheck/fail", "/healthcheck/ok", "/reopen_logs", "/quitquitquit"} {
		f.do("POST", p, 200)
	}
	if got := strings.Join(f.did, " "); got != "drain fail ok reopen quit" {
		t.Errorf("did %s", got)
	}
	if got := f.do("POST", "/logging?level=debug", 200); !strings.Contains(got, "carrick: debug") || f.level.Level() != slog.LevelDebug {
		t.Errorf("level %v: %s", f.level.Level(), got)
	}
	if f.do("POST", "/logging?paths=http:warning,rbac:trace", 200); f.level.Level() >= slog.LevelDebug {
		t.Errorf("level %v", f.level.Level())
	}
	f.do("POST", "/logging?level=loud", 400)
	defer func(rate int) { runtime.MemProfileRate = rate }(runtime.MemProfileRate)
	runtime.MemProfileRate = 0
	if f.do("POST", "/heapprofiler?enable=y", 200); runtime.MemProfileRate != profileRate {
		t.Errorf("the heap profiler samples at %d", runtime.MemProfileRate)
	}
	if f.do("POST", "/heapprofiler?enable=n", 200); runtime.MemProfileRate != 0 {
		t.Errorf("the heap profiler samples at %d", runtime.MemProfileRate)
	}
	f.do("POST", "/heapprofiler", 400)
}

// A page in a browser must not reach the interface through a name that it makes resolve to loopback.
func TestForeignNames(t *testing.T) {
	f := start(t)
	for _, c := range []struct {
		host, origin string
		status       int
	}{{"localhost:15000", "", 200}, {"127.0.0.1:15000", "http://localhost:15000", 200}, {"[::1]:15000", "", 200}, {"evil.example:15000", "", 403}, {"localhost:15000", "https://evil.example", 403}} {
		req, err := http.NewRequest("GET", f.srv.URL+"/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("Host %s, Origin %s: %d, want %d", c.host, c.origin, resp.StatusCode, c.status)
		}
	}
}
