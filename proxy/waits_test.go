package proxy

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/carrick-mesh/carrick/proxy/config"
)

// hole takes connections, reads all that comes and never answers.
func hole(t testing.TB) string {
	return tcpServer(t, func(c net.Conn) { io.Copy(io.Discard, c) })
}

// dribble sends first, then one byte of more after another, until an answer comes or the peer ends; it
// returns the answer.
func dribble(t testing.TB, port int, first, more string) string {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	end := time.Now().Add(10 * time.Second)
	io.WriteString(c, first)
	b := make([]byte, 4096)
	for time.Now().Before(end) {
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := c.Read(b)
		if n > 0 {
			return string(b[:n])
		}
		if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
			return fmt.Sprint(err)
		}
		io.WriteString(c, more)
	}
	return "nothing in ten seconds"
}

// TestSlowHeads: bytes that keep coming do not put off what ends a head that never comes to its end.
func TestSlowHeads(t *testing.T) {
	for more, want := range map[string]string{
		"request_headers_timeout: 0.2s":                              "request header timeout",
		"stream_idle_timeout: 0.2s":                                  "stream timeout",
		"request_timeout: 0.2s":                                      "request timeout",
		"common_http_protocol_options: {max_stream_duration: 0.2s}":  "downstream duration timeout",
		"stream_idle_timeout: 0s\nrequest_headers_timeout: 0.2s":     "request header timeout",
		"stream_idle_timeout: 3600s\nrequest_headers_timeout: 0.2s ": "request header timeout",
	} {
		t.Run(more, func(t *testing.T) {
			t.Parallel()
			engines(t, func(t *testing.T, run func(string)) {
				if strings.Contains(more, "max_stream_duration") && strings.Contains(t.Name(), "envoy") {
					want = "" // Envoy's own answer differs by version
				}
				port := freePort(t)
				run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), more), clusterYAML("b", "", hole(t))))
				got := dribble(t, port, "GET / HTTP/1.1\r\nHost: a\r\nX: ", "a")
				if !strings.HasPrefix(got, "HTTP/1.1 408") || !strings.HasSuffix(got, want) {
					t.Errorf("%q, want 408 and %q", got, want)
				}
			})
		})
	}
}

// TestSlowBlocks: the same for a header block of HTTP/2, which goes on in frame after frame.
func TestSlowBlocks(t *testing.T) {
	for _, more := range []string{"request_headers_timeout: 0.2s", "stream_idle_timeout: 0.2s", "request_timeout: 0.2s"} {
		t.Run(more, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), more), clusterYAML("b", "", hole(t))), nil)
			f := framer(t, port)
			f.WriteSettingsAck()
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				for range 60 { // fewer than would be too many
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
						f.WriteContinuation(1, false, nil)
					}
				}
			}()
			for {
				got, err := f.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if g, ok := got.(*http2.GoAwayFrame); ok {
					if len(g.DebugData()) > 0 {
						t.Errorf("ended by %q", g.DebugData())
					}
					return
				}
			}
		})
	}
}

// TestHeadWait: whatever is switched off, a head has its time.
func TestHeadWait(t *testing.T) {
	if got, _ := headWait(&config.HTTPConnectionManager{}); got != patience {
		t.Errorf("without any time-out: %v", got)
	}
	o := &config.HTTPConnectionManager{StreamIdleTimeout: time.Second, RequestTimeout: time.Millisecond}
	if got, why := headWait(o); got != time.Millisecond || why != "request_overall_timeout" {
		t.Errorf("the shortest is %v, %s", got, why)
	}
}

// TestRouteIdleTimeout: the route's idle time-out counts in place of the connection manager's, be it
// shorter, longer or none.
func TestRouteIdleTimeout(t *testing.T) { engines(t, testRouteIdleTimeout) }

func testRouteIdleTimeout(t *testing.T, run func(string)) {
	app := tcpServer(t, func(c net.Conn) {
		b := make([]byte, 4096)
		if n, _ := c.Read(b); strings.HasPrefix(string(b[:n]), "GET /soon") {
			time.Sleep(600 * time.Millisecond) // longer than the connection manager allows
			io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
		}
		io.Copy(io.Discard, c)
	})
	short, long := freePort(t), freePort(t)
	routes := `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /soon}
    route: {cluster: b, timeout: 0s, idle_timeout: 0s}
  - match: {prefix: /never}
    route: {cluster: b, timeout: 0s, idle_timeout: 0.2s}
`
	run(bootstrap(httpListener(short, routes, "stream_idle_timeout: 0.3s")+httpListener(long, routes, "stream_idle_timeout: 3600s"), clusterYAML("b", "", app)))
	for _, c := range []struct {
		port       int
		path, want string
	}{{long, "/never", "HTTP/1.1 504"}, {short, "/soon", "HTTP/1.1 200"}} {
		got := raw(t, c.port, "GET "+c.path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %.60q, want %s", c.path, got, c.want)
		}
	}
	// A request that is not complete is the client's fault.
	got := raw(t, long, "POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx")
	if !strings.HasPrefix(got, "HTTP/1.1 408") {
		t.Errorf("half a body: %.60q, want 408", got)
	}
}

const large = `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /k4}
    direct_response: {status: 200, body: {inline_string: "%s"}}
  - match: {prefix: /}
    route: {cluster: b, timeout: 0s}
`

// TestUntakenAnswers: an answer that is complete waits for its client, but no longer than
// stream_idle_timeout.
func TestUntakenAnswers(t *testing.T) {
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(large, strings.Repeat("k", 4000)), "stream_idle_timeout: 1s"), clusterYAML("b", "", hole(t))), nil)
	t.Run("HTTP/2", func(t *testing.T) {
		t.Parallel()
		f := framer(t, port, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		f.WriteSettingsAck()
		const streams = 20
		for i := range uint32(streams) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1 + 2*i, BlockFragment: []byte{0x82, 0x86, 0x41, 1, 'x', 0x44, 3, '/', 'k', '4'}, EndHeaders: true, EndStream: true})
		}
		for n := 0; n < streams; {
			got, err := f.ReadFrame()
			if err != nil {
				t.Fatalf("%d streams were reset: %v", n, err)
			}
			if _, ok := got.(*http2.RSTStreamFrame); ok {
				n++
			}
		}
	})
	t.Run("HTTP/1", func(t *testing.T) {
		t.Parallel()
		c := connect(t, port).(*net.TCPConn)
		c.SetReadBuffer(4096)
		requests := strings.Repeat("GET /k4 HTTP/1.1\r\nHost: a\r\n\r\n", 100)
		for { // until the proxy closes
			c.SetWriteDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(c, requests); err != nil {
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					t.Error("the connection stays")
				}
				return
			}
		}
	})
}

// TestMirrorEnds: a mirrored request whose route has no time-out does not wait for ever for an answer
// that nobody wants.
func TestMirrorEnds(t *testing.T) {
	app := tcpServer(t, func(c net.Conn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	port := freePort(t)
	r := start(t, bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /}
    route: {cluster: b, timeout: 0s, request_mirror_policies: [{cluster: m}]}
`, "stream_idle_timeout: 0.3s"), clusterYAML("b", "", app)+clusterYAML("m", "", hole(t))), nil)
	if got := raw(t, port, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 200") {
		t.Fatalf("%.60q", got)
	}
	eventually(t, "the mirrored request ends", func() bool {
		h := r.Hosts("m")[0]
		return h.RqTotal == 1 && h.RqActive == 0
	})
}
