package proxy

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestPoolsByServerName: with auto_sni a connection serves the host that it was made and checked for,
// and no other; a pool goes with its last connection.
func TestPoolsByServerName(t *testing.T) { engines(t, testPoolsByServerName) }

func testPoolsByServerName(t *testing.T, run func(yaml string)) {
	ca := newAuthority(t, "Root CA")
	key := ca.issue("spiffe://x/y", "a.example", "b.example")
	var mu sync.Mutex
	var asked []string
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) }))
	srv.TLS = &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, h.ServerName)
		return key, nil
	}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, []byte(pemOf(ca.cert.Raw)), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), ""), clusterYAML("b", `typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http_protocol_options: {}}
    upstream_http_protocol_options: {auto_sni: true, auto_san_validation: true}
transport_socket:
  name: tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    common_tls_context: {validation_context: {trusted_ca: {filename: `+roots+`}}}
`, strings.TrimPrefix(srv.URL, "https://"))))
	for _, c := range []struct {
		host string
		code int
	}{{"a.example", 200}, {"b.example", 200}, {"z.example", 503}, {"a.example", 200}, {"b.example:80", 200}} {
		req, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.code {
			t.Errorf("%s: %d, want %d", c.host, resp.StatusCode, c.code)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"a.example", "b.example", "z.example"}; len(asked) < 3 || !slices.Equal(asked[:3], want) {
		t.Errorf("server names asked for: %v", asked)
	}
}

// TestPoolForgotten: a pool for a server name goes when nothing is left in it.
func TestPoolForgotten(t *testing.T) {
	r := start(t, bootstrap("", clusterYAML("b", "", "127.0.0.1:1")), nil)
	c := r.Proxy.snap.Load().clusters["b"]
	w := r.Proxy.workers[0]
	done := make(chan int)
	w.loop.Post(func() {
		h := c.set.Load().priorities[0].localities[0].members[0].host
		for i := range 100 {
			p := h.namedPool(w, poolName{server: fmt.Sprint(i)})
			p.forget()
		}
		kept := h.namedPool(w, poolName{server: "kept"})
		kept.total = 1
		kept.forget()
		done <- len(h.named[w.idx])
		kept.total = 0
		kept.forget()
		done <- len(h.named[w.idx])
	})
	if n := <-done; n != 1 {
		t.Errorf("%d pools, want the one in use", n)
	}
	if n := <-done; n != 0 {
		t.Errorf("%d pools, want none", n)
	}
}

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
