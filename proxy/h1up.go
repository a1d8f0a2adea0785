package proxy

import (
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/carrick-mesh/carrick/proxy/header"
	"github.com/carrick-mesh/carrick/proxy/http1"
	"github.com/carrick-mesh/carrick/proxy/loop"
)

// upConn is an HTTP/1 connection to an upstream host. It serves one stream at a time.
type upConn struct {
	p    *pool
	c    *conn
	tls  *tlsState
	born time.Time
	used uint32 // requests begun

	pod     *pod // that it leads to; nil: the host
	shunned bool // it is used although the pod is ejected

	s       *stream // nil: idle
	head    []byte  // the start of a response head
	scanned int
	msg     http1.Message
	body    http1.Body
	trailer header.Header

	gotHead   bool
	gotBytes  bool // anything of the response
	chunked   bool // the request's body goes in chunks
	sentAll   bool // the request has gone
	tunnel    bool // after 101 or CONNECT: bytes until the end
	idleTimer loop.Timer
}

// begin takes a new connection over.
func (u *upConn) begin(c *conn, st *tlsState) {
	u.c, u.tls = c, st
	c.user = u
	u.idleTimer.Fire = c.guarded(u.close)
	u.p.h.cluster.stat(c.w).CxHTTP1.Inc()
}

// stale reports whether u should carry no further request.
func (u *upConn) stale(now time.Time) bool {
	h := &u.p.h.cluster.cfg.HTTP
	if h.MaxRequests > 0 && u.used >= h.MaxRequests || h.MaxConnectionDuration > 0 && now.Sub(u.born) > h.MaxConnectionDuration {
		return true
	}
	if u.pod.ejected() && !u.shunned {
		return true
	}
	return u.p.h.gateway && u.used > 0 && (u.used >= gatewayRequests || now.Sub(u.born) > gatewayAge)
}

// rest lets u be idle.
func (u *upConn) rest() {
	if t := u.p.h.cluster.cfg.HTTP.IdleTimeout; t > 0 {
		u.p.w.loop.Arm(&u.idleTimer, t)
	}
	if u.c.readable {
		u.c.again()
	}
}

func (u *upConn) close() {
	if u.c == nil || u.p == nil {
		return
	}
	p := u.p
	u.p = nil
	u.idleTimer.Stop()
	if u.head != nil {
		p.w.recycle(u.head)
		u.head = nil
	}
	u.c.close()
	p.remove(u)
}

// The methods below are what a stream asks of its upstream.

func (u *upConn) open(s *stream) {
	u.idleTimer.Stop()
	u.s = s
	u.used++
	u.gotHead, u.gotBytes, u.sentAll, u.tunnel, u.chunked = false, false, false, false, false
	u.scanned = 0
}

func (u *upConn) sendHead(s *stream, end bool) {
	f := http1.Framing{Upgrade: s.upgrade, Proper: u.p.h.cluster.cfg.HTTP.HTTP1.ProperCase}
	if !s.upgrade && !s.req.Has("content-length") {
		if end {
			f.Empty = mayHaveBody(s.req.Pseudo(header.Method))
		} else {
			f.Chunked, u.chunked = true, true
		}
	}
	u.c.setBuffer(http1.AppendRequest(u.c.buffer(), &s.req, f))
	u.sentAll = end
}

func (u *upConn) sendData(s *stream, b []byte) {
	if len(b) == 0 {
		return
	}
	if !u.chunked {
		u.c.write(b)
		return
	}
	u.c.setBuffer(http1.AppendChunkHead(u.c.buffer(), len(b)))
	u.c.write(b)
	u.c.setBuffer(append(u.c.buffer(), http1.ChunkEnd...))
}

func (u *upConn) sendEnd(s *stream, t *header.Header) {
	if u.sentAll {
		return
	}
	u.sentAll = true
	if u.chunked {
		if !u.p.h.cluster.cfg.HTTP.HTTP1.Trailers {
			t = nil
		}
		u.c.setBuffer(http1.AppendLastChunk(u.c.buffer(), t))
	}
	if u.tunnel {
		u.c.closeWrite()
	}
}

func (u *upConn) full() bool { return u.c.isFull() }

// resume lets the response be read on.
func (u *upConn) resume() {
	if u.c.readable {
		u.c.again()
	}
}

// cancel ends the exchange without its response; the connection cannot be used again.
func (u *upConn) cancel() {
	u.s = nil
	u.close()
}

func (u *upConn) facts() (netip.AddrPort, *tlsState, string) { return u.c.local, u.tls, "HTTP/1.1" }

func (u *upConn) leadsTo() *pod { return u.pod }

func (u *upConn) onWrite() {
	if u.s != nil {
		u.s.upWritable()
	}
}

func (u *upConn) onFail(err error) {
	s := u.s
	u.s = nil
	fresh := u.used <= 1
	got, f := u.gotBytes, u.c.ended(err)
	u.close()
	if s != nil {
		s.up = nil
		s.upReset(f, got, !fresh || silent(err))
	}
}

func (u *upConn) onRead() {
	for u.c.readable && !u.c.closed && u.p != nil {
		s := u.s
		if s != nil && s.down.full() {
			return // the downstream will resume us
		}
		u.c.small = s != nil && s.d.c.crowded()
		b, err := u.c.read()
		if s == nil { // idle: a response to nothing, or the end
			if len(b) > 0 || err != nil {
				u.close()
			}
			return
		}
		if len(b) > 0 {
			u.gotBytes = true
			u.take(b)
			continue
		}
		if err == nil {
			return
		}
		if errors.Is(err, io.EOF) && u.gotHead && (u.body.EndsWithConnection() || u.tunnel) {
			u.finish(false)
			return
		}
		u.onFail(err)
		return
	}
}

// take works through bytes of a response.
func (u *upConn) take(b []byte) {
	for len(b) > 0 && u.s != nil {
		if !u.gotHead {
			n := u.takeHead(b)
			if n == 0 {
				return
			}
			b = b[n:]
			continue
		}
		if u.tunnel {
			u.s.upData(b)
			return
		}
		var t *header.Header
		if u.p.h.cluster.cfg.HTTP.HTTP1.Trailers {
			t = &u.trailer
		}
		data, n, err := u.body.Next(b, t)
		if err != nil {
			u.broken()
			return
		}
		b = b[n:]
		if len(data) > 0 {
			u.s.upData(data)
		}
		if u.s != nil && u.body.Done() {
			u.finish(len(b) == 0)
			return
		}
	}
}

// broken ends an exchange whose response cannot be understood.
func (u *upConn) broken() {
	s := u.s
	u.s = nil
	u.close()
	s.up = nil
	s.upReset(failure{protocolError, ""}, true, false)
}

// takeHead looks for a response head at the start of what came so far and returns how many bytes
// of b it used; 0 if the rest is yet to come or the exchange is over.
func (u *upConn) takeHead(b []byte) int {
	s := u.s
	data, had := b, len(u.head)
	if had > 0 {
		u.head = append(u.head, b...)
		data = u.head
	}
	n := http1.End(data, u.scanned)
	if n == 0 {
		if len(data) > maxUpstreamHead || http1.BareLF(data, u.scanned) {
			u.broken()
			return 0
		}
		if had == 0 {
			u.head = append(u.p.w.buf(), b...)
		}
		u.scanned = len(data)
		return 0
	}
	opt := parseOptions(u.p.h.cluster.cfg.HTTP.MaxHeaders, &u.p.h.cluster.cfg.HTTP.HTTP1)
	err := http1.ParseResponse(data[:n], &s.resp, &u.msg, &opt)
	if err == http1.ErrField && http1.Unfold(data[:n]) {
		err = http1.ParseResponse(data[:n], &s.resp, &u.msg, &opt)
	}
	if u.head != nil {
		u.p.w.recycle(u.head)
		u.head = nil
	}
	u.scanned = 0
	if err != nil {
		u.broken()
		return 0
	}
	used := n - had
	switch st := u.msg.Status; {
	case st == 101 && !s.upgrade: // nobody asked for it
		u.broken()
		return 0
	case st < 200 && st != 101:
		s.upInformational(st)
		return used
	case st != 101 && u.msg.Upgrade: // an offer for this hop only
		s.resp.Remove("upgrade")
	}
	u.gotHead = true
	end := u.frame(s)
	if end {
		u.finishHead(s, n-had == len(b))
		return used
	}
	s.upHead(u.msg.Status, false)
	return used
}

// maxUpstreamHead bounds response heads, in bytes. It is Envoy's.
const maxUpstreamHead = 80 << 10

// mayHaveBody reports whether a request of that method that has no body should say so: servers answer
// one that does not with 411.
func mayHaveBody(method string) bool {
	switch method {
	case "GET", "HEAD", "DELETE", "TRACE", "CONNECT", "OPTIONS":
		return false
	}
	return true
}

// frame finds out how the body ends and reports whether there is none.
func (u *upConn) frame(s *stream) (end bool) {
	m := &u.msg
	switch {
	case m.Status == 101 && s.upgrade, m.Status/100 == 2 && s.connect:
		u.tunnel = true
		u.body.UntilClose()
	case s.head || m.Status == 204 || m.Status == 304:
		u.body.Length(0)
	case m.Chunked:
		u.body.Chunked()
	case m.HasLength:
		u.body.Length(m.Length)
	default:
		u.body.UntilClose()
	}
	return u.body.Done()
}

// finishHead ends an exchange whose response is only a head.
func (u *upConn) finishHead(s *stream, clean bool) {
	status := u.msg.Status
	u.detach(clean)
	s.upHead(status, true)
}

// finish ends an exchange whose response is complete; clean says that nothing came after it.
func (u *upConn) finish(clean bool) {
	s := u.s
	var t *header.Header
	if u.trailer.Len() > 0 {
		s.trailers.CopyFrom(&u.trailer)
		u.trailer.Reset()
		t = &s.trailers
	}
	u.detach(clean)
	s.upEnd(t)
}

// detach lets go of the stream and gives the connection back to the pool, if it can be used again.
func (u *upConn) detach(clean bool) {
	s := u.s
	s.up, u.s = nil, nil
	if !clean || !u.sentAll || u.msg.Close || u.tunnel || u.body.EndsWithConnection() || u.c.hup {
		u.close()
		return
	}
	u.p.release(u)
}
