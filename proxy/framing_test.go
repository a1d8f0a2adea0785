package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The model of HTTP/1 message framing that TestFraming and FuzzFraming hold the proxy to: a client sends
// requests one behind the other on one connection, whatever they are and however they are cut into
// packets. What each application then gets, byte for byte, is whole requests, or the beginning of one;
// each of them is one that the client sent, and that its route sends there. What the client gets is one
// answer for each of its first requests, in order, and no other byte.

// asked is one request of an exchange.
type asked struct {
	id     int
	path   string // says what the application does
	method string
	body   string // payload
	wire   string
	hidden bool // not a request to the proxy: bytes of another protocol, which look like one
	last   bool // nothing behind it need be answered
}

// exchangeOf makes a client's bytes of random choices.
func exchangeOf(r *rand.Rand, base int) (all []asked) {
	for i := range 1 + r.IntN(5) {
		all = append(all, request(r, base+i)...)
		if all[len(all)-1].last && r.IntN(4) > 0 {
			break
		}
	}
	return append(all, asked{id: base + 999, path: "/echo", method: "GET", last: true,
		wire: fmt.Sprintf("GET /echo HTTP/1.1\r\nHost: a\r\nX-Id: %d\r\nConnection: close\r\n\r\n", base+999)})
}

var framingPaths = []string{"/echo", "/echo", "/chunked", "/early", "/close", "/continue", "/hints", "/slow", "/none", "/switch", "/unasked", "/deny", "/redirect", "/dead"}

func request(r *rand.Rand, id int) []asked {
	q := asked{id: id, path: framingPaths[r.IntN(len(framingPaths))], method: []string{"GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS"}[r.IntN(6)]}
	var h strings.Builder
	fmt.Fprintf(&h, "%s %s HTTP/1.1\r\nHost: a\r\nX-Id: %d\r\n", q.method, q.path, id)
	upgrade := ""
	if r.IntN(3) == 0 {
		upgrade = []string{"websocket", "WebSocket", "h2c", "TLS/1.2", "websocket, h2c"}[r.IntN(5)]
		fmt.Fprintf(&h, "Connection: keep-alive, Upgrade\r\nUpgrade: %s\r\n", upgrade)
		q.last = true // refused or not, Carrick ends the connection
	}
	expect := r.IntN(8) == 0
	if expect {
		h.WriteString("Expect: 100-continue\r\n")
	}
	size := []int{0, 1, 7, 300, 5000, 70_000}[r.IntN(6)]
	// The body looks like a request: whoever loses the framing will take it for one.
	body := strings.Repeat(fmt.Sprintf("GET /hidden HTTP/1.1\r\nHost: a\r\nX-Id: %d\r\n\r\n", 1000+id), size/40+1)[:size]
	switch r.IntN(4) {
	case 0:
		fmt.Fprintf(&h, "Content-Length: %d\r\n\r\n%s", size, body)
	case 1:
		h.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		for rest := body; rest != ""; {
			n := min(len(rest), 1+r.IntN(3000))
			fmt.Fprintf(&h, "%x\r\n%s\r\n", n, rest[:n])
			rest = rest[n:]
		}
		h.WriteString("0\r\n")
		if r.IntN(2) == 0 {
			fmt.Fprintf(&h, "X-Trailer: GET /hidden HTTP/1.1\r\n")
		}
		h.WriteString("\r\n")
	default:
		h.WriteString("\r\n")
		body = ""
	}
	q.body, q.wire = body, h.String()
	if size > maxSkip {
		q.last = true // an early answer may end the connection
	}
	all := []asked{q}
	if upgrade != "" && r.IntN(2) == 0 {
		all = append(all, asked{id: 2000 + id, path: "/hidden", hidden: true, last: true,
			wire: fmt.Sprintf("GET /hidden HTTP/1.1\r\nHost: a\r\nX-Id: %d\r\n\r\n", 2000+id)})
	}
	return all
}

// framingApp records what each of its connections gets, and answers as the path says.
type framingApp struct {
	mu    sync.Mutex
	conns []*recorded
	asked map[int]asked // by id, all there ever were
}

// recorded is what a connection got and check has not seen.
type recorded struct {
	mu       sync.Mutex
	b        bytes.Buffer
	switched bool // what comes is of another protocol
}

func (r *recorded) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.switched {
		r.b.Write(p)
	}
	return len(p), nil
}

func (a *framingApp) serve(c net.Conn) {
	rec := &recorded{}
	a.mu.Lock()
	a.conns = append(a.conns, rec)
	a.mu.Unlock()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	br := bufio.NewReader(io.TeeReader(c, rec))
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		id := req.Header.Get("X-Id")
		if req.URL.Path == "/early" {
			fmt.Fprintf(c, "HTTP/1.1 413 Too Large\r\nX-Id: %s\r\nContent-Length: 5\r\n\r\nearly", id)
			if req.ContentLength != 0 {
				io.Copy(io.Discard, req.Body)
			}
			continue
		}
		if req.Header.Get("Upgrade") != "" && req.URL.Path == "/switch" {
			rec.mu.Lock()
			rec.switched = true
			rec.b.Truncate(max(0, rec.b.Len()-br.Buffered()))
			rec.mu.Unlock()
			fmt.Fprintf(c, "HTTP/1.1 101 Switching\r\nX-Id: %s\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", id)
			c.SetDeadline(time.Now().Add(20 * time.Millisecond))
			io.Copy(io.Discard, br)
			return
		}
		b, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		switch req.URL.Path {
		case "/chunked":
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Id: %s\r\nTransfer-Encoding: chunked\r\n\r\n", id)
			if req.Method != "HEAD" {
				io.WriteString(c, "3\r\nabc\r\n0\r\n\r\n")
			}
		case "/continue":
			fmt.Fprintf(c, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Id: %s\r\nContent-Length: 0\r\n\r\n", id)
		case "/hints":
			fmt.Fprintf(c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nX-Id: %s\r\nContent-Length: 0\r\n\r\n", id)
		case "/none":
			fmt.Fprintf(c, "HTTP/1.1 204 No Content\r\nX-Id: %s\r\nContent-Length: 2\r\n\r\n", id)
		case "/unasked":
			if req.Header.Get("Upgrade") != "" {
				fmt.Fprintf(c, "HTTP/1.1 426 Upgrade Required\r\nX-Id: %s\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\n", id)
				continue
			}
			fmt.Fprintf(c, "HTTP/1.1 101 Switching\r\nX-Id: %s\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\n", id)
		case "/close":
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Id: %s\r\nConnection: close\r\n\r\n", id)
			return
		default:
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Id: %s\r\nContent-Length: %d\r\n\r\n", id, len(b))
			if req.Method != "HEAD" {
				c.Write(b)
			}
		}
	}
}

// framingRig is a proxy with one application, whose routes answer some requests themselves.
func framingRig(t testing.TB) (port int, app *framingApp) {
	app = &framingApp{asked: map[int]asked{}}
	addr := tcpServer(t, app.serve)
	port = freePort(t)
	start(t, bootstrap(httpListener(port, `
- name: all
  domains: ["*"]
  routes:
  - {match: {path: /hidden}, direct_response: {status: 418}}
  - {match: {path: /deny}, direct_response: {status: 403, body: {inline_string: "no"}}}
  - {match: {path: /redirect}, redirect: {path_redirect: /x}}
  - {match: {path: /dead}, route: {cluster: dead}}
  - {match: {path: /slow}, route: {cluster: c}, typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, delay: {fixed_delay: 0.01s, percentage: {numerator: 100}}}}}
  - {match: {prefix: /}, route: {cluster: c, timeout: 5s}}
`, "upgrade_configs: [{upgrade_type: websocket}]"),
		clusterYAML("c", "", addr)+"  - {name: dead, connect_timeout: 1s, load_assignment: {cluster_name: dead}}\n"), nil)
	return port, app
}

// checkFraming runs an exchange and holds what both sides saw to the model.
func checkFraming(t *testing.T, port int, app *framingApp, r *rand.Rand) {
	t.Helper()
	app.mu.Lock()
	all := exchangeOf(r, 10_000*len(app.asked))
	for _, q := range all {
		app.asked[q.id] = q
	}
	app.mu.Unlock()
	c := connect(t, port)
	got := make(chan string, 1)
	go func() { b, _ := io.ReadAll(c); got <- string(b) }()
	var wire strings.Builder
	for _, q := range all {
		wire.WriteString(q.wire)
	}
	in := wire.String()
	for rest := in; rest != ""; {
		n := len(rest)
		if r.IntN(3) > 0 {
			n = min(n, 1+r.IntN(2000))
		}
		if _, err := io.WriteString(c, rest[:n]); err != nil {
			break // the proxy has ended the connection
		}
		rest = rest[n:]
	}
	// Half-closed the proxy would take the client for gone: it ends when the last answer is there.
	out := ""
	quiet := time.NewTimer(2 * time.Second)
	defer quiet.Stop()
	select {
	case out = <-got:
	case <-quiet.C:
		c.Close()
		out = <-got
	}
	c.Close()
	answers, rest := answersTo(all, out)
	if len(rest) > 0 {
		t.Errorf("the client got %.200q beside answers\nfor %.3000q\nin all: %.2000q", rest, in, out)
	}
	for i, a := range answers {
		if a != "" && a != strconv.Itoa(all[i].id) {
			t.Errorf("answer %d is of request %s\nfor %.3000q", i, a, in)
		}
	}
	first := slices.IndexFunc(all, func(q asked) bool { return q.last })
	if len(answers) <= first {
		t.Errorf("%d answers, want %d at least\nfor %.3000q\nin all: %.2000q", len(answers), first+1, in, out)
	}
	app.check(t, in)
}

// answersTo takes what a client got apart: the id of each answer, and what is none.
func answersTo(all []asked, out string) (ids []string, rest string) {
	br := bufio.NewReader(strings.NewReader(out))
	for _, q := range all {
		for {
			req := &http.Request{Method: q.method}
			resp, err := http.ReadResponse(br, req)
			if err != nil {
				return ids, tail(br)
			}
			if resp.StatusCode == 101 {
				return append(ids, resp.Header.Get("X-Id")), tail(br)
			}
			if resp.StatusCode < 200 {
				continue
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				return ids, tail(br)
			}
			ids = append(ids, resp.Header.Get("X-Id"))
			break
		}
	}
	return ids, tail(br)
}

func tail(br *bufio.Reader) string { b, _ := io.ReadAll(br); return string(b) }

// check holds what the application got since the last call to what was asked.
func (a *framingApp) check(t *testing.T, in string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, rec := range a.conns {
		rec.mu.Lock()
		for rec.b.Len() > 0 {
			n, err := a.checkRequest(rec.b.Bytes())
			if err != nil {
				t.Errorf("the application got %v: %.300q\nfor %.3000q", err, rec.b.Bytes(), in)
			}
			if rec.b.Next(n); n == 0 {
				break // more may come
			}
		}
		rec.mu.Unlock()
	}
}

// checkRequest holds the first request in b to the model, and returns its length; 0 if it has no end yet.
func (a *framingApp) checkRequest(b []byte) (int, error) {
	left := bytes.NewReader(b)
	br := bufio.NewReader(left)
	req, err := http.ReadRequest(br)
	if err == io.ErrUnexpectedEOF || err == io.EOF {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("what is not a request (%v)", err)
	}
	id, _ := strconv.Atoi(req.Header.Get("X-Id"))
	q, ok := a.asked[id]
	if !ok || q.hidden || q.path != req.URL.Path || q.method != req.Method {
		return 0, fmt.Errorf("%s %s %d, which nobody asked for", req.Method, req.URL, id)
	}
	switch q.path {
	case "/deny", "/redirect", "/dead", "/hidden":
		return 0, fmt.Errorf("%s, which is not routed there", q.path)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil && strings.HasPrefix(q.body, string(body)) {
		return 0, nil
	}
	if string(body) != q.body {
		return 0, fmt.Errorf("a body of %d bytes (%v) of %d", len(body), err, len(q.body))
	}
	return len(b) - left.Len() - br.Buffered(), nil
}

// TestFraming holds random exchanges to the model.
func TestFraming(t *testing.T) {
	port, app := framingRig(t)
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		checkFraming(t, port, app, r)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// FuzzFraming is TestFraming with choices of the fuzzer's.
func FuzzFraming(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	port, app := framingRig(f)
	f.Fuzz(func(t *testing.T, a, b uint64) { checkFraming(t, port, app, rand.New(rand.NewPCG(a, b))) })
}
