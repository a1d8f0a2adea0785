package differential

import (
	"strings"

	"golang.org/x/net/http2"
)

func http2Cases() (cs []*test) {
	frames := func(name string, send ...string) {
		cs = append(cs, &test{name: "h2: " + name, on: "plain", h2: true, send: send})
	}
	fields := func(name string, fs ...string) { frames(name, head(1, endStream, fs...)) }
	basic := []string{":method: GET", ":scheme: http", ":authority: h", ":path: /"}
	with := func(more ...string) []string { return append(append([]string(nil), basic...), more...) }
	fields("get", basic...)
	fields("https", ":method: GET", ":scheme: https", ":authority: h", ":path: /")
	fields("scheme ftp", ":method: GET", ":scheme: ftp", ":authority: h", ":path: /")
	fields("no method", ":scheme: http", ":authority: h", ":path: /")
	fields("no scheme", ":method: GET", ":authority: h", ":path: /")
	fields("no path", ":method: GET", ":scheme: http", ":authority: h")
	fields("no authority", ":method: GET", ":scheme: http", ":path: /")
	fields("host in place of authority", ":method: GET", ":scheme: http", ":path: /", "host: h")
	fields("empty path", ":method: GET", ":scheme: http", ":authority: h", ":path: ")
	fields("path *", ":method: OPTIONS", ":scheme: http", ":authority: h", ":path: *")
	fields("relative path", ":method: GET", ":scheme: http", ":authority: h", ":path: a")
	fields("two methods", ":method: GET", ":method: GET", ":scheme: http", ":authority: h", ":path: /")
	fields("two paths", ":method: GET", ":scheme: http", ":authority: h", ":path: /", ":path: /b")
	fields("pseudo-header after a field", ":method: GET", ":scheme: http", ":authority: h", "a: b", ":path: /")
	fields("unknown pseudo-header", with(":foo: b")...)
	fields("status in a request", with(":status: 200")...)
	fields("protocol without extended CONNECT", with(":protocol: websocket")...)
	fields("CONNECT", ":method: CONNECT", ":authority: h:80")
	fields("CONNECT with path", ":method: CONNECT", ":scheme: http", ":authority: h:80", ":path: /")
	for _, m := range []string{"get", "G@T", "GE T", "FOO", "", "G(T", "TRACE", "M-SEARCH"} {
		fields("method "+m, ":method: "+m, ":scheme: http", ":authority: h", ":path: /")
	}
	for _, a := range []string{"", "h:80", "h?i", "h#i", `h\i`, "h/i", "u@h", "h i", "h,i", `h"i`, "h<i>", "\xc3\xa4", "[::1]:80", "h:", "h:x", "h%20", "h|i", "h^i", "h`i", "h{i}"} {
		fields("authority "+a, ":method: GET", ":scheme: http", ":authority: "+a, ":path: /")
	}
	for _, p := range []string{"/a b", "/a\tb", "/\xc3\xa4", "/a#b", "/a?b", "/\x7f", "/a\"b", "/<a>", "/a\\b", "http://h/a", "//h/a", "?a"} {
		fields("path "+p, ":method: GET", ":scheme: http", ":authority: h", ":path: "+p)
	}
	for _, f := range []string{"A: b", "a b: c", "a\x00: b", "a: b\x00c", "a: b\nc", "a: b\rc", "a:  b", "a: b ", "a: ", "a_b: c", "a: \x01", "a: \x7f", "a: \xc3\xa4", "\xc3\xa4: b", "a@: b", "a,: b",
		"connection: close", "connection: x-a", "keep-alive: 5", "proxy-connection: close", "transfer-encoding: chunked", "upgrade: websocket", "te: trailers", "te: gzip", "te: trailers, gzip", "http2-settings: x",
		"host: h", "host: i", "cookie: a=b", "expect: 100-continue", "content-length: 0", "content-length: 5", "content-length: x", "content-length: +0", "content-length: ", "via: z", "trailer: x", "x-envoy-retry-on: 5xx"} {
		fields("field "+f, with(f)...)
	}
	fields("two cookies", with("cookie: a=b", "cookie: c=d")...)
	fields("two hosts", ":method: GET", ":scheme: http", ":path: /", "host: h", "host: i")
	fields("two content-lengths", with("content-length: 0", "content-length: 0")...)
	fields("100 fields", with(strings.Split(strings.Repeat("a: b\n", 95)+"a: b", "\n")...)...)
	fields("120 fields", with(strings.Split(strings.Repeat("a: b\n", 119)+"a: b", "\n")...)...)
	for _, n := range []int{8, 12} {
		fields("large field of KB "+strings.Repeat("I", n), with("a: "+strings.Repeat("x", n<<10))...)
	}
	post := func(more ...string) string {
		return head(1, 0, append([]string{":method: POST", ":scheme: http", ":authority: h", ":path: /"}, more...)...)
	}
	frames("post", post(), data(1, endStream, "hello"))
	frames("post with length", post("content-length: 5"), data(1, endStream, "hello"))
	frames("post with a length too small", post("content-length: 4"), data(1, endStream, "hello"))
	frames("post with a length too big", post("content-length: 6"), data(1, endStream, "hello"))
	frames("post in parts", post(), data(1, 0, "he"), data(1, 0, "llo"), data(1, endStream, ""))
	frames("post padded", post(), frame(http2.FrameData, endStream|http2.FlagDataPadded, 1, "\x02hello\x00\x00"))
	frames("padding too long", post(), frame(http2.FrameData, endStream|http2.FlagDataPadded, 1, "\x09hello"))
	frames("post without body", head(1, endStream, ":method: POST", ":scheme: http", ":authority: h", ":path: /"))
	frames("trailers", post(), data(1, 0, "hello"), head(1, endStream, "x-t: 1"))
	frames("trailers with a pseudo-header", post(), data(1, 0, "hello"), head(1, endStream, ":path: /x"))
	frames("trailers without the end", post(), data(1, 0, "hello"), head(1, 0, "x-t: 1"))
	frames("trailers with upper case", post(), data(1, 0, "hello"), head(1, endStream, "X-T: 1"))
	cs = append(cs, &test{name: "h2: trailers that pass", on: "trailers", h2: true, send: []string{post(), data(1, 0, "hello"), head(1, endStream, "x-t: 1")}})
	frames("data on stream 0", data(0, 0, "x"))
	frames("data on an idle stream", data(5, endStream, "x"))
	frames("even stream", h2get(2, "/"))
	frames("stream 0", head(0, endStream, basic...))
	frames("streams that go down", h2get(3, "/"), h2get(1, "/"))
	frames("headers twice", head(1, 0, basic...), head(1, endStream, basic...))
	frames("continuation", frame(http2.FrameHeaders, endStream, 1, block(basic[:2]...)), frame(http2.FrameContinuation, endHeaders, 1, block(basic[2:]...)))
	frames("continuation alone", frame(http2.FrameContinuation, endHeaders, 1, block(basic...)))
	frames("another frame in a header block", frame(http2.FrameHeaders, endStream, 1, block(basic[:2]...)), frame(http2.FramePing, 0, 0, "12345678"))
	frames("padded headers", frame(http2.FrameHeaders, endHeaders|endStream|http2.FlagHeadersPadded, 1, "\x03"+block(basic...)+"\x00\x00\x00"))
	frames("headers with priority", frame(http2.FrameHeaders, endHeaders|endStream|http2.FlagHeadersPriority, 1, "\x00\x00\x00\x00\x10"+block(basic...)))
	frames("headers that depend on themselves", frame(http2.FrameHeaders, endHeaders|endStream|http2.FlagHeadersPriority, 1, "\x00\x00\x00\x01\x10"+block(basic...)))
	frames("bad compression", frame(http2.FrameHeaders, endHeaders|endStream, 1, "\xff\xff\xff\xff\xff\xff"))
	frames("index out of the table", frame(http2.FrameHeaders, endHeaders|endStream, 1, "\xfe"))
	frames("unknown frame", frame(0x77, 0, 0, "x"), h2get(1, "/"))
	frames("push promise", frame(http2.FramePushPromise, endHeaders, 1, "\x00\x00\x00\x02"))
	frames("rst of an idle stream", frame(http2.FrameRSTStream, 0, 5, "\x00\x00\x00\x08"))
	frames("rst of the wrong size", h2get(1, "/"), frame(http2.FrameRSTStream, 0, 1, "\x00"))
	frames("window of 0", head(1, 0, basic...), frame(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x00"))
	frames("connection window of 0", frame(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00"))
	frames("window overflow", frame(http2.FrameWindowUpdate, 0, 0, "\x7f\xff\xff\xff"))
	frames("settings of the wrong size", frame(http2.FrameSettings, 0, 0, "x"))
	frames("settings on a stream", frame(http2.FrameSettings, 0, 1, ""))
	frames("settings: push 2", frame(http2.FrameSettings, 0, 0, "\x00\x02\x00\x00\x00\x02"))
	frames("settings: window too large", frame(http2.FrameSettings, 0, 0, "\x00\x04\x80\x00\x00\x00"))
	frames("settings: frame size too small", frame(http2.FrameSettings, 0, 0, "\x00\x05\x00\x00\x00\x01"))
	frames("settings: unknown", frame(http2.FrameSettings, 0, 0, "\x00\x77\x00\x00\x00\x01"), h2get(1, "/"))
	frames("ping of the wrong size", frame(http2.FramePing, 0, 0, "x"))
	frames("ping on a stream", frame(http2.FramePing, 0, 1, "12345678"))
	frames("goaway of the client", h2get(1, "/"), frame(http2.FrameGoAway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00"))
	frames("frame too large", string([]byte{0, 0x40, 1, 0, 0, 0, 0, 0, 1})+strings.Repeat("x", 0x4001))
	frames("reserved bit", "\x00\x00"+string(rune(len(block(basic...))))+"\x01\x05\x80\x00\x00\x01"+block(basic...))
	frames("three streams", h2get(1, "/1")+h2get(3, "/2")+h2get(5, "/3"))
	cs[len(cs)-1].want = 3
	cs = append(cs,
		&test{name: "h2: bad preface", on: "plain", send: []string{"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"}, raw: true, want: -1},
		&test{name: "h2: more streams than allowed", on: "h2-only", h2: true, want: 12, send: []string{func() (b string) {
			for i := range uint32(12) {
				b += h2get(2*i+1, "/", "x-script: slow")
			}
			return b
		}()}},
		&test{name: "h2: HTTP/1 where only HTTP/2 is", on: "h2-only", send: []string{req("GET /")}, raw: true},
	)
	for _, h := range []string{"", "trailers", "grpc", "grpc-error", "500", "204", "reset"} {
		ct := "content-type: text/plain"
		if strings.HasPrefix(h, "grpc") {
			ct = "content-type: application/grpc"
		}
		cs = append(cs,
			&test{name: "h2 upstream: HTTP/2 client, " + h, on: "to-h2", h2: true, send: []string{h2get(1, "/", "x-h2: "+h, ct, "te: trailers")}},
			one("h2 upstream: HTTP/1 client, "+h, "to-h2", req("GET /", "X-H2: "+h, ct, "TE: trailers")),
			one("h2 upstream: HTTP/1 client, POST, "+h, "to-h2", req("POST /", "X-H2: "+h, "Content-Length: 5", "Connection: close, x-a", "X-A: 1", "Cookie: a=b; c=d")+"hello"),
			one("h2 upstream: HTTP/1 client, chunked, "+h, "to-h2", req("POST /", "X-H2: "+h, "Transfer-Encoding: chunked")+"5\r\nhello\r\n0\r\n\r\n"),
		)
	}
	return cs
}
