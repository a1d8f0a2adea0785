package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
)

// freePort returns a port of 127.0.0.1 that nobody listens on now.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 { // below the ports that the kernel gives to outgoing connections
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000)))
		if err == nil {
			defer l.Close()
			return l.Addr().(*net.TCPAddr).Port
		}
	}
	t.Fatal("no port is free")
	return 0
}

type rig struct {
	*Proxy
	t        testing.TB
	compiler config.Compiler
	log      *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a proxy with the static resources of an Envoy bootstrap in YAML.
func start(t testing.TB, yaml string, secrets Secrets) *rig {
	t.Helper()
	r := &rig{t: t, log: &lockedBuffer{}}
	startWith(t, r, Options{Concurrency: 2, Secrets: secrets})
	r.apply(yaml)
	return r
}

// startWith runs a proxy without a configuration.
func startWith(t testing.TB, r *rig, o Options) {
	t.Helper()
	o.Logger = slog.New(slog.NewTextHandler(r.log, nil))
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Proxy = p
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
}

func (r *rig) apply(yaml string) {
	r.t.Helper()
	b, err := config.ParseBootstrap([]byte(yaml))
	if err != nil {
		r.t.Fatal(err)
	}
	cfg, err := r.compiler.Compile(b.Static)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.Apply(cfg); err != nil {
		r.t.Fatal(err)
	}
}

// eventually polls until ok or ten seconds have gone.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// httpListener is a listener with one connection manager, in YAML.
func httpListener(port int, routes, more string) string {
	return fmt.Sprintf(`
  - name: l%[1]d
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: test
%[3]s
          route_config:
            name: r
            validate_clusters: false
            virtual_hosts:
%[2]s
          http_filters:
          - name: envoy.filters.http.fault
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}
          - name: envoy.filters.http.cors
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
`, port, indent(routes, 12), indent(more, 10))
}

func indent(s string, n int) string {
	lines := strings.Split(strings.Trim(s, "\n"), "\n")
	for i, l := range lines {
		if l != "" {
			lines[i] = strings.Repeat(" ", n) + l
		}
	}
	return strings.Join(lines, "\n")
}

// cluster is a static cluster in YAML.
func clusterYAML(name, more string, addrs ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  - name: %s\n    connect_timeout: 1s\n%s\n    load_assignment:\n      cluster_name: %s\n      endpoints:\n      - lb_endpoints:\n", name, indent(more, 4), name)
	for _, a := range addrs {
		host, port, _ := net.SplitHostPort(a)
		fmt.Fprintf(&b, "        - endpoint: {address: {socket_address: {address: %q, port_value: %s}}}\n", host, port)
	}
	return b.String()
}

func bootstrap(listeners, clusters string) string {
	return "static_resources:\n  listeners:\n" + listeners + "\n  clusters:\n" + clusters
}

const allTo = `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /}
    name: default
    route: {cluster: %s}
`

// tcpServer serves each connection by a goroutine of its own, and returns the address.
func tcpServer(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

func backend(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func get(t testing.TB, c *http.Client, url string) (int, string, http.Header) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func TestHTTP(t *testing.T) { engines(t, testHTTP) }

func testHTTP(t *testing.T, run func(yaml string)) {
	var conns atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %q xfp=%s id=%d", r.Method, r.URL, r.Host, r.Header.Get("X-A"), r.Header.Get("X-Forwarded-Proto"), len(r.Header.Get("X-Request-Id"))))
		if r.URL.Path == "/trailers" {
			w.Header().Set("Trailer", "X-T")
			defer w.Header().Set("X-T", "end")
		}
		w.Write(b)
		fmt.Fprintf(w, "hello")
	}))
	s.Config.ConnState = func(c net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	port := freePort(t)
	logFile := filepath.Join(t.TempDir(), "log")
	run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), `
access_log:
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: `+logFile+`
    log_format: {text_format_source: {inline_string: "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% %REQ(:AUTHORITY)% %UPSTREAM_HOST% %UPSTREAM_CLUSTER% %ROUTE_NAME%\n"}}
`), clusterYAML("b", "", s.Listener.Addr().String())))
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	for i := range 10 {
		code, body, h := get(t, http.DefaultClient, url+"/a?b=c")
		if code != 200 || body != "hello" {
			t.Fatalf("%d %q", code, body)
		}
		want := fmt.Sprintf(`GET /a?b=c 127.0.0.1:%d "" xfp=http id=36`, port)
		if h.Get("X-Seen") != want || h.Get("Server") != "envoy" || h.Get("X-Envoy-Upstream-Service-Time") == "" {
			t.Fatalf("request %d: upstream saw %q, want %q; headers %v", i, h.Get("X-Seen"), want, h)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d upstream connections for ten requests in turn", n)
	}
	for _, size := range []int{0, 1, 100, 70_000, 3 << 20} {
		for _, chunked := range []bool{false, true} {
			body := bytes.Repeat([]byte("x"), size)
			var r io.Reader = bytes.NewReader(body)
			if chunked {
				r = io.MultiReader(r)
			}
			resp, err := http.Post(url+"/p", "text/plain", r)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(got) != string(body)+"hello" {
				t.Fatalf("size %d chunked %v: got %d bytes, %v", size, chunked, len(got), err)
			}
		}
	}
	resp, err := http.Head(url + "/h")
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	eventually(t, "access log", func() bool {
		b, _ := os.ReadFile(logFile)
		want := fmt.Sprintf("GET /a?b=c HTTP/1.1 200 - via_upstream 0 5 127.0.0.1:%d %s b default\n", port, s.Listener.Addr())
		return strings.HasPrefix(string(b), want) && strings.Count(string(b), "\n") == 21
	})
	b, _ := os.ReadFile(logFile)
	if want := fmt.Sprintf("POST /p HTTP/1.1 200 - via_upstream 3145728 3145733 127.0.0.1:%d", port); !strings.Contains(string(b), want) {
		t.Errorf("no %q in\n%s", want, b)
	}
}
