package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/test/envoytest"
)

// authority is a CA for tests.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, _ = x509.ParseCertificate(der)
	return &authority{t, c, key}
}

func (a *authority) issue(uri string, dns ...string) *tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	u, _ := url.Parse(uri)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: dns,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if uri != "" {
		c.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) roots() *Roots {
	r, err := config.ParseAnchors(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

// testSecrets are Secrets that can be changed.
type testSecrets struct {
	mu    sync.Mutex
	key   *tls.Certificate
	roots *Roots
}

func (s *testSecrets) KeyPair(name string) *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "default" {
		return nil
	}
	return s.key
}

func (s *testSecrets) Roots(name string) *Roots {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "ROOTCA" {
		return nil
	}
	return s.roots
}

func (s *testSecrets) set(k *tls.Certificate, r *Roots) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key, s.roots = k, r
}

const sds = `{api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}, resource_api_version: V3}`

// mutualTLS is a transport socket of the mesh, in YAML.
func mutualTLS(side, alpn, sans, more string) string {
	return fmt.Sprintf(`
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.%sTlsContext
%s
    common_tls_context:
      alpn_protocols: [%s]
      tls_certificate_sds_secret_configs: [{name: default, sds_config: %s}]
      combined_validation_context:
        default_validation_context: {match_typed_subject_alt_names: [%s]}
        validation_context_sds_secret_config: {name: ROOTCA, sds_config: %s}
`, side, indent(more, 4), alpn, sds, sans, sds)
}

// inbound is a sidecar's inbound listener: mutual TLS or plaintext, HTTP or TCP, as Istio's
// permissive mode has it.
func inbound(port int, app, logFile string) string {
	hcm := `
- name: envoy.filters.network.http_connection_manager
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
    stat_prefix: in
    server_name: istio-envoy
    forward_client_cert_details: APPEND_FORWARD
    set_current_client_cert_details: {subject: true, uri: true, dns: true}
    access_log:
    - name: envoy.access_loggers.file
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
        path: ` + logFile + `
        log_format: {text_format_source: {inline_string: "%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_URI_SAN% %UPSTREAM_LOCAL_ADDRESS%\n"}}
    route_config:
      virtual_hosts:
      - name: in
        domains: ["*"]
        routes: [{match: {prefix: /}, name: default, route: {cluster: inbound}}]
    http_filters:
    - name: envoy.filters.http.router
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
`
	tcp := `
- name: envoy.filters.network.tcp_proxy
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: in, cluster: inbound}
`
	chain := func(match, filters, ts string) string {
		return "    - filter_chain_match: " + match + "\n      filters:\n" + indent(filters, 6) + "\n" + indent(ts, 6) + "\n"
	}
	ts := mutualTLS("Downstream", `h2, http/1.1`, `{san_type: URI, matcher: {prefix: "spiffe://cluster.local/"}}`, "require_client_certificate: true")
	return fmt.Sprintf(`
  - name: virtualInbound
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    listener_filters:
    - name: envoy.filters.listener.tls_inspector
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
    - name: envoy.filters.listener.http_inspector
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}
    listener_filters_timeout: 5s
    continue_on_listener_filters_timeout: true
    filter_chains:
`, port) +
		chain(`{transport_protocol: tls, application_protocols: [istio-http/1.0, istio-http/1.1, istio-h2]}`, hcm, ts) +
		chain(`{transport_protocol: raw_buffer, application_protocols: [http/1.1, h2c]}`, hcm, "") +
		chain(`{transport_protocol: tls, application_protocols: [istio, istio-peer-exchange]}`, tcp, ts) +
		chain(`{transport_protocol: raw_buffer}`, tcp, "")
}

const peerSAN = `{san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/sample/sa/default"}}`

// TestMesh: client → outbound proxy → passthrough gateway → inbound proxy → application, as between
// two clusters, with this proxy in all places and, if there is one, genuine Envoy in each.
func TestMesh(t *testing.T) {
	t.Run("carrick", func(t *testing.T) { testMesh(t, start, start, start, true) })
	bin := envoytest.Program(t)
	envoy := func(t testing.TB, yaml string, s Secrets) *rig {
		startEnvoy(t, bin, secretFiles(t, yaml, s))
		return nil
	}
	t.Run("envoy server", func(t *testing.T) { testMesh(t, envoy, start, start, false) })
	t.Run("envoy gateway", func(t *testing.T) { testMesh(t, start, envoy, start, false) })
	t.Run("envoy client", func(t *testing.T) { testMesh(t, start, start, envoy, false) })
}

type starter func(t testing.TB, yaml string, s Secrets) *rig

func testMesh(t *testing.T, startServer, startGateway, startClient starter, rotate bool) {
	ca := newAuthority(t, "Root CA")
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s from %s", r.Header.Get("X-Forwarded-Client-Cert"), r.RemoteAddr)
	}))
	defer app.Close()
	const sni = "outbound_.5000_._.helloworld.sample.svc.cluster.local"
	in, gw, out, outTCP := freePort(t), freePort(t), freePort(t), freePort(t)
	dir := t.TempDir()
	logIn, logGW := filepath.Join(dir, "in"), filepath.Join(dir, "gw")

	server := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/default"), roots: ca.roots()}
	startServer(t, bootstrap(inbound(in, app.Listener.Addr().String(), logIn),
		clusterYAML("inbound", `upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}`, app.Listener.Addr().String())), server)

	startGateway(t, bootstrap(fmt.Sprintf(`
  - name: gw
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    listener_filters:
    - name: envoy.filters.listener.tls_inspector
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
    filter_chains:
    - filter_chain_match: {server_names: ["%s"], application_protocols: [istio, istio-http/1.1]}
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: x
          cluster: "%s"
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: %s
              log_format: {text_format_source: {inline_string: "%%REQUESTED_SERVER_NAME%% %%UPSTREAM_HOST%% %%UPSTREAM_CLUSTER%% %%DOWNSTREAM_REMOTE_ADDRESS%%\n"}}
`, gw, sni, sni, logGW), clusterYAML(sni, "", fmt.Sprintf("127.0.0.1:%d", in))), nil)

	clientTLS := func(alpn string) string {
		return mutualTLS("Upstream", alpn, peerSAN, `sni: "`+sni+`"`)
	}
	client := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/sleep"), roots: ca.roots()}
	gwAddr := fmt.Sprintf("127.0.0.1:%d", gw)
	rig := startClient(t, bootstrap(httpListener(out, fmt.Sprintf(allTo, "remote"), "")+fmt.Sprintf(`
  - name: tcp
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: remotetcp}
`, outTCP), clusterYAML("remote", clientTLS("istio-http/1.1, istio, http/1.1"), gwAddr)+clusterYAML("remotetcp", clientTLS("istio"), gwAddr)), client)

	url := fmt.Sprintf("http://127.0.0.1:%d/", out)
	for range 5 {
		code, body, h := get(t, http.DefaultClient, url)
		want := `By=spiffe://cluster.local/ns/sample/sa/default;Hash=`
		if code != 200 || !strings.HasPrefix(body, want) || !strings.Contains(body, `;Subject="";URI=spiffe://cluster.local/ns/sample/sa/sleep from 127.0.0.6:`) {
			t.Fatalf("%d %q %v", code, body, h)
		}
	}
	// Without TLS to the inbound port: permissive.
	if code, body, _ := get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", in)); code != 200 || !strings.HasPrefix(body, " from 127.0.0.6") {
		t.Errorf("plaintext: %d %q", code, body)
	}
	eventually(t, "inbound log", func() bool {
		b, _ := os.ReadFile(logIn)
		return strings.Contains(string(b), fmt.Sprintf("%s inbound %s spiffe://cluster.local/ns/sample/sa/sleep 127.0.0.6:", app.Listener.Addr(), sni))
	})
	// TCP through the same chain.
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", outTCP))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(c)
	c.Close()
	if err != nil || !strings.Contains(string(b), "200 OK") || !strings.Contains(string(b), "from 127.0.0.6:") {
		t.Errorf("TCP: %q %v", b, err)
	}
	eventually(t, "gateway log", func() bool {
		b, _ := os.ReadFile(logGW)
		return strings.HasPrefix(string(b), fmt.Sprintf("%s 127.0.0.1:%d %s 127.0.0.1:", sni, in, sni))
	})

	if rotate {
		testRotation(t, rig, ca, client, server, out, clientTLS, gwAddr)
	}
}

func testRotation(t *testing.T, rig *rig, ca *authority, client, server *testSecrets, out int, clientTLS func(string) string, gwAddr string) {
	url := fmt.Sprintf("http://127.0.0.1:%d/", out)
	// Certificates rotate: new connections use what is there now.
	other := newAuthority(t, "Other CA")
	client.set(other.issue("spiffe://cluster.local/ns/sample/sa/sleep"), ca.roots())
	rig.apply(bootstrap(httpListener(out, fmt.Sprintf(allTo, "remote2"), ""), clusterYAML("remote2", clientTLS("istio-http/1.1, istio, http/1.1"), gwAddr)))
	eventually(t, "refusal of a certificate from another root", func() bool {
		code, body, _ := get(t, http.DefaultClient, url)
		return code == 503 && strings.Contains(body, "upstream connect error or disconnect/reset before headers")
	})
	// And the other way round: we do not trust the server. The log names both roots.
	client.set(ca.issue("spiffe://cluster.local/ns/sample/sa/sleep"), other.roots())
	eventually(t, "refusal of the server's certificate", func() bool {
		_, body, _ := get(t, http.DefaultClient, url)
		if strings.Contains(body, "CN=") || strings.Contains(body, "spiffe") {
			t.Fatalf("a client is told who is who here: %s", body)
		}
		l := rig.log.String()
		return strings.Contains(l, "is not trusted") && strings.Contains(l, "Other CA") && strings.Contains(l, "Root CA")
	})
	// A trusted server with another name.
	client.set(ca.issue("spiffe://cluster.local/ns/sample/sa/sleep"), ca.roots())
	server.set(ca.issue("spiffe://cluster.local/ns/sample/sa/thief"), ca.roots())
	eventually(t, "refusal of another identity", func() bool {
		code, body, _ := get(t, http.DefaultClient, url)
		return code == 503 && !strings.Contains(body, "spiffe") && strings.Contains(rig.log.String(), "has none of the expected names spiffe://cluster.local/ns/sample/sa/default")
	})
}

// TestUpgraded: with h2UpgradePolicy UPGRADE requests go from proxy to proxy by HTTP/2, though client and
// application speak HTTP/1.1; with Envoy on either side, too.
func TestUpgraded(t *testing.T) {
	t.Run("carrick", func(t *testing.T) { testUpgraded(t, start, start) })
	bin := envoytest.Program(t)
	envoy := func(t testing.TB, yaml string, s Secrets) *rig {
		startEnvoy(t, bin, secretFiles(t, yaml, s))
		return nil
	}
	t.Run("envoy client", func(t *testing.T) { testUpgraded(t, start, envoy) })
	t.Run("envoy server", func(t *testing.T) { testUpgraded(t, envoy, start) })
}

func testUpgraded(t *testing.T, startServer, startClient starter) {
	ca := newAuthority(t, "Root CA")
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.Proto, b)
	})
	in, out := freePort(t), freePort(t)
	log := filepath.Join(t.TempDir(), "in")
	server := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/default"), roots: ca.roots()}
	listener := strings.ReplaceAll(inbound(in, app, log), "%UPSTREAM_HOST% ", "by %PROTOCOL% ")
	startServer(t, bootstrap(listener, clusterYAML("inbound", "", app)), server)
	client := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/sleep"), roots: ca.roots()}
	const upgrade = `
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}
`
	startClient(t, bootstrap(httpListener(out, fmt.Sprintf(allTo, "remote"), ""),
		clusterYAML("remote", upgrade+mutualTLS("Upstream", "istio-h2, istio, h2", peerSAN, `sni: "x"`), fmt.Sprintf("127.0.0.1:%d", in))), client)
	for _, body := range []string{"short", strings.Repeat("x", 300<<10)} {
		resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/", out), "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || resp.Proto != "HTTP/1.1" || string(b) != "HTTP/1.1 "+body {
			t.Errorf("%s %s %v: %.40q of %d bytes", resp.Status, resp.Proto, err, b, len(b))
		}
	}
	eventually(t, "the log of the server's proxy", func() bool {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "by HTTP/2 ") == 2
	})
}
