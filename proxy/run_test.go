package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func tcpListener(port int, cluster, more string) string {
	return fmt.Sprintf(`
  - name: t%[1]d
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: x
          cluster: %[2]s
%[3]s
`, port, cluster, indent(more, 10))
}

// echo is a TCP server that answers when the client has ended: the number of bytes and their hash,
// then all of them again.
func echo(t *testing.T) string {
	return tcpServer(t, func(c net.Conn) {
		b, err := io.ReadAll(c)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%08d%x", len(b), sha256.Sum256(b))
		c.Write(b)
	})
}

// TestTCP: half-close, small and bulk data (copied and spliced) both ways, with the log's byte counts.
func TestTCP(t *testing.T) { engines(t, testTCP) }

func testTCP(t *testing.T, run func(yaml string)) {
	addr := echo(t)
	port, dead := freePort(t), freePort(t)
	logFile := filepath.Join(t.TempDir(), "log")
	run(bootstrap(tcpListener(port, "b", fmt.Sprintf(`
access_log:
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: %s
    log_format: {text_format_source: {inline_string: "%%BYTES_RECEIVED%% %%BYTES_SENT%% %%RESPONSE_FLAGS%% %%UPSTREAM_HOST%%\n"}}
`, logFile))+tcpListener(dead, "dead", ""), clusterYAML("b", "", addr)+clusterYAML("dead", "", fmt.Sprintf("127.0.0.1:%d", freePort(t)))))
	for _, n := range []int{0, 1, 70_000, 20 << 20} {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, n)
		for i := 0; i+8 < n; i += 1000 {
			b[i] = byte(rand.Uint32())
		}
		go func() {
			c.Write(b)
			c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		c.Close()
		want := fmt.Sprintf("%08d%x", n, sha256.Sum256(b))
		if err != nil || !bytes.HasPrefix(got, []byte(want)) || !bytes.Equal(got[len(want):], b) {
			t.Fatalf("%d bytes: got %d back, error %v, %.80q", n, len(got), err, got)
		}
		line := fmt.Sprintf("%d %d - %s\n", n, n+len(want), addr)
		eventually(t, "log line "+line, func() bool {
			b, _ := os.ReadFile(logFile)
			return strings.Contains("\n"+string(b), "\n"+line)
		})
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", dead))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("no upstream: %q", b)
	}
}

// TestTCPThroughTLS: TCP with bulk over a TLS hop between two proxies.
func TestTCPThroughTLS(t *testing.T) {
	addr := echo(t)
	ca := newAuthority(t, "Root CA")
	s := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/default"), roots: ca.roots()}
	in, out := freePort(t), freePort(t)
	start(t, bootstrap(inbound(in, addr, filepath.Join(t.TempDir(), "log")), clusterYAML("inbound", "", addr)), s)
	start(t, bootstrap(tcpListener(out, "r", ""), clusterYAML("r", mutualTLS("Upstream", "istio", peerSAN, "sni: a"), fmt.Sprintf("127.0.0.1:%d", in))), s)
	for _, n := range []int{0, 1, 100_000, 5 << 20} {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", out))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := bytes.Repeat([]byte{byte(n)}, n)
		go func() {
			c.Write(b)
			c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		c.Close()
		want := fmt.Sprintf("%08d%x", n, sha256.Sum256(b))
		if err != nil || !bytes.HasPrefix(got, []byte(want)) || !bytes.Equal(got[len(want):], b) {
			t.Fatalf("%d bytes: got %d back, error %v, %.80q", n, len(got), err, got)
		}
	}
}

// TestSwap changes the configuration again and again under load; no request may be lost.
func TestSwap(t *testing.T) {
	a := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); io.WriteString(w, "a") })
	b := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); io.WriteString(w, "b") })
	port, extra := freePort(t), freePort(t)
	configs := []string{
		bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", a)),
		bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", a, b)),
		bootstrap(httpListener(port, fmt.Sprintf(allTo, "d"), "server_name: other")+httpListener(extra, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", a)+clusterYAML("d", "lb_policy: LEAST_REQUEST", b, a)),
	}
	r := start(t, configs[0], nil)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var n, fails atomic.Int64
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := client.Post(fmt.Sprintf("http://127.0.0.1:%d/", port), "text/plain", strings.NewReader("body"))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if err != nil || resp.StatusCode != 200 {
					fails.Add(1)
					t.Errorf("%v %v", resp, err)
					return
				}
				n.Add(1)
			}
		}()
	}
	for i := range 60 {
		r.apply(configs[(i+1)%len(configs)])
		before := n.Load()
		eventually(t, "requests", func() bool { return n.Load() > before+20 || fails.Load() > 0 })
	}
	close(stop)
	wg.Wait()
	// The extra listener is gone with its configuration.
	r.apply(configs[0])
	eventually(t, "closed listener", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", extra))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if code, _, h := get(t, client, fmt.Sprintf("http://127.0.0.1:%d/", port)); code != 200 || h.Get("Server") != "envoy" {
		t.Errorf("an old connection does not take up the new configuration: %d %v", code, h)
	}
}

func TestDrain(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	free := func() { once.Do(func() { close(release) }) }
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-release
		}
		io.WriteString(w, "done")
	})
	t.Cleanup(free) // before the server's
	port := freePort(t)
	r := &rig{t: t, log: &lockedBuffer{}}
	startWith(t, r, Options{Concurrency: 2, DrainTime: 100 * time.Millisecond})
	r.apply(bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", app)))
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	idle := &http.Client{Transport: &http.Transport{}}
	get(t, idle, url+"/")
	type answer struct {
		resp *http.Response
		body string
		err  error
	}
	slow := make(chan answer)
	go func() {
		resp, err := http.Get(url + "/slow")
		var b []byte
		if err == nil {
			b, err = io.ReadAll(resp.Body)
		}
		slow <- answer{resp, string(b), err}
	}()
	eventually(t, "two connections", func() bool { return r.Connections() == 2 && r.Hosts("c")[0].RqActive == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	drained := make(chan struct{})
	go func() { r.Drain(ctx); close(drained) }()
	eventually(t, "the idle connection closes", func() bool { return r.Connections() == 1 })
	if _, _, h := get(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: false}}, url+"/"); h.Get("Server") == "" {
		t.Error("a new connection is not served while draining")
	}
	free()
	a := <-slow
	if a.err != nil || a.body != "done" || !a.resp.Close {
		t.Errorf("%q %v, Connection: close is %v", a.body, a.err, a.resp != nil && a.resp.Close)
	}
	<-drained
	if ctx.Err() != nil || r.Connections() != 0 {
		t.Errorf("drain: %v, %d connections", ctx.Err(), r.Connections())
	}
}

func TestBalance(t *testing.T) {
	var seen [3]atomic.Int64
	var addrs []string
	for i := range seen {
		addrs = append(addrs, backend(t, func(http.ResponseWriter, *http.Request) { seen[i].Add(1) }))
	}
	for _, c := range []struct {
		policy string
		want   [3]float64 // share
		slack  float64
	}{
		{"lb_policy: ROUND_ROBIN", [3]float64{1. / 3, 1. / 3, 1. / 3}, .02},
		{"lb_policy: RANDOM", [3]float64{1. / 3, 1. / 3, 1. / 3}, .12},
		{"lb_policy: LEAST_REQUEST", [3]float64{1. / 3, 1. / 3, 1. / 3}, .12},
	} {
		for i := range seen {
			seen[i].Store(0)
		}
		port := freePort(t)
		start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", c.policy, addrs...)), nil)
		for range 300 {
			get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", port))
		}
		for i := range seen {
			if got := float64(seen[i].Load()) / 300; got < c.want[i]-c.slack || got > c.want[i]+c.slack {
				t.Errorf("%s: host %d got %.3f", c.policy, i, got)
			}
		}
	}
	// Weights.
	for i := range seen {
		seen[i].Store(0)
	}
	port := freePort(t)
	y := clusterYAML("c", "", addrs...)
	for i := range addrs {
		y = strings.Replace(y, fmt.Sprintf("port_value: %s}}}\n", addrs[i][strings.LastIndex(addrs[i], ":")+1:]), fmt.Sprintf("port_value: %s}}}\n          load_balancing_weight: %d\n", addrs[i][strings.LastIndex(addrs[i], ":")+1:], i+1), 1)
	}
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), y), nil)
	for range 300 {
		get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", port))
	}
	for i := range seen {
		if got, want := seen[i].Load(), int64(50*(i+1)); got < want-5 || got > want+5 {
			t.Errorf("weight %d: %d of 300", i+1, got)
		}
	}
}

// TestSlowStart: a new host gets a tenth of its share beside one that is not new.
func TestSlowStart(t *testing.T) {
	var seen [2]atomic.Int64
	var addrs []string
	for i := range seen {
		addrs = append(addrs, backend(t, func(http.ResponseWriter, *http.Request) { seen[i].Add(1) }))
	}
	for _, policy := range []string{"lb_policy: ROUND_ROBIN\nround_robin_lb_config:", "lb_policy: LEAST_REQUEST\nleast_request_lb_config:"} {
		port := freePort(t)
		r := start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", policy+" {slow_start_config: {slow_start_window: 3600s}}", addrs...)), nil)
		c := r.snap.Load().clusters["c"]
		c.mu.Lock()
		for _, h := range c.hosts {
			if h.addr.String() == addrs[0] {
				h.born = h.born.Add(-2 * time.Hour)
			}
		}
		c.epoch.Add(1)
		c.mu.Unlock()
		for i := range seen {
			seen[i].Store(0)
		}
		for range 220 {
			get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", port))
		}
		if n := seen[1].Load(); n < 12 || n > 28 {
			t.Errorf("%s: the new host got %d of 220 requests, want about 20", policy, n)
		}
	}
}

// TestRetryPriorities: with the extension of previous priorities a retry leaves the priority that failed.
func TestRetryPriorities(t *testing.T) { engines(t, testRetryPriorities) }

func testRetryPriorities(t *testing.T, run func(yaml string)) {
	var tries atomic.Int64
	bad := func(w http.ResponseWriter, r *http.Request) { tries.Add(1); w.WriteHeader(503) }
	a, b := backend(t, bad), backend(t, bad)
	good := backend(t, func(w http.ResponseWriter, r *http.Request) {})
	port := freePort(t)
	y := clusterYAML("c", "", a, b) + fmt.Sprintf("      - priority: 1\n        lb_endpoints:\n        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}\n", good[strings.LastIndex(good, ":")+1:])
	routes := fmt.Sprintf(allTo, `c, retry_policy: {retry_on: "5xx", num_retries: 1, retry_priority: {name: envoy.retry_priorities.previous_priorities, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 1}}}`)
	run(bootstrap(httpListener(port, routes, ""), y))
	for range 20 {
		if code, _, _ := get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", port)); code != 200 {
			t.Fatalf("%d", code)
		}
	}
	if tries.Load() != 20 {
		t.Errorf("%d tries in the first priority, want 20", tries.Load())
	}
}

// TestBufferLimit: less may wait for a connection than by default, never more.
func TestBufferLimit(t *testing.T) {
	c := &conn{}
	c.limit(1000)
	if c.out = make([]byte, 1000); c.isFull() {
		t.Error("full at the limit")
	}
	if c.out = make([]byte, 1001); !c.isFull() {
		t.Error("not full above the limit")
	}
	if c.limit(1 << 20); c.high != highWater {
		t.Errorf("limit %d", c.high)
	}
}

// TestOutlier: a host that fails is left out, as Istio's outlierDetection asks.
func TestOutlier(t *testing.T) { engines(t, testOutlier) }

func testOutlier(t *testing.T, run func(yaml string)) {
	var bad atomic.Int64
	b := backend(t, func(w http.ResponseWriter, r *http.Request) { bad.Add(1); w.WriteHeader(500) })
	g := backend(t, func(w http.ResponseWriter, r *http.Request) {})
	port := freePort(t)
	run(bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""),
		clusterYAML("c", "outlier_detection: {consecutive_5xx: 3, interval: 1s, base_ejection_time: 60s, max_ejection_percent: 50}", b, g)))
	for range 100 {
		get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", port))
	}
	most := int64(3)
	if strings.HasSuffix(t.Name(), "/envoy") { // its workers hear of an ejection from its main thread
		most = 20
	}
	if n := bad.Load(); n < 3 || n > most {
		t.Errorf("the failing host got %d requests of 100, want 3 to %d", n, most)
	}
}

// TestGatewayConnections: requests in turn over few connections still reach all pods behind a
// passthrough gateway, which balances connections.
func TestGatewayConnections(t *testing.T) {
	var conns atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(c net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	port := freePort(t)
	y := clusterYAML("c", "", s.Listener.Addr().String())
	y = strings.Replace(y, "}}}\n", "}}}\n          load_balancing_weight: 2\n          metadata: {filter_metadata: {istio: {workload: \";;;;cluster2\"}}}\n", 1)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), y), nil)
	for range 200 {
		get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/", port))
	}
	if n := conns.Load(); n < 6 || n > 40 {
		t.Errorf("%d connections for 200 requests", n)
	}
}

// TestListenerComesBack takes a listener away and brings it back at once; it is never refused.
func TestListenerComesBack(t *testing.T) {
	port, other := freePort(t), freePort(t)
	without := bootstrap(httpListener(other, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", ""))
	with := bootstrap(httpListener(other, fmt.Sprintf(allTo, "c"), "")+httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", ""))
	r := start(t, with, nil)
	for range 200 {
		r.apply(without)
		r.apply(with)
	}
}

// TestUnix: unix sockets on both sides.
func TestUnix(t *testing.T) {
	dir := t.TempDir()
	up, down := filepath.Join(dir, "up"), filepath.Join(dir, "down")
	l, err := net.Listen("unix", up)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "unix") })}
	go s.Serve(l)
	defer s.Close()
	y := strings.Replace(httpListener(1, fmt.Sprintf(allTo, "c"), ""), "{socket_address: {address: 127.0.0.1, port_value: 1}}", "{pipe: {path: "+down+", mode: 432}}", 1)
	cluster := strings.Replace(clusterYAML("c", "", "1.1.1.1:1"), `{socket_address: {address: "1.1.1.1", port_value: 1}}`, "{pipe: {path: "+up+"}}", 1)
	start(t, bootstrap(y, cluster), nil)
	if st, err := os.Stat(down); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("the socket has mode %v (%v), want -rw-rw----", st.Mode(), err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", down)
	}}}
	for range 3 {
		if code, body, _ := get(t, client, "http://a/"); code != 200 || body != "unix" {
			t.Errorf("%d %q", code, body)
		}
	}
}

// TestStaleConnection: a request on a connection that the host is just closing goes to another
// connection, unless it may not be repeated.
func TestStaleConnection(t *testing.T) {
	var n atomic.Int64
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if n.Add(1)%2 == 0 { // the second on each connection
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
		}
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", app)), nil)
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	one := &http.Client{Transport: &http.Transport{}} // one connection, so one loop
	for range 10 {
		if code, body, _ := get(t, one, url); code != 200 {
			t.Fatalf("GET: %d %q", code, body)
		}
	}
	failed := 0
	for range 4 {
		resp, err := one.Post(url, "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 503 {
			failed++
		}
	}
	if failed == 0 {
		t.Error("a POST was repeated")
	}
}

// TestLargeAnswers: head and body arrive whole and in order at a client with little room for them.
func TestLargeAnswers(t *testing.T) {
	body := make([]byte, 8<<20)
	for i := range body {
		body[i] = byte(rand.Uint32())
	}
	app := backend(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Path[1:])
		if r.URL.RawQuery == "length" {
			w.Header().Set("Content-Length", strconv.Itoa(n))
		}
		w.Write(body[:n])
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", app)), nil)
	small := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(32 << 10)
		}
		return c, err
	}}}
	for _, n := range []int{0, 1, direct - 1, direct, direct + 1, 40_000, 70_000, 100 << 10, 2 << 20} {
		for _, how := range []string{"length", "chunked"} {
			_, got, h := get(t, small, fmt.Sprintf("http://127.0.0.1:%d/%d?%s", port, n, how))
			if got != string(body[:n]) || h.Get("Server") != "envoy" {
				t.Errorf("%d bytes, %s: got %d, not the same", n, how, len(got))
			}
		}
	}
}
