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
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/test/envoytest"
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
              log_format: {text_format_source: {inline_string: "%%REQ(:METHOD)%% %%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%% %%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%UPSTREAM_CLUSTER%%\n"}}
          route_config:
            name: local
            validate_clusters: false
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: "/direct"}
                direct_response: {status: 418, body: {inline_string: "short and stout"}}
              - match: {path: "/nobody"}
                route: {cluster: empty}
              - match: {path: "/nowhere"}
                route: {cluster: missing}
              - match: {path: "/refused"}
                route: {cluster: refused}
              - match: {prefix: "/"}
                route: {cluster: backend, prefix_rewrite: "/app/"}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - {name: empty, type: STATIC, load_assignment: {cluster_name: empty}}
  - name: refused
    type: STATIC
    load_assignment:
      cluster_name: refused
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}
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

// The same file makes our proxy and Envoy do the same.
func TestEnvoyVerb(t *testing.T) {
	t.Run("builtin", func(t *testing.T) {
		testBootstrap(t, func(ctx context.Context, args []string) error {
			var stderr bytes.Buffer
			e := environment{getenv: func(string) string { return "" }, environ: func() []string { return nil }, stdout: io.Discard, stderr: &stderr}
			if code := run(ctx, e, append([]string{"envoy"}, args...)); code != exitOK {
				return fmt.Errorf("exit code %d: %s", code, &stderr)
			}
			return nil
		})
	})
	t.Run("genuine", func(t *testing.T) {
		bin := envoytest.Program(t)
		testBootstrap(t, func(ctx context.Context, args []string) error {
			out, err := exec.CommandContext(ctx, bin, append(args, "--use-dynamic-base-id")...).CombinedOutput()
			if ctx.Err() == nil {
				return fmt.Errorf("envoy: %w: %s", err, out)
			}
			return nil
		})
	})
}

func testBootstrap(t *testing.T, serve func(ctx context.Context, args []string) error) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "app got ", r.URL.Path) }))
	defer app.Close()
	dir := t.TempDir()
	file, logFile, adminFile := filepath.Join(dir, "boot.yaml"), filepath.Join(dir, "access.log"), filepath.Join(dir, "admin")
	port := freePort(t)
	if err := os.WriteFile(file, fmt.Appendf(nil, bootstrapYAML, port, logFile, app.Listener.Addr().(*net.TCPAddr).Port), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- serve(ctx, []string{"-c", file, "--concurrency", "1", "--admin-address-path", adminFile, "--disable-hot-restart", "--file-flush-interval-msec", "50"})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	web := fmt.Sprintf("http://127.0.0.1:%d", port)
	eventually(t, "the proxy", func() bool { code, _ := fetch(web + "/direct"); return code == 418 })
	for _, c := range []struct {
		path, body string
		code       int
		line       string
	}{
		{"/direct/x", "short and stout", 418, "GET /direct/x 418 - -"},
		{"/hello", "app got /app/hello", 200, "GET /hello 200 - backend"},
		{"/nobody", "no healthy upstream", 503, "GET /nobody 503 UH empty"},
		{"/nowhere", "", 503, "GET /nowhere 503 NC "},
		{"/refused", "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure", 503, "GET /refused 503 UF refused"},
	} {
		if code, body := fetch(web + c.path); code != c.code || !strings.HasPrefix(body, c.body) {
			t.Errorf("%s: %d %q, want %d %q", c.path, code, body, c.code, c.body)
		}
		var lines []byte
		deadline := time.Now().Add(15 * time.Second)
		for !strings.Contains(string(lines), c.line) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
			lines, _ = os.ReadFile(logFile)
		}
		if !strings.Contains(string(lines), c.line) {
			t.Errorf("no line %q in\n%s", c.line, lines)
		}
	}
	addr, err := os.ReadFile(adminFile)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/ready": "LIVE", "/clusters": "backend::127.0.0.1:", "/listeners": "web::127.0.0.1:", "/config_dump": "static_listeners", "/server_info": `"id"`, "/stats": "cluster.backend.upstream_rq_200: 1\n", "/stats/prometheus": `envoy_cluster_upstream_rq_total{envoy_cluster_name="backend"} 1`} {
		if code, body := fetch("http://" + string(addr) + path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, no %q in %s", path, code, want, body)
		}
	}
}

func TestEnvoyVerbRefuses(t *testing.T) {
	for yaml, want := range map[string]string{
		`static_resources: {clusters: [{name: c, type: STATIC, lb_policy: MAGLEV, upstream_config: {name: x}}]}`: `cluster "c": upstream_config: not supported`,
		`admin: {nonsense: 1}`:                       "admin.nonsense: no such field",
		`dynamic_resources: {lds_config: {ads: {}}}`: "dynamic_resources.ads_config: is missing",
	} {
		var stderr bytes.Buffer
		e := environment{getenv: func(string) string { return "" }, environ: func() []string { return nil }, stdout: io.Discard, stderr: &stderr}
		if code := run(context.Background(), e, []string{"envoy", "--config-yaml", yaml, "--mode", "validate"}); code != exitFailed || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit code %d: %s", yaml, code, &stderr)
		}
	}
}
