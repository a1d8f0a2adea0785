package differential

import (
	"fmt"
	"strings"
	"time"
)

func ok(headers ...string) string {
	return "HTTP/1.1 200 OK\r\n" + strings.Join(append(headers, "content-length: 2"), "\r\n") + "\r\n\r\nok"
}

// says is a script of one part.
func says(parts ...string) script { return script{parts: parts, gap: 30 * time.Millisecond} }

// scripts are what an upstream of HTTP/1 may answer, by the request's x-script.
var scripts = map[string]script{
	"":                       says(ok("x-up: 1")),
	"switch":                 {parts: []string{"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"}, tunnel: true, early: true},
	"mixed-case":             says(ok("X-MiXeD-Answer: 1", "x-lower: 2", "ETag: 3")),
	"headers":                says(ok("Server: up", "Via: 1.0 up", "Date: Mon, 01 Jan 2024 00:00:00 GMT", "X-Request-Id: up", "X-Envoy-Upstream-Service-Time: 77", "X-A: 1", "X-A: 2")),
	"chunked":                says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "2\r\nok\r\n", "0\r\n\r\n"),
	"chunked at once":        says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
	"chunked with extension": says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n"),
	"trailers":               says("HTTP/1.1 200 OK\r\ntrailer: x-t\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"),
	"until-close":            {parts: []string{"HTTP/1.1 200 OK\r\n\r\nok"}, then: closes},
	"until-reset":            {parts: []string{"HTTP/1.1 200 OK\r\n\r\nok"}, then: resets},
	"close":                  {parts: []string{ok("connection: close")}, then: closes},
	"keep-alive":             says(ok("connection: keep-alive", "keep-alive: timeout=5")),
	"connection names":       says(ok("connection: x-a", "x-a: 1")),
	"proxy-connection":       says(ok("proxy-connection: keep-alive")),
	"upgrade hint":           says(ok("connection: upgrade", "upgrade: h2,h2c")),
	"1.0":                    {parts: []string{"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"}, then: closes},
	"1.0 until close":        {parts: []string{"HTTP/1.0 200 OK\r\n\r\nok"}, then: closes},
	"1.0 keep-alive":         says("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok"),
	"1.2":                    says("HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nok"),
	"2.0":                    says("HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok"),
	"no reason":              says("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok"),
	"empty reason":           says("HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok"),
	"own reason":             says("HTTP/1.1 200 Fine with me\r\ncontent-length: 2\r\n\r\nok"),
	"odd reason":             says("HTTP/1.1 200 \xff\x01\r\ncontent-length: 2\r\n\r\nok"),
	"two-digit status":       says("HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok"),
	"four-digit status":      says("HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\nok"),
	"status abc":             says("HTTP/1.1 abc OK\r\ncontent-length: 2\r\n\r\nok"),
	"not HTTP":               {parts: []string{"SSH-2.0-x\r\n"}, then: closes},
	"nothing":                {then: closes},
	"reset":                  {then: resets},
	"half a head":            {parts: []string{"HTTP/1.1 200 OK\r\ncontent-le"}, then: closes},
	"half a body":            {parts: []string{"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok"}, then: closes},
	"half a body, reset":     {parts: []string{"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok"}, then: resets},
	"half a chunk":           {parts: []string{"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok"}, then: closes},
	"no last chunk":          {parts: []string{"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"}, then: closes},
	"bad chunk":              {parts: []string{"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n"}, then: closes},
	"two lengths":            says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"),
	"two different lengths":  says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!"),
	"bad length":             says("HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok"),
	"negative length":        says("HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok"),
	"length and chunked":     says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
	"gzip, chunked":          says("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
	"transfer-encoding gzip": {parts: []string{"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok"}, then: closes},
	"folded":                 says("HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 2\r\n\r\nok"),
	"bare LF":                says("HTTP/1.1 200 OK\ncontent-length: 2\n\nok"),
	"space before colon":     says("HTTP/1.1 200 OK\r\nx-a : 1\r\ncontent-length: 2\r\n\r\nok"),
	"header without colon":   says("HTTP/1.1 200 OK\r\nx-a\r\ncontent-length: 2\r\n\r\nok"),
	"header name with blank": says("HTTP/1.1 200 OK\r\nx a: 1\r\ncontent-length: 2\r\n\r\nok"),
	"header value with NUL":  says("HTTP/1.1 200 OK\r\nx-a: a\x00b\r\ncontent-length: 2\r\n\r\nok"),
	"header value non-ASCII": says(ok("x-a: \xc3\xa4")),
	"many headers":           says("HTTP/1.1 200 OK\r\n" + strings.Repeat("x-a: 1\r\n", 120) + "content-length: 2\r\n\r\nok"),
	"99 headers":             says("HTTP/1.1 200 OK\r\n" + strings.Repeat("x-a: 1\r\n", 98) + "content-length: 2\r\n\r\nok"),
	"head of 50 KB":          says(ok("x-a: " + strings.Repeat("a", 50<<10))),
	"head of 70 KB":          says(ok("x-a: " + strings.Repeat("a", 70<<10))),
	"head of 90 KB":          says(ok("x-a: " + strings.Repeat("a", 90<<10))),
	"six headers":            says(ok("a: 1", "b: 2", "c: 3", "d: 4", "e: 5")),
	"101 unasked":            {parts: []string{"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nok"}, then: closes},
	"100":                    says("HTTP/1.1 100 Continue\r\n\r\n", ok()),
	"100 twice":              says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", ok()),
	"102":                    says("HTTP/1.1 102 Processing\r\n\r\n", ok()),
	"103":                    says("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", ok()),
	"204":                    says("HTTP/1.1 204 No Content\r\nx-up: 1\r\n\r\n"),
	"204 with length 0":      says("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"),
	"204 with length 2":      {parts: []string{"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok"}, then: closes},
	"204 chunked":            {parts: []string{"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"}, then: closes},
	"205":                    says("HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n"),
	"304":                    says("HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n"),
	"304 with length":        says("HTTP/1.1 304 Not Modified\r\ncontent-length: 20\r\n\r\n"),
	"two answers":            {parts: []string{ok() + ok("x-second: 1")}, then: closes},
	"more than the length":   {parts: []string{ok() + "more"}, then: closes},
	"early":                  {parts: []string{ok("x-early: 1")}, early: true, then: hangs},
	"early and close":        {parts: []string{ok("x-early: 1", "connection: close")}, early: true, then: closes},
	"early 413":              {parts: []string{"HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"}, early: true, then: closes},
	"slow":                   {parts: []string{"HTTP/1.1 200 OK\r\n", "content-length: 2\r\n\r\n", "ok"}, gap: 100 * time.Millisecond},
	"cookies":                says(ok("set-cookie: a=1", "set-cookie: b=2")),
	"grpc":                   says("HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\ncontent-length: 0\r\n\r\n"),
	"hang":                   {then: hangs},
	"hang in the body":       {parts: []string{"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok"}, then: hangs},
	"hang in the head":       {parts: []string{"HTTP/1.1 200 OK\r\n"}, then: hangs},
	"first 503":              {parts: []string{ok("x-up: 1")}, fails: 1, failure: "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"},
	"first two 503":          {parts: []string{ok("x-up: 1")}, fails: 2, failure: "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"},
	"first 429":              {parts: []string{ok("x-up: 1")}, fails: 1, failure: "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"},
	"first 409":              {parts: []string{ok("x-up: 1")}, fails: 1, failure: "HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\n\r\n"},
	"first has x-retry":      {parts: []string{ok("x-up: 1")}, fails: 1, failure: ok("x-retry: 1")},
}

func answerCases() (cs []*test) {
	for _, s := range []int{200, 201, 203, 206, 226, 300, 301, 302, 307, 308, 400, 401, 404, 405, 418, 429, 451, 499, 500, 501, 502, 503, 504, 511, 599, 600, 700, 999} {
		name := fmt.Sprintf("status %d", s)
		scripts[name] = says(fmt.Sprintf("HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\nok", s))
	}
	for name, s := range scripts {
		if name == "switch" || strings.HasPrefix(name, "hang") || strings.HasPrefix(name, "first") {
			continue
		}
		if !s.early {
			cs = append(cs, one("answer: "+name, "plain", req("GET /", "X-Script: "+name)))
			cs = append(cs, one("answer to a POST: "+name, "plain", req("POST /", "X-Script: "+name, "Content-Length: 2")+"hi"))
			cs = append(cs, &test{name: "answer over HTTP/2: " + name, on: "plain", h2: true, send: []string{h2get(1, "/", "x-script: "+name)}})
			continue
		}
		cs = append(cs, &test{name: "answer to half a POST: " + name, on: "plain", send: []string{req("POST /", "X-Script: "+name, "Content-Length: 10") + "hello"}})
	}
	for _, name := range []string{"", "chunked", "204", "304 with length", "until-close", "close"} {
		s := scripts[name]
		scripts["head "+name] = script{parts: []string{s.parts[0][:strings.Index(s.parts[0], "\r\n\r\n")+4]}, then: s.then}
		cs = append(cs, one("answer to HEAD: "+name, "plain", req("HEAD /", "X-Script: head "+name)))
	}
	for _, name := range []string{"trailers", "chunked"} {
		cs = append(cs, one("answer, trailers on: "+name, "trailers", req("GET /", "X-Script: "+name, "TE: trailers")),
			&test{name: "answer, trailers on, over HTTP/2: " + name, on: "trailers", h2: true, send: []string{h2get(1, "/", "x-script: "+name, "te: trailers")}})
	}
	cs = append(cs, one("answer: six headers where five may be", "few-headers", req("GET /", "X-Script: six headers")),
		&test{name: "answers: two on a connection", on: "plain", send: []string{req("GET /", "X-Script: chunked"), req("GET /", "X-Script: 204")}, gap: 150 * time.Millisecond, want: 2},
		&test{name: "answers: after a cut one", on: "plain", send: []string{req("GET /", "X-Script: half a body"), req("GET /")}, gap: 150 * time.Millisecond, want: 2})
	return cs
}
