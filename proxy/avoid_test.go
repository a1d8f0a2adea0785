package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// tally makes requests in turn and counts the answers by status and body.
func tally(t *testing.T, method string, port, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	client := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	for range n {
		req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d/", port), strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		got[fmt.Sprintf("%d %s", resp.StatusCode, b)]++
	}
	return got
}

// TestRefusing: requests avoid a host that refuses connections after the first, without any policy, until it
// takes them again.
func TestRefusing(t *testing.T) {
	good := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "good") })
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	port := freePort(t)
	r := start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", good, addr)), nil)
	first := tally(t, "GET", port, 50)
	if n := first["200 good"]; n < 45 { // two loops may have met it at once, and it is tried again
		t.Errorf("%v", first)
	}
	if !strings.Contains(r.log.String(), "host does not answer, requests avoid it") {
		t.Error("nothing is said of it")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "back") })}
	go s.Serve(l)
	defer s.Close()
	for end := time.Now().Add(20 * time.Second); tally(t, "GET", port, 10)["200 back"] == 0; {
		if time.Now().After(end) {
			t.Fatal("the host is avoided though it is back")
		}
	}
}

// TestSilentHost: a host that is gone without a word keeps nobody waiting for connect_timeout.
func TestSilentHost(t *testing.T) {
	far := newCutServer(t)
	far.cut()
	near := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "near") })
	port := freePort(t)
	y := strings.Replace(clusterYAML("c", patient, far.Listener.Addr().String(), near), "    connect_timeout: 1s\n", "", 1)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), y), nil)
	if got := tally(t, "POST", port, 20); got["200 near"] != 20 { // connect_timeout is beyond the client's time
		t.Errorf("%v", got)
	}
}

// tlsServer serves HTTP/1.1 and HTTP/2 with a certificate, to clients of an authority.
func tlsServer(t *testing.T, cert *tls.Certificate, clients *authority, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	pool := x509.NewCertPool()
	pool.AddCert(clients.cert)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, NextProtos: []string{"h2", "http/1.1"}}
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestUntrusted: a handshake that fails because one side does not trust the other, also when that comes out
// after it, counts as a connection that failed: the request goes to another host, and the next ones do.
func TestUntrusted(t *testing.T) {
	ours, theirs := newAuthority(t, "Root CA"), newAuthority(t, "Root CA of others")
	const uri = "spiffe://cluster.local/ns/sample/sa/default"
	say := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); io.WriteString(w, s) }
	}
	for name, bad := range map[string]string{
		"we are not trusted":      tlsServer(t, ours.issue(uri), theirs, say("bad")),
		"the peer is not trusted": tlsServer(t, theirs.issue(uri), ours, say("bad")),
	} {
		for protocol, options := range map[string]string{"HTTP/1.1": "", "HTTP/2": speaking(speakH2)} {
			t.Run(name+", "+protocol, func(t *testing.T) {
				good := tlsServer(t, ours.issue(uri), ours, say("good"))
				port := freePort(t)
				alpn := "http/1.1"
				if protocol == "HTTP/2" {
					alpn = "h2"
				}
				secrets := &testSecrets{key: ours.issue("spiffe://cluster.local/ns/sample/sa/sleep"), roots: ours.roots()}
				r := start(t, bootstrap(httpListener(port, `
- {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: connect-failure, num_retries: 2}}}]}`, ""),
					clusterYAML("c", options+mutualTLS("Upstream", alpn, peerSAN, "sni: a"), good, bad)), secrets)
				if got := tally(t, "POST", port, 40); got["200 good"] != 40 {
					t.Errorf("%v", got)
				}
				if n := r.Hosts("c")[1].RqTotal; n > 8 {
					t.Errorf("the host that is not to be used was tried for %d of 40 requests", n)
				}
			})
		}
	}
}

// TestAnswerBeforeReset: an answer that came before the end of its connection is passed on, though the
// connection was reset.
func TestAnswerBeforeReset(t *testing.T) {
	app := tcpServer(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
		c.(*net.TCPConn).SetLinger(0)
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", "", app)), nil)
	for range 20 {
		if got := tally(t, "POST", port, 1); got["413 large"] != 1 {
			t.Fatalf("%v", got)
		}
	}
}

// passthrough is a gateway that leads each connection to the next of its pods.
func passthrough(t *testing.T, pods ...string) string {
	var turn atomic.Int64
	return tcpServer(t, func(c net.Conn) {
		up, err := net.Dial("tcp", pods[int(turn.Add(1))%len(pods)])
		if err != nil {
			return
		}
		defer up.Close()
		go func() {
			io.Copy(up, c)
			up.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(c, up)
	})
}

// TestOutlierBehindGateway: one of five pods behind a gateway answers 500. It is ejected, not the gateway,
// which all requests need; when all are ejected, the gateway is.
func TestOutlierBehindGateway(t *testing.T) {
	ca := newAuthority(t, "Root CA")
	for _, c := range []struct{ name, options, alpn string }{{"HTTP/1.1", "", "http/1.1"}, {"HTTP/2", speaking(speakH2), "h2"}} {
		t.Run(c.name, func(t *testing.T) {
			var failing atomic.Int64
			failing.Store(1)
			var pods []string
			for i := range int64(5) {
				pods = append(pods, tlsServer(t, ca.issue("spiffe://cluster.local/ns/sample/sa/default"), ca, func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					if i < failing.Load() {
						w.WriteHeader(500)
					}
				}))
			}
			port := freePort(t)
			y := clusterYAML("c", c.options+mutualTLS("Upstream", c.alpn, peerSAN, "sni: a")+
				"outlier_detection: {consecutive_5xx: 3, base_ejection_time: 60s, max_ejection_percent: 100}\ncommon_lb_config: {healthy_panic_threshold: {value: 0}}", passthrough(t, pods...))
			y = strings.Replace(y, "}}}\n", "}}}\n          load_balancing_weight: 5\n          metadata: {filter_metadata: {istio: {workload: \";;;;cluster2\"}}}\n", 1)
			secrets := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/sleep"), roots: ca.roots()}
			r := start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), y), secrets)
			got := tally(t, "POST", port, 400)
			if n := got["500 "]; n == 0 || n > 12 || got["200 "]+n != 400 {
				t.Errorf("%v: at most 12 of 400 should meet the failing pod", got)
			}
			if h := r.Hosts("c"); h[0].Ejected {
				t.Error("the gateway is ejected")
			}
			failing.Store(5)
			for end := time.Now().Add(20 * time.Second); tally(t, "POST", port, 10)["503 no healthy upstream"] == 0; {
				if time.Now().After(end) {
					t.Fatal("the gateway is not ejected though all its pods are")
				}
			}
		})
	}
}
