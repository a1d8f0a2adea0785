package proxy

import (
	"cmp"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/header"
	"github.com/carrick-mesh/carrick/proxy/http2"
	"github.com/carrick-mesh/carrick/proxy/loop"
)

// h2Down is an HTTP/2 connection from a client.
type h2Down struct {
	d       *downstream
	c       *conn
	w       *worker
	h2      *http2.Conn
	streams map[*h2Request]struct{}
	served  uint32
	idle    loop.Timer
	most    loop.Timer // MaxConnectionDuration
	block   loop.Timer // of a header block that is not complete
	blockID uint32     // its stream; 0: none
	ping    pinger
	closing bool // Shutdown was called
	late    bool // what the client has not taken by now it does not get
	uncount func()
	ticks   int // since closing
}

// h2Request is one stream of an h2Down.
type h2Request struct {
	x    *h2Down
	hs   *http2.Stream
	s    *stream // nil: over
	held int     // bytes of the body that the windows have not got back
}

func (w *worker) serveHTTP2(d *downstream) *h2Down {
	x := &h2Down{d: d, c: d.c, w: w, streams: map[*h2Request]struct{}{}}
	o := d.chain.HTTP
	x.h2 = http2.NewServer(http2.Options{
		MaxStreams:       min(o.HTTP2.MaxStreams, 1<<16),
		StreamWindow:     min(o.HTTP2.StreamWindow, 1<<20),         // what may wait for each stream in memory
		ConnectionWindow: min(o.HTTP2.ConnectionWindow, maxConn/2), // what may wait for all of them
		HeaderTable:      o.HTTP2.HeaderTable,
		MaxHeaderBytes:   o.MaxHeaderBytes,
		MaxHeaders:       o.MaxHeaders,
		Buffer:           w.buf,
		Recycle:          w.recycle,
	}, x)
	x.idle.Fire, x.block.Fire = d.c.guarded(x.onIdle), d.c.guarded(x.blockLate)
	d.c.user, d.c.src = x, x.h2
	w.addSession(x)
	x.uncount = d.countConn(true)
	if t := o.MaxConnectionDuration; t > 0 {
		x.most.Fire = d.c.guarded(x.drain)
		w.loop.Arm(&x.most, t)
	}
	x.ping.start(d.c, x.h2, &o.HTTP2, x.lost)
	x.rest()
	d.c.mark()
	if first := d.first; len(first) > 0 {
		d.first = nil
		x.feed(first)
	}
	if !d.c.closed && d.c.readable {
		d.c.again()
	}
	return x
}

// settleTicks is how long, in seconds, a client has to answer that it knows of the end of its connection.
const settleTicks = 5

// rest starts the idle timer if no stream is left, or ends a connection that is to end, once the client
// has let it send what its windows hold back.
func (x *h2Down) rest() {
	if len(x.streams) > 0 {
		return
	}
	if x.closing && !x.c.closed && !x.h2.Settled() { // a request may be under way: tick bounds the wait
		x.idle.Stop()
		return
	}
	if x.closing || x.c.closed {
		if !x.c.closed && !x.late && x.h2.Held() {
			x.w.loop.Arm(&x.idle, cmp.Or(x.d.chain.HTTP.StreamIdleTimeout, time.Hour))
			return
		}
		x.idle.Stop()
		x.leave()
		if !x.c.closed {
			x.c.linger()
		}
		return
	}
	if t := x.d.chain.HTTP.IdleTimeout; t > 0 {
		x.w.loop.Arm(&x.idle, t)
	}
}

// leave counts the end of the session.
func (x *h2Down) leave() {
	x.most.Stop()
	x.block.Stop()
	x.ping.stop()
	x.w.removeSession(x)
	x.uncount()
	x.d.closed()
}

func (x *h2Down) onIdle() {
	x.closing, x.late, x.served = true, true, max(1, x.served)
	x.h2.Close(http2.NoError)
	x.rest()
}

// drain implements session.
func (x *h2Down) drain() {
	x.closing = true
	x.h2.Shutdown()
	x.c.mark()
	x.rest()
}

func (x *h2Down) listenerName() string { return x.d.listener.Name }

func (x *h2Down) end() {
	x.h2.Close(http2.NoError)
	x.c.closeAfter()
	x.fail("downstream_local_disconnect(proxy_stopped)")
}

func (x *h2Down) onFail(error) { x.fail("downstream_remote_disconnect") }

// fail ends all streams of a connection that is gone.
func (x *h2Down) fail(details string) { x.failFor(accesslog.DownstreamConnectionTermination, details) }

func (x *h2Down) failFor(why accesslog.Flags, details string) {
	x.idle.Stop()
	x.leave()
	for r := range x.streams {
		delete(x.streams, r)
		if s := r.s; s != nil {
			r.s = nil
			s.resetFor(why, details)
		}
	}
}

func (x *h2Down) onWrite() {
	if x.h2.Paused() || x.c.readable {
		x.c.again()
	}
	for r := range x.streams {
		if r.s != nil && !r.full() {
			r.s.downWritable()
		}
	}
}

func (x *h2Down) onRead() {
	if x.h2.Paused() && !x.c.isBlocked() {
		x.fed(x.h2.Resume())
	}
	// A client that does not read is not read from.
	for x.c.readable && !x.c.closed && x.c.user == user(x) && !x.c.isBlocked() {
		b, err := x.c.read()
		if len(b) > 0 {
			x.feed(b)
			continue
		}
		if err != nil {
			x.c.close()
			x.onFail(err)
		}
		return
	}
}

func (x *h2Down) feed(b []byte) { x.fed(x.h2.Feed(b)) }

// fed goes on after the client's bytes were handled.
func (x *h2Down) fed(err error) {
	if x.c.closed {
		return
	}
	x.c.mark()
	if x.h2.Paused() {
		x.c.full = true // so that onWrite comes and resumes, even if there is nothing more to read
	}
	if err != nil {
		x.c.closeAfter()
		x.failFor(accesslog.DownstreamProtocolError, "http2.protocol_error")
		return
	}
	x.awaitBlock()
	if x.closing && x.c.user == user(x) { // the windows may have opened
		x.rest()
	}
}

// The methods below implement http2.Handler.

// OnHead begins a stream.
func (x *h2Down) OnHead(hs *http2.Stream, h *header.Header, end bool) {
	x.idle.Stop()
	x.adopt()
	s := x.w.newStream(x.d, nil)
	r := &h2Request{x: x, hs: hs, s: s}
	s.down, hs.User = r, r
	x.streams[r] = struct{}{}
	x.served++
	*h, s.req = s.req, *h
	s.protocol, s.acceptsTrailers = "HTTP/2", true
	method := s.req.Pseudo(header.Method)
	s.head, s.connect = method == "HEAD", method == "CONNECT"
	if !s.req.Has("te") {
		s.acceptsTrailers = false
	}
	if s.req.First("expect") == "100-continue" {
		if s.expect = s.hcm.Proxy100Continue; !s.expect {
			s.req.Remove("expect")
			r.sendInformational(goOn())
		}
	}
	if m := x.d.chain.HTTP.MaxRequests; m > 0 && x.served >= m || x.w.p.draining.Load() {
		x.closing = true
		x.h2.Shutdown()
	}
	s.begin(end)
}

// adopt moves the connection on to the current configuration, as an HTTP/1 connection does.
func (x *h2Down) adopt() {
	l, c, ok := x.d.current(x.w.snapshot())
	if !ok {
		x.closing = true
		x.h2.Shutdown()
		return
	}
	x.d.listener, x.d.chain = l, c
}

// OnInformational does not happen at a server.
func (x *h2Down) OnInformational(*http2.Stream, *header.Header) {}

// OnData takes a part of a request's body.
func (x *h2Down) OnData(hs *http2.Stream, b []byte) {
	r, _ := hs.User.(*h2Request)
	if r == nil || r.s == nil {
		hs.Consumed(len(b))
		return
	}
	r.s.reqData(b)
	if r.s != nil && !r.s.wantsBody() {
		r.held += len(b)
		return
	}
	hs.Consumed(len(b))
}

// OnEnd ends a request.
func (x *h2Down) OnEnd(hs *http2.Stream, trailers *header.Header) {
	r, _ := hs.User.(*h2Request)
	if r == nil || r.s == nil {
		return
	}
	if trailers != nil {
		r.s.reqTrailers.CopyFrom(trailers)
	}
	r.s.reqComplete(trailers != nil)
}

// OnReset ends a stream that the client gave up.
func (x *h2Down) OnReset(hs *http2.Stream, code http2.Code, _ bool) {
	r, _ := hs.User.(*h2Request)
	if r == nil || r.s == nil {
		return
	}
	s := r.s
	r.s = nil
	delete(x.streams, r)
	if hs.Faulty() {
		s.resetFor(accesslog.DownstreamProtocolError, "http2.violation.of.messaging.rule")
	} else {
		s.resetFor(accesslog.DownstreamRemoteReset, "http2.remote_reset")
	}
	x.rest()
}

// OnRefused logs a request that never was one.
func (x *h2Down) OnRefused(h *header.Header, details string) {
	s := x.w.newStream(x.d, nobody{})
	*h, s.req = s.req, *h
	s.protocol, s.reqDone = "HTTP/2", true
	s.resetFor(accesslog.DownstreamProtocolError, details)
}

// OnWritable lets a response go on that windows held back.
func (x *h2Down) OnWritable(hs *http2.Stream) {
	if r, _ := hs.User.(*h2Request); r != nil && r.s != nil && !x.c.isBlocked() {
		r.s.downWritable()
	}
}

// OnGoAway: the client opens no more streams.
func (x *h2Down) OnGoAway(http2.Code, string) {
	x.closing, x.served = true, max(1, x.served)
	x.rest()
}

// OnPong says that the client is there.
func (x *h2Down) OnPong() { x.ping.pong() }

// lost ends a connection whose client does not answer.
func (x *h2Down) lost() {
	x.c.close()
	x.fail("http2.ping_timeout")
}

// pinger finds out whether the peer is still there.
type pinger struct {
	c       *conn
	h2      *http2.Conn
	o       *config.HTTP2Options
	timer   loop.Timer
	waiting bool
	lost    func()
}

func (p *pinger) start(c *conn, h2 *http2.Conn, o *config.HTTP2Options, lost func()) {
	if o.PingInterval <= 0 {
		return
	}
	*p = pinger{c: c, h2: h2, o: o, lost: lost}
	p.timer.Fire = c.guarded(p.fire)
	c.w.loop.Arm(&p.timer, o.PingInterval)
}

func (p *pinger) fire() {
	if p.waiting {
		p.lost()
		return
	}
	p.waiting = true
	p.h2.Ping()
	p.c.mark()
	p.c.w.loop.Arm(&p.timer, max(p.o.PingTimeout, time.Millisecond))
}

func (p *pinger) pong() {
	if p.waiting {
		p.waiting = false
		p.c.w.loop.Arm(&p.timer, p.o.PingInterval)
	}
}

func (p *pinger) stop() { p.timer.Stop() }

// The methods below make h2Request a client.

func (r *h2Request) sendHead(s *stream, end bool) {
	r.hs.SendHead(&s.resp, end)
	r.x.c.mark()
}

func (r *h2Request) sendData(s *stream, b []byte) {
	r.hs.SendData(b)
	r.x.c.mark()
}

func (r *h2Request) sendEnd(s *stream, t *header.Header) {
	r.hs.SendEnd(t)
	r.x.c.mark()
}

func (r *h2Request) sendInformational(h *header.Header) {
	r.hs.SendInformational(h)
	r.x.c.mark()
}

func (r *h2Request) full() bool { return r.x.c.isBlocked() || r.hs.Pending() > r.x.c.streamMark() }

// resume gives the windows back what the stream has taken meanwhile.
func (r *h2Request) resume() {
	if r.held > 0 && !r.hs.Over() {
		r.hs.Consumed(r.held)
		r.held = 0
		r.x.c.mark()
	}
}

func (r *h2Request) done(s *stream, complete bool) {
	x := r.x
	r.s = nil
	if _, ok := x.streams[r]; !ok {
		return
	}
	delete(x.streams, r)
	switch {
	case !complete:
		r.hs.Reset(http2.InternalError)
	case !s.reqDone:
		r.hs.Ignore()
	}
	x.c.mark()
	x.rest()
}
