package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cutServer is an HTTP server whose link can be cut: its sockets drop what comes, without a word.
type cutServer struct {
	*httptest.Server
	t        *testing.T
	requests atomic.Int64
	held     chan struct{}     // if not nil, answers wait until it is closed
	raw      []syscall.RawConn // the listener's, and that of each connection that was cut
	conns    map[net.Conn]struct{}
	changes  chan func()
}

func newCutServer(t *testing.T) *cutServer {
	t.Helper()
	s := &cutServer{t: t, conns: map[net.Conn]struct{}{}, changes: make(chan func(), 1024)}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if s.held != nil {
			<-s.held
		}
		io.WriteString(w, "far")
	}))
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // which knows no filters
	l, err := plain.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Listener.Close()
	s.Listener = l
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.ConnState = func(c net.Conn, st http.ConnState) {
		s.changes <- func() {
			if st == http.StateNew {
				s.conns[c] = struct{}{}
			} else if st == http.StateClosed {
				delete(s.conns, c)
			}
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// cut lets the server's sockets drop all packets (a socket filter that takes 0 bytes).
func (s *cutServer) cut() {
	for len(s.changes) > 0 {
		(<-s.changes)()
	}
	all := []syscall.Conn{s.Listener.(*net.TCPListener)}
	for c := range s.conns {
		all = append(all, c.(*net.TCPConn))
	}
	s.raw = nil
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	for _, c := range all {
		r, err := c.SyscallConn()
		if err != nil {
			continue // closed meanwhile
		}
		s.raw = append(s.raw, r)
		r.Control(func(fd uintptr) {
			if err := unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}); err != nil {
				s.t.Errorf("cutting: %v", err)
			}
		})
	}
}

func (s *cutServer) restore() {
	for _, r := range s.raw {
		r.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
	}
}

// asGateway makes the first endpoint of a cluster's YAML another network's gateway.
func asGateway(y string) string {
	return strings.Replace(y, "}}}\n", "}}}\n          metadata: {filter_metadata: {istio: {workload: \";;;;cluster2\"}}}\n", 1)
}

// patient lets the kernel notice a cut only after minutes, so that it is the proxy that must.
const patient = `connect_timeout: 60s
upstream_bind_config: {socket_options: [{level: 6, name: 18, int_value: 120000}]}
upstream_connection_options: {tcp_keepalive: {keepalive_probes: 9, keepalive_time: 60, keepalive_interval: 60}}`

// TestCutOff: while a gateway is cut off, requests go to the host that is there, also those that wait
// for a connection to the gateway; when it is back, it gets its share again.
func TestCutOff(t *testing.T) {
	for _, c := range []struct {
		name string
		used bool // there are connections before the cut
	}{{"with connections", true}, {"without connections", false}} {
		t.Run(c.name, func(t *testing.T) {
			far := newCutServer(t)
			near := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "near") })
			port := freePort(t)
			y := strings.Replace(clusterYAML("c", patient, far.Listener.Addr().String(), near), "    connect_timeout: 1s\n", "", 1)
			r := start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), asGateway(y)), nil)
			url := fmt.Sprintf("http://127.0.0.1:%d/", port)
			call := func() (string, error) {
				resp, err := (&http.Client{Timeout: 30 * time.Second}).Get(url)
				if err != nil {
					return "", err
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				return string(b), err
			}
			if c.used {
				for range 8 {
					if _, err := call(); err != nil {
						t.Fatal(err)
					}
				}
				if far.requests.Load() == 0 {
					t.Fatal("the gateway got no request")
				}
			}
			far.cut()
			// Some of these were sent to the gateway: they wait until it is back. The others must not.
			answers := make(chan string, 64)
			for range 8 {
				go func() {
					b, err := call()
					if err != nil {
						b = err.Error()
					}
					answers <- b
				}()
			}
			eventually(t, "the gateway is suspect", func() bool {
				return strings.Contains(r.log.String(), "gateway does not answer")
			})
			for range 30 {
				if b, err := call(); err != nil || b != "near" {
					t.Fatalf("while the gateway is cut off: %q %v", b, err)
				}
			}
			if !c.used {
				for range 8 {
					if b := <-answers; b != "near" {
						t.Errorf("a request that waited for a connection: %q", b)
					}
				}
			}
			far.restore()
			before := far.requests.Load()
			eventually(t, "the gateway serves again", func() bool { call(); return far.requests.Load() > before+4 })
			eventually(t, "nothing is rechecked any more", func() bool {
				n := make(chan int, 1)
				w := r.workers[0]
				w.loop.Post(func() { n <- len(w.suspects) })
				return <-n == 0
			})
			if c.used {
				for range 8 {
					if b := <-answers; b != "near" && b != "far" {
						t.Errorf("a request under way during the cut: %q", b)
					}
				}
			}
		})
	}
}

// impatient lets the kernel give a silent connection up after a second.
const impatient = `
upstream_bind_config: {socket_options: [{level: 6, name: 18, int_value: 1000}]}
upstream_connection_options: {tcp_keepalive: {keepalive_probes: 1, keepalive_time: 1, keepalive_interval: 1}}`

// TestCutUnderWay: the link is cut under a request that has been sent, the first of its connection. One
// that may be sent twice is answered by the host that is there; another never is.
func TestCutUnderWay(t *testing.T) {
	for _, c := range []struct{ name, options string }{{"HTTP/1.1", ""}, {"HTTP/2", speaking(speakH2)}} {
		t.Run(c.name, func(t *testing.T) {
			for method, want := range map[string]string{"GET": "200 near", "POST": "503 upstream connect error or disconnect/reset before headers. reset reason: connection termination"} {
				t.Run(method, func(t *testing.T) {
					far := newCutServer(t)
					far.held = make(chan struct{})
					t.Cleanup(func() { close(far.held) })
					var near atomic.Int64
					nearby := bothBackend(t, func(w http.ResponseWriter, r *http.Request) {
						near.Add(1)
						io.WriteString(w, "near")
					})
					port := freePort(t)
					y := clusterYAML("c", c.options+impatient, far.Listener.Addr().String(), nearby)
					r := start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), asGateway(y)), nil)
					answers := make(chan string, 1)
					for far.requests.Load() == 0 { // each host in turn
						before := near.Load()
						go func() {
							req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
							if err != nil {
								answers <- err.Error()
								return
							}
							resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
							if err != nil {
								answers <- err.Error()
								return
							}
							defer resp.Body.Close()
							b, err := io.ReadAll(resp.Body)
							if err != nil {
								b = []byte(err.Error())
							}
							answers <- fmt.Sprintf("%d %s", resp.StatusCode, b)
						}()
						eventually(t, "the request is somewhere", func() bool { return far.requests.Load() > 0 || near.Load() > before })
						if far.requests.Load() == 0 {
							<-answers
						}
					}
					before := near.Load()
					far.cut()
					if got := <-answers; got != want {
						t.Errorf("%q, not %q", got, want)
					}
					if n := near.Load() - before; (n > 0) != (method == "GET") {
						t.Errorf("the host that is there got %d requests", n)
					}
					if !strings.Contains(r.log.String(), "gateway does not answer") {
						t.Error("the gateway is not suspect")
					}
				})
			}
		})
	}
}

// TestCutOffTCP: a TCP connection is not kept waiting for a gateway that is cut off.
func TestCutOffTCP(t *testing.T) {
	far := newCutServer(t)
	far.cut()
	near := echo(t)
	port := freePort(t)
	y := strings.Replace(clusterYAML("c", patient, far.Listener.Addr().String(), near), "    connect_timeout: 1s\n", "", 1)
	start(t, bootstrap(tcpListener(port, "c", ""), asGateway(y)), nil)
	for range 4 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, "x")
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || len(b) < 8 {
			t.Fatalf("%q %v", b, err)
		}
		c.Close()
	}
}
