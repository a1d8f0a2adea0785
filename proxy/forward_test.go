package proxy

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/header"
)

func TestNormalizePath(t *testing.T) {
	for in, want := range map[string]string{
		"/":                 "/",
		"/a/b":              "/a/b",
		"/a/./b":            "/a/b",
		"/a/../b":           "/b",
		"/../../x":          "/x",
		"/a/..":             "/",
		"/a/.":              "/a/",
		"/%61%2e%2E":        "/a..",
		"/a/%2e%2e/b":       "/b",
		`/a\..\b`:           "/b",
		"/a%2fb":            "/a%2fb",
		"/a/..;p/b":         "/b",
		"/a/.;/b":           "/a/b",
		"/a|b":              "/a%7Cb",
		"/a/../b?x=/../%61": "/b?x=/../%61",
		"/%zz/../%u4f60":    "/%u4f60",
		"/%4":               "/%4",
		"/100%":             "/100%",
		"/%00":              "",
		"/a//b":             "/a//b",
	} {
		got, ok := normalizePath(in)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q %v, want %q", in, got, ok, want)
		}
		if ok && !needsNormalizing(in) && got != in {
			t.Errorf("%q is said to need no normalizing, but becomes %q", in, got)
		}
	}
}

// FuzzNormalizePath: what is normalized is stable and has no dot segments.
func FuzzNormalizePath(f *testing.F) {
	f.Add("/a/../%2e%2E/b?c")
	f.Fuzz(func(t *testing.T, in string) {
		if !strings.HasPrefix(in, "/") {
			return
		}
		once, ok := normalizePath(in)
		if !ok {
			return
		}
		twice, ok := normalizePath(once)
		if !ok || twice != once {
			t.Fatalf("%q, then %q, then %q", in, once, twice)
		}
		path, _, _ := strings.Cut(once, "?")
		for _, s := range strings.Split(path, "/") {
			if s == "." || s == ".." {
				t.Fatalf("%q becomes %q", in, once)
			}
		}
	})
}

func TestSlashes(t *testing.T) {
	if got := unescapeSlashes("/a%2Fb%5cc?%2f"); got != `/a/b\c?%2f` {
		t.Errorf("unescaped: %q", got)
	}
	if got := mergeSlashes("//a///b/?x=//"); got != "/a/b/?x=//" {
		t.Errorf("merged: %q", got)
	}
	if hasEscapedSlash("/a?%2f") || !hasEscapedSlash("/a%2F") {
		t.Error("hasEscapedSlash")
	}
}

func TestUUID(t *testing.T) {
	seen := map[string]bool{}
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for i := range uint64(100) {
		u := string(appendUUID(nil, mix(i), mix(^i)))
		if !form.MatchString(u) || seen[u] {
			t.Fatalf("%q", u)
		}
		seen[u] = true
	}
}

func TestFromXFF(t *testing.T) {
	for _, c := range []struct {
		in   string
		hops int
		want string
		only bool
	}{
		{"1.2.3.4", 0, "1.2.3.4", true},
		{"1.2.3.4, 5.6.7.8", 0, "5.6.7.8", false},
		{"1.2.3.4,5.6.7.8", 1, "1.2.3.4", false},
		{"1.2.3.4:80", 0, "", true}, // as Envoy: an entry is an address
		{"[fd00::1]:80", 0, "", true},
		{"fd00::1", 0, "fd00::1", true},
		{"x", 0, "", true},
		{"", 0, "", true},
		{"1.2.3.4", 1, "", false},
	} {
		a, only, ok := fromXFF(c.in, c.hops)
		if ok != (c.want != "") || ok && (a.String() != c.want || only != c.only) {
			t.Errorf("%q, %d hops: %v %v %v", c.in, c.hops, a, only, ok)
		}
	}
}

func TestGRPCTimeout(t *testing.T) {
	for in, want := range map[string]string{"1S": "1s", "100m": "100ms", "2H": "2h0m0s", "5u": "5µs", "": "", "S": "", "1x": "", "123456789S": "", "-1S": ""} {
		d, ok := grpcTimeout(in)
		if ok != (want != "") || ok && d.String() != want {
			t.Errorf("%q: %v %v", in, d, ok)
		}
	}
}

// TestEdge: a gateway trusts nothing that the client says of itself.
func TestEdge(t *testing.T) { engines(t, testEdge) }

func testEdge(t *testing.T, run func(yaml string)) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		for _, n := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Envoy-Internal", "X-Envoy-External-Address", "X-Envoy-Attempt-Count", "X-Envoy-Decorator-Operation", "X-Forwarded-Client-Cert"} {
			if v := r.Header.Get(n); v != "" {
				fmt.Fprintf(w, "%s=%s ", strings.ToLower(n), v)
			}
		}
	})
	for more, want := range map[string]string{
		"use_remote_address: true":                          "x-forwarded-for=9.9.9.9,127.0.0.1 x-forwarded-proto=http x-envoy-external-address=127.0.0.1 x-envoy-attempt-count=7 ",
		"use_remote_address: true\nxff_num_trusted_hops: 1": "x-forwarded-for=9.9.9.9,127.0.0.1 x-forwarded-proto=https x-envoy-external-address=9.9.9.9 x-envoy-attempt-count=7 ",
		"use_remote_address: true\nskip_xff_append: true":   "x-forwarded-for=9.9.9.9 x-forwarded-proto=http x-envoy-external-address=127.0.0.1 x-envoy-attempt-count=7 ",
		"use_remote_address: false":                         "x-forwarded-for=9.9.9.9 x-forwarded-proto=https x-envoy-attempt-count=7 x-envoy-decorator-operation=d ",
		"forward_client_cert_details: ALWAYS_FORWARD_ONLY":  "x-forwarded-for=9.9.9.9 x-forwarded-proto=https x-envoy-attempt-count=7 x-envoy-decorator-operation=d x-forwarded-client-cert=forged ",
	} {
		port := freePort(t)
		run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), more), clusterYAML("b", "", app)))
		req, _ := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
		for k, v := range map[string]string{"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https", "X-Envoy-Internal": "true", "X-Envoy-Attempt-Count": "7", "X-Envoy-Decorator-Operation": "d", "X-Forwarded-Client-Cert": "forged"} {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		// Envoy has its own address for that of a loopback peer.
		b = regexp.MustCompile(`9.9.9.9,[0-9.]+`).ReplaceAll(b, []byte("9.9.9.9,127.0.0.1"))
		if string(b) != want {
			t.Errorf("%q: %q, want %q", more, b, want)
		}
	}
}

// TestHash: RING_HASH keeps a header's value, and a generated cookie, on one host.
func TestHash(t *testing.T) { engines(t, testHash) }

func testHash(t *testing.T, run func(yaml string)) {
	var addrs []string
	for i := range 4 {
		addrs = append(addrs, backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, i) }))
	}
	port := freePort(t)
	run(bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - {match: {prefix: /}, route: {cluster: c, hash_policy: [{header: {header_name: x-user}, terminal: true}, {cookie: {name: sticky, ttl: 60s, path: /, attributes: [{name: SameSite, value: Strict}]}}]}}
`, ""), clusterYAML("c", "lb_policy: RING_HASH", addrs...)))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	hosts := map[string]bool{}
	for u := range 50 {
		req, _ := http.NewRequest("GET", url, nil)
		req.Header.Set("X-User", fmt.Sprint("u", u))
		var first string
		for range 3 {
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if first == "" {
				first = string(b)
			} else if first != string(b) {
				t.Fatalf("user %d moved from %s to %s", u, first, b)
			}
		}
		hosts[first] = true
	}
	if len(hosts) != 4 {
		t.Errorf("50 users share %d of 4 hosts", len(hosts))
	}
	_, host, h := get(t, http.DefaultClient, url)
	c := h.Get("Set-Cookie")
	if !strings.HasPrefix(c, `sticky="`) || !strings.Contains(c, "; Max-Age=60; Path=/; SameSite=Strict; HttpOnly") {
		t.Fatalf("cookie %q", c)
	}
	req, _ := http.NewRequest("GET", url, nil)
	req.Header.Set("Cookie", "other=1; "+strings.SplitN(c, ";", 2)[0])
	for range 10 {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != host || resp.Header.Get("Set-Cookie") != "" {
			t.Fatalf("with the cookie: host %s instead of %s, %q", b, host, resp.Header.Get("Set-Cookie"))
		}
	}
}

// TestDNS: a STRICT_DNS cluster by name.
func TestDNS(t *testing.T) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })
	port := freePort(t)
	_, appPort, _ := strings.Cut(app, ":")
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "type: STRICT_DNS\ndns_lookup_family: V4_ONLY", "localhost:"+appPort)), nil)
	eventually(t, "resolution", func() bool {
		code, _, _ := get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", port))
		return code == 200
	})
}

// TestCORS: a preflight and a plain request of an allowed origin, and of another.
func TestCORS(t *testing.T) { engines(t, testCORS) }

func testCORS(t *testing.T, run func(yaml string)) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Method) })
	port := freePort(t)
	run(bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /}
    route: {cluster: c}
    typed_per_filter_config:
      envoy.filters.http.cors: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_origin_string_match: [{exact: "http://good"}], allow_methods: "GET,POST", max_age: "60", expose_headers: x-e, allow_credentials: true}
`, ""), clusterYAML("c", "", app)))
	for _, c := range []struct {
		method, origin, body string
		want                 map[string]string
	}{
		{"OPTIONS", "http://good", "", map[string]string{"Access-Control-Allow-Origin": "http://good", "Access-Control-Allow-Methods": "GET,POST", "Access-Control-Max-Age": "60", "Access-Control-Allow-Credentials": "true"}},
		{"GET", "http://good", "GET", map[string]string{"Access-Control-Allow-Origin": "http://good", "Access-Control-Expose-Headers": "x-e"}},
		{"OPTIONS", "http://bad", "OPTIONS", map[string]string{"Access-Control-Allow-Origin": ""}},
	} {
		req, _ := http.NewRequest(c.method, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
		req.Header.Set("Origin", c.origin)
		req.Header.Set("Access-Control-Request-Method", "POST")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(b) != c.body {
			t.Errorf("%s %s: %d %q", c.method, c.origin, resp.StatusCode, b)
		}
		for k, v := range c.want {
			if resp.Header.Get(k) != v {
				t.Errorf("%s %s: %s is %q, want %q", c.method, c.origin, k, resp.Header.Get(k), v)
			}
		}
	}
}

// TestMutate: each way to change a header.
func TestMutate(t *testing.T) {
	var h header.Header
	h.Add("a", "1")
	s := &stream{w: &worker{}}
	s.mutate(&h, []config.HeaderMutation{
		{Name: "a", Action: config.HeaderAppend, Value: "2"},
		{Name: "a", Action: config.HeaderAddIfAbsent, Value: "3"},
		{Name: "b", Action: config.HeaderAddIfAbsent, Value: "4"},
		{Name: "c", Action: config.HeaderOverwriteIfExists, Value: "5"},
		{Name: "b", Action: config.HeaderOverwriteIfExists, Value: "6"},
		{Name: "d", Action: config.HeaderOverwrite, Value: "7"},
		{Name: "d", Remove: true},
		{Name: "e", Value: ""},
		{Name: "f", Value: "", KeepEmpty: true},
		{Name: "host", Action: config.HeaderOverwrite, Value: "h"},
	})
	if got, want := string(h.AppendTo(nil))+h.Pseudo(header.Authority), "a: 1\r\na: 2\r\nb: 6\r\nf: \r\nh"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRetryAfterSwap has a request whose cluster is replaced during its first try; the second goes
// to a host that is no longer configured, over a connection of its own.
func TestRetryAfterSwap(t *testing.T) {
	for _, protocol := range []string{"", speaking(speakH2)} {
		arrived, end := make(chan struct{}, 8), make(chan struct{})
		b := bothBackend(t, func(w http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			if r.Header.Get("x-envoy-attempt-count") != "2" {
				<-end
			}
			io.WriteString(w, "second")
		})
		port := freePort(t)
		const routes = `
- {name: v, domains: ["*"], include_request_attempt_count: true, routes: [{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: "5xx", num_retries: 1, per_try_timeout: 1s}}}]}`
		r := start(t, bootstrap(httpListener(port, routes, ""), clusterYAML("c", protocol, b)), nil)
		answer := make(chan string, 1)
		go func() {
			code, body, _ := get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", port))
			answer <- fmt.Sprint(code, " ", body)
		}()
		<-arrived
		r.apply(bootstrap(httpListener(port, routes, ""), clusterYAML("c", protocol+"\nlb_policy: RANDOM", b)))
		select {
		case got := <-answer:
			if got != "200 second" {
				t.Errorf("%q: %s", protocol, got)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%q: no answer", protocol)
		}
		close(end)
	}
}
