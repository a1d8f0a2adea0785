package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carrick-mesh/carrick/proxy/header"
)

func request(s string) (h *header.Header, m Message, err error) {
	h = new(header.Header)
	n := End([]byte(s), 0)
	if n == 0 {
		return h, m, fmt.Errorf("incomplete")
	}
	err = ParseRequest([]byte(s)[:n], h, &m, &Options{})
	return h, m, err
}

func TestParseRequest(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string // what AppendRequest makes of it
		m    Message
	}{
		{"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n", Message{Minor: 1}},
		{"GET / HTTP/1.1\r\nX-A:1\r\nHost: x:80\r\nx-b: \t2 \r\nX-C:\r\n\r\n", "GET / HTTP/1.1\r\nhost: x:80\r\nx-a: 1\r\nx-b: 2\r\nx-c: \r\n\r\n", Message{Minor: 1}},
		{"POST / HTTP/1.1\r\nhost: x\r\nContent-Length: 5\r\nConnection: close, X-Drop\r\nx-drop: 1\r\nKeep-Alive: 5\r\n\r\n",
			"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n", Message{Minor: 1, Length: 5, HasLength: true, Close: true}},
		{"POST / HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: Chunked\r\nTE: trailers\r\nExpect: 100-continue\r\n\r\n",
			"POST / HTTP/1.1\r\nhost: x\r\n\r\n", Message{Minor: 1, Chunked: true, Trailers: true, Expect100: true}},
		{"GET / HTTP/1.1\r\nhost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n\r\n", Message{Minor: 1, Upgrade: true}},
		{"GET / HTTP/1.1\r\nhost: x\r\nUpgrade: websocket\r\n\r\n", "GET / HTTP/1.1\r\nhost: x\r\n\r\n", Message{Minor: 1}},
		{"GET http://h:1?q HTTP/1.1\r\nX:1\r\nHost: other\r\nY: 2\r\n\r\n", "GET /?q HTTP/1.1\r\nhost: h:1\r\nx: 1\r\ny: 2\r\n\r\n", Message{Minor: 1}},
		{"GET HTTPS://h/p HTTP/1.1\r\nHost: other\r\n\r\n", "GET /p HTTP/1.1\r\nhost: h\r\n\r\n", Message{Minor: 1}},
		{"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n", Message{Minor: 1}},
		{"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", "CONNECT h:443 HTTP/1.1\r\nhost: h:443\r\n\r\n", Message{Minor: 1}},
		{"GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nhost: \r\n\r\n", Message{Close: true}},
		{"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET / HTTP/1.1\r\nhost: \r\n\r\n", Message{KeepAlive: true}},
	} {
		h, m, err := request(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if got := string(AppendRequest(nil, h, Framing{})); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
		if d := cmp.Diff(c.m, m); d != "" {
			t.Errorf("%q: %s", c.in, d)
		}
	}
}

func TestRefuseRequest(t *testing.T) {
	for in, want := range map[string]error{
		"GET / HTTP/1.1\r\n\r\n":                                                                    ErrNoHost,
		"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n":                                              ErrHost,
		"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n":                                                       ErrHost,
		"GET / HTTP/2.0\r\nHost: a\r\n\r\n":                                                         ErrVersion,
		"GET  / HTTP/1.1\r\nHost: a\r\n\r\n":                                                        ErrRequestLine,
		"GET a HTTP/1.1\r\nHost: a\r\n\r\n":                                                         ErrRequestLine,
		"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n":                                                  ErrRequestLine,
		"G\xc3T / HTTP/1.1\r\nHost: a\r\n\r\n":                                                      ErrRequestLine,
		"GET / HTTP/1.1\nHost: a\r\n\r\n":                                                           ErrRequestLine,
		"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n":                                                ErrField,
		"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n":                                      ErrField,
		"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n":                                              ErrField,
		"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n":                                              ErrField,
		"GET / HTTP/1.1\r\nHost: a\r\nX: a\nb: c\r\n\r\n":                                           ErrField,
		"GET / HTTP/1.1\r\nHost: a\r\n: c\r\n\r\n":                                                  ErrField,
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n":               ErrLength,
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n":                                   ErrLength,
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n":                                 ErrLength,
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\n":                  ErrLength,
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n":      ErrLength,
		"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n":                     ErrCoding,
		"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n":   ErrCoding,
		"GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n":                           ErrCoding,
		"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("x: y\r\n", 100) + "\r\n":                  ErrFields,
		"GET http://user@h/ HTTP/1.1\r\nHost: a\r\n\r\n":                                            ErrHost,
		"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n":                        ErrField,
		"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n":                         ErrField,
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nContent-Length: 0x5\r\n\r\n": ErrLength,
	} {
		if _, _, err := request(in); err != want {
			t.Errorf("%q: got %v, want %v", in, err, want)
		}
	}
}

func TestConnectionCannotNameFraming(t *testing.T) {
	h, m, err := request("POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, cookie\r\nCookie: a\r\nContent-Length: 3\r\n\r\n")
	if err != nil || m.Length != 3 || h.First("content-length") != "3" || !h.Has("cookie") {
		t.Errorf("err %v, length %d, header %q", err, m.Length, h.AppendTo(nil))
	}
}

func TestParseResponse(t *testing.T) {
	var h header.Header
	var m Message
	for in, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nServer: a\r\n\r\n":                             "HTTP/1.1 200 OK\r\nserver: a\r\n\r\n",
		"HTTP/1.1 299\r\n\r\n":                                             "HTTP/1.1 299 Unknown\r\n\r\n",
		"HTTP/1.0 404 \r\nX: 1\r\n\r\n":                                    "HTTP/1.1 404 Not Found\r\nx: 1\r\n\r\n",
		"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n":      "HTTP/1.1 101 Switching Protocols\r\nupgrade: a\r\n\r\n",
		"HTTP/1.1 200 OK\r\nHost: a\r\nhost: b\r\nExpect: nothing\r\n\r\n": "HTTP/1.1 200 OK\r\nhost: a\r\nhost: b\r\nexpect: nothing\r\n\r\n",
	} {
		if err := ParseResponse([]byte(in), &h, &m, &Options{}); err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if got := string(AppendResponse(nil, &h, Framing{})); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{"HTTP/1.1 20 OK\r\n\r\n", "HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 200OK\r\n\r\n", "HTTP/1.1 099 x\r\n\r\n", "\r\n\r\n", "HTTP/1.1 200 a\x00\r\n\r\n"} {
		if err := ParseResponse([]byte(in), &h, &m, &Options{}); err == nil {
			t.Errorf("%q: taken", in)
		}
	}
}

// decode runs a body through d in pieces of n bytes.
func decode(d *Body, in []byte, n int, t *header.Header) (out []byte, rest []byte, err error) {
	for len(in) > 0 && !d.Done() {
		p := in[:min(n, len(in))]
		for len(p) > 0 && !d.Done() {
			data, used, err := d.Next(p, t)
			if err != nil {
				return out, in, err
			}
			out = append(out, data...)
			p, in = p[used:], in[used:]
		}
	}
	return out, in, nil
}

func TestChunks(t *testing.T) {
	in := "5\r\nhello\r\n1;ext=\"1\"\r\n \r\n5 \r\nworld\r\n0\r\nX-T: 1\r\ny:2\r\n\r\nnext"
	for n := 1; n <= len(in); n++ {
		var d Body
		var tr header.Header
		d.Chunked()
		out, rest, err := decode(&d, []byte(in), n, &tr)
		if err != nil || string(out) != "hello world" || string(rest) != "next" || string(tr.AppendTo(nil)) != "x-t: 1\r\ny: 2\r\n" {
			t.Fatalf("in pieces of %d: %q, rest %q, trailers %q, error %v", n, out, rest, tr.AppendTo(nil), err)
		}
	}
	for _, bad := range []string{"\r\n", "g\r\n", "5\nhello\n", "5\r\nhello0\r\n", "5\r\nhello\n0\r\n\r\n", "-1\r\n", "1000000000000000\r\n", "0\r\nTransfer-Encoding: chunked\r\n\r\n", "1;\nx\r\n", "0\r\n bad\r\n\r\n"} {
		var d Body
		var tr header.Header
		d.Chunked()
		if _, _, err := decode(&d, []byte(bad), len(bad), &tr); err == nil {
			t.Errorf("%q: taken", bad)
		}
	}
}

func TestFixedAndUntilClose(t *testing.T) {
	var d Body
	d.Length(3)
	out, rest, err := decode(&d, []byte("abcdef"), 2, nil)
	if string(out) != "abc" || string(rest) != "def" || err != nil || !d.Done() {
		t.Errorf("%q, rest %q, %v", out, rest, err)
	}
	d.Length(0)
	if !d.Done() {
		t.Error("empty body is not done")
	}
	d.UntilClose()
	out, _, _ = decode(&d, []byte("abcdef"), 2, nil)
	if string(out) != "abcdef" || d.Done() || !d.EndsWithConnection() {
		t.Errorf("%q", out)
	}
}

// FuzzRequest: what we forward means the same to net/http as it did to us, and is stable.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET /a HTTP/1.1\r\nHost: x\r\nA:b\r\nConnection: c\r\n\r\n"))
	f.Add([]byte("POST http://h?x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"))
	f.Add([]byte("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := End(b, 0)
		if n == 0 {
			return
		}
		var h, h2 header.Header
		var m, m2 Message
		if ParseRequest(b[:n], &h, &m, &Options{}) != nil {
			return
		}
		fr := Framing{Chunked: m.Chunked, Close: m.Close, Upgrade: m.Upgrade}
		out := AppendRequest(nil, &h, fr)
		if End(out, 0) != len(out) {
			t.Fatalf("%q became %q, which is not one head", b[:n], out)
		}
		if err := ParseRequest(out, &h2, &m2, &Options{MaxFields: 200}); err != nil {
			t.Fatalf("%q became %q: %v", b[:n], out, err)
		}
		if again := AppendRequest(nil, &h2, fr); !bytes.Equal(out, again) {
			t.Fatalf("%q, then %q", out, again)
		}
		if m.Length != m2.Length || m.Chunked != m2.Chunked || m.Upgrade != m2.Upgrade {
			t.Fatalf("%q: %+v became %+v", b[:n], m, m2)
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
		if err != nil {
			return // net/http refuses some hosts and targets that we take
		}
		if r.ContentLength >= 0 && !m.Chunked && r.ContentLength != m.Length || m.Chunked != (r.ContentLength < 0) {
			t.Fatalf("%q: net/http sees length %d, we %+v", out, r.ContentLength, m)
		}
	})
}

// FuzzChunks: pieces do not matter, and where net/http accepts a body it sees the same.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\n"), 3)
	f.Add([]byte("1;a\r\nx\r\n0\r\nA: b\r\n\r\n"), 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		var d, e Body
		d.Chunked()
		e.Chunked()
		var t1, t2 header.Header
		o1, r1, err1 := decode(&d, b, len(b)+1, &t1)
		o2, r2, err2 := decode(&e, b, max(1, n), &t2)
		if !bytes.Equal(o1, o2) || (err1 == nil) != (err2 == nil) || d.Done() != e.Done() || err1 == nil && !bytes.Equal(r1, r2) {
			t.Fatalf("whole: %q %v %v; in pieces: %q %v %v", o1, err1, d.Done(), o2, err2, e.Done())
		}
		if err1 == nil && d.Done() {
			src := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
			r, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader(src), bytes.NewReader(b))), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r.Body); err == nil && !bytes.Equal(got, o1) {
				t.Fatalf("net/http reads %q, we %q", got, o1)
			}
		}
	})
}

func BenchmarkRequest(b *testing.B) {
	in := []byte("GET /hello?x=1 HTTP/1.1\r\nHost: helloworld.sample:5000\r\nUser-Agent: curl/8.16.0\r\nAccept: */*\r\nX-Request-Id: 0123456789abcdef\r\n\r\n")
	var h header.Header
	var m Message
	o := Options{}
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		n := End(in, 0)
		if err := ParseRequest(in[:n], &h, &m, &o); err != nil {
			b.Fatal(err)
		}
		dst = AppendRequest(dst[:0], &h, Framing{})
	}
}

// TestTrailers: a trailer section is held to its form and its bound, whether it is kept or dropped, and
// however it is cut into pieces.
func TestTrailers(t *testing.T) {
	line := "x: " + strings.Repeat("y", 1000) + "\r\n"
	for in, want := range map[string]error{
		"\r\n":                               nil,
		"x: y\r\n\r\n":                       nil,
		strings.Repeat(line, 50) + "\r\n":    nil,
		strings.Repeat(line, 70) + "\r\n":    ErrTooLarge,
		strings.Repeat("z", 70_000):          ErrTooLarge,
		"bad line\r\n\r\n":                   ErrField,
		"x: y\n\n":                           ErrField,
		"x: \x00\r\n\r\n":                    ErrField,
		"transfer-encoding: chunked\r\n\r\n": ErrField,
	} {
		for _, piece := range []int{1, 1000, 40_000, 100_000} {
			for _, keep := range []*header.Header{nil, {}} {
				var b Body
				b.Chunked()
				rest, err := []byte("0\r\n"+in), error(nil)
				for len(rest) > 0 && err == nil && !b.Done() {
					n := min(piece, len(rest))
					_, n, err = b.Next(rest[:n], keep)
					rest = rest[n:]
				}
				if err != want || want == nil && (!b.Done() || len(rest) > 0) {
					t.Errorf("%.40q in pieces of %d: %v, done %v, %d left; want %v", in, piece, err, b.Done(), len(rest), want)
				}
			}
		}
	}
}
