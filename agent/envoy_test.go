package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/test/envoytest"
)

var update = flag.Bool("update", false, "write testdata anew")

func testPod() Pod {
	return Pod{
		Name: "sleep-5577c64d7c-x2vw9", Namespace: "sample", ServiceAccount: "sleep",
		IPs:    []netip.Addr{netip.MustParseAddr("10.0.1.7")},
		Labels: map[string]string{"app": "sleep", "service.istio.io/canonical-name": "sleep", "topology.istio.io/network": "network1", "istio.io/rev": "default"},
		Annotations: map[string]string{"prometheus.io/path": "/stats/prometheus",
			"kubectl.kubernetes.io/last-applied-configuration": "{}", "long": strings.Repeat("x", 5000)},
	}
}

func testMeta() map[string]string {
	return map[string]string{"CLUSTER_ID": "cluster1", "MESH_ID": "mesh1", "WORKLOAD_NAME": "sleep", "NODE_NAME": "cluster1-w1",
		"INTERCEPTION_MODE": "REDIRECT", "POD_PORTS": `[{"containerPort":80}]`, "APP_CONTAINERS": "sleep",
		"OWNER": "kubernetes://apis/apps/v1/namespaces/sample/deployments/sleep"}
}

func mustConfig(t *testing.T, s string) *ProxyConfig {
	t.Helper()
	c, err := ParseProxyConfig(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		write(t, path, string(got))
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

const fullConfig = `{"discoveryAddress":"istiod.istio-system.svc:15012","configPath":"/tmp/carrick-test","concurrency":2,"terminationDrainDuration":"7s",
	"tracing":{"zipkin":{"address":"zipkin.istio-system:9411"}},"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","OTHER":"x"},
	"proxyStatsMatcher":{"inclusionPrefixes":["cluster.outbound"],"inclusionRegexps":[".*circuit.*"]},"extraStatTags":["destination_zone"]}`

func TestBootstrap(t *testing.T) {
	pod6 := testPod()
	pod6.IPs = []netip.Addr{netip.MustParseAddr("fd00::7"), netip.MustParseAddr("10.0.1.7")}
	gateway := testMeta()
	gateway["REQUESTED_NETWORK_VIEW"] = "network1"
	for _, c := range []struct {
		name   string
		router bool
		pod    Pod
		meta   map[string]string
		config string
	}{
		{"sidecar", false, testPod(), testMeta(), `{"configPath":"/tmp/carrick-test"}`},
		{"sidecar-everything", false, testPod(), testMeta(), fullConfig},
		{"router-ipv6", true, pod6, gateway, `{"configPath":"/tmp/carrick-test"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := mustConfig(t, c.config)
			p := ports{15021, 15090}
			n := node(c.router, c.pod, c.meta, cfg, p)
			b, err := bootstrap(n, cfg, p, Builtin, c.pod.IPs[0].Is6())
			if err != nil {
				t.Fatal(err)
			}
			boot, err := config.ParseBootstrap(b)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := new(config.Compiler).Compile(boot.Static); err != nil {
				t.Error(err)
			}
			if b, err = bootstrap(n, cfg, p, Envoy, c.pod.IPs[0].Is6()); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name+".json", b)
			bin := envoytest.Program(t)
			file := filepath.Join(t.TempDir(), "envoy.json")
			write(t, file, string(b))
			out, err := exec.Command(bin, "--mode", "validate", "-l", "warning", "-c", file).CombinedOutput()
			if err != nil {
				t.Errorf("envoy --mode validate: %v\n%s", err, out)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "warning") && cfg.Tracing.Zipkin.Address == "" {
					t.Errorf("Envoy warns: %s", line)
				}
			}
		})
	}
}

func TestProxyConfigRefused(t *testing.T) {
	for in, want := range map[string]string{
		`{`:                       "PROXY_CONFIG",
		`{"statusPort":0}`:        "statusPort",
		`{"statusPort":70000}`:    "statusPort",
		`{"concurrency":-1}`:      "concurrency",
		`{"drainDuration":"5"}`:   "duration",
		`{"drainDuration":5}`:     "duration",
		`{"proxyMetadata":["a"]}`: "proxyMetadata",
	} {
		if _, err := ParseProxyConfig(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseProxyConfig(%s) = %v, want an error with %q", in, err, want)
		}
	}
}

func TestParseDownwardAPI(t *testing.T) {
	got, err := ParseDownwardAPI([]byte("app=\"sleep\"\nnote=\"a \\\"b\\\"\\nc=d\"\n"))
	if want := map[string]string{"app": "sleep", "note": "a \"b\"\nc=d"}; err != nil || !cmp.Equal(got, want) {
		t.Errorf("ParseDownwardAPI = %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"app", "app=sleep", `app="`} {
		if got, err := ParseDownwardAPI([]byte(bad)); err == nil {
			t.Errorf("ParseDownwardAPI(%q) = %v, want an error", bad, got)
		}
	}
}

// inbound is a listener that wants mutual TLS with the secrets of the agent, and answers "hello".
const inbound = `{"name":"virtualInbound","traffic_direction":"INBOUND",
 "address":{"socket_address":{"address":"127.0.0.1","port_value":%d}},
 "filter_chains":[{
  "filters":[{"name":"envoy.filters.network.http_connection_manager","typed_config":{
   "@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
   "stat_prefix":"inbound","http_filters":[{"name":"envoy.filters.http.router","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
   "route_config":{"virtual_hosts":[{"name":"all","domains":["*"],"routes":[{"match":{"prefix":"/"},"direct_response":{"status":200,"body":{"inline_string":"hello"}}}]}]}}}],
  "transport_socket":{"name":"envoy.transport_sockets.tls","typed_config":{
   "@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
   "require_client_certificate":true,
   "common_tls_context":{
    "tls_certificate_sds_secret_configs":[{"name":"default","sds_config":%[2]s}],
    "combined_validation_context":{"default_validation_context":{},"validation_context_sds_secret_config":{"name":"ROOTCA","sds_config":%[2]s}}}}}}]}`

const sdsConfig = `{"initial_fetch_timeout":"0s","resource_api_version":"V3","api_config_source":{"api_type":"GRPC","transport_api_version":"V3",
 "set_node_on_first_message_only":true,"grpc_services":[{"envoy_grpc":{"cluster_name":"sds-grpc"}}]}}`

// meshPod is an agent and its proxy beside a control plane.
type meshPod struct {
	t                 *testing.T
	cp                *controlPlane
	root              *authority
	port              int // of the listener inbound
	status, health    int
	prometheus, admin int
	stop              func() error
}

func startPod(t *testing.T, engine Engine, change func(*Options)) *meshPod {
	t.Helper()
	bin := ""
	if engine == Envoy {
		bin = envoytest.Program(t)
	}
	root := newRoot(t, "Root A")
	cp := newControlPlane(t, root)
	dir, rootFile, tokenFile := folder(t, root.cert)
	ps := freePorts(t, 5)
	p := &meshPod{t: t, cp: cp, root: root, port: ps[0], status: ps[1], health: ps[2], prometheus: ps[3], admin: ps[4]}
	l := &listener.Listener{}
	if err := protojson.Unmarshal([]byte(fmt.Sprintf(inbound, p.port, sdsConfig)), l); err != nil {
		t.Fatal(err)
	}
	cp.set(resource.ListenerType, "virtualInbound", "1", l)
	cp.set(resource.ClusterType, "BlackHoleCluster", "1", &cluster.Cluster{Name: "BlackHoleCluster"})
	cfg := mustConfig(t, fmt.Sprintf(`{"discoveryAddress":%q,"configPath":%q,"binaryPath":%q,"statusPort":%d,"proxyAdminPort":%d,"terminationDrainDuration":"0.2s"}`,
		cp.address, dir, bin, p.status, p.admin))
	o := Options{Engine: engine, Version: "1.2.3", Pod: testPod(), Meta: testMeta(), Config: cfg, RootFile: rootFile, TokenFile: tokenFile,
		HealthPort: p.health, PrometheusPort: p.prometheus, Logger: logger(t), Stdout: io.Discard, Stderr: testWriter{t}, Concurrency: 1}
	if change != nil {
		change(&o)
	}
	p.stop = start(t, func(ctx context.Context) error { return Run(ctx, o) })
	return p
}

// get asks a port of the pod.
func (p *meshPod) get(port int, path string) (int, string) {
	resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(port) + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func (p *meshPod) waitReady() {
	p.t.Helper()
	eventually(p.t, "ready", func() error {
		if code, body := p.get(p.health, "/healthz/ready"); code != 200 {
			return errors.New(body)
		}
		return nil
	})
}

// client returns an HTTP client with a workload's certificate of that root, and the server's
// certificate that it saw last.
func (p *meshPod) client(by *authority) (*http.Client, func() *x509.Certificate) {
	a := issue(p.t, by, &x509.Certificate{NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, nil)
	var seen *x509.Certificate
	tr := &http.Transport{TLSClientConfig: &tls.Config{
		Certificates:       []tls.Certificate{{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}},
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { seen = cs.PeerCertificates[0]; return nil },
	}}
	p.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 5 * time.Second}, func() *x509.Certificate { return seen }
}

func (p *meshPod) hello(c *http.Client) error {
	resp, err := c.Get("https://127.0.0.1:" + strconv.Itoa(p.port) + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "hello" {
		return fmt.Errorf("%s: %q", resp.Status, b)
	}
	return nil
}

// both runs a test with each proxy.
func both(t *testing.T, test func(t *testing.T, engine Engine)) {
	for _, e := range []Engine{Envoy, Builtin} {
		t.Run(string(e), func(t *testing.T) { test(t, e) })
	}
}

// The whole pod: Envoy accepts the bootstrap, takes its configuration through the relay and its
// secrets from the agent, and follows a change of root without losing a connection.
func TestPod(t *testing.T) { both(t, testPodWith) }

func testPodWith(t *testing.T, engine Engine) {
	p := startPod(t, engine, nil)
	p.waitReady()
	old, next := p.root, newRoot(t, "Root B")
	kept, leafOf := p.client(old)
	if err := p.hello(kept); err != nil {
		t.Fatal(err)
	}
	first := leafOf()
	if len(first.URIs) != 1 || first.URIs[0].String() != "spiffe://cluster.local/ns/sample/sa/sleep" {
		t.Errorf("Envoy shows %v", first.URIs)
	}
	stranger, _ := p.client(next)
	if err := p.hello(stranger); err == nil {
		t.Error("Envoy takes a client of another root")
	}

	p.cp.mu.Lock()
	n, md := p.cp.nodes[0], p.cp.metadata
	p.cp.mu.Unlock()
	if n.Id != "sidecar~10.0.1.7~sleep-5577c64d7c-x2vw9.sample~sample.svc.cluster.local" || n.Metadata.Fields["CLUSTER_ID"].GetStringValue() != "cluster1" {
		t.Errorf("node %s, metadata %v", n.Id, n.Metadata)
	}
	for _, m := range md {
		if got := m.Get("authorization"); len(got) != 1 || got[0] != "Bearer the.token.it-is" {
			t.Errorf("a call with authorization %q", got)
		}
	}

	// Both roots are published; then the new one signs.
	bundle := func(signer *authority, roots ...*x509.Certificate) string {
		return "# signer: " + hex.EncodeToString(signer.cert.SubjectKeyId) + "\n" + string(encodePEM(roots...))
	}
	acked := func(nonce string) {
		t.Helper()
		eventually(t, "the agent acknowledges ROOTCA", func() error {
			p.cp.mu.Lock()
			defer p.cp.mu.Unlock()
			if got := p.cp.acks[resource.SecretType]; got == "" || got == nonce {
				return fmt.Errorf("last answer %q", got)
			}
			return nil
		})
	}
	p.cp.setRoots("1", bundle(old, old.cert, next.cert))
	acked("")
	if err := p.hello(stranger); err != nil { // the answer means that Envoy has them
		t.Errorf("a client of the new root: %v", err)
	}
	p.cp.mu.Lock()
	p.cp.signer, p.cp.roots = next, []*x509.Certificate{next.cert, old.cert}
	p.cp.mu.Unlock()
	p.cp.serveAs(next) // whose root the mounted file does not have yet
	p.cp.setRoots("2", bundle(next, next.cert, old.cert))
	eventually(t, "a certificate of the new root", func() error {
		c, leaf := p.client(old)
		if err := p.hello(c); err != nil {
			t.Errorf("in the roll: %v", err)
			return nil
		}
		if !bytes.Equal(leaf().AuthorityKeyId, next.cert.SubjectKeyId) {
			return errors.New("still of the old")
		}
		return nil
	})
	if err := p.hello(kept); err != nil || !leafOf().Equal(first) {
		t.Errorf("the connection from before the roll: %v", err)
	}

	// The control plane goes and comes: Envoy keeps serving, reconnects, and is not sent again what it has.
	p.cp.mu.Lock()
	streams := len(p.cp.nodes)
	p.cp.mu.Unlock()
	p.cp.cut()
	eventually(t, "another stream", func() error {
		if err := p.hello(kept); err != nil {
			t.Errorf("while reconnecting: %v", err)
			return nil
		}
		p.cp.mu.Lock()
		defer p.cp.mu.Unlock()
		if len(p.cp.nodes) == streams {
			return errors.New("not yet")
		}
		for _, r := range p.cp.requests {
			if r.TypeUrl == resource.SecretType && r.InitialResourceVersions[rootsName] == "2" {
				return nil
			}
		}
		return errors.New("no subscription to ROOTCA with its version")
	})

	for _, port := range []int{p.status, p.prometheus} {
		code, body := p.get(port, "/stats/prometheus")
		if code != 200 || !strings.Contains(body, "envoy_server_") {
			t.Errorf("metrics on %d: %d", port, code)
		}
		if engine == Builtin && !regexp.MustCompile(`envoy_http_downstream_rq_total\{[^}]*"inbound"[^}]*\} [1-9]`).MatchString(body) {
			t.Errorf("metrics on %d count no requests", port)
		}
		if port == p.status && !strings.Contains(body, `istio_agent_cert_expiry_seconds{resource_name="default"} 3`) {
			t.Errorf("no expiry of the certificate in the agent's metrics")
		}
	}
	// What istioctl reads from the admin interface.
	_, body := p.get(p.admin, "/config_dump")
	for _, want := range []string{"virtualInbound", "BlackHoleCluster", "sleep-5577c64d7c-x2vw9.sample", "prometheus_stats"} {
		if !strings.Contains(body, want) {
			t.Errorf("/config_dump has no %s", want)
		}
	}
	if _, clusters := p.get(p.admin, "/clusters"); !strings.Contains(clusters, fmt.Sprintf("agent::127.0.0.1:%d::cx_total::1", p.status)) {
		t.Errorf("/clusters has no connection to the agent:\n%s", clusters)
	}
	if strings.Contains(body, "PRIVATE KEY") {
		t.Error("/config_dump has a key")
	}
	if code, body := p.get(p.admin, "/ready"); code != 200 || body != "LIVE\n" {
		t.Errorf("/ready: %d %q", code, body)
	}
	if err := p.stop(); err != nil {
		t.Errorf("Run = %v after the end", err)
	}
	if err := p.hello(stranger); err == nil {
		t.Error("Envoy still runs")
	}
}

// Not ready without a certificate and without configuration, and says why.
func TestNotReady(t *testing.T) { both(t, testNotReady) }

func testNotReady(t *testing.T, engine Engine) {
	p := startPod(t, engine, nil)
	p.waitReady()
	p.stop()

	p = startPod(t, engine, func(o *Options) { o.TokenFile = filepath.Join(t.TempDir(), "none"); o.CAAddress = "127.0.0.1:1" })
	eventually(t, "the reason", func() error {
		if code, body := p.get(p.status, "/healthz/ready"); code != 503 || !strings.Contains(body, "certificate from 127.0.0.1:1") || !strings.Contains(body, "connection refused") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	p.stop()

	p = startPod(t, engine, func(o *Options) { o.CAAddress, o.Config.DiscoveryAddress = o.Config.DiscoveryAddress, "127.0.0.1:1" })
	eventually(t, "the reason", func() error {
		if code, body := p.get(p.status, "/healthz/ready"); code != 503 || !strings.Contains(body, "no configuration from the control plane at 127.0.0.1:1") {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
}

// A pod whose proxy dies ends, with an error.
func TestEnvoyDies(t *testing.T) {
	p := startPod(t, Envoy, nil)
	p.waitReady()
	resp, err := http.Post("http://127.0.0.1:"+strconv.Itoa(p.admin)+"/quitquitquit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	eventually(t, "the end", func() error {
		if code, _ := p.get(p.status, "/healthz/ready"); code != 0 {
			return errors.New("the agent still answers")
		}
		return nil
	})
	if err := p.stop(); err == nil || !strings.Contains(err.Error(), "Envoy ended") {
		t.Errorf("Run = %v, want that Envoy ended", err)
	}
}

// With ExitOnZeroConnections the pod lives as long as a connection does.
func TestDrain(t *testing.T) { both(t, testDrain) }

func testDrain(t *testing.T, engine Engine) {
	p := startPod(t, engine, func(o *Options) { o.ExitOnZeroConnections, o.MinDrain = true, time.Millisecond })
	p.waitReady()
	c, _ := p.client(p.root)
	if err := p.hello(c); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post("http://127.0.0.1:"+strconv.Itoa(p.status)+"/quitquitquit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	eventually(t, "draining", func() error {
		code, body := p.get(p.status, "/healthz/ready")
		if gone := code == 0 && engine == Builtin; code != 503 && !gone {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	// Envoy lets an idle connection go with its next answer, the built-in proxy at once, and then ends.
	if err := p.hello(c); err != nil && engine == Envoy {
		t.Errorf("a request on a draining connection: %v", err)
	}
	c.CloseIdleConnections()
	eventually(t, "the end", func() error {
		if code, _ := p.get(p.status, "/healthz/ready"); code != 0 {
			return errors.New("the agent still answers")
		}
		return nil
	})
	if err := p.stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
}
