package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bootstrapYAML is a static configuration as one writes for Envoy.
const bootstrapYAML = `
node: {id: test, cluster: test}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 0}}
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: %q
              log_format: {text_format_source: {inline_string: "%%REQ(:METHOD)%% %%REQ(:PATH)%% %%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%UPSTREAM_CLUSTER%%\n"}}
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: "/direct"}
                direct_response: {status: 418, body: {inline_string: "short and stout"}}
              - match: {prefix: "/"}
                route: {cluster: backend, prefix_rewrite: "/app/"}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: backend
    type: STATIC
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}
`

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for time.Now().Before(deadline) {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not come", what)
}

func fetch(url string) (int, string) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

func TestEnvoyVerb(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "app got ", r.URL.Path) }))
	defer app.Close()
	dir := t.TempDir()
	file, logFile, adminFile := filepath.Join(dir, "boot.yaml"), filepath.Join(dir, "access.log"), filepath.Join(dir, "admin")
	port := freePort(t)
	if err := os.WriteFile(file, fmt.Appendf(nil, bootstrapYAML, port, logFile, app.Listener.Addr().(*net.TCPAddr).Port), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var stderr bytes.Buffer
	done := make(chan int, 1)
	e := environment{getenv: func(string) string { return "" }, environ: func() []string { return nil }, stdout: io.Discard, stderr: &stderr}
	go func() {
		done <- run(ctx, e, []string{"envoy", "-c", file, "--concurrency", "1", "--admin-address-path", adminFile, "--disable-hot-restart", "--base-id", "3"})
	}()
	defer func() {
		cancel()
		if code := <-done; code != exitOK {
			t.Errorf("exit code %d: %s", code, &stderr)
		}
	}()
	web := fmt.Sprintf("http://127.0.0.1:%d", port)
	eventually(t, "the proxy", func() bool { code, _ := fetch(web + "/direct"); return code == 418 })
	if code, body := fetch(web + "/direct/x"); code != 418 || body != "short and stout" {
		t.Errorf("direct response: %d %q", code, body)
	}
	if code, body := fetch(web + "/hello"); code != 200 || body != "app got /app/hello" {
		t.Errorf("routed: %d %q", code, body)
	}
	eventually(t, "the access log", func() bool {
		b, _ := os.ReadFile(logFile)
		return strings.Contains(string(b), "GET /hello 200 - backend\n") || strings.Contains(string(b), "GET /app/hello 200 - backend\n")
	})
	addr, err := os.ReadFile(adminFile)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/ready": "LIVE", "/clusters": "backend::127.0.0.1:", "/listeners": "web::127.0.0.1:", "/config_dump": "static_listeners", "/server_info": `"id"`} {
		if code, body := fetch("http://" + string(addr) + path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, no %q in %s", path, code, want, body)
		}
	}
}

func TestEnvoyVerbRefuses(t *testing.T) {
	for yaml, want := range map[string]string{
		`static_resources: {clusters: [{name: c, type: STATIC, lb_policy: MAGLEV, upstream_config: {name: x}}]}`: `cluster "c": upstream_config: not supported`,
		`admin: {nonsense: 1}`:                       "unknown field",
		`dynamic_resources: {lds_config: {ads: {}}}`: "dynamic_resources.ads_config: is missing",
	} {
		var stderr bytes.Buffer
		e := environment{getenv: func(string) string { return "" }, environ: func() []string { return nil }, stdout: io.Discard, stderr: &stderr}
		if code := run(context.Background(), e, []string{"envoy", "--config-yaml", yaml, "--mode", "validate"}); code != exitFailed || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit code %d: %s", yaml, code, &stderr)
		}
	}
}
