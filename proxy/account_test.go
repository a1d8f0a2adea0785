package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// on runs f on each loop and waits for it.
func (r *rig) on(f func(w *worker)) {
	r.t.Helper()
	for _, w := range r.workers {
		done := make(chan struct{})
		if !w.loop.Post(func() { defer close(done); f(w) }) {
			r.t.Fatal("the loop has ended")
		}
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			r.t.Fatal("a loop does not turn")
		}
	}
}

// holding returns what the account says is held, without the connections themselves, and whether it is
// the sum of what is there.
func (r *rig) holding() (n int, right bool) {
	right = true
	r.on(func(w *worker) {
		sum := 0
		for c := range w.conns {
			was := c.size
			c.measure()
			right = right && was == c.size
			sum += c.holds()
			n -= connSize
			if c.tls != nil {
				n -= tlsSize
			}
		}
		n += w.account.held
		right = right && sum == w.account.held
	})
	return n, right
}

// TestAccount: after traffic of all kinds, connections that ended well and not, the account holds what
// the connections that are left hold, and that is next to nothing.
func TestAccount(t *testing.T) {
	app := bothBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/cut":
			panic(http.ErrAbortHandler)
		case "/early":
			return
		}
		n, _ := io.Copy(w, r.Body)
		fmt.Fprint(w, n, strings.Repeat("x", 100_000))
	})
	routes := `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /h2}
    route: {cluster: h2, request_mirror_policies: [{cluster: h1}]}
  - match: {prefix: /}
    route: {cluster: h1, retry_policy: {retry_on: 5xx, num_retries: 2}}
`
	port, tcp := freePort(t), freePort(t)
	r := start(t, bootstrap(httpListener(port, routes, "")+tcpListener(tcp, "h1", ""),
		clusterYAML("h1", "", app)+clusterYAML("h2", speaking(speakH2), app)), nil)
	for _, c := range []*http.Client{{Transport: &http.Transport{}}, h2Client()} {
		for _, path := range []string{"/a", "/h2", "/cut", "/early", "/none"} {
			for _, size := range []int{0, 10, 200_000, 2 << 20} {
				resp, err := c.Post(fmt.Sprintf("http://127.0.0.1:%d%s", port, path), "text/plain", bytes.NewReader(make([]byte, size)))
				if err == nil {
					io.CopyN(io.Discard, resp.Body, 50_000)
					resp.Body.Close() // what is left of it is not taken
				}
			}
		}
		c.CloseIdleConnections()
	}
	for _, in := range []string{"GET /a HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1\r\n\r\n", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx"} {
		for _, p := range []int{port, tcp} {
			c := connect(t, p)
			io.WriteString(c, in)
			c.Close()
		}
	}
	eventually(t, "nothing is held", func() bool {
		n, right := r.holding()
		streams := 0
		r.on(func(w *worker) {
			for c := range w.conns {
				streams += c.streams
			}
		})
		return right && n < 64<<10 && streams == 0 && r.Connections() == 0
	})
}

// TestOverload: a worker at its bound refuses requests, TCP sessions and then connections, with counters;
// work that has begun goes on, and when there is room again all is served.
func TestOverload(t *testing.T) {
	release := make(chan struct{})
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-release
		}
		io.WriteString(w, "done")
	})
	port, tcp := freePort(t), freePort(t)
	r := &rig{t: t, log: &lockedBuffer{}}
	startWith(t, r, Options{Concurrency: 1, Memory: 1 << 20})
	r.apply(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "")+tcpListener(tcp, "b", ""), clusterYAML("b", "", app)))
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	var held, done atomic.Int64
	pad := http.Header{"X-Pad": {strings.Repeat("p", 40_000)}}
	refused := ""
	for i := 0; i < 100 && refused == ""; i++ {
		req, _ := http.NewRequest("GET", url+"/hold", nil)
		req.Header = pad
		answer := make(chan string, 1)
		held.Add(1)
		go func() {
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				answer <- err.Error()
				return
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == 200 {
				done.Add(1)
			}
			answer <- fmt.Sprint(resp.StatusCode, " ", string(b))
		}()
		// It is held, or refused.
		eventually(t, "the request is held or refused", func() bool {
			select {
			case refused = <-answer:
				held.Add(-1)
				return true
			default:
				return r.Hosts("b")[0].RqActive == held.Load()
			}
		})
	}
	if refused != "503 envoy overloaded" {
		t.Fatalf("%d requests are held, then %q", held.Load(), refused)
	}
	s := r.Stats().HTTP("test").Shard(0)
	if s.RqOverload.Value() != 1 {
		t.Errorf("%d requests are counted as refused", s.RqOverload.Value())
	}
	cs := []net.Conn{}
	for i, p := range []int{tcp, port} { // TCP sessions are refused at the bound of requests
		l := r.Stats().Listener(r.Config().Listeners[1-i].StatName).Shard(0)
		eventually(t, "connections are refused", func() bool {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p))
			if err != nil {
				return false
			}
			cs = append(cs, c)
			return l.CxOverload.Value() > 0
		})
	}
	r.on(func(w *worker) {
		if w.account.held > w.account.limit+connSize {
			t.Errorf("%d bytes are held, the bound is %d", w.account.held, w.account.limit)
		}
	})
	for _, c := range cs {
		c.Close()
	}
	close(release)
	eventually(t, "what was held is answered", func() bool { return done.Load() == held.Load() })
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	eventually(t, "new requests are served", func() bool {
		resp, err := http.Get(url + "/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
	if _, right := r.holding(); !right {
		t.Error("the account is not the sum of its parts")
	}
}

// TestLargeBodiesRepeat: bodies up to the buffer limit are sent again and mirrored, larger ones once.
func TestLargeBodiesRepeat(t *testing.T) { engines(t, testLargeBodiesRepeat) }

func testLargeBodiesRepeat(t *testing.T, run func(string)) {
	var tries atomic.Int64
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if tries.Add(1)%2 == 1 {
			w.WriteHeader(503)
		}
		fmt.Fprint(w, n)
	})
	mirrored := make(chan int64, 10)
	mirror := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		mirrored <- n
	})
	port := freePort(t)
	run(bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /}
    route: {cluster: b, retry_policy: {retry_on: 5xx, num_retries: 1}, request_mirror_policies: [{cluster: m}]}
`, ""), clusterYAML("b", "", app)+clusterYAML("m", "", mirror)))
	for _, c := range []struct {
		size, status int
		mirrored     bool
	}{{100_000, 200, true}, {900_000, 200, true}, {3_000_000, 503, false}} {
		tries.Store(0)
		resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/", port), "text/plain", bytes.NewReader(make([]byte, c.size)))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || string(b) != fmt.Sprint(c.size) {
			t.Errorf("%d bytes: %d %q", c.size, resp.StatusCode, b)
		}
		if !c.mirrored {
			continue
		}
		select {
		case n := <-mirrored:
			if n != int64(c.size) {
				t.Errorf("%d bytes are mirrored as %d", c.size, n)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%d bytes are not mirrored", c.size)
		}
	}
}

// TestConnectionLimit: of the connections that the bootstrap allows, one more is closed and counted, but
// not where the listener is exempt.
func TestConnectionLimit(t *testing.T) {
	app := backend(t, func(http.ResponseWriter, *http.Request) {})
	port, free := freePort(t), freePort(t)
	r := &rig{t: t, log: &lockedBuffer{}}
	startWith(t, r, Options{Concurrency: 2, Connections: 3})
	exempt := strings.Replace(httpListener(free, fmt.Sprintf(allTo, "b"), ""), "    address:", "    ignore_global_conn_limit: true\n    address:", 1)
	r.apply(bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "")+exempt, clusterYAML("b", "", app)))
	served := func(port int) (net.Conn, bool) {
		c := connect(t, port)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		n, _ := c.Read(make([]byte, 1000))
		return c, n > 0
	}
	var first net.Conn
	for i := range 3 {
		c, ok := served(port)
		if first = c; !ok {
			t.Fatalf("connection %d is refused", i)
		}
	}
	if _, ok := served(port); ok {
		t.Error("the fourth connection is served")
	}
	c, ok := served(free)
	if !ok {
		t.Error("a connection of the exempt listener is refused")
	}
	c.Close()
	var refused uint64
	r.on(func(w *worker) {
		for _, l := range r.Config().Listeners {
			refused += r.Stats().Listener(l.StatName).Shard(w.idx).CxGlobalOverflow.Value()
		}
	})
	if refused != 1 {
		t.Errorf("%d connections are counted as refused", refused)
	}
	first.Close()
	eventually(t, "there is room again", func() bool { _, ok := served(port); return ok })
}
