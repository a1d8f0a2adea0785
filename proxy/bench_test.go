package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
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

// largeAnswer is the length of the body that largeAnswers gets, in bytes.
const largeAnswer = 100 << 10

// betweenSidecars are the protocols that largeAnswers has between its two sidecars.
var betweenSidecars = []struct{ name, speak, alpn string }{
	{"HTTP1", `explicit_http_config: {http_protocol_options: {}}`, "istio-http/1.1, istio, http/1.1"},
	{"HTTP2", speakH2, "istio-h2, istio, h2"},
}

// largeAnswers starts an application and two sidecars before it, with mutual TLS between them. Each call
// of dial connects to the first, and each of the function that it returns gets an answer.
func largeAnswers(t testing.TB, speak, alpn string) (dial func() (get func() error)) {
	t.Helper()
	answer := append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n", largeAnswer), make([]byte, largeAnswer)...)
	app := tcpServer(t, func(c net.Conn) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			c.Write(answer)
		}
	})
	ca := newAuthority(t, "Root CA")
	s := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/default"), roots: ca.roots()}
	in, out := freePort(t), freePort(t)
	start(t, bootstrap(inbound(in, app, "/dev/null"), clusterYAML("inbound", "", app)), s)
	start(t, bootstrap(httpListener(out, fmt.Sprintf(allTo, "c"), ""),
		clusterYAML("c", speaking(speak)+"\n"+mutualTLS("Upstream", alpn, peerSAN, "sni: a"), fmt.Sprintf("127.0.0.1:%d", in))), s)
	return func() func() error {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", out))
		if err != nil {
			return func() error { return err }
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		buf := make([]byte, 2*largeAnswer)
		return func() error {
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
				return err
			}
			n, end := 0, 0
			for end == 0 || n < end {
				m, err := c.Read(buf[n:])
				if err != nil {
					return fmt.Errorf("%w after %d bytes", err, n)
				}
				n += m
				if i := bytes.Index(buf[:min(n, 4096)], []byte("\r\n\r\n")); end == 0 && i > 0 {
					end = i + 4 + largeAnswer
				}
			}
			if n > end || !bytes.HasPrefix(buf, []byte("HTTP/1.1 200 ")) {
				return fmt.Errorf("%d bytes for %d: %.100q", n, end, buf)
			}
			return nil
		}
	}
}

// TestLargeAllocations: buffers are used again, whatever the protocol between sidecars: many answers at
// once allocate little.
func TestLargeAllocations(t *testing.T) {
	for _, v := range betweenSidecars {
		t.Run(v.name, func(t *testing.T) {
			dial := largeAnswers(t, v.speak, v.alpn)
			var gets []func() error
			for range 16 {
				gets = append(gets, dial())
			}
			round := func(each int) {
				var wg sync.WaitGroup
				for _, get := range gets {
					wg.Go(func() {
						for range each {
							if err := get(); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			}
			round(20)
			const each = 40
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			round(each)
			runtime.ReadMemStats(&after)
			if got := (after.TotalAlloc - before.TotalAlloc) / uint64(each*len(gets)); got > largeAnswer/2 {
				t.Errorf("%d bytes allocated for each answer of %d", got, largeAnswer)
			}
		})
	}
}

// BenchmarkLargeAnswers is answers of 100 KB from one sidecar to another, to 16 clients at once. CPU is
// that of the whole process: clients and application too.
func BenchmarkLargeAnswers(b *testing.B) {
	for _, v := range betweenSidecars {
		b.Run(v.name, func(b *testing.B) {
			dial := largeAnswers(b, v.speak, v.alpn)
			b.SetBytes(largeAnswer)
			b.SetParallelism((16 + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.ReportAllocs()
			before := cpu()
			b.RunParallel(func(pb *testing.PB) {
				get := dial()
				for pb.Next() {
					if err := get(); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// cpu returns the user and system time that the process has spent.
func cpu() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
