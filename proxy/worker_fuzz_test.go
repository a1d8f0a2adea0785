package proxy

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// playwright is an upstream that answers whatever it is sent with the pieces of a script.
type playwright struct {
	mu     sync.Mutex
	script []byte
	conns  map[net.Conn]bool
	ended  bool
}

func (p *playwright) serve(c net.Conn) {
	p.mu.Lock()
	script := p.script
	if p.ended {
		p.mu.Unlock()
		return
	}
	p.conns[c] = true
	p.mu.Unlock()
	b := make([]byte, 16<<10)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
		// A piece for each read; its first byte says how long it is.
		if len(script) == 0 {
			continue
		}
		n := min(len(script), 1+int(script[0])*4)
		if script[0] == 255 {
			return
		}
		if _, err := c.Write(script[1:n]); err != nil {
			return
		}
		script = script[n:]
	}
}

// play makes script the answers to come, until end.
func (p *playwright) play(script []byte) {
	p.mu.Lock()
	p.script, p.conns, p.ended = script, map[net.Conn]bool{}, false
	p.mu.Unlock()
}

func (p *playwright) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for c := range p.conns {
		c.Close()
	}
}

// stage is a proxy of one loop before a playwright.
type stage struct {
	*rig
	up              *playwright
	http, ends, tcp int // ports; of ends, timers are as short as can be
}

func newStage(t testing.TB) *stage {
	s := &stage{rig: &rig{t: t, log: &lockedBuffer{}}, up: &playwright{ended: true}, http: freePort(t), ends: freePort(t), tcp: freePort(t)}
	addr := tcpServer(t, s.up.serve)
	startWith(t, s.rig, Options{Concurrency: 1})
	routes := `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /k}
    direct_response: {status: 200, body: {inline_string: "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"}}
  - match: {prefix: /r}
    route: {cluster: h1, retry_policy: {retry_on: "5xx,reset", num_retries: 2, retry_back_off: {base_interval: 0.001s}}, request_mirror_policies: [{cluster: h2}]}
  - match: {prefix: /2}
    route: {cluster: h2, timeout: 0.2s}
  - match: {prefix: /}
    route: {cluster: h1, timeout: 0s}
`
	const short = "stream_idle_timeout: 0.01s\nrequest_headers_timeout: 0.01s\nrequest_timeout: 0.02s\ncommon_http_protocol_options: {idle_timeout: 0.02s, max_headers_count: 50}"
	const upgrades = "upgrade_configs: [{upgrade_type: websocket}]\nhttp_protocol_options: {accept_http_10: true, default_host_for_http_10: d, enable_trailers: true}"
	s.apply(bootstrap(httpListener(s.http, routes, upgrades)+httpListener(s.ends, routes, short)+tcpListener(s.tcp, "h1", ""),
		clusterYAML("h1", "", addr)+clusterYAML("h2", speaking(speakH2), addr)))
	return s
}

// requests are what clients send in one step, beside bytes of the fuzzer's.
var requests = [][]byte{
	[]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
	[]byte("GET /k HTTP/1.1\r\nHost: a\r\n\r\nGET /k HTTP/1.1\r\nHost: a\r\n\r\n"),
	[]byte("POST /r HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
	[]byte("POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
	[]byte("0\r\na: b\r\n\r\n"),
	[]byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
	append([]byte(http2.ClientPreface), frame(4, 0, 0, nil)...),
	ask(1, "/", true), ask(3, "/r", false), ask(5, "/2", true), ask(7, "/k", true),
	frame(0, 0, 3, []byte("hello")), frame(0, 1, 3, nil), frame(3, 0, 1, []byte{0, 0, 0, 8}), frame(8, 0, 0, []byte{0, 1, 0, 0}),
}

// perform lets clients do what acts say, byte by byte, and then ends all connections.
func (s *stage) perform(acts []byte) {
	var conns []net.Conn
	ports := []int{s.http, s.ends, s.tcp}
	for i := 0; i < len(acts) && i < 200; i++ {
		op, arg := acts[i]&7, int(acts[i]>>3)
		if op < 3 {
			if len(conns) < 8 {
				c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[op]))
				if err != nil {
					s.t.Fatal(err)
				}
				conns = append(conns, c)
			}
			continue
		}
		if len(conns) == 0 {
			continue
		}
		c := conns[len(conns)-1-arg%min(2, len(conns))].(*net.TCPConn)
		switch op {
		case 3:
			c.SetWriteDeadline(time.Now().Add(time.Second))
			c.Write(requests[arg%len(requests)])
		case 4: // bytes of the fuzzer's
			n := min(len(acts)-i-1, 1+4*arg)
			c.SetWriteDeadline(time.Now().Add(time.Second))
			c.Write(acts[i+1 : i+1+n])
			i += n
		case 5:
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			io.CopyN(io.Discard, c, 1<<20)
		case 6:
			s.on(func(*worker) {}) // a turn of the loop
		case 7:
			if arg&1 == 0 {
				c.CloseWrite()
			} else {
				c.SetLinger(0)
				c.Close()
			}
		}
	}
	s.on(func(*worker) {})
	for _, c := range conns {
		c.Close()
	}
	s.up.end()
}

// check fails unless all is given back, nothing has panicked, and little was held.
func (s *stage) check() {
	const patience = 20 * time.Second
	var left, most int
	right, active := false, int64(0)
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		left, right = s.holding()
		active = s.Hosts("h1")[0].RqActive + s.Hosts("h2")[0].RqActive
		if left < 16<<10 && right && active == 0 && s.Connections() == 0 {
			break
		}
		if time.Now().After(end) {
			s.t.Fatalf("%d bytes are held (right: %v), %d requests and %d connections are open", left, right, active, s.Connections())
		}
	}
	s.on(func(w *worker) {
		most = w.account.held
		for _, k := range []*cluster{w.snapshot().clusters["h1"], w.snapshot().clusters["h2"]} {
			if b := &k.breakers[0]; b.pending.Load() != 0 || b.requests.Load() != 0 || b.retries.Load() != 0 {
				s.t.Errorf("counts of breakers are left: pending %d, requests %d, retries %d", b.pending.Load(), b.requests.Load(), b.retries.Load())
			}
		}
	})
	if most > 1<<20 {
		s.t.Errorf("%d bytes are held", most)
	}
	if n := s.Stats().Process.Panics.Value(); n > 0 {
		s.t.Fatalf("a panic:\n%s", s.log.String())
	}
}

// FuzzWorker drives a whole loop with clients and an upstream that do anything in any order: whatever
// they do, no panic, and once they are gone nothing of them is left.
func FuzzWorker(f *testing.F) {
	op := func(o, arg int) byte { return byte(o | arg<<3) }
	send := func(k int) byte { return op(3, k) }
	ok := "\x20HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
	f.Add([]byte{op(0, 0), send(0), op(6, 0), op(5, 0), send(1), op(5, 0)}, []byte(ok))
	f.Add([]byte{op(0, 0), send(2), op(6, 0), op(5, 0)}, []byte("\x20HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"))
	f.Add([]byte{op(0, 0), send(3), op(6, 0), send(4), op(7, 0), op(5, 0)}, []byte("\x20HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"))
	f.Add([]byte{op(0, 0), send(5), op(6, 0), send(0), op(5, 0), op(7, 1)}, []byte("\x20HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"))
	f.Add([]byte{op(0, 0), send(6), send(7), send(8), send(9), send(10), op(6, 0), send(11), send(12), op(5, 0), send(13)}, []byte(ok))
	f.Add([]byte{op(1, 0), send(8), op(4, 2), 'a', 'b', 'c', op(5, 0), op(5, 0), op(5, 0)}, append([]byte{12}, frame(4, 0, 0, nil)...))
	f.Add([]byte{op(2, 0), op(4, 1), 'a', op(6, 0), op(5, 0), op(7, 0)}, []byte(strings.Repeat(ok, 3)))
	s := newStage(f)
	f.Fuzz(func(t *testing.T, acts, script []byte) {
		s.rig.t = t
		s.up.play(script)
		s.perform(acts)
		s.check()
	})
}
