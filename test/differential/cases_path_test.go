package differential

import (
	"maps"
	"slices"
)

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// paths are targets that normalisation, merging and unescaping may see differently.
var paths = []string{
	"/", "/a", "/a/", "//", "//a", "/a//b", "///a///b///", "/a/./b", "/a/../b", "/a/..", "/a/.", "/..", "/../a", "/../../a", "/a/../../b", "/./a", "/a/b/../../c", "/a/...", "/a/.b", "/a/..b", "/a/b..",
	"/a%2fb", "/a%2Fb", "/a%5cb", "/a%5Cb", "/%2f", "/%2f%2fa", "/%2fevil.example/", "/%5cevil.example/", "//evil.example/", "/a/%2e%2e/b", "/a/%2e/b", "/a/.%2e/b", "/%2e%2e/a", "/a%2f..%2fb", "/a/..%2fb", "/%2F%2e%2e%2fa",
	`/a\b`, `/a\..\b`, `/\evil.example/`, "/a/..;/b", "/a/.;/b", "/a/.;p/b", "/a;p=1/b", "/a/..;p/b",
	"/%", "/a%", "/a%2", "/a%zz", "/a%u4f60", "/a%%20", "/100%", "/a%20b", "/a%41", "/a%7Eb", "/a%00b", "/a%0ab", "/a%252fb", "/a%252e%252e/b", "/a%3fb", "/a%23b", "/a%c3%a4",
	"/a?b", "/a/../b?c=/../d", "/a?b//c", "/a?b%2fc", "/a/../b?%zz", "/?", "/a?", "/a?b?c", "/a?/../b", "/%2e", "/a/%2e%2e", "/a/b/%2E%2E/%2e/c", "/A/B", "/a+b", "/a,b", "/a:b@c", "/*", "/a&b=c", "/a'b(c)", "/a!b$c", "/[a]", "/a|b", "/{a}", "/^a", "/`a", "/~a", "/a=b",
}

func pathCases() (cs []*test) {
	for _, on := range sorted(pathOptions) {
		for _, p := range paths {
			cs = append(cs, one("path: "+on+" "+p, on, req("GET "+p)))
		}
	}
	for _, p := range []string{"/a/../b", "//a", "/%", "/a%2fb", "/a%zz"} {
		for _, on := range []string{"path-both", "path-redirect"} {
			cs = append(cs, &test{name: "path: HTTP/2 " + on + " " + p, on: on, h2: true, send: []string{h2get(1, p)}})
		}
	}
	for _, on := range []string{"strip-any", "strip-matching", "strip-dot", "hosts", "ports-ignored"} {
		for _, h := range []string{"a.example", "A.Example", "a.example:80", "a.example:x", "a.example.", "a.example.:80", "x.a.example", "x.y.a.example", "x-pre.example", "-pre.example", "a.org", "a.", "[::1]", "[::1]:80", "b.example:81", "b.example", "other", "a.example:"} {
			cs = append(cs, one("host: "+on+" "+h, on, "GET / HTTP/1.1\r\nHost: "+h+"\r\n\r\n"))
		}
	}
	return cs
}

// clientHeaders are headers that say what a client may not always say.
var clientHeaders = []string{
	"x-envoy-internal: true", "x-envoy-external-address: 6.6.6.6", "x-envoy-retry-on: 5xx", "x-envoy-retry-grpc-on: cancelled", "x-envoy-max-retries: 9", "x-envoy-retriable-status-codes: 500", "x-envoy-retriable-header-names: a",
	"x-envoy-upstream-rq-timeout-ms: 900", "x-envoy-upstream-rq-per-try-timeout-ms: 900", "x-envoy-upstream-rq-timeout-alt-response: 1", "x-envoy-expected-rq-timeout-ms: 900", "x-envoy-force-trace: 1", "x-envoy-ip-tags: a", "x-envoy-original-url: u",
	"x-envoy-original-path: /q", "x-envoy-original-host: q", "x-envoy-hedge-on-per-try-timeout: true", "x-envoy-upstream-alt-stat-name: a", "x-envoy-downstream-service-cluster: a", "x-envoy-downstream-service-node: a",
	"x-envoy-decorator-operation: a", "x-envoy-attempt-count: 7", "x-envoy-is-timeout-retry: 1", "x-envoy-original-dst-host: 1.2.3.4:5", "x-envoy-peer-metadata: a", "x-envoy-peer-metadata-id: a", "x-envoy-upstream-stream-duration-ms: 900",
	"x-request-id: 11111111-1111-4111-8111-111111111111", "x-forwarded-for: 9.9.9.9, 10.0.0.5", "x-forwarded-for: 10.0.0.5", "x-forwarded-for: 9.9.9.9", "x-forwarded-for: ::1", "x-forwarded-for: [2001:db8::1]:80", "x-forwarded-for: rubbish", "x-forwarded-for: 9.9.9.9:80", "x-forwarded-for:",
	"x-forwarded-proto: https", "x-forwarded-proto: HTTPS", "x-forwarded-proto: ftp", "x-forwarded-proto: http, https", "x-forwarded-host: evil", "x-forwarded-port: 1", "x-forwarded-client-cert: By=z;Hash=1", "forwarded: for=1.1.1.1", "x-real-ip: 1.1.1.1", "x-client-trace-id: q", "x-ot-span-context: q",
	"via: 1.1 z", "server: z", "te: trailers",
}

func trustCases() (cs []*test) {
	for _, on := range sorted(trustOptions) {
		cs = append(cs, one("trust: "+on+" bare", on, req("GET /")))
		for _, h := range clientHeaders {
			if on != "trust-default" && on != "trust-edge" && h[:4] != "x-fo" && h[:4] != "x-re" {
				continue
			}
			cs = append(cs, one("trust: "+on+" "+h, on, req("GET /", h)))
		}
	}
	for _, h := range []string{"x-forwarded-for: 9.9.9.9, 10.0.0.5, 8.8.8.8", "x-forwarded-for: 10.0.0.1, 10.0.0.2", "x-forwarded-for: a, b", "x-forwarded-for: , ,"} {
		for _, on := range []string{"trust-hop", "trust-edge-hop", "trust-default"} {
			cs = append(cs, one("trust: "+on+" more "+h, on, req("GET /", h)))
		}
	}
	cs = append(cs,
		one("trust: answer's server and via", "trust-via", req("GET /", "X-Script: headers")),
		one("trust: answer's server passes", "trust-pass", req("GET /", "X-Script: headers")),
		one("trust: answer's server is overwritten", "trust-edge", req("GET /", "X-Script: headers")),
		one("trust: two x-forwarded-for", "trust-edge", req("GET /", "X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2")),
		one("trust: two x-forwarded-proto", "trust-default", req("GET /", "X-Forwarded-Proto: https", "X-Forwarded-Proto: http")),
		one("trust: client certificate header passes", "xfcc-forward", req("GET /", "X-Forwarded-Client-Cert: By=z")),
	)
	for _, on := range []string{"tls-required", "tls-required-edge", "tls-required-external", "scheme"} {
		cs = append(cs,
			one("require tls: "+on+" plain", on, req("GET /p?q=1")),
			one("require tls: "+on+" absolute https target", on, "GET https://h/p?q=1 HTTP/1.1\r\nHost: h\r\n\r\n"),
			one("require tls: "+on+" x-forwarded-proto", on, req("GET /p", "X-Forwarded-Proto: https")),
			one("require tls: "+on+" x-forwarded-proto of an external client", on, req("GET /p", "X-Forwarded-Proto: https", "X-Forwarded-For: 8.8.8.8")),
			one("require tls: "+on+" POST", on, req("POST /p", "Content-Length: 2")+"ok"),
			one("require tls: "+on+" host with port", on, "GET /p HTTP/1.1\r\nHost: h:80\r\n\r\n"),
			&test{name: "require tls: " + on + " HTTP/2 scheme https", on: on, h2: true, send: []string{head(1, endStream, ":method: GET", ":scheme: https", ":authority: h", ":path: /p")}},
			&test{name: "require tls: " + on + " HTTP/2 scheme http", on: on, h2: true, send: []string{h2get(1, "/p")}},
		)
	}
	return cs
}
