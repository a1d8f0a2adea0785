package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const testLog = `
access_log:
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: %s
    log_format: {text_format_source: {inline_string: "%%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%% %%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%%\n"}}
upgrade_configs: [{upgrade_type: websocket}]
`

// TestRoutes sends one request to each of many routes and checks answer, upstream's view and log.
func TestRoutes(t *testing.T) { engines(t, testRoutes) }

func testRoutes(t *testing.T, run func(yaml string)) {
	var flaky atomic.Int64
	mirrored := make(chan string, 10)
	shadow := backend(t, func(w http.ResponseWriter, r *http.Request) { mirrored <- r.Host + r.URL.Path })
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-r.Context().Done()
		case "/flaky":
			if flaky.Add(1)%3 != 0 {
				w.WriteHeader(503)
				return
			}
		case "/always503":
			w.WriteHeader(503)
		case "/hang-up":
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
			return
		case "/cut":
			c, b, _ := w.(http.Hijacker).Hijack()
			fmt.Fprintf(b, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
			b.Flush()
			c.Close()
			return
		case "/garbage":
			c, b, _ := w.(http.Hijacker).Hijack()
			fmt.Fprintf(b, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
			b.Flush()
			c.Close()
			return
		}
		fmt.Fprintf(w, "%s %s a=%s attempt=%s", r.Host, r.URL, r.Header.Get("X-A"), r.Header.Get("X-Envoy-Attempt-Count"))
	})
	dead := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	port := freePort(t)
	logFile := filepath.Join(t.TempDir(), "log")
	routes := `
- name: all
  domains: ["*"]
  include_request_attempt_count: true
  routes:
  - {match: {path: /nohost}, route: {cluster: empty}}
  - {match: {path: /nocluster}, route: {cluster: missing}}
  - {match: {path: /refused}, route: {cluster: dead}}
  - match: {path: /refused-retry}
    route: {cluster: half, retry_policy: {retry_on: "connect-failure", num_retries: 5, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], host_selection_retry_max_attempts: "5"}}
  - {match: {path: /flaky}, route: {cluster: app, retry_policy: {retry_on: retriable-status-codes, retriable_status_codes: [503], num_retries: 2, retry_back_off: {base_interval: 0.001s}}}}
  - {match: {path: /always503}, route: {cluster: app, retry_policy: {retry_on: 5xx, num_retries: 2, retry_back_off: {base_interval: 0.001s}}}}
  - {match: {path: /slow}, route: {cluster: app, timeout: 0.1s}}
  - {match: {path: /slow-try}, route: {cluster: app, prefix_rewrite: /slow, retry_policy: {retry_on: "5xx", num_retries: 1, per_try_timeout: 0.05s, retry_back_off: {base_interval: 0.001s}}}}
  - {match: {path: /hang-up}, route: {cluster: app}}
  - {match: {path: /garbage}, route: {cluster: app}}
  - {match: {path: /redirect}, redirect: {https_redirect: true, host_redirect: other, response_code: FOUND}}
  - {match: {prefix: /redirect/}, redirect: {prefix_rewrite: /new/, strip_query: true}}
  - {match: {path: /direct}, direct_response: {status: 418, body: {inline_string: teapot}}}
  - match: {prefix: /old/}
    route: {cluster: app, prefix_rewrite: /new/, host_rewrite_literal: rewritten}
    request_headers_to_add: [{header: {key: x-a, value: "v-%REQ(:METHOD)%"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
    response_headers_to_add: [{header: {key: x-b, value: b}}]
    response_headers_to_remove: [content-type]
  - {match: {safe_regex: {regex: "/re/(.*)"}}, route: {cluster: app, regex_rewrite: {pattern: {regex: "/re/(.*)"}, substitution: '/\1/x'}}}
  - {match: {path: /weighted}, route: {weighted_clusters: {clusters: [{name: app, weight: 0}, {name: empty, weight: 100}]}}}
  - {match: {path: /mirror}, route: {cluster: app, request_mirror_policies: [{cluster: shadow}]}}
  - match: {path: /abort}
    route: {cluster: app}
    typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 555, percentage: {numerator: 100}}}}
  - match: {path: /delay}
    route: {cluster: app}
    typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, delay: {fixed_delay: 0.02s, percentage: {numerator: 100}}}}
  - {match: {prefix: /plain}, route: {cluster: app}}
`
	run(bootstrap(httpListener(port, routes, fmt.Sprintf(testLog, logFile)),
		clusterYAML("app", "", app)+clusterYAML("shadow", "", shadow)+clusterYAML("dead", "", dead)+clusterYAML("half", "", dead, app)+
			"  - {name: empty, connect_timeout: 1s}\n"))
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var logged strings.Builder
	for _, c := range []struct {
		path   string
		status int
		body   string // prefix
		log    string
		header string // "name: value" in the response
	}{
		{"/nothing", 404, "", "404 NR route_not_found", ""},
		{"/nohost", 503, "no healthy upstream", "503 UH no_healthy_upstream", ""},
		{"/nocluster", 503, "", "503 NC cluster_not_found", ""},
		{"/refused", 503, "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure", "503 UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}", ""},
		{"/flaky", 200, "H /flaky a= attempt=3", "200 - via_upstream", ""},
		{"/always503", 503, "H /always503 a= attempt=3", "503 URX via_upstream", ""},
		{"/slow", 504, "upstream request timeout", "504 UT response_timeout", ""},
		{"/slow-try", 504, "upstream request timeout", "504 UT,URX upstream_per_try_timeout", ""},
		{"/hang-up", 503, "upstream connect error or disconnect/reset before headers. reset reason: connection termination", "503 UC upstream_reset_before_response_started{connection_termination}", ""},
		{"/garbage", 502, "upstream connect error or disconnect/reset before headers. reset reason: protocol error", "502 UPE upstream_reset_before_response_started{protocol_error}", ""},
		{"/redirect", 302, "", "302 - direct_response", "Location: https://other/redirect"},
		{"/redirect/a?b=c", 301, "", "301 - direct_response", "Location: http://H/new/a"},
		{"/direct", 418, "teapot", "418 - direct_response", ""},
		{"/old/x?y=z", 200, "rewritten /new/x?y=z a=v-GET attempt=1", "200 - via_upstream", "X-B: b"},
		{"/re/q", 200, "H /q/x a= attempt=1", "200 - via_upstream", ""},
		{"/weighted", 503, "no healthy upstream", "503 UH no_healthy_upstream", ""},
		{"/mirror", 200, "H /mirror", "200 - via_upstream", ""},
		{"/abort", 555, "fault filter abort", "555 FI fault_filter_abort", ""},
		{"/delay", 200, "H /delay", "200 DI via_upstream", ""},
		{"/plain", 200, "H /plain", "200 - via_upstream", ""},
	} {
		req, _ := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d%s", port, c.path), nil)
		req.Host = "H"
		resp, err := client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || !strings.HasPrefix(string(b), c.body) || c.body == "" && len(b) > 0 {
			t.Errorf("%s: %d %q %v, want %d %q", c.path, resp.StatusCode, b, err, c.status, c.body)
		}
		if name, v, ok := strings.Cut(c.header, ": "); ok && resp.Header.Get(name) != v {
			t.Errorf("%s: header %s is %q, want %q", c.path, name, resp.Header.Get(name), v)
		}
		fmt.Fprintf(&logged, "%s %s\n", c.path, c.log)
	}
	eventually(t, "access log", func() bool {
		b, _ := os.ReadFile(logFile)
		return strings.Count(string(b), "\n") >= strings.Count(logged.String(), "\n")
	})
	b, _ := os.ReadFile(logFile)
	b = bytes.ReplaceAll(b, []byte("URX,UT"), []byte("UT,URX")) // Envoy's order is that of setting them
	if string(b) != logged.String() {
		t.Errorf("log:\n%s\nwant:\n%s", b, logged.String())
	}
	select {
	case m := <-mirrored:
		if m != "H-shadow/mirror" {
			t.Errorf("mirrored %q", m)
		}
	case <-time.After(5 * time.Second):
		t.Error("nothing was mirrored")
	}
	for range 20 { // half of these meet the dead host first
		if code, body, _ := get(t, client, fmt.Sprintf("http://127.0.0.1:%d/refused-retry", port)); code != 200 {
			t.Fatalf("retry on another host: %d %q", code, body)
		}
	}
	if resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/plain", port)); err != nil || resp.Header.Get("Content-Type") == "" {
		t.Errorf("%v %v", resp, err)
	}
}

// raw sends bytes and returns all that comes until the peer closes.
func raw(t *testing.T, port int, in string) string {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, in)
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("%q: %q, %v", in, b, err)
	}
	return string(b)
}

func TestWire(t *testing.T) { engines(t, testWire) }

func testWire(t *testing.T, run func(yaml string)) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/chunked" {
			w.Write([]byte("one "))
			w.(http.Flusher).Flush()
		}
		fmt.Fprintf(w, "%s%s", r.URL.Path, b)
	})
	port := freePort(t)
	run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "http_protocol_options: {accept_http_10: true, default_host_for_http_10: d}\nnormalize_path: true\ncommon_http_protocol_options: {max_headers_count: 20}\nmax_request_headers_kb: 4\nrequest_headers_timeout: 0.1s"), clusterYAML("b", "", app)))
	for in, want := range map[string][]string{
		// Pipelined requests are answered in order.
		"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyzGET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n": {"HTTP/1.1 200 OK\r\n", "\r\n\r\n/1HTTP/1.1 200", "\r\n\r\n/2xyzHTTP/1.1 200", "connection: close", "\r\n\r\n/3"},
		"GET /chunked HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                                                                                        {"transfer-encoding: chunked", "\r\n\r\n", "one ", "/chunked\r\n0\r\n\r\n"},
		"GET /chunked HTTP/1.0\r\n\r\n":                                                                                         {"HTTP/1.0 200 OK\r\n", "connection: close", "\r\n\r\none /chunked"},
		"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n":                                              {"connection: keep-alive", "\r\n\r\n/1HTTP/1.0 200 OK", "\r\n\r\n/2"},
		"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n": {"/cabcd"},
		"POST /c HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\nz":                {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", "/cz"},
		"GET /a/../b/%2e/%41?../x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                                             {"\r\n\r\n/b/A"},
		"\r\n\r\nGET /z HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                                                       {"\r\n\r\n/z"},
		// Refused.
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": {"HTTP/1.1 400 Bad Request", "connection: close"},
		"GET / HTTP/1.1\r\n\r\n": {"HTTP/1.1 400 Bad Request"},
		"\x16\x03\x01\x00":       {"HTTP/1.1 400 Bad Request"},
		"GET /#f HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n":                                                             {"HTTP/1.1 400 Bad Request"},
		"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("a: b\r\n", 20) + "\r\n":                                              {"HTTP/1.1 431 Request Header Fields Too Large"},
		"GET / HTTP/1.1\r\nHost: a\r\nx: " + strings.Repeat("b", 5000) + "\r\n\r\n":                                            {"HTTP/1.1 431 Request Header Fields Too Large"},
		"GET / HTTP/1.1\r\nHost: a\r\n":                                                                                        {"HTTP/1.1 408 Request Timeout", "request header timeout"},
		"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n":                                        {"HTTP/1.1 400 Bad Request"},
		"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings, close\r\nHTTP2-Settings: x\r\n\r\n": {"HTTP/1.1 200 OK"},
	} {
		got := raw(t, port, in)
		rest := got
		for _, w := range want {
			i := strings.Index(rest, w)
			if i < 0 {
				t.Errorf("%.100q: got %q, which lacks %q", in, got, w)
				break
			}
			rest = rest[i+len(w):]
		}
	}
}

// TestCut: a response that the upstream cuts short must not look complete.
func TestCut(t *testing.T) { engines(t, testCut) }

func testCut(t *testing.T, run func(yaml string)) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		c, b, _ := w.(http.Hijacker).Hijack()
		defer c.Close()
		if r.URL.Path == "/length" {
			fmt.Fprintf(b, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		} else {
			fmt.Fprintf(b, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		}
		b.Flush()
	})
	port := freePort(t)
	run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), ""), clusterYAML("b", "", app)))
	for _, p := range []string{"/length", "/chunked"} {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, p))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: complete: %q", p, b)
		}
		resp.Body.Close()
	}
}

func TestUpgrade(t *testing.T) { engines(t, testUpgrade) }

func testUpgrade(t *testing.T, run func(yaml string)) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
			w.WriteHeader(400)
			return
		}
		c, b, _ := w.(http.Hijacker).Hijack()
		defer c.Close()
		fmt.Fprintf(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nready")
		b.Flush()
		io.Copy(c, b)
	})
	port := freePort(t)
	run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "upgrade_configs: [{upgrade_type: websocket}]"), clusterYAML("b", "", app)))
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatal(resp, err)
	}
	data := bytes.Repeat([]byte("0123456789"), 50_000)
	go c.Write(data)
	got := make([]byte, 5+len(data))
	if _, err := io.ReadFull(r, got); err != nil || string(got[:5]) != "ready" || !bytes.Equal(got[5:], data) {
		t.Fatalf("%v, %q...", err, got[:20])
	}
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Errorf("end: %q %v", b, err)
	}
}
