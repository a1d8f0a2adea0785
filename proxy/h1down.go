package proxy

import (
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/header"
	"github.com/carrick-mesh/carrick/proxy/http1"
	"github.com/carrick-mesh/carrick/proxy/loop"
)

// downConn is an HTTP/1 connection from a client. It has one request at a time; a pipelined one
// waits in the buffer.
type downConn struct {
	d *downstream
	c *conn
	w *worker

	s       *stream // nil: between requests
	in      []byte  // a partial head, or if early is set what came after the current request
	early   bool
	scanned int // of the partial head: it has no end up to there
	msg     http1.Message
	body    http1.Body
	served  uint32
	timer   loop.Timer // idle, or for the head

	chunked  bool // the response's body goes in chunks
	closeNow bool // after the current response, which says so
	leaving  bool // the next response is to say that the connection ends
	tunnel   bool // after an upgrade: bytes both ways
	rest     int  // if positive, what may still come of a body whose request is answered
	waiting  bool // a head has begun and the timer is the head's
	headFrom time.Time
	untaken  int  // bytes of an answer that the timer waits for; 0: it is the idle timer
	begun    bool // the first byte of the current request has come
	uncount  func()
	most     loop.Timer // MaxConnectionDuration
}

// serveHTTP begins to serve requests on d.
func (w *worker) serveHTTP(d *downstream) {
	h2 := d.h2 || d.chain.HTTP.Codec == config.CodecHTTP2 || d.chain.HTTP.Codec == config.CodecAuto && len(d.first) >= len(preface) && isPreface(d.first)
	if h2 {
		w.serveHTTP2(d)
		return
	}
	x := &downConn{d: d, c: d.c, w: w, leaving: w.p.draining.Load()}
	x.timer.Fire = d.c.guarded(x.onTimer)
	d.c.user = x
	w.addSession(x)
	x.uncount = d.countConn(false)
	if t := d.chain.HTTP.MaxConnectionDuration; t > 0 {
		x.most.Fire = d.c.guarded(x.drain)
		w.loop.Arm(&x.most, t)
	}
	x.idle()
	if len(d.first) > 0 {
		x.in, x.early = append(w.buf(), d.first...), true
		d.first = nil
		d.c.again()
	} else if d.c.readable {
		d.c.again()
	}
}

// idle waits for the next request.
func (x *downConn) idle() {
	x.waiting, x.begun = false, false
	x.awaitNext()
}

// idleTime returns how long the connection may be without a request; 0: for ever.
func (x *downConn) idleTime() time.Duration {
	t := x.d.chain.HTTP.IdleTimeout
	if x.leaving {
		t = x.w.p.graceFor(t)
	}
	return t
}

// drain implements session: the next response says that the connection ends. The client's next request
// may be under way, so a connection without one ends only after a while.
func (x *downConn) drain() {
	x.leaving = true
	if x.s == nil && !x.begun && x.rest == 0 {
		x.idle()
	}
}

// shut ends the connection in order, without a stream.
func (x *downConn) shut() {
	x.timer.Stop()
	x.leave()
	x.free()
	x.c.linger()
}

func (x *downConn) end() {
	x.timer.Stop()
	x.leave()
	if x.s != nil {
		x.s.downReset("downstream_local_disconnect(proxy_stopped)")
	}
	x.free()
	x.c.close()
}

func (x *downConn) listenerName() string { return x.d.listener.Name }

func (x *downConn) free() {
	if x.in != nil {
		x.w.recycle(x.in)
		x.in = nil
	}
}

func (x *downConn) onFail(error) {
	x.timer.Stop()
	x.leave()
	if x.s != nil {
		x.s.downReset("downstream_remote_disconnect")
	}
	x.free()
}

func (x *downConn) onWrite() {
	if x.s != nil {
		x.s.downWritable()
		return
	}
	x.resume()
}

// gone ends a connection whose client has left.
func (x *downConn) gone() {
	if x.c.closed {
		return
	}
	x.c.close()
	x.onFail(io.EOF)
}

func (x *downConn) onRead() {
	if x.early && (x.s == nil && !x.c.isFull() || x.tunnel) {
		b := x.in
		x.in, x.early = nil, false
		x.take(b)
		x.w.recycle(b)
		if x.c.closed {
			return
		}
	}
	for x.c.readable && !x.c.closed && x.c.user == user(x) {
		if x.s != nil {
			if (x.s.reqDone || x.body.Done()) && !x.tunnel {
				x.watch()
				return
			}
			if !x.s.wantsBody() {
				return // the stream will resume us
			}
		} else if x.early || x.c.isFull() {
			return // a client that does not read its answers is not read from; onWrite goes on
		}
		b, err := x.c.read()
		if len(b) > 0 {
			x.take(b)
			continue
		}
		if err == nil {
			return
		}
		x.eof(err)
		return
	}
}

// leave counts the end of the session.
func (x *downConn) leave() {
	x.most.Stop()
	x.w.removeSession(x)
	x.uncount()
	x.d.closed()
}

// watch notices that the client leaves while it should wait for its response. Bytes of a next
// request stay in the kernel.
func (x *downConn) watch() {
	if !x.c.hup {
		return
	}
	if x.c.tls == nil {
		var b [1]byte
		p := append(x.w.scratch[:0], b[:]...)
		if n, e := loop.Peek(x.c.fd, p); e == 0 && n > 0 {
			return // a pipelined request comes first
		}
	}
	// The client has closed its side. It may still read (half-close), but Envoy, too, takes it for gone.
	x.gone()
}

func (x *downConn) eof(err error) {
	if x.tunnel && errors.Is(err, io.EOF) && x.s != nil {
		x.s.reqComplete(false)
		return
	}
	x.gone()
}

// take works through bytes from the client.
func (x *downConn) take(b []byte) {
	for len(b) > 0 && !x.c.closed && x.c.user == user(x) {
		switch {
		case x.rest > 0:
			b = x.skip(b)
		case x.s == nil && x.c.isFull(): // with answers of our own
			x.in, x.early = append(x.w.buf(), b...), true
			return
		case x.s == nil:
			n := x.takeHead(b)
			if n < 0 {
				return
			}
			b = b[n:]
		case x.tunnel:
			x.s.reqData(b)
			return
		case x.s.reqDone, x.body.Done(): // the next request, or what follows an upgrade that is not agreed on
			x.in, x.early = append(x.w.buf(), b...), true
			return
		default:
			var t *header.Header
			if x.s.hcm.HTTP1.Trailers {
				t = &x.s.reqTrailers
			}
			data, n, err := x.body.Next(b, t)
			if err != nil {
				x.badBody(err)
				return
			}
			b = b[n:]
			if len(data) > 0 {
				x.s.reqData(data)
			}
			if x.s != nil && x.body.Done() {
				x.s.reqComplete(x.s.reqTrailers.Len() > 0)
			}
		}
	}
}

func (x *downConn) badBody(err error) {
	s := x.s
	x.closeNow = true
	if s.responded {
		x.gone()
		return
	}
	var e *http1.Error
	errors.As(err, &e)
	s.detach()
	s.reqDone = true
	s.refuse(e)
}

// takeHead looks for a request head at the start of what came so far. It returns how many bytes of b
// it used, or -1 if there is nothing to go on with.
func (x *downConn) takeHead(b []byte) int {
	data, had := b, len(x.in)
	if had == 0 {
		if n := http1.Blank(b); n > 0 { // empty lines before a request
			return n
		}
	} else {
		x.in = append(x.in, b...)
		data = x.in
	}
	hcm := x.d.chain.HTTP
	x.begun = true
	if x.served == 0 && hcm.Codec == config.CodecAuto && data[0] == 'P' && isPreface(data) && len(data) >= len(preface) {
		x.d.first = append([]byte(nil), data...)
		x.timer.Stop()
		x.w.removeSession(x)
		x.most.Stop()
		x.free()
		x.uncount()
		if h2 := x.w.serveHTTP2(x.d); x.leaving && !h2.c.closed {
			h2.drain()
		}
		return -1
	}
	limit := int(hcm.MaxHeaderBytes)
	n := http1.End(data, x.scanned)
	if x.served == 0 && len(data) < len(preface) && hcm.Codec == config.CodecAuto && isPreface(data) {
		n = 0 // its first line ends like a head
	}
	if n > limit || n == 0 && len(data) > limit {
		x.w.replyRaw(x, http1.ErrTooLarge, http1.Reason("431"), accesslog.DownstreamProtocolError)
		return -1
	}
	if n == 0 {
		if header.Lower[data[0]] == 0 || http1.BareLF(data, x.scanned) {
			x.w.replyRaw(x, http1.ErrRequestLine, "Bad Request", accesslog.DownstreamProtocolError)
			return -1
		}
		if had == 0 {
			x.in = append(x.w.buf(), b...)
		}
		x.scanned = len(data)
		x.awaitHead()
		return -1
	}
	x.timer.Stop()
	x.adopt()
	s := x.w.newStream(x.d, x)
	if x.waiting {
		s.start = x.headFrom
	}
	x.waiting, x.scanned = false, 0
	opt := parseOptions(hcm.MaxHeaders, &hcm.HTTP1)
	err := http1.ParseRequest(data[:n], &s.req, &x.msg, &opt)
	if had > 0 {
		x.w.recycle(x.in)
		x.in = nil
	}
	x.s = s
	x.served++
	x.start(s, err)
	return n - had
}

// parseOptions are a parser's options as the configuration of its side has them.
func parseOptions(fields uint32, c *config.HTTP1Options) http1.Options {
	return http1.Options{MaxFields: int(fields), AllowChunkedLength: c.AllowChunkedLength, KeepNames: c.KeepCase, OthersProper: c.OthersProper, AnyMethod: c.AnyMethod}
}

// ownBody is the body of an answer to what is no request.
func ownBody(e *http1.Error) string {
	if e == http1.ErrNoHost {
		return ""
	}
	return http1.Reason(strconv.Itoa(e.Status))
}

// isPreface reports whether b begins as an HTTP/2 connection does.
func isPreface(b []byte) bool {
	n := min(len(b), len(preface))
	return string(b[:n]) == preface[:n]
}

// adopt moves the connection on to the current configuration if its listener still takes it in
// the same way; otherwise this request is its last.
func (x *downConn) adopt() {
	l, c, ok := x.d.current(x.w.snapshot())
	if !ok {
		x.closeNow = true
		return
	}
	x.d.listener, x.d.chain = l, c
}

// start begins the stream of a head that was parsed, or refused with err.
func (x *downConn) start(s *stream, err error) {
	m := &x.msg
	hcm := s.hcm
	s.protocol = "HTTP/1.1"
	if m.Minor == 0 {
		s.protocol = "HTTP/1.0"
	}
	x.chunked = false
	if m.Close || hcm.MaxRequests > 0 && x.served >= hcm.MaxRequests || x.leaving {
		x.closeNow = true
	}
	if err != nil {
		var e *http1.Error
		errors.As(err, &e)
		x.closeNow = true
		s.reqDone = true
		x.msg.Minor = 1 // what it said of its version is as wrong as the rest
		s.refuse(e)
		return
	}
	method := s.req.Pseudo(header.Method)
	s.head, s.connect = method == "HEAD", method == "CONNECT"
	s.upgrade, s.expect, s.acceptsTrailers = m.Upgrade, m.Expect100, m.Trailers
	if m.Minor == 0 {
		if !hcm.HTTP1.Accept10 {
			x.closeNow = true
			s.reqDone = true
			x.msg.Minor = 1 // the answer is in the version to go on with
			s.refuse(&http1.Error{Status: 426, Details: "low_version"})
			return
		}
		if s.req.Pseudo(header.Authority) == "" {
			if hcm.HTTP1.DefaultHost == "" {
				x.closeNow, s.reqDone = true, true
				s.reply(400, "", "missing_host_header")
				return
			}
			s.req.SetPseudo(header.Authority, hcm.HTTP1.DefaultHost)
		}
	}
	switch {
	case m.Chunked:
		x.body.Chunked()
	case m.HasLength:
		x.body.Length(m.Length)
	default:
		x.body.Length(0)
	}
	if s.expect && !hcm.Proxy100Continue {
		s.expect = false
		x.c.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	} else if s.expect {
		s.req.Set("expect", "100-continue")
	}
	s.begin(x.body.Done())
}

// replyRaw answers a client whose request never became a stream, and ends the connection.
func (w *worker) replyRaw(x *downConn, e *http1.Error, body string, flags accesslog.Flags) {
	x.closeNow = true
	x.timer.Stop()
	s := w.newStream(x.d, x)
	x.s = s
	x.msg = http1.Message{Minor: 1}
	s.protocol, s.flags = "HTTP/1.1", flags
	s.reqDone = true
	if body == "" {
		body = ownBody(e)
	}
	s.reply(e.Status, body, e.Details)
}
