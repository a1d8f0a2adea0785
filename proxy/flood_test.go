package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// mostRSS is how much the process, which is the hostile clients too, may grow in a case.
	mostRSS = 64 << 20
	// mostHeld is how much the account may hold.
	mostHeld = 24 << 20
)

// victim is what a case of abuse is aimed at: a proxy, beside which another client sends requests.
type victim struct {
	*rig
	t              *testing.T
	http, tls, tcp int // ports
	conns          []net.Conn
}

// abuse runs the cases one after the other, each on a proxy of its own with one loop, and watches what it
// takes.
func abuse(t *testing.T, cases []abuser) {
	ca := newAuthority(t, "Root CA")
	secrets := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/default"), roots: ca.roots()}
	app := bothBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/endless"):
			b := make([]byte, 64<<10)
			for {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		default:
			io.WriteString(w, "ok")
		}
	})
	stuck, chatter := deaf(t), talker(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			v := &victim{rig: &rig{t: t, log: &lockedBuffer{}}, t: t, http: freePort(t), tls: freePort(t), tcp: freePort(t)}
			startWith(t, v.rig, Options{Concurrency: 1, Secrets: secrets})
			v.apply(bootstrap(httpListener(v.http, fmt.Sprintf(abused, strings.Repeat("k", 4000)), "")+tcpListener(v.tcp, "stuck", "")+inbound(v.tls, app, "/dev/null"),
				clusterYAML("up", manyMay, app)+clusterYAML("h2", manyMay+speaking(speakH2), app)+clusterYAML("stuck", manyMay, stuck)+
					clusterYAML("hole", manyMay, hole(t))+clusterYAML("chatter", manyMay, chatter)+clusterYAML("inbound", "", app)))
			debug.FreeOSMemory()
			w := v.watch()
			defer w.end() // if the case gives up
			c.run(v)
			held, rss, answers := w.end()
			for _, c := range v.conns {
				reset(c)
			}
			t.Logf("the account held %d KiB, the process grew by %d KiB, the other client got %d answers", held>>10, rss>>10, answers)
			if rss > mostRSS {
				t.Errorf("the process grew by %d MiB, more than %d", rss>>20, mostRSS>>20)
			}
			if held > mostHeld {
				t.Errorf("%d MiB were held, more than %d", held>>20, mostHeld>>20)
			}
			if n := v.Stats().Process.Panics.Value(); n > 0 {
				t.Errorf("%d panics", n)
			}
			var left int
			var right bool
			defer func() {
				if t.Failed() {
					t.Logf("%d bytes are left, the account is the sum of its parts: %v", left, right)
				}
			}()
			eventually(t, "all is given back", func() bool {
				left, right = v.holding()
				return left < 64<<10 && right
			})
		})
	}
}

// deaf is an upstream that reads nothing and answers nothing.
func deaf(t *testing.T) string {
	return tcpServer(t, func(c net.Conn) {
		c.(*net.TCPConn).SetReadBuffer(4 << 10)
		time.Sleep(time.Minute)
	})
}

// talker is an upstream whose head, trailers or informational answers do not end.
func talker(t *testing.T) string {
	return tcpServer(t, func(c net.Conn) {
		b := make([]byte, 4096)
		n, _ := c.Read(b)
		line := "HTTP/1.1 100 Continue\r\n\r\n"
		switch {
		case bytes.Contains(b[:n], []byte("/head")):
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			line = "x: " + strings.Repeat("y", 100) + "\r\n"
		case bytes.Contains(b[:n], []byte("/trailers")):
			io.WriteString(c, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
			line = "x: " + strings.Repeat("y", 100) + "\r\n"
		}
		lines := []byte(strings.Repeat(line, 100))
		for range 5000 {
			if _, err := c.Write(lines); err != nil {
				return
			}
		}
	})
}

type abuser struct {
	name string
	run  func(v *victim)
}

const manyMay = "circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}\n"

const abused = `
- name: all
  domains: ["*"]
  routes:
  - match: {path: /ok}
    direct_response: {status: 200, body: {inline_string: ok}}
  - match: {path: /k4}
    direct_response: {status: 200, body: {inline_string: "%s"}}
  - match: {path: /moved}
    redirect: {host_redirect: elsewhere}
  - match: {prefix: /up}
    route: {cluster: up, timeout: 0s}
  - match: {prefix: /endless}
    route: {cluster: up, timeout: 0s}
  - match: {prefix: /h2}
    route: {cluster: h2, timeout: 0s, prefix_rewrite: /endless}
  - match: {prefix: /stuck}
    route: {cluster: stuck, timeout: 0s}
  - match: {prefix: /hole}
    route: {cluster: hole, timeout: 0s, max_grpc_timeout: 0s}
  - match: {prefix: /again}
    route: {cluster: hole, timeout: 0s, retry_policy: {retry_on: 5xx}}
  - match: {prefix: /mirrored}
    route: {cluster: up, timeout: 1s, request_mirror_policies: [{cluster: stuck}]}
  - match: {prefix: /chatter}
    route: {cluster: chatter, timeout: 5s}
`

// watcher samples memory and is the other client.
type watcher struct {
	v         *victim
	stop      chan struct{}
	once      sync.Once
	wg        sync.WaitGroup
	held, rss atomic.Int64
	answers   atomic.Int64
}

func rss(t testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	var size, resident int64
	if err == nil {
		_, err = fmt.Sscan(string(b), &size, &resident)
	}
	if err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

func (v *victim) watch() *watcher {
	w := &watcher{v: v, stop: make(chan struct{})}
	idle := rss(v.t)
	client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
	ask := func() error {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/ok", v.http))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(b) != "ok" {
			return fmt.Errorf("%d %q %v", resp.StatusCode, b, err)
		}
		return nil
	}
	w.wg.Go(func() {
		defer client.CloseIdleConnections()
		for last := false; !last; {
			select {
			case <-w.stop:
				last = true // one more, after all that was sent
			case <-time.After(5 * time.Millisecond):
			}
			held := make(chan int, 1)
			v.workers[0].loop.Post(func() { held <- v.workers[0].account.held })
			if err := ask(); err != nil { // by another connection than the abuse
				v.t.Errorf("another client: %v", err)
				return
			}
			w.answers.Add(1)
			w.held.Store(max(w.held.Load(), int64(<-held)))
			w.rss.Store(max(w.rss.Load(), rss(v.t)-idle))
		}
	})
	return w
}

func (w *watcher) end() (held, grown, answers int64) {
	w.once.Do(func() { close(w.stop) })
	w.wg.Wait()
	return w.held.Load(), w.rss.Load(), w.answers.Load()
}

// dial opens a connection with a small receive buffer, closed at the end of the case.
func (v *victim) dial(port int) net.Conn {
	d := net.Dialer{Timeout: 20 * time.Second}
	c, err := d.DialContext(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		v.t.Fatal(err)
	}
	c.(*net.TCPConn).SetReadBuffer(4 << 10)
	v.conns = append(v.conns, c)
	return c
}

// pour writes b again and again until the peer takes no more for a while, or ends, or so much has gone.
func pour(c net.Conn, b []byte, most int) (stopped bool) {
	for n := 0; n < most; n += len(b) {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := c.Write(b); err != nil {
			return true
		}
	}
	return false
}

// send writes b once, as far as it goes.
func send(c net.Conn, b []byte) {
	c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	c.Write(b)
}

// drainFrom reads what comes, in the background.
func drainFrom(c net.Conn) { go io.Copy(io.Discard, c) }

// h2 opens an HTTP/2 connection with these settings.
func (v *victim) h2(settings ...byte) net.Conn {
	c := v.dial(v.http)
	send(c, append([]byte(http2.ClientPreface), append(frame(4, 0, 0, settings), frame(4, 1, 0, nil)...)...))
	return c
}

// frame is an HTTP/2 frame.
func frame(kind, flags byte, stream uint32, p []byte) []byte {
	b := append([]byte{byte(len(p) >> 16), byte(len(p) >> 8), byte(len(p)), kind, flags}, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[5:], stream)
	return append(b, p...)
}

// ask is a request's HEADERS frame, with more fields.
func ask(stream uint32, path string, end bool, more ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	method := "GET"
	if !end {
		method = "POST"
	}
	fields := append([]string{":method", method, ":scheme", "http", ":authority", "x", ":path", path}, more...)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true})
	}
	flags := byte(4)
	if end {
		flags |= 1
	}
	return frame(1, flags, stream, b.Bytes())
}

// each is n frames or groups of frames, made for the streams from first on.
func each(first uint32, n int, f func(stream uint32) []byte) (b []byte) {
	for i := range uint32(n) {
		b = append(b, f(first+2*i)...)
	}
	return b
}

// reset ends a connection at once. An orderly end would wait in this machine's kernel behind what the proxy does
// not take.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}
