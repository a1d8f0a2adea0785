package differential

import (
	"strings"
	"time"
)

func retryRoutes() string {
	r := func(cluster, policy string) string {
		return route("cluster: " + cluster + ", retry_policy: {" + policy + ", retry_back_off: {base_interval: 0.001s, max_interval: 0.01s}}")
	}
	return to(
		"/5xx", r("up", "retry_on: 5xx, num_retries: 2"),
		"/gateway", r("up", "retry_on: gateway-error"),
		"/4xx", r("up", "retry_on: retriable-4xx"),
		"/codes", r("up", "retry_on: retriable-status-codes, retriable_status_codes: [429, 418]"),
		"/headers", r("up", "retry_on: retriable-headers, retriable_headers: [{name: x-retry, string_match: {exact: \"1\"}}]"),
		"/reset", r("up", "retry_on: reset"),
		"/before", r("up", "retry_on: reset-before-request"),
		"/connect", r("closed", "retry_on: connect-failure, num_retries: 3"),
		"/none-connect", route("cluster: closed"),
		"/refused", r("up", "retry_on: refused-stream"),
		"/zero", r("up", "retry_on: 5xx, num_retries: 0"),
		"/per-try", r("up", "retry_on: 5xx, num_retries: 1, per_try_timeout: 0.2s"),
		"/per-try-none", r("up", "retry_on: connect-failure, num_retries: 1, per_try_timeout: 0.2s"),
		"/request-headers", r("up", "retry_on: 5xx, retriable_request_headers: [{name: x-may, present_match: true}]"),
		"/empty", r("empty", "retry_on: 5xx"),
		"/none-empty", route("cluster: empty"),
		"/header-cluster", route("cluster_header: x-cluster"),
		"/nowhere", route("cluster_header: x-cluster, cluster_not_found_response_code: NOT_FOUND"),
		"/pending", route("cluster: no-pending"),
		"/tls", r("tls-plain-server", "retry_on: 5xx, num_retries: 1"),
		"/h2", r("h2", "retry_on: 5xx, num_retries: 1"),
		"/grpc", r("h2", "retry_on: unavailable, num_retries: 2"),
		"/count", route("cluster: up"),
		"/", route("cluster: up"),
	)
}

func retryCases() (cs []*test) {
	get := func(name, path, script string, more ...string) {
		cs = append(cs, one("retry: "+name, "retries", req("GET "+path, append([]string{"X-Script: " + script}, more...)...)))
	}
	for _, s := range []string{"first 503", "first two 503", "status 503", "status 500", "status 404", "first 429", "first 409", "first has x-retry", "nothing", "reset", "half a head", "not HTTP", ""} {
		for _, p := range []string{"/5xx", "/gateway", "/4xx", "/codes", "/headers", "/reset", "/before", "/refused", "/zero", "/none", "/request-headers"} {
			get(p+" "+s, p, s)
		}
	}
	get("request headers match", "/request-headers", "first 503", "X-May: 1")
	get("connect failure", "/connect", "")
	get("connect failure, not retried", "/none-connect", "")
	get("no host", "/empty", "")
	get("no host, not retried", "/none-empty", "")
	get("per try, hangs", "/per-try", "hang")
	get("per try, not retried", "/per-try-none", "hang")
	get("no pending allowed", "/pending", "")
	get("upstream is not TLS", "/tls", "")
	for _, h := range []string{"X-Cluster: up", "X-Cluster: nope", "X-Cluster:", "X-None: 1"} {
		get("cluster by header, "+h, "/header-cluster", "", h)
		get("cluster by header, own status, "+h, "/nowhere", "", h)
	}
	cs = append(cs,
		one("retry: POST with body", "retries", req("POST /5xx", "X-Script: first 503", "Content-Length: 5")+"hello"),
		one("retry: POST chunked", "retries", req("POST /5xx", "X-Script: first 503", "Transfer-Encoding: chunked")+"5\r\nhello\r\n0\r\n\r\n"),
		&test{name: "retry: POST in parts", on: "retries", send: []string{req("POST /5xx", "X-Script: first 503", "Content-Length: 10") + "hello", "hello"}},
		one("retry: POST of 60 KB", "retries", req("POST /5xx", "X-Script: first 503", "Content-Length: 60000")+strings.Repeat("x", 60000)),
		one("retry: POST of 200 KB", "retries", req("POST /5xx", "X-Script: first 503", "Content-Length: 200000")+strings.Repeat("x", 200000)),
		one("retry: HEAD", "retries", req("HEAD /5xx", "X-Script: status 503")),
		&test{name: "retry: over HTTP/2", on: "retries", h2: true, send: []string{h2get(1, "/5xx", "x-script: first 503")}},
		&test{name: "retry: HTTP/2 upstream", on: "retries", h2: true, send: []string{h2get(1, "/h2", "x-h2: 500")}},
		&test{name: "retry: HTTP/2 upstream resets", on: "retries", h2: true, send: []string{h2get(1, "/h2", "x-h2: reset")}},
		&test{name: "retry: gRPC unavailable", on: "retries", h2: true, send: []string{h2get(1, "/grpc", "x-h2: grpc-error", "content-type: application/grpc")}},
		&test{name: "retry: gRPC, no host", on: "retries", h2: true, send: []string{h2get(1, "/none-empty", "content-type: application/grpc")}},
		&test{name: "retry: gRPC, no route's cluster", on: "retries", h2: true, send: []string{h2get(1, "/header-cluster", "x-cluster: nope", "content-type: application/grpc")}},
		&test{name: "retry: gRPC, connect failure", on: "retries", h2: true, send: []string{h2get(1, "/none-connect", "content-type: application/grpc")}},
	)
	return cs
}

func timeoutCases() (cs []*test) {
	slow := func(name, on string, send ...string) {
		cs = append(cs, &test{name: "timeout: " + name, on: on, send: send, slow: 700 * time.Millisecond})
	}
	for _, p := range []string{"/route", "/idle", "/none", "/max", "/"} {
		for _, s := range []string{"hang", "hang in the body", "hang in the head"} {
			slow(p+" "+s, "timeouts", req("GET "+p, "X-Script: "+s))
			cs = append(cs, &test{name: "timeout: HTTP/2 " + p + " " + s, on: "timeouts", h2: true, send: []string{h2get(1, p, "x-script: "+s)}, slow: 700 * time.Millisecond})
		}
		slow(p+" upload that stops", "timeouts", req("POST "+p, "Content-Length: 10")+"hello")
	}
	slow("head that stops", "timeouts", "GET / HTTP/1.1\r\nHost")
	slow("request that stops in the body", "request-timeout", req("POST /", "Content-Length: 10")+"hello")
	slow("request that stops in the head", "request-timeout", "GET / HTTP/1.1\r\nHost")
	slow("request in time", "request-timeout", req("POST /", "Content-Length: 5")+"hello")
	slow("client's own timeout", "plain", req("GET /", "X-Script: hang", "X-Envoy-Upstream-Rq-Timeout-Ms: 300"))
	cs = append(cs,
		&test{name: "timeout: HTTP/2 upstream", on: "timeouts", h2: true, send: []string{h2get(1, "/h2", "x-h2: hang")}, slow: 700 * time.Millisecond},
		&test{name: "timeout: gRPC deadline", on: "timeouts", h2: true, send: []string{h2get(1, "/grpc", "x-h2: hang", "content-type: application/grpc", "grpc-timeout: 300m")}, slow: 700 * time.Millisecond},
		&test{name: "timeout: gRPC, route's", on: "timeouts", h2: true, send: []string{h2get(1, "/h2", "x-h2: hang", "content-type: application/grpc")}, slow: 700 * time.Millisecond},
	)
	return cs
}
