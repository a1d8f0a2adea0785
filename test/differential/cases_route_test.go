package differential

import (
	"fmt"
	"strings"
)

// matchRoutes are routes whose names tell which one took a request.
func matchRoutes() string {
	matches := []string{
		"path: /exact", "path: /Case, case_sensitive: false", "prefix: /pre", "prefix: /pCase, case_sensitive: false", `safe_regex: {regex: "/re/[0-9]+"}`, "path_separated_prefix: /sep",
		`prefix: /h1, headers: [{name: x-a, string_match: {exact: "1"}}]`, `prefix: /h2, headers: [{name: x-a, string_match: {prefix: "1"}}]`, `prefix: /h3, headers: [{name: x-a, string_match: {suffix: "1"}}]`,
		`prefix: /h4, headers: [{name: x-a, string_match: {contains: "1"}}]`, `prefix: /h5, headers: [{name: x-a, string_match: {safe_regex: {regex: "[a-c]+"}}}]`, `prefix: /h6, headers: [{name: x-a, present_match: true}]`,
		`prefix: /h7, headers: [{name: x-a, present_match: false}]`, `prefix: /h8, headers: [{name: x-a, string_match: {exact: "1"}, invert_match: true}]`, `prefix: /h9, headers: [{name: x-a, range_match: {start: 1, end: 10}}]`,
		`prefix: /i1, headers: [{name: x-a, string_match: {exact: AbC, ignore_case: true}}]`, `prefix: /i2, headers: [{name: x-a, present_match: true, invert_match: true}]`, `prefix: /i3, headers: [{name: x-a, string_match: {exact: "1"}, treat_missing_header_as_empty: true, invert_match: true}]`,
		`prefix: /i4, headers: [{name: x-a, string_match: {exact: "1,2"}}]`, `prefix: /i5, headers: [{name: ":method", string_match: {exact: POST}}]`, `prefix: /i6, headers: [{name: ":authority", string_match: {exact: h}}]`, `prefix: /i7, headers: [{name: x-a, string_match: {exact: ""}, treat_missing_header_as_empty: true}]`,
		`prefix: /q1, query_parameters: [{name: a, string_match: {exact: "1"}}]`, `prefix: /q2, query_parameters: [{name: a, present_match: true}]`, `prefix: /q3, query_parameters: [{name: a, string_match: {safe_regex: {regex: "[a-c]+"}}}]`,
		"prefix: /grpc, grpc: {}",
	}
	var b strings.Builder
	for _, m := range matches {
		fmt.Fprintf(&b, "- match: {%s}\n  name: %q\n  direct_response: {status: 200, body: {inline_string: %q}}\n", m, m, m)
	}
	b.WriteString("- match: {prefix: /big}\n  direct_response: {status: 200, body: {inline_string: \"" + strings.Repeat("x", 4000) + "\"}}\n")
	b.WriteString("- match: {prefix: /teapot}\n  direct_response: {status: 418}\n- match: {prefix: /204}\n  direct_response: {status: 204}\n")
	b.WriteString("- match: {prefix: /none}\n  route: {cluster: up}\n")
	return b.String()
}

func routeCases() (cs []*test) {
	get := func(path string, headers ...string) {
		cs = append(cs, one("route: "+path+" "+strings.Join(headers, " "), "routes", req("GET "+path, headers...)))
	}
	for _, p := range []string{"/exact", "/exact/", "/exact?a", "/Exact", "/case", "/CASE", "/pre", "/prefix", "/pre/x", "/Pre", "/pcase/x", "/re/1", "/re/12?x", "/re/", "/re/1a", "/re/1/", "/sep", "/sep/", "/sep/a", "/separated", "/sep?a", "/nothing", "/big", "/teapot", "/204", "/none", "/%65xact", "/exact%20", "/exact;a"} {
		get(p)
	}
	for _, p := range []string{"/h1", "/h2", "/h3", "/h4", "/h5", "/h6", "/h7", "/h8", "/h9", "/i1", "/i2", "/i3", "/i4", "/i7"} {
		get(p)
		for _, h := range []string{"X-A: 1", "X-A: 11", "X-A: x1x", "X-A: abc", "X-A: ABC", "X-A:", "X-A: 10", "X-A: -1", "X-A: 1,2"} {
			get(p, h)
		}
		get(p, "X-A: 1", "X-A: 2")
		get(p, "X-A: 2", "X-A: 1")
	}
	for _, q := range []string{"", "?a", "?a=", "?a=1", "?a=2", "?a=1&a=2", "?b&a=1", "?a=abc", "?a=%31", "?xa=1", "?a=1#b", "?A=1", "??a=1", "?a=1?b"} {
		for _, p := range []string{"/q1", "/q2", "/q3"} {
			get(p + q)
		}
	}
	get("/i5")
	get("/i6")
	cs = append(cs, one("route: POST /i5", "routes", req("POST /i5", "Content-Length: 2")+"ok"))
	for _, ct := range []string{"application/grpc", "application/grpc+proto", "application/grpc-web", "application/grpc; a=b", "application/json"} {
		get("/grpc", "Content-Type: "+ct)
		get("/teapot", "Content-Type: "+ct)
		get("/nothing", "Content-Type: "+ct)
	}
	cs = append(cs, one("route: HEAD of a direct response", "routes", req("HEAD /exact")),
		one("route: POST to a direct response", "routes", req("POST /exact", "Content-Length: 5")+"hello"),
		one("route: chunked POST to a direct response", "routes", req("POST /exact", "Transfer-Encoding: chunked")+"5\r\nhello\r\n0\r\n\r\n"),
		&test{name: "route: half a POST to a direct response", on: "routes", send: []string{req("POST /exact", "Content-Length: 10") + "hello"}},
		&test{name: "route: two POSTs to a direct response", on: "routes", send: []string{req("POST /exact", "Content-Length: 5") + "hello" + req("GET /pre")}, want: 2},
		&test{name: "route: POST to nothing, then another", on: "routes", send: []string{req("POST /nothing", "Content-Length: 5") + "hello" + req("GET /pre")}, want: 2},
		&test{name: "route: HTTP/2 direct response", on: "routes", h2: true, send: []string{h2get(1, "/exact")}},
		&test{name: "route: HTTP/2 nothing", on: "routes", h2: true, send: []string{h2get(1, "/nothing")}})
	for _, o := range []string{"", "Origin: http://a", "Origin: http://b", "Origin: http://p.x", "Origin: null", "Origin: HTTP://A"} {
		for _, m := range []string{"GET", "OPTIONS"} {
			cs = append(cs, one("cors: "+m+" "+o, "cors", req(m+" /", "X-None: 1", o+"\r\nX-O: 1")),
				one("cors: preflight "+m+" "+o, "cors", req(m+" /", "Access-Control-Request-Method: GET", o+"\r\nX-O: 1")))
		}
	}
	for _, p := range []string{"/abort", "/grpc", "/delay", "/header", "/"} {
		cs = append(cs, one("fault: "+p, "faults", req("GET "+p, "X-F: 1")), one("fault: gRPC "+p, "faults", req("GET "+p, "Content-Type: application/grpc")))
	}
	return cs
}

func mutationRoutes() string {
	add := func(path, fields string) string {
		return "- match: {prefix: " + path + "}\n  route: {cluster: up}\n" + indent(fields, 2)
	}
	h := func(key, value, action string) string {
		return "{header: {key: " + key + ", value: \"" + value + "\"}, append_action: " + action + "}"
	}
	var b strings.Builder
	for _, dir := range []string{"request", "response"} {
		for _, a := range []string{"APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"} {
			b.WriteString(add("/"+dir+"/"+a, dir+"_headers_to_add: ["+h("x-a", "m", a)+", "+h("x-new", "n", a)+"]"))
		}
		for _, v := range []string{"%REQ(X-A)%", "%REQ(X-NONE)%", "%REQ(X-NONE?X-A)%", "%PROTOCOL%", "%%", "a%%b", "%REQ(:PATH)%", "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "%RESPONSE_CODE%", "%REQ(X-A):2%", "%ROUTE_NAME%", "%UPSTREAM_HOST%", "%REQUESTED_SERVER_NAME%"} {
			b.WriteString(add("/"+dir+"/format/"+fmt.Sprintf("%x", v), dir+"_headers_to_add: ["+h("x-f", v, "APPEND_IF_EXISTS_OR_ADD")+"]"))
		}
		b.WriteString(add("/"+dir+"/remove", dir+"_headers_to_remove: [x-a, x-none]\n"+dir+"_headers_to_add: ["+h("x-a", "after", "APPEND_IF_EXISTS_OR_ADD")+"]"))
		b.WriteString(add("/"+dir+"/keep-empty", dir+"_headers_to_add: [{header: {key: x-e, value: \"%REQ(X-NONE)%\"}, keep_empty_value: true}, {header: {key: x-f, value: \"%REQ(X-NONE)%\"}}]"))
		b.WriteString(add("/"+dir+"/own", dir+"_headers_to_add: ["+h("server", "me", "OVERWRITE_IF_EXISTS_OR_ADD")+", "+h("x-request-id", "me", "OVERWRITE_IF_EXISTS_OR_ADD")+"]"))
	}
	b.WriteString(add("/rewrite/prefix", "x: y"))
	text := strings.Replace(b.String(), "- match: {prefix: /rewrite/prefix}\n  route: {cluster: up}\n  x: y\n", "", 1)
	for path, r := range map[string]string{
		"/rewrite/prefix": "prefix_rewrite: /new", "/rewrite/root/": "prefix_rewrite: /", "/rewrite/regex": `regex_rewrite: {pattern: {regex: "/([a-z]+)/regex/(.*)"}, substitution: "/\\2/\\1"}`,
		"/host/literal": "host_rewrite_literal: other", "/host/header": "host_rewrite_header: x-a", "/host/auto": "auto_host_rewrite: true", "/host/regex": `host_rewrite_path_regex: {pattern: {regex: "/host/regex/([a-z]+)"}, substitution: "\\1.example"}`,
		"/host/append": "host_rewrite_literal: other, append_x_forwarded_host: true",
	} {
		text += "- match: {prefix: " + path + "}\n  route: {cluster: up, " + r + "}\n"
	}
	text += "- match: {prefix: /weighted}\n  route: {weighted_clusters: {clusters: [{name: up, weight: 1, request_headers_to_add: [" + h("x-w", "1", "APPEND_IF_EXISTS_OR_ADD") + "], response_headers_to_add: [" + h("x-w", "1", "APPEND_IF_EXISTS_OR_ADD") + "], host_rewrite_literal: w}]}}\n"
	text += "- match: {prefix: /direct}\n  direct_response: {status: 201, body: {inline_string: hi}}\n  response_headers_to_add: [" + h("x-d", "%RESPONSE_CODE%", "APPEND_IF_EXISTS_OR_ADD") + "]\n"
	text += "- match: {prefix: /order}\n  route: {cluster: up}\n  request_headers_to_add: [" + h("x-o", "1", "APPEND_IF_EXISTS_OR_ADD") + ", " + h("x-o", "2", "OVERWRITE_IF_EXISTS_OR_ADD") + ", " + h("x-o", "3", "APPEND_IF_EXISTS_OR_ADD") + "]\n"
	return text + "- match: {prefix: /}\n  route: {cluster: up}\n"
}

func mutationCases() (cs []*test) {
	for line := range strings.Lines(mutationRoutes()) {
		_, path, ok := strings.Cut(line, "match: {prefix: ")
		if !ok {
			continue
		}
		path = strings.TrimRight(path, "}\n")
		for _, x := range []string{"", "/rest?q=1"} {
			cs = append(cs, one("mutation: "+path+x, "mutations", req("GET "+path+x, "X-A: client", "X-Script: headers")),
				one("mutation: without the header, "+path+x, "mutations", req("GET "+path+x)))
		}
		cs = append(cs, one("mutation: two of the header, "+path, "mutations", req("GET "+path, "X-A: 1", "X-A: 2", "X-Gone-Table: 1", "X-Script: headers")))
	}
	return cs
}

func redirectRoutes() string {
	var b strings.Builder
	for i, r := range redirects {
		fmt.Fprintf(&b, "- match: {prefix: /r%02d}\n  redirect: {%s}\n", i, r)
	}
	return b.String()
}

var redirects = []string{
	"https_redirect: true", "scheme_redirect: https", "host_redirect: new.example", "port_redirect: 8443", "path_redirect: /new", "prefix_rewrite: /new", `path_redirect: "/new?x=y"`, "strip_query: true, path_redirect: /new",
	`regex_rewrite: {pattern: {regex: "/r08/(.*)"}, substitution: "/\\1"}`, "response_code: FOUND, host_redirect: a", "response_code: SEE_OTHER, host_redirect: a", "response_code: TEMPORARY_REDIRECT, host_redirect: a", "response_code: PERMANENT_REDIRECT, host_redirect: a",
	"https_redirect: true, port_redirect: 443", "https_redirect: true, host_redirect: \"a:81\"", "scheme_redirect: http, port_redirect: 80", "host_redirect: \"[::1]\"", `prefix_rewrite: ""`, `prefix_rewrite: "/"`, "strip_query: true, host_redirect: a",
}

func redirectCases() (cs []*test) {
	for i, r := range redirects {
		for _, rest := range []string{"", "/a/b?c=d", "?c", "//a"} {
			for _, host := range []string{"h", "h:80", "h:443", "h:8080", "[::1]:80"} {
				if rest != "" && host != "h" {
					continue
				}
				path := fmt.Sprintf("/r%02d%s", i, rest)
				cs = append(cs, one("redirect: "+r+" "+host+" "+path, "redirects", "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n"))
			}
		}
	}
	cs = append(cs, one("redirect: of a POST", "redirects", req("POST /r00", "Content-Length: 5")+"hello"), one("redirect: HEAD", "redirects", req("HEAD /r00")),
		one("redirect: of gRPC", "redirects", req("POST /r00", "Content-Length: 0", "Content-Type: application/grpc")))
	return cs
}
