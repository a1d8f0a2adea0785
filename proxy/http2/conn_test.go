package http2

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
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

	xhttp2 "golang.org/x/net/http2"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// peer runs a Conn over a net.Conn, one lock for all: what the owner's event loop does in earnest.
type peer struct {
	mu   sync.Mutex
	cond *sync.Cond
	conn net.Conn
	c    *Conn
	err  error
}

func run(conn net.Conn, mk func(p *peer) *Conn) *peer {
	p := &peer{conn: conn}
	p.cond = sync.NewCond(&p.mu)
	p.mu.Lock()
	p.c = mk(p)
	p.mu.Unlock()
	go p.write()
	go p.read()
	return p
}

// do runs f, which may send, under the lock.
func (p *peer) do(f func()) {
	p.mu.Lock()
	f()
	p.mu.Unlock()
	p.cond.Broadcast()
}

func (p *peer) write() {
	for {
		p.mu.Lock()
		for len(p.c.out) == 0 && p.err == nil {
			p.cond.Wait()
		}
		b := p.c.Take(nil)
		stop := p.err != nil && len(b) == 0
		p.mu.Unlock()
		if stop {
			p.conn.Close()
			return
		}
		if _, err := p.conn.Write(b); err != nil {
			p.do(func() { p.err = err })
			return
		}
		p.do(func() {
			p.c.Drained()
			if err := p.c.Resume(); err != nil && p.err == nil {
				p.err = err
			}
		})
	}
}

func (p *peer) read() {
	buf := make([]byte, 10_000)
	for {
		n, err := p.conn.Read(buf)
		p.do(func() {
			if ferr := p.c.Feed(buf[:n]); ferr != nil && p.err == nil {
				p.err = ferr
			}
			if err != nil && p.err == nil {
				p.err = err
			}
		})
		if err != nil {
			return
		}
	}
}

// echo is a server: it sends the body back, with its length in a trailer. /hold never answers.
type echo struct {
	resets []Code
	seen   map[string]string
}

type echoStream struct{ n int }

func (e *echo) OnHead(s *Stream, h *header.Header, end bool) {
	s.User = &echoStream{}
	path, _ := h.Header(":path")
	if path == "/hold" {
		return
	}
	e.seen = map[string]string{}
	for i := range h.Len() {
		n, v := h.At(i)
		e.seen[strings.Clone(n)] = strings.Clone(v)
	}
	var resp header.Header
	resp.SetPseudo(header.Status, "200")
	for i := range h.Len() {
		if n, v := h.At(i); strings.HasPrefix(n, "x-") {
			resp.Add(n, v)
		}
	}
	method, _ := h.Header(":method")
	if method == "HEAD" {
		resp.Add("content-length", "1000")
		s.SendHead(&resp, true)
		return
	}
	if path == "/informed" {
		var early header.Header
		early.SetPseudo(header.Status, "103")
		s.SendInformational(&early)
	}
	s.SendHead(&resp, false)
	if end {
		s.SendData([]byte("path " + path))
		e.OnEnd(s, nil)
	}
}

func (e *echo) OnInformational(*Stream, *header.Header) {}

func (e *echo) OnData(s *Stream, b []byte) {
	s.User.(*echoStream).n += len(b)
	s.SendData(b)
	s.Consumed(len(b))
}

func (e *echo) OnEnd(s *Stream, trailers *header.Header) {
	var t header.Header
	t.Add("x-length", strconv.Itoa(s.User.(*echoStream).n))
	if trailers != nil {
		t.Add("x-trailer", trailers.First("x-trailer"))
	}
	s.SendEnd(&t)
}

func (*echo) OnRefused(*header.Header, string)    {}
func (e *echo) OnReset(_ *Stream, c Code, _ bool) { e.resets = append(e.resets, c) }
func (e *echo) OnWritable(*Stream)                {}
func (e *echo) OnGoAway(Code, string)             {}
func (e *echo) OnPong()                           {}

// transport is x/net's client over a pipe to an echo server of ours.
func transport(t *testing.T, o Options) (*http.Client, *echo, *peer) {
	t.Helper()
	e := &echo{}
	var p *peer
	tr := &xhttp2.Transport{
		AllowHTTP:          true,
		MaxHeaderListSize:  1 << 20,
		DisableCompression: true,
		DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) {
			a, b := net.Pipe()
			p = run(b, func(*peer) *Conn { return NewServer(o, e) })
			return a, nil
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	if _, err := c.Get("http://x/first"); err != nil {
		t.Fatal(err)
	}
	return c, e, p
}

func TestServerWithXNetClient(t *testing.T) {
	c, e, p := transport(t, Options{MaxStreams: 1000, StreamWindow: 100_000, ConnectionWindow: 300_000, MaxHeaderBytes: 200_000})
	resp, err := c.Get("http://x/hello?a=b")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "path /hello?a=b" || resp.Trailer.Get("X-Length") != "0" {
		t.Errorf("%q, %v, trailers %v", b, err, resp.Trailer)
	}

	big := bytes.Repeat([]byte("0123456789abcdef"), 300_000) // far more than the windows
	req, _ := http.NewRequest("POST", "http://x/up", bytes.NewReader(big))
	req.Header.Set("X-Large", strings.Repeat("y", 50_000)) // CONTINUATION both ways
	req.Trailer = http.Header{"X-Trailer": {"tv"}}
	req.ContentLength = -1
	if resp, err = c.Do(req); err != nil {
		t.Fatal(err)
	}
	b, err = io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(b, big) {
		t.Fatalf("%d bytes came back of %d, %v", len(b), len(big), err)
	}
	if resp.Trailer.Get("X-Length") != strconv.Itoa(len(big)) || resp.Trailer.Get("X-Trailer") != "tv" || len(resp.Header.Get("X-Large")) != 50_000 {
		t.Errorf("trailers %v, large header %d", resp.Trailer, len(resp.Header.Get("X-Large")))
	}

	if resp, err = c.Head("http://x/"); err != nil || resp.ContentLength != 1000 {
		t.Errorf("HEAD: %v, %v", resp, err)
	}

	var wg sync.WaitGroup
	for i := range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			body := bytes.Repeat([]byte{byte(i)}, 30_000+i)
			resp, err := c.Post("http://x/many", "", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(b, body) {
				t.Errorf("stream %d: %d bytes, %v", i, len(b), err)
			}
		}()
	}
	wg.Wait()

	ctx, cancel := context.WithCancel(context.Background())
	req, _ = http.NewRequestWithContext(ctx, "GET", "http://x/hold", nil)
	errs := make(chan error, 1)
	go func() { _, err := c.Do(req); errs <- err }()
	waitFor(t, p, func() bool { return p.c.Streams() == 1 })
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled request: %v", err)
	}
	waitFor(t, p, func() bool { return p.c.Streams() == 0 && len(e.resets) == 1 && e.resets[0] == Cancel })
}

// waitFor waits until f holds under the lock.
func waitFor(t *testing.T, p *peer, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		ok := false
		p.do(func() { ok = f() })
		if ok {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it does not come")
}

// exchange is the client's view of one request.
type exchange struct {
	status, body, trailer string
	informed              int
	done                  bool
	code                  Code
	again                 bool
}

type client struct {
	goneAway bool
	pongs    int
}

func (*client) OnHead(s *Stream, h *header.Header, end bool) {
	x := s.User.(*exchange)
	status, _ := h.Header(":status")
	x.status = strings.Clone(status)
	x.done = end
}
func (*client) OnInformational(s *Stream, _ *header.Header) { s.User.(*exchange).informed++ }
func (*client) OnData(s *Stream, b []byte) {
	s.User.(*exchange).body += string(b)
	s.Consumed(len(b))
}
func (*client) OnEnd(s *Stream, t *header.Header) {
	x := s.User.(*exchange)
	x.done = true
	if t != nil {
		x.trailer = strings.Clone(t.First("x-length"))
	}
}
func (*client) OnRefused(*header.Header, string) {}
func (*client) OnReset(s *Stream, c Code, again bool) {
	x := s.User.(*exchange)
	x.done, x.code, x.again = true, c, again
}
func (*client) OnWritable(*Stream)      {}
func (c *client) OnGoAway(Code, string) { c.goneAway = true }
func (c *client) OnPong()               { c.pongs++ }

func get(method, path string) *header.Header {
	h := &header.Header{}
	h.SetPseudo(header.Method, method)
	h.SetPseudo(header.Scheme, "http")
	h.SetPseudo(header.Authority, "x")
	h.SetPseudo(header.Path, path)
	return h
}

func TestClientWithXNetServer(t *testing.T) {
	a, b := net.Pipe()
	srv := &xhttp2.Server{MaxConcurrentStreams: 50}
	go srv.ServeConn(b, &xhttp2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/informed" {
			w.WriteHeader(103)
		}
		w.Header().Set("Trailer", "X-Length")
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
		w.Write(body)
		w.Header().Set("X-Length", fmt.Sprint(len(body)))
	})})
	h := &client{}
	p := run(a, func(*peer) *Conn {
		return NewClient(Options{StreamWindow: 70_000, ConnectionWindow: 80_000}, h)
	})
	defer a.Close()

	body := strings.Repeat("z", 500_000)
	var xs []*exchange
	p.do(func() {
		for i := range 40 {
			x := &exchange{}
			xs = append(xs, x)
			s := p.c.Open(x)
			if i == 0 {
				s.SendHead(get("GET", "/informed"), true)
				continue
			}
			s.SendHead(get("POST", "/up"), false)
			s.SendData([]byte(body[:i*1000]))
			s.SendData([]byte(body[i*1000 : 100_000]))
			s.SendEnd(nil)
		}
		p.c.Ping()
	})
	abort := &exchange{}
	p.do(func() { p.c.Open(abort).SendHead(get("GET", "/abort"), true) })
	waitFor(t, p, func() bool {
		for _, x := range xs {
			if !x.done {
				return false
			}
		}
		return abort.done && h.pongs == 1
	})
	p.do(func() {
		for i, x := range xs {
			switch {
			case x.code != 0 || x.status != "200":
				t.Errorf("stream %d: %s, code %v", i, x.status, x.code)
			case i == 0 && x.informed != 1:
				t.Error("no informational response")
			case i > 0 && (x.body != body[:100_000] || x.trailer != "100000"):
				t.Errorf("stream %d: %d bytes, trailer %q", i, len(x.body), x.trailer)
			}
		}
		if abort.code != InternalError || abort.again {
			t.Errorf("aborted: code %v, again %v", abort.code, abort.again)
		}
		if p.c.MaxStreams() != 50 || p.c.Streams() != 0 {
			t.Errorf("%d streams allowed, %d left", p.c.MaxStreams(), p.c.Streams())
		}
	})
}

// TestSplits runs both sides in memory, with bytes cut at random.
func TestSplits(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		srv := NewServer(Options{MaxStreams: 100, StreamWindow: 10_000, HeaderTable: 512}, &echo{})
		cl := NewClient(Options{StreamWindow: 5_000}, &client{})
		var xs []*exchange
		var bodies []string
		for range 30 {
			body := strings.Repeat("b", r.IntN(50_000))
			x := &exchange{}
			s := cl.Open(x)
			h := get("POST", "/"+strconv.Itoa(r.IntN(10)))
			h.Add("x-some", strings.Repeat("h", r.IntN(20_000)))
			s.SendHead(h, false)
			s.SendData([]byte(body))
			s.SendEnd(nil)
			xs, bodies = append(xs, x), append(bodies, body)
		}
		var toServer, toClient []byte
		for range 1_000_000 {
			toServer, toClient = cl.Take(toServer), srv.Take(toClient)
			cl.Drained()
			srv.Drained()
			if len(toServer)+len(toClient) == 0 {
				break
			}
			n := min(len(toServer), 1+r.IntN(9000))
			if err := srv.Feed(toServer[:n]); err != nil {
				t.Fatal(err)
			}
			toServer = toServer[n:]
			n = min(len(toClient), 1+r.IntN(9000))
			if err := cl.Feed(toClient[:n]); err != nil {
				t.Fatal(err)
			}
			toClient = toClient[n:]
		}
		for i, x := range xs {
			if x.body != bodies[i] || x.trailer != strconv.Itoa(len(bodies[i])) || x.code != 0 {
				t.Fatalf("seed %d, stream %d: %d bytes of %d, trailer %q, code %v", seed, i, len(x.body), len(bodies[i]), x.trailer, x.code)
			}
		}
		if srv.Streams()+cl.Streams() != 0 {
			t.Errorf("streams are left: %d, %d", srv.Streams(), cl.Streams())
		}
	}
}

// TestRoom: however much streams are given, little is put out at once, all streams have their turns,
// and buffers are given back.
func TestRoom(t *testing.T) {
	lent := 0
	options := Options{
		StreamWindow: 1 << 20, ConnectionWindow: 16 << 20,
		Buffer:  func() []byte { lent++; return make([]byte, 0, 100) },
		Recycle: func([]byte) { lent-- },
	}
	srv, cl := NewServer(options, &echo{}), NewClient(options, &client{})
	most := 0
	move := func(from, to *Conn) (frames []uint32) {
		t.Helper()
		b := from.Take(nil)
		most = max(most, len(b))
		for at := 0; at < len(b); {
			f := parseFrame(b[at:])
			if at += frameHeader + f.length; f.kind == frameData && f.length > 0 {
				frames = append(frames, f.stream)
			}
		}
		if err := to.Feed(b); err != nil {
			t.Fatal(err)
		}
		if b != nil {
			lent--
		}
		if err := from.Resume(); err != nil {
			t.Fatal(err)
		}
		return frames
	}
	for range 3 {
		move(cl, srv)
		move(srv, cl)
	}
	body := strings.Repeat("0123456789", 30_000)
	var xs []*exchange
	for range 3 {
		x := &exchange{}
		s := cl.Open(x)
		s.SendHead(get("POST", "/"), false)
		s.SendData([]byte(body))
		s.SendEnd(nil)
		xs = append(xs, x)
		if s.Pending() == 0 {
			t.Error("nothing is held back")
		}
	}
	move(cl, srv) // all that there was room for went to the first
	if got := move(cl, srv); !slices.Contains(got, 1) || !slices.Contains(got, 3) || !slices.Contains(got, 5) {
		t.Errorf("in one turn: frames of the streams %v", got)
	}
	for cl.Queued()+srv.Queued() > 0 {
		move(cl, srv)
		move(srv, cl)
	}
	for i, x := range xs {
		if x.body != body || !x.done || x.code != NoError {
			t.Errorf("stream %d: %d bytes of %d, done %v, code %v", i, len(x.body), len(body), x.done, x.code)
		}
	}
	if most > maxOut+maxFrame+1000 {
		t.Errorf("%d bytes were put out at once", most)
	}
	if lent != 0 || srv.Streams()+cl.Streams() != 0 {
		t.Errorf("%d buffers were not given back, %d streams are left", lent, srv.Streams()+cl.Streams())
	}
}

// early answers before the request has come.
type early struct{ echo }

func (*early) OnHead(s *Stream, h *header.Header, _ bool) {
	var resp header.Header
	resp.SetPseudo(header.Status, "413")
	s.SendHead(&resp, false)
	s.SendData(make([]byte, 300_000))
	s.SendEnd(nil)
	s.Ignore()
}
func (*early) OnData(s *Stream, b []byte) { s.Consumed(len(b)) }

// TestIgnore: a request whose answer is complete is reset, but not before the client has the answer.
func TestIgnore(t *testing.T) {
	srv, cl := NewServer(Options{}, &early{}), NewClient(Options{StreamWindow: 100_000}, &client{})
	x := &exchange{}
	s := cl.Open(x)
	s.SendHead(get("POST", "/"), false)
	for cl.Queued()+srv.Queued() > 0 {
		if err := srv.Feed(cl.Take(nil)); err != nil {
			t.Fatal(err)
		}
		if err := cl.Feed(srv.Take(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if len(x.body) != 300_000 || !x.done || !s.Over() || srv.Streams() != 0 {
		t.Errorf("%d bytes, done %v, over %v, code %v; the server has %d streams", len(x.body), x.done, s.Over(), x.code, srv.Streams())
	}
}

func TestShutdown(t *testing.T) {
	srv := NewServer(Options{}, &echo{})
	h := &client{}
	cl := NewClient(Options{}, h)
	turn := func() {
		t.Helper()
		for range 10 {
			if err := srv.Feed(cl.Take(nil)); err != nil {
				t.Fatal(err)
			}
			if err := cl.Feed(srv.Take(nil)); err != nil {
				t.Fatal(err)
			}
		}
	}
	turn()
	x := &exchange{}
	s := cl.Open(x)
	s.SendHead(get("POST", "/"), false)
	srv.Shutdown() // before the request has come
	turn()
	if !h.goneAway || cl.CanOpen() {
		t.Error("the client does not know that the server goes")
	}
	s.SendData([]byte("x"))
	s.SendEnd(nil)
	turn()
	if !x.done || x.body != "x" || x.code != 0 {
		t.Errorf("the open stream was not served: %+v", x)
	}
}

// A GOAWAY refuses the streams beyond it: they can be sent again.
func TestGoAwayRefuses(t *testing.T) {
	cl := NewClient(Options{}, &client{})
	var xs [3]exchange
	for i := range xs {
		cl.Open(&xs[i]).SendHead(get("GET", "/"), true)
	}
	b := appendFrame(nil, 0, frameSettings, 0, 0)
	b = appendUint32(appendUint32(appendFrame(b, 8, frameGoAway, 0, 0), 3), uint32(NoError))
	if err := cl.Feed(b); err != nil {
		t.Fatal(err)
	}
	if xs[0].done || xs[1].done || !xs[2].done || !xs[2].again || xs[2].code != RefusedStream {
		t.Errorf("%+v", xs)
	}
}

// flood feeds frames to a fresh server until it has enough; it reports the error's code.
func flood(t *testing.T, n int, frame func(i int) []byte) (Code, int) {
	t.Helper()
	srv := NewServer(Options{MaxStreams: 1000}, &echo{})
	b := append([]byte(Preface), appendFrame(nil, 0, frameSettings, 0, 0)...)
	if err := srv.Feed(b); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := srv.Feed(frame(i)); err != nil {
			var ce *ConnError
			if !errors.As(err, &ce) {
				t.Fatal(err)
			}
			return ce.Code, i
		}
		if len(srv.out) > 1<<20 {
			t.Fatalf("%d bytes of answers wait", len(srv.out))
		}
	}
	return NoError, n
}

func TestFloods(t *testing.T) {
	enc := newEncoder()
	request := func(i int, flags uint8, path string) []byte {
		var block []byte
		for _, f := range []entry{{":method", "GET"}, {":scheme", "http"}, {":authority", "x"}, {":path", path}} {
			block = enc.literal(block, 0, 4, 0, f.name, f.value)
		}
		return append(appendFrame(nil, len(block), frameHeaders, flags, uint32(2*i+1)), block...)
	}
	for name, f := range map[string]func(i int) []byte{
		"ping":     func(int) []byte { return append(appendFrame(nil, 8, framePing, 0, 0), "12345678"...) },
		"settings": func(int) []byte { return appendFrame(nil, 0, frameSettings, 0, 0) },
		"window":   func(int) []byte { return appendUint32(appendFrame(nil, 4, frameWindow, 0, 0), 1) },
		"priority": func(int) []byte { return append(appendFrame(nil, 5, framePriority, 0, 1), 0, 0, 0, 0, 0) },
		"rapid reset": func(i int) []byte {
			return appendUint32(appendFrame(request(i, flagEndHeaders|flagEnd, "/hold"), 4, frameReset, 0, uint32(2*i+1)), uint32(Cancel))
		},
		"continuation": func(i int) []byte {
			if i == 0 {
				return request(0, 0, "/")
			}
			return appendFrame(nil, 0, frameContinuation, 0, 1)
		},
		"refused": func(i int) []byte { return request(i, flagEndHeaders, "/hold") },
	} {
		if code, n := flood(t, 20_000, f); code != EnhanceYourCalm {
			t.Errorf("%s: code %v after %d", name, code, n)
		}
	}
	// Requests that the server is made to reset, by a client that reads all that it is sent.
	srv := NewServer(Options{}, &echo{})
	err := srv.Feed(append([]byte(Preface), appendFrame(nil, 0, frameSettings, 0, 0)...))
	for i := 0; i < 2*firstResets && err == nil; i++ {
		err = srv.Feed(appendUint32(appendFrame(request(i, flagEndHeaders|flagEnd, "/hold"), 4, frameWindow, 0, uint32(2*i+1)), 0))
		srv.Take(nil)
		srv.Drained()
	}
	if ce := new(ConnError); !errors.As(err, &ce) || ce.Code != EnhanceYourCalm {
		t.Errorf("made to reset: %v", err)
	}
	// A large header in many pieces.
	piece := bytes.Repeat([]byte{0}, maxFrame)
	if code, _ := flood(t, 100, func(i int) []byte {
		if i == 0 {
			return request(0, 0, "/")
		}
		return append(appendFrame(nil, len(piece), frameContinuation, 0, 1), piece...)
	}); code != EnhanceYourCalm {
		t.Errorf("large header: code %v", code)
	}
}

func TestMalformed(t *testing.T) {
	ok := []entry{{":method", "GET"}, {":scheme", "http"}, {":authority", "x"}, {":path", "/"}}
	with := func(fs ...entry) []entry { return append(append([]entry{}, ok...), fs...) }
	for name, fields := range map[string][]entry{
		"upper case":          with(entry{"X-Up", "1"}),
		"connection":          with(entry{"connection", "close"}),
		"te":                  with(entry{"te", "gzip"}),
		"line break":          with(entry{"x", "a\nb"}),
		"leading blank":       with(entry{"x", " a"}),
		"pseudo after field":  append(with(entry{"x", "y"}), entry{":path", "/"}),
		"two paths":           with(entry{":path", "/"}),
		"unknown pseudo":      with(entry{":nope", "/"}),
		"response's pseudo":   with(entry{":status", "200"}),
		"no path":             ok[:3],
		"empty path":          append(append([]entry{}, ok[:3]...), entry{":path", ""}),
		"relative path":       append(append([]entry{}, ok[:3]...), entry{":path", "x"}),
		"other host":          with(entry{"host", "y"}),
		"two lengths":         with(entry{"content-length", "1"}, entry{"content-length", "2"}),
		"signed length":       with(entry{"content-length", "+1"}),
		"length without body": with(entry{"content-length", "1"}),
		"space in authority":  {{":method", "GET"}, {":scheme", "http"}, {":authority", "a b"}, {":path", "/"}},
		"empty name":          with(entry{"", "x"}),
		"extended CONNECT":    {{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "http"}, {":authority", "x"}, {":path", "/"}},
	} {
		e := &echo{}
		srv := NewServer(Options{}, e)
		enc := newEncoder()
		var block []byte
		for _, f := range fields {
			block = enc.literal(block, 0, 4, 0, f.name, f.value)
		}
		b := append([]byte(Preface), appendFrame(nil, 0, frameSettings, 0, 0)...)
		b = append(appendFrame(b, len(block), frameHeaders, flagEndHeaders|flagEnd, 1), block...)
		srv.Take(nil)
		if err := srv.Feed(b); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if e.seen != nil {
			t.Errorf("%s: was taken", name)
		}
		out := srv.Take(nil)
		out = out[frameHeader:] // the acknowledgement
		if f := parseFrame(out); f.kind != frameReset {
			t.Errorf("%s: answered by frame type %d", name, f.kind)
		}
	}
}

func TestCookiesAreJoined(t *testing.T) {
	e := &echo{}
	srv := NewServer(Options{}, e)
	enc := newEncoder()
	var block []byte
	for _, f := range []entry{{":method", "GET"}, {":scheme", "http"}, {":authority", "x"}, {":path", "/"}, {"cookie", "a=1"}, {"cookie", "b=2"}} {
		block = enc.field(block, f.name, f.value)
	}
	b := append([]byte(Preface), appendFrame(nil, 0, frameSettings, 0, 0)...)
	if err := srv.Feed(append(appendFrame(b, len(block), frameHeaders, flagEndHeaders|flagEnd, 1), block...)); err != nil {
		t.Fatal(err)
	}
	if e.seen["cookie"] != "a=1; b=2" {
		t.Errorf("cookie %q", e.seen["cookie"])
	}
}

// BenchmarkRequest is a small request and its response through both sides.
func BenchmarkRequest(b *testing.B) {
	srv := NewServer(Options{MaxStreams: 1000}, &echo{})
	cl := NewClient(Options{}, &client{})
	var up, down []byte
	x := &exchange{}
	req := get("GET", "/hello")
	b.ReportAllocs()
	for b.Loop() {
		x.body = ""
		cl.Open(x).SendHead(req, true)
		up = cl.Take(up[:0])
		if err := srv.Feed(up); err != nil {
			b.Fatal(err)
		}
		down = srv.Take(down[:0])
		if err := cl.Feed(down); err != nil {
			b.Fatal(err)
		}
		cl.Drained()
		srv.Drained()
	}
}
