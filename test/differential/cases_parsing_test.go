package differential

import (
	"fmt"
	"strings"
)

// req is a request with lines of headers and a body.
func req(line string, headers ...string) string {
	return line + " HTTP/1.1\r\n" + strings.Join(append([]string{"Host: h"}, headers...), "\r\n") + "\r\n\r\n"
}

// one is a case of one write.
func one(name, on, bytes string) *test { return &test{name: name, on: on, send: []string{bytes}} }

func parsingCases() (cs []*test) {
	add := func(name, bytes string) { cs = append(cs, one("parse: "+name, "plain", bytes)) }
	add("plain", req("GET /"))
	add("post", req("POST /", "Content-Length: 5")+"hello")
	add("post without body", req("POST /"))
	add("put chunked", req("PUT /", "Transfer-Encoding: chunked")+"5\r\nhello\r\n0\r\n\r\n")
	add("head", req("HEAD /"))
	add("options *", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")
	add("two host fields", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n")
	add("two different host fields", "GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n")
	add("no host", "GET / HTTP/1.1\r\n\r\n")
	add("empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n")
	add("absolute target", "GET http://b/x?y HTTP/1.1\r\nHost: h\r\n\r\n")
	add("absolute target without path", "GET http://b HTTP/1.1\r\nHost: h\r\n\r\n")
	add("absolute target with a query only", "GET http://b?x HTTP/1.1\r\nHost: h\r\n\r\n")
	add("absolute target with a port", "GET http://b:80/x HTTP/1.1\r\nHost: h\r\n\r\n")
	add("absolute target, no host field", "GET http://b/x HTTP/1.1\r\n\r\n")
	add("absolute ftp target", "GET ftp://b/x HTTP/1.1\r\nHost: h\r\n\r\n")
	add("absolute target with userinfo", "GET http://u@b/x HTTP/1.1\r\nHost: h\r\n\r\n")
	add("target without slash", "GET x HTTP/1.1\r\nHost: h\r\n\r\n")
	add("target with fragment", req("GET /a#b"))
	add("target with a tab", req("GET /a\tb"))
	add("target non-ASCII", req("GET /\xc3\xa4"))
	add("target with DEL", req("GET /\x7f"))
	add("target with quotes", req(`GET /a"b<c>`))
	for _, m := range []string{"get", "GE T", "G@T", "PATCH", "DELETE", "TRACE", "FOO", "M-SEARCH", "PROPFIND", "CONNECT", "", "GET\t", strings.Repeat("A", 200)} {
		add(fmt.Sprintf("method %.20q", m), req(m+" /"))
	}
	for _, v := range []string{"HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "HTTP/1", "http/1.1", "HTTP/1.1 ", "HTTP/11", "HTTPS/1.1", "HTTP/1.10", ""} {
		add(fmt.Sprintf("version %q", v), "GET / "+v+"\r\nHost: h\r\n\r\n")
	}
	for _, h := range []string{"h:80", "h:", "h:x", "H", "h.", "h,i", "h/i", "h@i", "h?i", "h#i", `h\i`, `h"i`, "h<i>", "h i", "[::1]", "[::1]:80", "::1", "h_i", "h%20i", "1.2.3.4", "h\x01", "h\x7f", "\xc3\xa4", "h|i", "h^i", "h`i", "h{i}", "h;i", "h'i", "h(i)", "h*i", "h!i", "h$i", "h&i", "h=i", "h+i", "h~i"} {
		add(fmt.Sprintf("host %q", h), "GET / HTTP/1.1\r\nHost: "+h+"\r\n\r\n")
	}
	for _, n := range []string{"a b", "a\tb", "a(", "a,b", "a;b", "a/b", "a@b", "a[b", "a{b", "a\"b", "a\\b", "\xc3\xa4", "a\x01", "a\x00", "a_b", "a.b", "a!b", "a'b", "a|b", "a~b", "a`b", "a^b", "", "A", "x-" + strings.Repeat("a", 500)} {
		add(fmt.Sprintf("header name %.20q", n), req("GET /", n+": v"))
	}
	add("space before the colon", req("GET /", "A : v"))
	add("space before the name", req("GET /", " A: v"))
	add("no colon", req("GET /", "A"))
	for _, v := range []string{"a\x01b", "a\x00b", "a\tb", "a\x7fb", "a\x1fb", "\xff\xfe", "a\rb", "a\nb", " a ", "\ta\t", "", "  ", strings.Repeat("v", 5000)} {
		add(fmt.Sprintf("header value %.20q", v), req("GET /", "A: "+v))
	}
	add("folded header", req("GET /", "A: b\r\n c"))
	add("folded with a tab", req("GET /", "A: b\r\n\tc"))
	add("folded first header", "GET / HTTP/1.1\r\n Host: h\r\n\r\n")
	add("bare LF", "GET / HTTP/1.1\nHost: h\n\n")
	add("bare LF in the headers", "GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n")
	add("bare LF at the end", "GET / HTTP/1.1\r\nHost: h\r\n\n")
	add("bare CR", "GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n")
	add("CR CR LF", "GET / HTTP/1.1\r\r\nHost: h\r\n\r\n")
	add("two blanks", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n")
	add("tab in the request line", "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n")
	add("blank before the method", " GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	add("empty lines first", "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
	add("bare LF first", "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
	add("rubbish", "\x00\x01\x02\x03\r\n\r\n")
	add("TLS on a plaintext port", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03")
	add("only a line end", "\r\n")
	for _, l := range []string{"5", "05", "+5", "-5", " 5", "5 ", "0x5", "5,5", "5, 5", "5,6", "", "five", "5.0", "9223372036854775807", "9223372036854775808", "18446744073709551616", "99999999999999999999"} {
		add(fmt.Sprintf("content-length %q", l), req("POST /", "Content-Length: "+l, "Connection: close")+"hello")
	}
	add("two content-lengths", req("POST /", "Content-Length: 5", "Content-Length: 5")+"hello")
	add("two different content-lengths", req("POST /", "Content-Length: 5", "Content-Length: 6")+"hello!")
	add("body of a GET", req("GET /", "Content-Length: 5")+"hello")
	for _, te := range []string{"chunked", "Chunked", "chunked, chunked", "gzip, chunked", "chunked, gzip", "gzip", "identity", "", "xchunked", "chunked;a=b", "\"chunked\"", " chunked ", "chunked,", ",chunked"} {
		add(fmt.Sprintf("transfer-encoding %q", te), req("POST /", "Transfer-Encoding: "+te)+"5\r\nhello\r\n0\r\n\r\n")
	}
	add("transfer-encoding twice", req("POST /", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked")+"5\r\nhello\r\n0\r\n\r\n")
	add("transfer-encoding and content-length", req("POST /", "Transfer-Encoding: chunked", "Content-Length: 5")+"5\r\nhello\r\n0\r\n\r\n")
	cs = append(cs, one("parse: transfer-encoding and content-length, allowed", "chunked-length", req("POST /", "Transfer-Encoding: chunked", "Content-Length: 5")+"5\r\nhello\r\n0\r\n\r\n"))
	add("transfer-encoding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	for n, b := range map[string]string{
		"extension": "5;a=b\r\nhello\r\n0\r\n\r\n", "quoted extension": "5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n", "upper-case size": "A\r\nhellohello\r\n0\r\n\r\n",
		"leading zeros": "0005\r\nhello\r\n0\r\n\r\n", "size with blank": "5 \r\nhello\r\n0\r\n\r\n", "blank before size": " 5\r\nhello\r\n0\r\n\r\n", "size 0x5": "0x5\r\nhello\r\n0\r\n\r\n",
		"negative size": "-5\r\nhello\r\n0\r\n\r\n", "no size": "\r\nhello\r\n0\r\n\r\n", "size too small": "4\r\nhello\r\n0\r\n\r\n", "size too big": "6\r\nhello\r\n0\r\n\r\n",
		"bare LF after the size": "5\nhello\r\n0\r\n\r\n", "bare LF after the data": "5\r\nhello\n0\r\n\r\n", "huge size": "ffffffffffffffff\r\nhello\r\n", "size 2^63": "8000000000000000\r\nhello\r\n",
		"17 digits": "00000000000000005\r\nhello\r\n0\r\n\r\n", "trailer": "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", "bad trailer": "5\r\nhello\r\n0\r\nbad line\r\n\r\n",
		"trailer content-length": "5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n", "several": "1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", "long extension": "5;" + strings.Repeat("a", 3000) + "\r\nhello\r\n0\r\n\r\n",
		"size with LF CR": "5\n\rhello\r\n0\r\n\r\n", "empty body": "0\r\n\r\n", "folded trailer": "0\r\nX-T: 1\r\n 2\r\n\r\n",
	} {
		add("chunk: "+n, req("POST /", "Transfer-Encoding: chunked")+b)
		cs = append(cs, one("parse: trailers on, chunk: "+n, "trailers", req("POST /", "Transfer-Encoding: chunked")+b))
	}
	cs = append(cs,
		&test{name: "parse: pipelined", on: "plain", send: []string{req("GET /1") + req("GET /2") + req("GET /3")}, want: 3},
		&test{name: "parse: pipelined POST", on: "plain", send: []string{req("POST /1", "Content-Length: 5") + "hello" + req("GET /2")}, want: 2},
		&test{name: "parse: pipelined, the second is bad", on: "plain", send: []string{req("GET /1") + "BAD\r\n\r\n"}, want: 2},
		&test{name: "parse: pipelined behind close", on: "plain", send: []string{req("GET /1", "Connection: close") + req("GET /2")}, want: 2},
		&test{name: "parse: byte by byte", on: "plain", send: strings.Split(req("GET /", "A: b"), ""), gap: 1},
		&test{name: "parse: head in two parts", on: "plain", send: []string{"GET / HT", "TP/1.1\r\nHost: h\r\n\r\n"}},
		&test{name: "parse: body in two parts", on: "plain", send: []string{req("POST /", "Content-Length: 10") + "hello", "hello"}},
		&test{name: "parse: chunk in parts", on: "plain", send: []string{req("POST /", "Transfer-Encoding: chunked"), "5\r", "\nhe", "llo\r\n", "0\r\n", "\r\n"}},
		&test{name: "parse: more than the content-length", on: "plain", send: []string{req("POST /", "Content-Length: 5") + "helloGET /2 HTTP/1.1\r\nHost: h\r\n\r\n"}, want: 2},
		&test{name: "parse: body cut off", on: "plain", send: []string{req("POST /", "Content-Length: 10") + "hello"}, half: true},
		&test{name: "parse: head cut off", on: "plain", send: []string{"GET / HTTP/1.1\r\nHost"}, half: true},
	)
	for _, c := range []string{"close", "Close", "keep-alive", "foo", "a, close", "upgrade", "te", "cookie", "authorization", "content-length", "host", "x-a", "close, x-a", "transfer-encoding", "", ",", "keep-alive, x-a", "x-forwarded-for", "x-request-id", ":path", "a b", "via"} {
		add("connection "+c, req("POST /", "Connection: "+c, "X-A: 1", "Cookie: a=b", "Authorization: z", "Content-Length: 2", "Via: q")+"ok")
	}
	for _, h := range []string{"Keep-Alive: timeout=5", "Proxy-Connection: close", "Proxy-Connection: keep-alive", "TE: trailers", "TE: gzip", "TE: gzip, trailers", "Trailer: X-T", "Expect: 100-continue", "Expect: foo", "Expect: 100-Continue", "Upgrade: websocket", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__",
		"Cookie: a=b; c=d", "Proxy-Authorization: Basic x", "Max-Forwards: 0", "Content-Encoding: gzip", "Range: bytes=0-1"} {
		add("header "+h, req("POST /", h, "Content-Length: 2")+"ok")
	}
	for _, u := range []string{"websocket", "h2c", "TLS/1.2", "foo", "websocket, foo", ""} {
		add("upgrade to "+u, req("GET /", "Connection: upgrade", "Upgrade: "+u))
		cs = append(cs, one("parse: upgrade allowed, to "+u, "upgrades", req("GET /", "Connection: upgrade", "Upgrade: "+u)))
		cs = append(cs, one("parse: upgrade allowed and taken, to "+u, "upgrades", req("GET /", "Connection: upgrade", "Upgrade: "+u, "X-Script: switch")))
	}
	cs = append(cs,
		&test{name: "parse: websocket with data", on: "upgrades", send: []string{req("GET /", "Connection: upgrade", "Upgrade: websocket", "X-Script: switch"), "data"}, want: -1},
		&test{name: "parse: websocket with early data", on: "upgrades", send: []string{req("GET /", "Connection: upgrade", "Upgrade: websocket", "X-Script: switch") + "data"}, want: -1},
		&test{name: "parse: websocket refused, with early data", on: "upgrades", send: []string{req("GET /", "Connection: upgrade", "Upgrade: websocket") + "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"}, want: -1},
	)
	for _, n := range []int{50, 97, 98, 99, 100, 101, 150} {
		add(fmt.Sprintf("%d headers", n), req("GET /", strings.Split(strings.Repeat("A: b\n", n-1)+"A: b", "\n")...))
	}
	for _, n := range []int{50, 59, 61, 70} {
		add(fmt.Sprintf("headers of %d KB", n), req("GET /", "A: "+strings.Repeat("x", n<<10)))
	}
	add("path of 8 KB", req("GET /"+strings.Repeat("x", 8<<10)))
	for _, v := range []string{"1.0", "1.0 keep-alive", "1.0 without host"} {
		bytes := "GET / HTTP/1.0\r\nHost: h\r\n"
		if strings.HasSuffix(v, "host") {
			bytes = "GET / HTTP/1.0\r\n"
		}
		if strings.HasSuffix(v, "alive") {
			bytes += "Connection: keep-alive\r\n"
		}
		add("HTTP/"+v, bytes+"\r\n")
		cs = append(cs, one("parse: 1.0 accepted, HTTP/"+v, "http10", bytes+"\r\n"), one("parse: 1.0 accepted, until close, HTTP/"+v, "http10", bytes+"X-Script: until-close\r\n\r\n"),
			one("parse: 1.0 accepted, chunked answer, HTTP/"+v, "http10", bytes+"X-Script: chunked\r\n\r\n"))
	}
	for _, f := range []string{"preserve", "proper"} {
		bytes := req("GET /", "X-MiXeD-CaSe: 1", "x-lower: 2", "X-UPPER: 3", "X-Script: mixed-case")
		cs = append(cs, one("header case: "+f, f, bytes), one("header case: "+f+", own answer", f, req("GET /direct", "X-MiXeD: 1")),
			one("header case: "+f+", two of a name", f, req("GET /", "X-Two: 1", "x-tWO: 2", "X-Script: mixed-case")),
			&test{name: "header case: " + f + ", twice on a connection", on: f, send: []string{bytes + req("GET /", "x-mixed-case: 2")}, want: 2},
			one("header case: "+f+", chunked", f, req("POST /", "Transfer-Encoding: chunked", "X-Script: chunked")+"0\r\n\r\n"),
			one("header case: "+f+", close", f, req("GET /", "Connection: close")),
			one("header case: "+f+", host and odd names", f, "GET / HTTP/1.1\r\nHOST: h\r\nETag-x_y: 1\r\n1a-b.c: 2\r\n-a: 3\r\nWWW-auth--x: 4\r\n\r\n"))
	}
	return cs
}
