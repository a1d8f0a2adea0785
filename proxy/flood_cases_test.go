package proxy

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// pipelined sends HTTP/1 requests for ever and reads nothing.
func pipelined(path, more string) func(*victim) {
	return func(v *victim) {
		c := v.dial(v.http)
		request := "GET " + path + " HTTP/1.1\r\nHost: a\r\n" + more + "\r\n"
		b := []byte(strings.Repeat(request, 1+(32<<10)/len(request)))
		if !pour(c, b, 20<<20) && len(more) < 1000 { // answers that are small beside their requests
			v.t.Error("the client, which reads nothing, is read from without end")
		}
	}
}

// lines sends first and then more for ever, until the proxy ends the connection.
func lines(first, more string) func(*victim) {
	return func(v *victim) {
		c := v.dial(v.http)
		drainFrom(c)
		send(c, []byte(first))
		pour(c, []byte(strings.Repeat(more, 1+(16<<10)/len(more))), 20<<20)
	}
}

// frames sends f's frames for ever, a batch for each step; the client reads, or not.
func frames(reads bool, f func(step int) []byte) func(*victim) {
	return func(v *victim) {
		c := v.h2()
		if reads {
			drainFrom(c)
		}
		for step, sent := 0, 0; sent < 10<<20; step++ {
			b := f(step)
			if pour(c, b, len(b)) {
				return
			}
			sent += len(b)
		}
	}
}

// unread is HTTP/2 requests for ever whose answers nobody reads.
func unread(path string) func(*victim) {
	return frames(false, func(step int) []byte {
		return each(uint32(1+1000*step), 500, func(id uint32) []byte { return ask(id, path, true) })
	})
}

// under sends frames that belong to an open stream.
func under(f []byte) func(*victim) {
	return frames(true, func(step int) []byte {
		if step == 0 {
			return ask(1, "/hole", false)
		}
		return bytes.Repeat(f, 500)
	})
}

func upstreamTalks(path string) func(*victim) {
	return func(v *victim) {
		c := v.dial(v.http)
		send(c, []byte("GET /chatter"+path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		for b := make([]byte, 4096); ; {
			if _, err := c.Read(b); err != nil {
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					v.t.Error("no end")
				}
				return
			}
		}
	}
}

// crumbs is a request whose cookie is made of many that the table holds.
func crumbs(stream uint32, n int) []byte {
	f := ask(stream, "/hole", true)
	return frame(1, 5, stream, append(f[9:], bytes.Repeat([]byte{0xbe}, n)...))
}

// indexed is a request that puts a field into the table, as the newest.
func indexed(stream uint32, name, value string) []byte {
	f := ask(stream, "/ok", true)
	p := append(f[9:], 0x40, byte(len(name)))
	p = append(append(p, name...), 0x7f)
	for n := len(value) - 127; ; n >>= 7 {
		if n < 128 {
			p = append(p, byte(n))
			break
		}
		p = append(p, byte(n)|128)
	}
	return frame(1, 5, stream, append(p, value...))
}

func bombs(name string, size, times int) func(*victim) {
	return frames(true, func(step int) []byte {
		if step == 0 {
			return indexed(1, name, strings.Repeat("v", size))
		}
		if step > 4 {
			return bytes.Repeat(frame(6, 0, 0, make([]byte, 8)), 1000)
		}
		return each(uint32(3+1000*step), 200, func(id uint32) []byte { return crumbs(id, times) })
	})
}

// TestFloods: nothing that one client sends, and no upstream's answer, fills the memory or keeps another
// client waiting.
func TestFloods(t *testing.T) {
	abuse(t, []abuser{
		{"pipelined unread 404", pipelined("/none", "")},
		{"pipelined unread direct responses", pipelined("/k4", "")},
		{"pipelined unread redirects", pipelined("/moved", "")},
		{"pipelined unread answers of an upstream", pipelined("/up", "")},
		{"pipelined unread large heads", pipelined("/none", "x: "+strings.Repeat("x", 30_000)+"\r\n")},
		{"pipelined unread bodies", pipelined("/k4", "Content-Length: 0\r\n")},
		{"empty lines", lines("", "\r\n")},
		{"endless head", lines("GET / HTTP/1.1\r\nHost: a\r\n", "x: y\r\n")},
		{"endless request line", lines("GET /", "aaaaaaaaaaaaaaaa")},
		{"endless chunk extension", lines("POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;", "a=b;")},
		{"endless trailers", lines("POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "x: y\r\n")},
		{"chunks of a byte", lines("POST /hole HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")},
		{"an early answer to an endless body", lines("POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000\r\n\r\n", "0123456789abcdef")},
		{"connections that come and go", func(v *victim) {
			for range 500 {
				c := v.dial(v.http)
				send(c, []byte("GET /hole HTTP/1.1\r\nHost: a\r\n\r\n"))
				c.Close()
			}
		}},
		{"unread 404 of HTTP/2", unread("/none")},
		{"unread direct responses of HTTP/2", unread("/k4")},
		{"unread answers of an upstream, HTTP/2", unread("/up")},
		{"rapid reset", frames(true, func(step int) []byte {
			return each(uint32(1+1000*step), 500, func(id uint32) []byte { return append(ask(id, "/hole", true), frame(3, 0, id, []byte{0, 0, 0, 8})...) })
		})},
		{"made you reset", frames(true, func(step int) []byte {
			return each(uint32(1+1000*step), 500, func(id uint32) []byte { return append(ask(id, "/hole", true), frame(8, 0, id, make([]byte, 4))...) })
		})},
		{"more streams than are allowed", frames(true, func(step int) []byte {
			return each(uint32(1+1000*step), 500, func(id uint32) []byte { return ask(id, "/hole", false) })
		})},
		{"CONTINUATION", frames(true, func(step int) []byte {
			if step == 0 {
				return frame(1, 0, 1, nil)
			}
			return frame(9, 0, 1, bytes.Repeat([]byte{0, 1, 'x', 1, 'y'}, 3000))
		})},
		{"empty CONTINUATION", frames(true, func(step int) []byte {
			if step == 0 {
				return frame(1, 0, 1, nil)
			}
			return bytes.Repeat(frame(9, 0, 1, nil), 500)
		})},
		{"SETTINGS", frames(true, func(int) []byte { return bytes.Repeat(frame(4, 0, 0, nil), 500) })},
		{"SETTINGS unread", frames(false, func(int) []byte { return bytes.Repeat(frame(4, 0, 0, nil), 500) })},
		{"SETTINGS that change all windows", frames(true, func(step int) []byte {
			if step == 0 {
				return each(1, 100, func(id uint32) []byte { return ask(id, "/hole", false) })
			}
			var p []byte
			for i := range 2700 {
				p = append(p, 0, 4, 0, 0, byte(i>>8), byte(i))
			}
			return frame(4, 0, 0, p)
		})},
		{"PING", frames(true, func(int) []byte { return bytes.Repeat(frame(6, 0, 0, make([]byte, 8)), 500) })},
		{"PING unread", frames(false, func(int) []byte { return bytes.Repeat(frame(6, 0, 0, make([]byte, 8)), 500) })},
		{"empty DATA", under(frame(0, 0, 1, nil))},
		{"padded DATA", under(frame(0, 8, 1, make([]byte, 256)))},
		{"PRIORITY", under(frame(2, 0, 1, []byte{0, 0, 0, 3, 1}))},
		{"WINDOW_UPDATE", under(frame(8, 0, 1, []byte{0, 0, 0, 1}))},
		{"unknown frames", under(frame(99, 0, 1, make([]byte, 50)))},
		{"GOAWAY", under(frame(7, 0, 0, make([]byte, 8)))},
		{"RST_STREAM of closed streams", frames(true, func(step int) []byte {
			return append(ask(uint32(1+2*step), "/ok", true), bytes.Repeat(frame(3, 0, uint32(1+2*step), make([]byte, 4)), 500)...)
		})},
		{"cookie crumbs", bombs("cookie", 560, 92)},
		{"one field again and again", bombs("x", 560, 92)},
		{"heads that are too large", frames(true, func(step int) []byte {
			return each(uint32(1+40*step), 20, func(id uint32) []byte { return ask(id, "/ok", true, "x", strings.Repeat("v", 15_000)) })
		})},
		{"informational answers without end", upstreamTalks("/100")},
		{"an endless head of an upstream", upstreamTalks("/head")},
		{"endless trailers of an upstream", upstreamTalks("/trailers")},
		{"noise instead of TLS", func(v *victim) {
			for range 100 {
				send(v.dial(v.tls), bytes.Repeat([]byte{22, 3, 1, 0x40, 0}, 1000))
			}
		}},
	})
}

// many opens n connections to a port of the proxy, sends first on each, and leaves them as they are until
// the proxy has dealt with them.
func many(n int, port func(*victim) int, first string) func(*victim) {
	return func(v *victim) {
		for range n {
			c := v.dial(port(v))
			if first != "" {
				send(c, []byte(first))
			}
		}
		v.on(func(*worker) {})
	}
}

func httpPort(v *victim) int { return v.http }
func tlsPort(v *victim) int  { return v.tls }
func tcpPort(v *victim) int  { return v.tcp }

// uploads sends as much as the proxy takes on n connections.
func uploads(n int, port func(*victim) int, first string) func(*victim) {
	return func(v *victim) {
		b := make([]byte, 16<<10)
		for range n {
			c := v.dial(port(v))
			c.(*net.TCPConn).SetWriteBuffer(16 << 10)
			send(c, []byte(first))
			c.SetWriteDeadline(time.Now().Add(30 * time.Millisecond))
			for n := 0; n < 1<<20; n += len(b) {
				if _, err := c.Write(b); err != nil {
					break
				}
			}
		}
	}
}

// streams opens n connections with k streams each, whose windows stay closed.
func streams(n, k int, path string, end bool, more ...string) func(*victim) {
	return func(v *victim) {
		for range n {
			c := v.h2(0, 4, 0, 0, 0, 0)
			send(c, each(1, k, func(id uint32) []byte { return ask(id, path, end, more...) }))
		}
		v.on(func(*worker) {})
	}
}

// TestExhaustions: connections and requests that go nowhere cost little, however many a client has.
func TestExhaustions(t *testing.T) {
	hello := "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + strings.Repeat("r", 9000)
	abuse(t, []abuser{
		{"idle connections", many(1000, httpPort, "")},
		{"idle after an answer", many(1000, httpPort, "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n")},
		{"half heads", many(1000, httpPort, "GET / HTTP/1.1\r\nHost: a\r\nx: "+strings.Repeat("y", 1000))},
		{"large half heads", many(150, httpPort, "GET / HTTP/1.1\r\nHost: a\r\nx: "+strings.Repeat("y", 50_000))},
		{"slow bodies", many(300, httpPort, "POST /hole HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx")},
		{"stuck downloads", many(100, httpPort, "GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")},
		{"stuck uploads", uploads(60, httpPort, "POST /stuck HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")},
		{"bodies kept for retries", uploads(12, httpPort, "POST /again HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n")},
		{"bodies kept for mirrors", uploads(10, httpPort, "POST /mirrored HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n")},
		{"requests that wait for an upstream", many(300, httpPort, "GET /hole HTTP/1.1\r\nHost: a\r\n\r\n")},
		{"pipelined behind a request that waits", many(100, httpPort, "GET /hole HTTP/1.1\r\nHost: a\r\n\r\n"+strings.Repeat("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n", 2000))},
		{"silent TLS handshakes", many(500, tlsPort, "")},
		{"TLS handshakes that stop half-way", many(300, tlsPort, hello)},
		{"idle TCP sessions", many(500, tcpPort, "x")},
		{"stuck TCP sessions", uploads(60, tcpPort, "")},
		{"idle connections of HTTP/2", streams(500, 0, "", true)},
		{"header blocks that do not end", func(v *victim) {
			for range 300 {
				send(v.h2(), frame(1, 0, 1, bytes.Repeat([]byte{0, 1, 'x', 1, 'y'}, 2000)))
			}
		}},
		{"finished answers at closed windows", streams(10, 100, "/k4", true)},
		{"stuck downloads of HTTP/2", streams(4, 100, "/endless", true)},
		{"stuck downloads of HTTP/2 from HTTP/2", streams(4, 100, "/h2", true)},
		{"requests with different deadlines", func(v *victim) {
			for k := range 6 {
				c := v.h2()
				drainFrom(c)
				send(c, each(1, 100, func(id uint32) []byte {
					return ask(id, "/hole", true, "content-type", "application/grpc", "grpc-timeout", fmt.Sprintf("%dm", 100_000+1000*uint32(k)+id))
				}))
			}
			eventually(v.t, "the requests are open", func() bool { return v.Hosts("hole")[0].RqActive == 600 })
		}},
		{"large heads of requests that wait", func(v *victim) {
			c := v.h2()
			drainFrom(c)
			send(c, each(1, 100, func(id uint32) []byte { return ask(id, "/hole", true, "x", strings.Repeat("v", 15_000)) }))
		}},
	})
}
