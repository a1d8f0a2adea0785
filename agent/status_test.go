package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func portOf(t *testing.T, l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

func TestProbes(t *testing.T) {
	var seen *http.Request
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		switch r.URL.Path {
		case "/healthz":
			io.WriteString(w, "fine")
		case "/moved":
			http.Redirect(w, r, "/healthz", http.StatusFound)
		case "/away":
			http.Redirect(w, r, "http://example.org/", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		default:
			http.Error(w, "no", http.StatusTeapot)
		}
	})
	plain, secure := httptest.NewServer(app), httptest.NewUnstartedServer(app)
	defer plain.Close()
	secure.TLS = &tls.Config{}
	secure.StartTLS()
	defer secure.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	hs := health.NewServer()
	hs.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(g, hs)
	go g.Serve(l)
	defer g.Stop()
	http1, https, rpc, none := portOf(t, plain.Listener), portOf(t, secure.Listener), portOf(t, l), freePorts(t, 1)[0]

	probes, err := ParseProbes(fmt.Sprintf(`{
		"/app-health/app/livez":{"httpGet":{"path":"/healthz","port":%d,"scheme":"HTTP","httpHeaders":[{"name":"Host","value":"app.example"},{"name":"X-Probe","value":"1"}]}},
		"/app-health/tls/readyz":{"httpGet":{"path":"healthz","port":"%d","scheme":"HTTPS"},"timeoutSeconds":5},
		"/app-health/moved/readyz":{"httpGet":{"path":"/moved","port":%[1]d}},
		"/app-health/away/readyz":{"httpGet":{"path":"/away","port":%[1]d}},
		"/app-health/slow/readyz":{"httpGet":{"path":"/slow","port":%[1]d},"timeoutSeconds":1},
		"/app-health/bad/readyz":{"httpGet":{"path":"/other","port":%[1]d}},
		"/app-health/none/readyz":{"httpGet":{"path":"/","port":%[4]d}},
		"/app-lifecycle/app/prestopz":{"httpGet":{"path":"/healthz","port":%[1]d},"timeoutSeconds":3600},
		"/app-health/tcp/startupz":{"tcpSocket":{"port":%[1]d}},
		"/app-health/notcp/startupz":{"tcpSocket":{"port":%[4]d}},
		"/app-health/grpc/livez":{"grpc":{"port":%[3]d}},
		"/app-health/grpcdown/livez":{"grpc":{"port":%[3]d,"service":"down"}},
		"/app-health/grpcunknown/livez":{"grpc":{"port":%[3]d,"service":"unknown"}}}`, http1, https, rpc, none))
	if err != nil {
		t.Fatal(err)
	}
	s := &statusServer{probes: probes, prober: newProber(netip.MustParseAddr("127.0.0.1")), log: logger(t)}
	srv := httptest.NewServer(s.handler())
	defer srv.Close()
	get := func(path string) (int, string) {
		t.Helper()
		req, _ := http.NewRequest("GET", srv.URL+path, nil)
		req.Header.Set("User-Agent", "kube-probe/1.30")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for path, want := range map[string]int{
		"app/livez": 200, "tls/readyz": 200, "moved/readyz": 200, "away/readyz": 302, "slow/readyz": 500, "bad/readyz": 418,
		"none/readyz": 500, "tcp/startupz": 200, "notcp/startupz": 500, "grpc/livez": 200, "grpcdown/livez": 500, "grpcunknown/livez": 500,
		"other/livez": 404,
	} {
		if code, body := get("/app-health/" + path); code != want {
			t.Errorf("%s: %d %s, want %d", path, code, body, want)
		}
	}
	if code, body := get("/app-lifecycle/app/prestopz"); code != 200 {
		t.Errorf("a hook: %d %s", code, body)
	}
	if code, body := get("/app-health/app/livez"); code != 200 || body != "fine" {
		t.Errorf("%d %q", code, body)
	}
	from, _, _ := net.SplitHostPort(seen.RemoteAddr)
	if seen.Host != "app.example" || seen.Header.Get("X-Probe") != "1" || seen.Header.Get("User-Agent") != "kube-probe/1.30" || from != "127.0.0.6" {
		t.Errorf("the application saw host %q, headers %v, from %s", seen.Host, seen.Header, from)
	}
	for _, bad := range []string{"[", `{"/x":{"tcpSocket":{"port":1}}}`, `{"/app-health/x/livez":{}}`, `{"/app-health/x/livez":null}`, `{"/app-health/x/livez":{"tcpSocket":{"port":"http"}}}`} {
		if _, err := ParseProbes(bad); err == nil || !strings.Contains(err.Error(), "ISTIO_KUBE_APP_PROBERS") {
			t.Errorf("ParseProbes(%s) = %v, want an error", bad, err)
		}
	}
}

func TestMetrics(t *testing.T) {
	var asked *http.Request
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r
		io.WriteString(w, "app_metric 1")
	}))
	defer app.Close()
	sc, err := ParseScrape(fmt.Sprintf(`{"scrape":"true","path":"m","port":"%d"}`, portOf(t, app.Listener)))
	if err != nil {
		t.Fatal(err)
	}
	var proxyErr error
	s := &statusServer{certs: NewCertificates(CertificateOptions{}), prober: newProber(netip.Addr{}), scrape: sc, log: logger(t),
		metrics: func(_ context.Context, w io.Writer) error {
			io.WriteString(w, "proxy_metric 2\n")
			return proxyErr
		}}
	h := s.handler()
	get := func() string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/stats/prometheus", nil))
		return w.Body.String()
	}
	got := get()
	for _, want := range []string{"\nproxy_metric 2\napp_metric 1\n", "istio_agent_scrapes_total 1\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("metrics %q lack %q", got, want)
		}
	}
	if asked.URL.Path != "/m" || !strings.Contains(asked.Header.Get("Accept"), "0.0.4") {
		t.Errorf("asked for %s, %v", asked.URL, asked.Header)
	}
	proxyErr = errors.New("gone")
	app.Close()
	get()
	if got = get(); strings.Contains(got, "proxy_metric") || !strings.Contains(got, `istio_agent_scrape_failures_total{type="application"} 1`) {
		t.Errorf("after failures: %q", got)
	}
	for in, want := range map[string]Scrape{"": {}, `{"scrape":"false","port":"1"}`: {}, `{"scrape":"true"}`: {"/metrics", 80}} {
		if got, err := ParseScrape(in); err != nil || got != want {
			t.Errorf("ParseScrape(%s) = %v, %v, want %v", in, got, err, want)
		}
	}
}

func TestQuit(t *testing.T) {
	quit := false
	s := &statusServer{quit: func() { quit = true }, log: slog.New(slog.DiscardHandler)}
	h := s.handler()
	ask := func(method, from string) int {
		r := httptest.NewRequest(method, "/quitquitquit", nil)
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	if code := ask("POST", "10.0.0.1:1"); code != 403 || quit {
		t.Errorf("from elsewhere: %d", code)
	}
	if code := ask("GET", "127.0.0.1:1"); code == 200 || quit {
		t.Errorf("by GET: %d", code)
	}
	if code := ask("POST", "[::1]:1"); code != 200 || !quit {
		t.Errorf("from the pod: %d, quit %v", code, quit)
	}
}

func FuzzParseProbes(f *testing.F) {
	f.Add(`{"/app-health/app/livez":{"httpGet":{"path":"/healthz","port":80}}}`)
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseProbes(s)
		if err != nil {
			return
		}
		if _, err := json.Marshal(m); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseProxyConfig(f *testing.F) {
	f.Add(fullConfig)
	f.Fuzz(func(t *testing.T, s string) {
		cfg, err := ParseProxyConfig(s)
		if err != nil {
			return
		}
		p := ports{15021, 15090}
		if _, err := bootstrap(node(false, testPod(), testMeta(), cfg, p), cfg, p, Envoy, false); err != nil && !strings.Contains(err.Error(), "zipkin") {
			t.Errorf("%q: %v", s, err)
		}
	})
}

func FuzzParseDownwardAPI(f *testing.F) {
	f.Add([]byte("a=\"b\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) { ParseDownwardAPI(b) })
}

func FuzzTypeURL(f *testing.F) {
	f.Add([]byte{0x22, 1, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) { typeURL(b, 4) })
}
