package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// bomb is a user of a connection that panics.
type bomb struct {
	user
	again bool // when it is told of its end, too
}

func (bomb) onRead() { panic("boom") }

func (b bomb) onFail(err error) {
	if b.again {
		panic("boom again")
	}
	b.user.onFail(err)
}

// TestPanic: a panic in the handling of a connection ends it and what it carries, is counted and logged
// with its stack; other connections and the process go on.
func TestPanic(t *testing.T) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-r.Context().Done()
		}
		io.WriteString(w, "done")
	})
	port := freePort(t)
	r := start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "stream_idle_timeout: 0s"), clusterYAML("b", "", app)), nil)
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	other := &http.Client{Transport: &http.Transport{}}
	get(t, other, url)

	// only finds the loop's side of the one connection that has come since the last call.
	seen := map[*conn]bool{}
	only := func(f func(c *conn)) {
		t.Helper()
		eventually(t, "the connection", func() (found bool) {
			r.on(func(w *worker) {
				for c := range w.conns {
					switch c.user.(type) {
					case *downConn, *h2Down:
						if !seen[c] && (c.streams > 0 || f == nil) {
							seen[c], found = true, true
							if f != nil {
								f(c)
							}
						}
					}
				}
			})
			return found
		})
	}
	only(nil) // the other's
	ended := func(c net.Conn) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if b, err := io.ReadAll(c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("the connection stays open: %q", b)
		}
	}
	const hold = "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n"
	for i, arm := range []func(c *conn){
		func(c *conn) { c.user = bomb{user: c.user}; c.again() },
		func(c *conn) { c.user = bomb{user: c.user, again: true}; c.again() },
		func(c *conn) { // a timer of a request
			s := c.user.(*downConn).s
			s.hcm = nil
			c.w.loop.Arm(&s.maxTimer, time.Millisecond)
		},
		func(c *conn) { // what the flush asks for
			c.src = nilSource{}
			c.mark()
		},
	} {
		c := connect(t, port)
		io.WriteString(c, hold)
		only(arm)
		ended(c)
		if got := r.Stats().Process.Panics.Value(); got < uint64(i+1) {
			t.Errorf("case %d: %d panics are counted", i, got)
		}
	}
	f := framer(t, port)
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82, 0x86, 0x84, 0x41, 1, 'x'}, EndHeaders: true})
	before := r.Stats().Process.Panics.Value()
	only(func(c *conn) { c.user = bomb{user: c.user}; c.again() })
	for {
		if _, err := f.ReadFrame(); err != nil {
			break
		}
	}
	if r.Stats().Process.Panics.Value() == before {
		t.Error("HTTP/2: no panic is counted")
	}
	if code, body, _ := get(t, other, url); code != 200 || body != "done" {
		t.Errorf("another connection: %d %q", code, body)
	}
	if log := r.log.String(); !strings.Contains(log, "panic=boom") || !strings.Contains(log, "panic_test.go") {
		t.Errorf("no panic with its stack in the log:\n%s", log)
	}
	eventually(t, "all has ended", func() bool {
		other.CloseIdleConnections()
		return r.Hosts("b")[0].RqActive <= 1 // the one whose end panicked as well
	})
}

type nilSource struct{ source }
