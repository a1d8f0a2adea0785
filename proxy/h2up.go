package proxy

import (
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/carrick-mesh/carrick/proxy/header"
	"github.com/carrick-mesh/carrick/proxy/http2"
	"github.com/carrick-mesh/carrick/proxy/loop"
)

// h2Up is an HTTP/2 connection to an upstream host. Many streams share it.
type h2Up struct {
	p       *pool
	c       *conn
	tls     *tlsState
	h2      *http2.Conn
	streams map[*h2Call]struct{}
	used    uint32
	born    time.Time
	idle    loop.Timer
	over    bool // takes no new streams
	pod     *pod // that it leads to; nil: the host
	shunned bool // it is used although the pod is ejected
	ping    pinger
}

// h2Call is one stream of an h2Up.
type h2Call struct {
	u    *h2Up
	hs   *http2.Stream
	s    *stream // nil: over
	got  bool    // anything of the response
	held int
}

// beginH2 takes a new connection over.
func (p *pool) beginH2(c *conn, st *tlsState) *h2Up {
	u := &h2Up{p: p, c: c, tls: st, streams: map[*h2Call]struct{}{}, born: p.w.loop.Now()}
	o := &p.h.cluster.cfg.HTTP
	u.h2 = http2.NewClient(http2.Options{
		StreamWindow:     min(max(o.HTTP2.StreamWindow, 1<<16), 1<<20),
		ConnectionWindow: min(max(o.HTTP2.ConnectionWindow, 1<<16), 4<<20), // the most that slow clients' answers take
		HeaderTable:      o.HTTP2.HeaderTable,
		MaxHeaders:       o.MaxHeaders,
		Buffer:           p.w.buf,
		Recycle:          p.w.recycle,
	}, u)
	u.idle.Fire = c.guarded(u.shut)
	c.user, c.src = u, u.h2
	p.w.h2ups[u] = struct{}{}
	u.ping.start(c, u.h2, &o.HTTP2, func() { c.fail(syscall.ETIMEDOUT) })
	p.h.cluster.stat(p.w).CxHTTP2.Inc()
	c.mark()
	return u
}

// open reports whether another stream may begin.
func (u *h2Up) open() bool {
	return !u.over && !u.c.closed && u.h2.CanOpen() && uint32(len(u.streams)) < max(1, u.p.h.cluster.cfg.HTTP.HTTP2.MaxStreams)
}

// stale reports whether u should carry no further stream, as upConn.stale does.
func (u *h2Up) stale(now time.Time) bool {
	h := &u.p.h.cluster.cfg.HTTP
	if h.MaxRequests > 0 && u.used >= h.MaxRequests || h.MaxConnectionDuration > 0 && now.Sub(u.born) > h.MaxConnectionDuration {
		return true
	}
	if u.pod.ejected() && !u.shunned {
		return true
	}
	return u.p.h.gateway && u.used > 0 && (u.used >= gatewayRequests || now.Sub(u.born) > gatewayAge)
}

// call returns a stream for s.
func (u *h2Up) call() *h2Call {
	u.idle.Stop()
	u.used++
	k := &h2Call{u: u}
	u.streams[k] = struct{}{}
	return k
}

// retire lets u end when its streams have.
func (u *h2Up) retire() {
	u.over = true
	if len(u.streams) == 0 {
		u.shut()
	}
}

// shut closes a connection without streams.
func (u *h2Up) shut() {
	u.over = true
	if u.c.closed {
		return
	}
	u.h2.Close(http2.NoError)
	u.forget()
	u.c.closeAfter()
}

// forget takes u out of the pool.
func (u *h2Up) forget() {
	u.idle.Stop()
	u.ping.stop()
	delete(u.p.w.h2ups, u)
	u.p.removeH2(u)
}

func (u *h2Up) onWrite() {
	for k := range u.streams {
		if k.s != nil {
			k.s.upWritable()
		}
	}
}

func (u *h2Up) onFail(err error) { u.fail(u.c.ended(err), silent(err)) }

// fail ends all streams of a connection that is gone; silent says that the host had stopped answering.
func (u *h2Up) fail(f failure, silent bool) {
	u.over = true
	u.forget()
	for k := range u.streams {
		delete(u.streams, k)
		if s := k.s; s != nil {
			k.s, s.up = nil, nil
			s.upReset(f, k.got, u.used > 1 || silent)
		}
	}
}

func (u *h2Up) onRead() {
	for u.c.readable && !u.c.closed && u.c.user == user(u) {
		b, err := u.c.read()
		if len(b) > 0 {
			err := u.h2.Feed(b)
			if u.c.closed {
				return
			}
			u.c.mark()
			if err != nil {
				u.c.closeAfter()
				u.fail(failure{protocolError, ""}, false)
				return
			}
			continue
		}
		if err != nil {
			u.c.close()
			u.onFail(err)
		}
		return
	}
}

// done lets go of a stream that is over.
func (u *h2Up) done(k *h2Call) {
	k.s = nil
	delete(u.streams, k)
	u.c.mark()
	switch {
	case u.over || u.h2.GoneAway():
		if len(u.streams) == 0 {
			u.shut()
		}
	case u.open():
		if s := u.p.next(); s != nil {
			s.attach(u.call())
		} else if len(u.streams) == 0 {
			if t := u.p.h.cluster.cfg.HTTP.IdleTimeout; t > 0 {
				u.p.w.loop.Arm(&u.idle, t)
			}
		}
	}
}

// tick is called once a second.
func (u *h2Up) tick() { u.h2.Refill() }

// The methods below implement http2.Handler.

// OnHead is a response.
func (u *h2Up) OnHead(hs *http2.Stream, h *header.Header, end bool) {
	k, _ := hs.User.(*h2Call)
	if k == nil || k.s == nil {
		return
	}
	s := k.s
	k.got = true
	*h, s.resp = s.resp, *h
	status, _ := strconv.Atoi(s.resp.Pseudo(header.Status))
	if end {
		k.finish()
	}
	s.upHead(status, end)
}

// OnInformational is a 1xx response.
func (u *h2Up) OnInformational(hs *http2.Stream, h *header.Header) {
	if k, _ := hs.User.(*h2Call); k != nil && k.s != nil {
		k.got = true
		k.s.resp.CopyFrom(h)
		status, _ := strconv.Atoi(h.Pseudo(header.Status))
		k.s.upInformational(status)
	}
}

// OnData is a part of a response's body.
func (u *h2Up) OnData(hs *http2.Stream, b []byte) {
	k, _ := hs.User.(*h2Call)
	if k == nil || k.s == nil {
		hs.Consumed(len(b))
		return
	}
	k.s.upData(b)
	if k.s != nil && k.s.down.full() {
		k.held += len(b)
		return
	}
	hs.Consumed(len(b))
}

// OnEnd ends a response.
func (u *h2Up) OnEnd(hs *http2.Stream, trailers *header.Header) {
	k, _ := hs.User.(*h2Call)
	if k == nil || k.s == nil {
		return
	}
	s := k.s
	var t *header.Header
	if trailers != nil {
		t = &s.trailers
		t.CopyFrom(trailers)
	}
	k.finish()
	s.upEnd(t)
}

// OnReset ends a stream that the upstream gave up.
func (u *h2Up) OnReset(hs *http2.Stream, code http2.Code, unprocessed bool) {
	k, _ := hs.User.(*h2Call)
	if k == nil || k.s == nil {
		return
	}
	s, got := k.s, k.got
	s.up = nil
	u.done(k)
	r := remoteReset
	if unprocessed {
		r = refused
	}
	s.upReset(failure{r, ""}, got, unprocessed && u.h2.GoneAway())
}

// OnRefused does not happen at a client.
func (u *h2Up) OnRefused(*header.Header, string) {}

// OnWritable lets a request's body go on that windows held back.
func (u *h2Up) OnWritable(hs *http2.Stream) {
	if k, _ := hs.User.(*h2Call); k != nil && k.s != nil {
		k.s.upWritable()
	}
}

// OnGoAway: the upstream takes no more streams.
func (u *h2Up) OnGoAway(http2.Code, string) {
	u.over = true
	u.p.dropH2(u)
	if len(u.streams) == 0 {
		u.shut()
	}
}

// OnPong says that the host is there.
func (u *h2Up) OnPong() { u.ping.pong() }

// The methods below make h2Call an upstream.

func (k *h2Call) open(s *stream) { k.s = s }

func (k *h2Call) sendHead(s *stream, end bool) {
	k.hs = k.u.h2.Open(k)
	if k.hs == nil { // the connection ended since it was chosen
		return
	}
	k.hs.SendHead(&s.req, end)
	k.u.c.mark()
}

func (k *h2Call) sendData(s *stream, b []byte) {
	if k.hs != nil {
		k.hs.SendData(b)
		k.u.c.mark()
	}
}

func (k *h2Call) sendEnd(s *stream, t *header.Header) {
	if k.hs != nil {
		k.hs.SendEnd(t)
		k.u.c.mark()
	}
}

func (k *h2Call) full() bool {
	return k.u.c.isBlocked() || k.hs != nil && k.hs.Pending() > highWater
}

func (k *h2Call) resume() {
	if k.held > 0 && !k.hs.Over() {
		k.hs.Consumed(k.held)
		k.held = 0
		k.u.c.mark()
	}
}

func (k *h2Call) cancel() {
	if k.hs != nil {
		k.hs.Reset(http2.Cancel)
	}
	k.u.done(k)
}

// finish detaches the stream of a complete response.
func (k *h2Call) finish() {
	s := k.s
	s.up = nil
	if !s.reqDone && k.hs != nil {
		k.hs.Reset(http2.NoError)
	}
	k.u.done(k)
}

func (k *h2Call) facts() (netip.AddrPort, *tlsState, string) {
	return k.u.c.local, k.u.tls, "HTTP/2"
}

func (k *h2Call) leadsTo() *pod { return k.u.pod }
