package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// rawApp answers each request with the bytes that belong to its path, and keeps the heads that it got.
type rawApp struct {
	mu    sync.Mutex
	heads []string
}

func (a *rawApp) start(t *testing.T, answers map[string]string) string {
	return tcpServer(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			head := ""
			for !strings.HasSuffix(head, "\r\n\r\n") {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				head += line
			}
			a.mu.Lock()
			a.heads = append(a.heads, head)
			a.mu.Unlock()
			req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head), r)))
			if err != nil {
				return
			}
			out, ok := answers[req.URL.Path]
			if !ok {
				out = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
			}
			io.WriteString(c, out)
		}
	})
}

func (a *rawApp) seen() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.heads, "")
}

// TestUpgradeRefused: what a client sends behind its wish for another protocol does not reach an application
// that has not agreed, however it is framed.
func TestUpgradeRefused(t *testing.T) { engines(t, testUpgradeRefused) }

func testUpgradeRefused(t *testing.T, run func(yaml string)) {
	app := &rawApp{}
	port := freePort(t)
	run(bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - {match: {prefix: /ws}, route: {cluster: b}}
  - {match: {prefix: /}, direct_response: {status: 403}}
`, "upgrade_configs: [{upgrade_type: websocket}]"), clusterYAML("b", "", app.start(t, nil))))
	const hidden = "POST /admin/delete HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
	for name, in := range map[string]string{
		"bare":    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + hidden,
		"length":  fmt.Sprintf("POST /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n%s", hidden),
		"chunked": "POST /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
	} {
		c := connect(t, port)
		io.WriteString(c, in)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 && resp.StatusCode != 400 {
			t.Errorf("%s: %v %v", name, resp, err)
		}
		c.Close()
	}
	// A request after all of them: what was to come has come.
	if code, _, _ := get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/ws", port)); code != 200 {
		t.Error(code)
	}
	if strings.Contains(app.seen(), "admin") {
		t.Errorf("the application got %q", app.seen())
	}
}

// TestUpgradeEarly: what a client sends behind its wish reaches an application that agrees.
func TestUpgradeEarly(t *testing.T) {
	app := tcpServer(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\n")
		io.Copy(c, r)
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "upgrade_configs: [{upgrade_type: websocket}]\nrequest_timeout: 0.05s"), clusterYAML("b", "", app)), nil)
	c := connect(t, port)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Content-Length") != "" {
		t.Fatal(resp, err)
	}
	for i, tick := 0, time.NewTicker(20*time.Millisecond); i < 5; i++ { // beyond request_timeout, which the answer ends
		b := make([]byte, 5)
		if _, err := io.ReadFull(r, b); err != nil || string(b) != "early" {
			t.Fatalf("%d: %q %v", i, b, err)
		}
		<-tick.C
		io.WriteString(c, "early")
	}
}

// TestUpgradeIgnored: a wish that is not allowed is ignored, as one that cannot be met beside a body.
func TestUpgradeIgnored(t *testing.T) {
	app := &rawApp{}
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "upgrade_configs: [{upgrade_type: websocket}]"), clusterYAML("b", "", app.start(t, nil))), nil)
	for _, in := range []string{
		"GET /tls HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n",
		"GET /h2c HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
		"POST /body HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
	} {
		out := raw(t, port, in+"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if strings.Count(out, "HTTP/1.1 200 OK") != 2 {
			t.Errorf("%q: %q", in, out)
		}
	}
	if seen := app.seen(); strings.Contains(strings.ToLower(seen), "upgrade") {
		t.Errorf("the application got %q", seen)
	}
}

// TestTunnelIsNotMirrored: what goes through a tunnel is not a request's body, which could be mirrored.
func TestTunnelIsNotMirrored(t *testing.T) {
	app := tcpServer(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.Header.Get("Upgrade") == "" {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(c, r)
	})
	copies := &rawApp{}
	port := freePort(t)
	start(t, bootstrap(httpListener(port, `
- {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: b, request_mirror_policies: [{cluster: m}]}}]}`, "upgrade_configs: [{upgrade_type: websocket}]"),
		clusterYAML("b", "", app)+clusterYAML("m", "", copies.start(t, nil))), nil)
	c := connect(t, port)
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nsecret")
	r := bufio.NewReader(c)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(r); err != nil || string(b) != "secret" {
		t.Fatalf("%q %v", b, err)
	}
	get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/plain", port))
	eventually(t, "the copy of the second request", func() bool { return strings.Contains(copies.seen(), "/plain") })
	if seen := copies.seen(); strings.Contains(seen, "/ws") {
		t.Errorf("%q", seen)
	}
}

// TestNotRetried: an answer that the policy would like to be retried, but that may not be, is passed on whole.
func TestNotRetried(t *testing.T) { engines(t, testNotRetried) }

func testNotRetried(t *testing.T, run func(yaml string)) {
	app := &rawApp{}
	addr := app.start(t, map[string]string{"/headers": "HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown", "/breaker": "HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\ndown"})
	port := freePort(t)
	run(bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - {match: {prefix: /headers}, route: {cluster: b, timeout: 0s, retry_policy: {retry_on: 5xx, num_retries: 1, retriable_request_headers: [{name: x-retry, present_match: true}]}}}
  - {match: {prefix: /breaker}, route: {cluster: full, timeout: 0s, retry_policy: {retry_on: 5xx, num_retries: 1}}}
`, ""), clusterYAML("b", "", addr)+clusterYAML("full", "circuit_breakers: {thresholds: [{max_retries: 0}]}", addr)))
	for _, p := range []string{"/headers", "/breaker"} {
		out := raw(t, port, "GET "+p+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(out, "HTTP/1.1 503") || !strings.HasSuffix(out, "\r\n\r\ndown") {
			t.Errorf("%s: %q", p, out)
		}
	}
}

// TestPerTryUpload: the time-out of an attempt counts from the end of the request, not during it.
func TestPerTryUpload(t *testing.T) { engines(t, testPerTryUpload) }

func testPerTryUpload(t *testing.T, run func(yaml string)) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %d", r.Header.Get("X-Envoy-Attempt-Count"), len(b))
	})
	port := freePort(t)
	run(bootstrap(httpListener(port, `
- {name: v, domains: ["*"], include_request_attempt_count: true, routes: [{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: "5xx", num_retries: 3, per_try_timeout: 0.2s}}}]}`, ""), clusterYAML("c", "", app)))
	c := connect(t, port)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\n")
	for i, tick := 0, time.NewTicker(100*time.Millisecond); i < 5; i++ {
		<-tick.C
		io.WriteString(c, "x")
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "1 5" {
		t.Errorf("%s %q", resp.Status, b)
	}
}

// TestAnsweredEarly: an answer before the end of the request says that the connection ends, or the
// connection takes the next request.
func TestAnsweredEarly(t *testing.T) { engines(t, testAnsweredEarly) }

func testAnsweredEarly(t *testing.T, run func(yaml string)) {
	app := &rawApp{}
	port := freePort(t)
	run(bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - {match: {path: /direct}, direct_response: {status: 200, body: {inline_string: "here"}}}
  - {match: {path: /redirect}, redirect: {host_redirect: o}}
  - {match: {path: /none}, route: {cluster: none}}
  - {match: {path: /up}, route: {cluster: b}}
`, ""), clusterYAML("b", "", app.start(t, nil))+"  - {name: none, connect_timeout: 1s, load_assignment: {cluster_name: none}}\n"))
	for _, path := range []string{"/direct", "/redirect", "/none", "/nowhere"} {
		for name, body := range map[string]string{
			"length":  "Content-Length: 2\r\n\r\nhi",
			"chunked": "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
			"large":   "Content-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000),
		} {
			c := connect(t, port)
			io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: a\r\n"+body)
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Errorf("%s %s: %v", path, name, err)
				continue
			}
			io.Copy(io.Discard, resp.Body)
			if !resp.Close {
				io.WriteString(c, "GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
				if resp, err = http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
					t.Errorf("%s %s: the next request got %v %v", path, name, resp, err)
				}
			}
			c.Close()
		}
	}
}

// TestKeptAfterEarlyAnswer: the rest of a small body is taken, and the connection goes on.
func TestKeptAfterEarlyAnswer(t *testing.T) {
	port := freePort(t)
	start(t, bootstrap(httpListener(port, `
- {name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: "here"}}}]}`, ""), clusterYAML("b", "")), nil)
	c := connect(t, port)
	r := bufio.NewReader(c)
	for _, parts := range [][]string{
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", "GET ", ""},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGE", "T\r\n0\r\nx: y\r\n", "\r\n"},
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "", ""},
	} {
		io.WriteString(c, parts[0])
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.Close {
			t.Fatalf("%q: %v %v", parts[0], resp, err)
		}
		io.Copy(io.Discard, resp.Body)
		for _, p := range parts[1:] {
			io.WriteString(c, p)
		}
	}
	// A body without end ends the connection at last.
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	go func() {
		for {
			if _, err := fmt.Fprintf(c, "1000\r\n%s\r\n", make([]byte, 0x1000)); err != nil {
				return
			}
		}
	}()
	if resp, err := http.ReadResponse(r, nil); err != nil {
		t.Fatal(err)
	} else {
		io.Copy(io.Discard, resp.Body)
	}
	if b, _ := io.ReadAll(r); len(b) > 0 {
		t.Errorf("%q", b)
	}
}

// TestFramedForOtherSide: what an application's answer says of its body is right for whoever gets it.
func TestFramedForOtherSide(t *testing.T) { engines(t, testFramedForOtherSide) }

func testFramedForOtherSide(t *testing.T, run func(yaml string)) {
	app := &rawApp{}
	addr := app.start(t, map[string]string{
		"/204":   "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
		"/offer": "HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok",
		"/103":   "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"/fold":  "HTTP/1.1 200 OK\r\nX-Folded: a\r\n  b\r\nContent-Length: 2\r\n\r\nok",
		"/large": "HTTP/1.1 200 OK\r\nX-Large: " + strings.Repeat("x", 70_000) + "\r\nContent-Length: 2\r\n\r\nok",
	})
	port := freePort(t)
	run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "proxy_100_continue: true"), clusterYAML("b", "", addr)))
	for _, c := range []struct{ path, want, not string }{
		{"/204", "HTTP/1.1 204", "content-length"},
		{"/offer", "\r\n\r\nok", "upgrade"},
		{"/103", "\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n", "502"},
		{"/103", "HTTP/1.1 103 ", "502"},
		{"/fold", "x-folded: a", "502"},
		{"/large", "x-large: xxx", "502"},
	} {
		out := raw(t, port, "GET "+c.path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if !strings.Contains(out, c.want) || strings.Contains(out[:min(len(out), 300)], c.not) {
			t.Errorf("%s: %.400q, want %q and no %q", c.path, out, c.want, c.not)
		}
		if resp, err := h2Client().Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, c.path)); err != nil || resp.StatusCode/100 != 2 {
			t.Errorf("%s by HTTP/2: %v %v", c.path, resp, err)
		} else {
			resp.Body.Close()
		}
	}
	// A request without a body says so, where a server might ask.
	for method, want := range map[string]bool{"POST": true, "PUT": true, "PATCH": true, "GET": false, "DELETE": false} {
		app.mu.Lock()
		app.heads = nil
		app.mu.Unlock()
		for _, client := range []*http.Client{h2Client(), http.DefaultClient} {
			req, _ := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		if got := strings.Count(app.seen(), "content-length: 0"); (got == 2) != want || !want && got != 0 {
			t.Errorf("%s: the application got %q", method, app.seen())
		}
	}
}

// TestSwitchUnasked: an application that changes the protocol though nobody asked it to has failed, and one
// whose lines end in line feeds alone; one that gives an answer without a body a length is understood.
func TestSwitchUnasked(t *testing.T) {
	app := &rawApp{}
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), ""), clusterYAML("b", "", app.start(t, map[string]string{
		"/101": "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		"/204": "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
		"/lf":  "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
	}))), nil)
	if out := raw(t, port, "GET /204 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(out, "HTTP/1.1 204") || strings.Contains(out, "content-length") {
		t.Errorf("%q", out)
	}
	for _, path := range []string{"/101", "/lf"} {
		if code, body, _ := get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d%s", port, path)); code != 502 {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
}

// TestLineFeeds: a head or a trailer section whose lines end in line feeds alone is refused at once: it
// waits for no end that may never come.
func TestLineFeeds(t *testing.T) {
	app := &rawApp{}
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), ""), clusterYAML("b", "", app.start(t, nil))), nil)
	const chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
	for in, want := range map[string]string{
		"GET / HTTP/1.1\nHost: a\n\n":         "400",
		"GET / HTTP/1.1\r\nHost: a\n\n":       "400",
		chunked + "x: y\n\n":                  "400",
		chunked + "bad line\r\n\r\n":          "400",
		chunked + "x y: z\r\n\r\n":            "400",
		chunked + "content-length: 3\r\n\r\n": "400",
	} {
		if out := raw(t, port, in); !strings.HasPrefix(out, "HTTP/1.1 "+want) || strings.Count(out, "HTTP/1.1") != 1 {
			t.Errorf("%.100q: %q, want %s", in, out, want)
		}
	}
	// The answer comes before the trailers are all there: what is too large ends the connection.
	c := connect(t, port)
	trailers := strings.Repeat("x: "+strings.Repeat("y", 1000)+"\r\n", 70) + "\r\n"
	io.WriteString(c, chunked+trailers[:20_000])
	r := bufio.NewReader(c)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	io.WriteString(c, trailers[20_000:])
	if _, err := io.ReadAll(r); err != nil {
		t.Error(err)
	}
	out := raw(t, port, chunked+strings.Repeat("x: "+strings.Repeat("y", 1000)+"\r\n", 20)+"\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if strings.Count(out, "HTTP/1.1 200") != 2 {
		t.Errorf("trailers of 20 KB: %q", out)
	}
}
