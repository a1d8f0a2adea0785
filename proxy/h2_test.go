package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// speaking makes a cluster speak to its hosts: "http2_protocol_options" or "http_protocol_options".
func speaking(how string) string {
	return `typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    ` + how
}

const (
	speakH2         = `explicit_http_config: {http2_protocol_options: {}}`
	speakDownstream = `use_downstream_protocol_config: {http_protocol_options: {enable_trailers: true}, http2_protocol_options: {}}`
)

// h2Client speaks HTTP/2 without TLS.
func h2Client() *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: p}, Timeout: 20 * time.Second}
}

// bothBackend speaks HTTP/1.1 and HTTP/2 without TLS.
func bothBackend(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestHTTP2 crosses both protocols on both sides, with bodies, trailers and many streams at once.
func TestHTTP2(t *testing.T) { engines(t, testHTTP2) }

func testHTTP2(t *testing.T, run func(yaml string)) {
	app := bothBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
		w.Header().Set("Trailer", "X-T")
		http.NewResponseController(w).EnableFullDuplex()
		w.(http.Flusher).Flush() // no Content-Length
		io.Copy(w, r.Body)
		w.Header().Set("X-T", "end "+r.Trailer.Get("X-Q"))
	})
	port := freePort(t)
	routes := `
- name: all
  domains: ["*"]
  routes:
  - {match: {prefix: /h1}, route: {cluster: h1, timeout: 20s}}
  - {match: {prefix: /h2}, route: {cluster: h2, timeout: 20s}}
  - {match: {prefix: /same}, route: {cluster: same, timeout: 20s}}
`
	run(bootstrap(httpListener(port, routes, "http_protocol_options: {enable_trailers: true}"),
		clusterYAML("h1", speaking(`explicit_http_config: {http_protocol_options: {enable_trailers: true}}`), app)+clusterYAML("h2", speaking(speakH2), app)+clusterYAML("same", speaking(speakDownstream), app)))
	for _, c := range []struct {
		client *http.Client
		down   string
	}{{http.DefaultClient, "HTTP/1.1"}, {h2Client(), "HTTP/2.0"}} {
		for path, want := range map[string]string{"/h1": "HTTP/1.1", "/h2": "HTTP/2.0", "/same": c.down} {
			var wg sync.WaitGroup
			for i := range 40 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					body := bytes.Repeat([]byte{byte(i)}, []int{0, 10, 100_000, 2_000_000}[i%4])
					req, _ := http.NewRequest("POST", fmt.Sprintf("http://127.0.0.1:%d%s", port, path), io.MultiReader(bytes.NewReader(body)))
					req.Trailer = http.Header{"X-Q": {"q"}}
					resp, err := c.client.Do(req)
					if err != nil {
						t.Errorf("%s %s: %v", c.down, path, err)
						return
					}
					defer resp.Body.Close()
					got, err := io.ReadAll(resp.Body)
					if err != nil || !bytes.Equal(got, body) || resp.Proto != c.down || resp.Header.Get("X-Proto") != want {
						t.Errorf("%s %s: %s, upstream %s, %d of %d bytes, %v", c.down, path, resp.Proto, resp.Header.Get("X-Proto"), len(got), len(body), err)
					}
					if got := resp.Trailer.Get("X-T"); !strings.HasPrefix(got, "end") {
						t.Errorf("%s %s: trailer %q", c.down, path, got)
					}
				}()
			}
			wg.Wait()
		}
	}
}

// TestGRPC: grpc-go on both ends, unary and streaming, through plaintext and mutual TLS hops.
func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hs := health.NewServer()
	g := grpc.NewServer()
	healthpb.RegisterHealthServer(g, hs)
	go g.Serve(l)
	t.Cleanup(g.Stop)

	ca := newAuthority(t, "Root CA")
	s := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/default"), roots: ca.roots()}
	in, out := freePort(t), freePort(t)
	start(t, bootstrap(inbound(in, l.Addr().String(), filepath.Join(t.TempDir(), "log")), clusterYAML("inbound", speaking(speakDownstream), l.Addr().String())), s)
	r := start(t, bootstrap(httpListener(out, `
- name: all
  domains: ["*"]
  routes:
  - match: {path: /grpc.health.v1.Health/List}
    route: {cluster: missing}
  - {match: {prefix: /}, route: {cluster: c, timeout: 0s}}
`, ""), clusterYAML("c", speaking(speakH2)+"\n"+mutualTLS("Upstream", "istio-h2, istio, h2", peerSAN, "sni: a"), fmt.Sprintf("127.0.0.1:%d", in))), s)
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", out), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := healthpb.NewHealthClient(conn)
	for range 20 {
		resp, err := c.Check(ctx, &healthpb.HealthCheckRequest{})
		if err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
			t.Fatal(resp, err)
		}
	}
	if _, err := c.Check(ctx, &healthpb.HealthCheckRequest{Service: "unknown"}); err == nil || !strings.Contains(err.Error(), "NotFound") {
		t.Errorf("a status in trailers only: %v", err)
	}
	if _, err := c.List(ctx, &healthpb.HealthListRequest{}); err == nil || !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("no cluster: %v", err)
	}
	w, err := c.Watch(ctx, &healthpb.HealthCheckRequest{Service: "s"})
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
		hs.SetServingStatus("s", st)
	}
	if n := r.Hosts("c")[0].CxTotal; n > 2 { // one for each loop at most
		t.Errorf("%d upstream connections for one multiplexed client", n)
	}
	// A drain tells the client with GOAWAY.
	cancel()
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r.Drain(ctx)
	if ctx.Err() != nil {
		t.Error("the connection did not end")
	}
}

// connect opens a connection to a port of the proxy, for a minute.
func connect(t *testing.T, port int) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// framer speaks HTTP/2 frame by frame to a port of the proxy.
func framer(t *testing.T, port int, settings ...http2.Setting) *http2.Framer {
	t.Helper()
	c := connect(t, port)
	io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	f.WriteSettings(settings...)
	return f
}

// TestPings: a client that asks again and again, and reads the answers, is never told to be calm.
func TestPings(t *testing.T) {
	app := backend(t, func(http.ResponseWriter, *http.Request) {})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), ""), clusterYAML("b", "", app)), nil)
	f := framer(t, port)
	for i := range 3000 {
		if err := f.WritePing(false, [8]byte{byte(i), byte(i >> 8)}); err != nil {
			t.Fatal(err)
		}
		for {
			got, err := f.ReadFrame()
			if err != nil {
				t.Fatalf("ping %d: %v", i, err)
			}
			if g, ok := got.(*http2.GoAwayFrame); ok {
				t.Fatalf("ping %d: %v %s", i, g, g.DebugData())
			}
			if _, ok := got.(*http2.PingFrame); ok {
				break
			}
		}
	}
}

// TestDrainUnderWindows: a connection that is to end gives its client what the client's windows hold back.
func TestDrainUnderWindows(t *testing.T) {
	const window, size = 1000, 8000
	app := backend(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, size)) })
	port := freePort(t)
	r := start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), ""), clusterYAML("b", "", app)), nil)
	f := framer(t, port, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a.test"}, {":path", "/"}} {
		enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	got := 0
	until := func(what string, done func(http2.Frame) bool) {
		t.Helper()
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				t.Fatalf("waiting for %s: %v, after %d bytes", what, err, got)
			}
			switch fr := fr.(type) {
			case *http2.DataFrame:
				got += len(fr.Data())
			case *http2.PingFrame:
				f.WritePing(true, fr.Data)
			}
			if done(fr) {
				return
			}
		}
	}
	until("the first window", func(http2.Frame) bool { return got == window })
	// All of the answer has come by now, or the upstream's stream would count as active.
	eventually(t, "the upstream to have answered", func() bool { return r.Hosts("b")[0].RqActive == 0 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	drained := make(chan struct{})
	go func() { defer close(drained); r.Drain(ctx) }()
	until("GOAWAY", func(fr http2.Frame) bool { _, ok := fr.(*http2.GoAwayFrame); return ok })
	f.WriteWindowUpdate(1, 3000)
	until("more", func(http2.Frame) bool { return got == window+3000 })
	f.WriteWindowUpdate(1, size)
	until("the end", func(fr http2.Frame) bool { d, ok := fr.(*http2.DataFrame); return ok && d.StreamEnded() })
	if got != size {
		t.Errorf("%d bytes came of %d", got, size)
	}
	go func() { // what is left to be answered
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				return
			}
			if p, ok := fr.(*http2.PingFrame); ok {
				f.WritePing(true, p.Data)
			}
		}
	}()
	<-drained
	if ctx.Err() != nil {
		t.Error("the connection did not end")
	}
}

// TestTools: genuine clients.
func TestTools(t *testing.T) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "answer") })
	port := freePort(t)
	ca := newAuthority(t, "Root CA")
	s := &testSecrets{key: ca.issue("", "a.test"), roots: ca.roots()}
	https := freePort(t)
	y := httpListener(https, fmt.Sprintf(allTo, "b"), "")
	y += indent(strings.Replace(mutualTLS("Downstream", "h2, http/1.1", "", ""), "combined_validation_context", "# ", 1), 6) + "\n"
	y = y[:strings.Index(y, "        # ")]
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), "")+y, clusterYAML("b", "", app)), s)
	for _, args := range [][]string{
		{"curl", "-sS", "--http1.1", fmt.Sprintf("http://127.0.0.1:%d/", port)},
		{"curl", "-sS", "--http2", fmt.Sprintf("http://127.0.0.1:%d/", port)},
		{"curl", "-sS", "--http2-prior-knowledge", fmt.Sprintf("http://127.0.0.1:%d/", port)},
		{"curl", "-sS", "--http1.0", fmt.Sprintf("http://127.0.0.1:%d/", port)},
		{"curl", "-sSk", "--http2", fmt.Sprintf("https://127.0.0.1:%d/", https)},
		{"curl", "-sSk", "--http1.1", "--tls-max", "1.2", fmt.Sprintf("https://127.0.0.1:%d/", https)},
		{"curl", "-sSk", "--no-alpn", fmt.Sprintf("https://127.0.0.1:%d/", https)},
		{"nghttp", fmt.Sprintf("http://127.0.0.1:%d/", port)},
	} {
		if _, err := exec.LookPath(args[0]); err != nil {
			t.Logf("%s is not installed", args[0])
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		b, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		cancel()
		if args[0] == "curl" && strings.Contains(strings.Join(args, " "), "http1.0") {
			if !strings.Contains(string(b), "") {
				t.Errorf("%v: %q %v", args, b, err)
			}
			continue
		}
		if err != nil || !strings.HasSuffix(string(b), "answer") {
			t.Errorf("%v: %q %v", args, b, err)
		}
	}
	if _, err := exec.LookPath("openssl"); err == nil {
		cmd := exec.Command("openssl", "s_client", "-connect", fmt.Sprintf("127.0.0.1:%d", https), "-alpn", "unknown,h2", "-tls1_3")
		cmd.Stdin = strings.NewReader("")
		b, _ := cmd.CombinedOutput()
		if !strings.Contains(string(b), "ALPN protocol: h2") {
			t.Errorf("openssl: %s", b)
		}
	}
	// A client whose ALPN we do not speak is served without.
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", https), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}})
	if err != nil || c.ConnectionState().NegotiatedProtocol != "" {
		t.Errorf("unknown ALPN: %v", err)
	}
}

// TestGRPCEnds: what a client is told when its answer cannot go on, or its time is over.
func TestGRPCEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	hs := health.NewServer()
	healthpb.RegisterHealthServer(g, hs)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	late := bothBackend(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	port := freePort(t)
	start(t, bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - {match: {prefix: /none}, route: {cluster: late, timeout: 0s, max_stream_duration: {max_stream_duration: 0s, grpc_timeout_header_max: 0s}}}
  - {match: {prefix: /}, route: {cluster: c, timeout: 0s}}
`, ""), clusterYAML("c", speaking(speakH2), l.Addr().String())+clusterYAML("late", speaking(speakH2), late)), nil)
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", port), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()

	// The deadline as the proxy keeps it: neither this client nor this server has one of its own.
	req, err := http.NewRequestWithContext(ctx, "POST", fmt.Sprintf("http://127.0.0.1:%d/none/None", port), strings.NewReader("\x00\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Grpc-Timeout": {"100m"}}
	resp, err := h2Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.Header.Get("Grpc-Status") != "4" {
		t.Errorf("past the deadline: %v", resp.Header)
	}

	w, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	g.Stop()
	if _, err = w.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the server dies under a stream: %v", err)
	}
}
