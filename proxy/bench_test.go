package proxy

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// wire is a client and a backend that allocate nothing, so that what is allocated is the proxy's.
type wire struct {
	c        net.Conn
	req, buf []byte
	n        int // length of a response
}

func newWire(t testing.TB) *wire {
	t.Helper()
	answer := []byte("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello")
	server := tcpServer(t, func(c net.Conn) {
		buf := make([]byte, 4096)
		for { // each request comes in one piece
			if _, err := c.Read(buf); err != nil {
				return
			}
			c.Write(answer)
		}
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), fmt.Sprintf(testLog, "/dev/null")), clusterYAML("c", "", server)), nil)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	w := &wire{c: c, buf: make([]byte, 4096), req: []byte("GET /hello HTTP/1.1\r\nHost: helloworld:5000\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n")}
	c.Write(w.req)
	if w.n, err = c.Read(w.buf); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wire) request(t testing.TB) {
	if _, err := w.c.Write(w.req); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(w.c, w.buf[:w.n]); err != nil {
		t.Fatal(err)
	}
}

// TestAllocations: a request allocates nothing.
func TestAllocations(t *testing.T) {
	w := newWire(t)
	for range 200 {
		w.request(t)
	}
	const n = 2000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		w.request(t)
	}
	runtime.ReadMemStats(&after)
	// What runs once a second beside the requests allocates a little.
	if got := float64(after.Mallocs-before.Mallocs) / n; got > 0.5 {
		t.Errorf("%.2f allocations for each request", got)
	}
}

func BenchmarkHTTP1(b *testing.B) {
	w := newWire(b)
	b.ReportAllocs()
	for b.Loop() {
		w.request(b)
	}
}
