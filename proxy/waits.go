package proxy

import (
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/http1"
	"github.com/carrick-mesh/carrick/proxy/http2"
)

// patience is how long a wait lasts that configuration gives no time: for the rest of a head, for a
// client to take the last bytes of an answer, for the answer to a mirrored request. It is the default of
// stream_idle_timeout, which Istio switches off for the sake of long streams; those are none.
const patience = 5 * time.Minute

// headWait returns how long a request's head may take from its first byte, and what it is that ends it:
// all that Envoy counts from there.
func headWait(o *config.HTTPConnectionManager) (t time.Duration, details string) {
	t, details = patience, "stream_idle_timeout"
	for _, c := range [...]struct {
		t       time.Duration
		details string
	}{
		{o.StreamIdleTimeout, "stream_idle_timeout"}, {o.RequestHeadersTimeout, "request_header_timeout"},
		{o.RequestTimeout, "request_overall_timeout"}, {o.MaxStreamDuration, "max_duration_timeout"},
	} {
		if c.t > 0 && c.t <= t {
			t, details = c.t, c.details
		}
	}
	return t, details
}

// awaitHead starts the time of a head that has begun. That more of it comes does not put its end off.
func (x *downConn) awaitHead() {
	if x.waiting {
		return
	}
	x.waiting, x.headFrom = true, x.w.loop.Now()
	t, _ := headWait(x.d.chain.HTTP)
	x.w.loop.Arm(&x.timer, t)
}

// headLate refuses a request whose head takes too long.
func (x *downConn) headLate() {
	_, details := headWait(x.d.chain.HTTP)
	h := x.d.hstat
	body := "stream timeout"
	var flags accesslog.Flags
	switch details {
	case "request_header_timeout":
		h.RqHeaderTimeout.Inc()
		body = "request header timeout"
	case "request_overall_timeout":
		h.RqTimeout.Inc()
		body = "request timeout"
	case "max_duration_timeout":
		body = "downstream duration timeout"
	default:
		h.RqIdleTimeout.Inc()
		flags = accesslog.StreamIdleTimeout
	}
	x.w.replyRaw(x, &http1.Error{Status: 408, Details: details}, body, flags)
}

// left returns what is left of a time that counts from the first byte of the request.
func (s *stream) left(t time.Duration) time.Duration { return t - s.w.loop.Now().Sub(s.start) }

// takeWait is how long a client may take nothing of an answer that is complete.
func takeWait(o *config.HTTPConnectionManager) time.Duration {
	if o.StreamIdleTimeout > 0 {
		return o.StreamIdleTimeout
	}
	return patience
}

// awaitNext starts the idle timer, or first the shorter one of an answer that the client has not taken.
func (x *downConn) awaitNext() {
	t := x.idleTime()
	x.untaken = x.c.waiting()
	if f := takeWait(x.d.chain.HTTP); x.untaken > 0 && (t <= 0 || f < t) {
		x.w.loop.Arm(&x.timer, f)
		return
	}
	x.untaken = 0
	if t > 0 {
		x.w.loop.Arm(&x.timer, t)
	} else {
		x.timer.Stop()
	}
}

func (x *downConn) onTimer() {
	if x.waiting {
		x.headLate()
		return
	}
	if x.rest > 0 {
		x.shut()
		return
	}
	f := takeWait(x.d.chain.HTTP)
	switch n := x.c.waiting(); {
	case x.untaken == 0, n > 0 && n >= x.untaken:
		x.end()
	case n > 0: // it still reads
		x.untaken = n
		x.w.loop.Arm(&x.timer, f)
	default:
		x.untaken = 0
		if t := x.idleTime(); t > 0 {
			x.w.loop.Arm(&x.timer, max(t-f, time.Millisecond))
		}
	}
}

// tick is called once a second.
func (x *h2Down) tick() {
	x.h2.Refill()
	t := takeWait(x.d.chain.HTTP)
	if x.h2.Expire(int((t + time.Second - 1) / time.Second)) {
		x.c.mark()
	}
	if x.closing && x.c.user == user(x) {
		if x.ticks++; x.ticks > settleTicks && len(x.streams) == 0 && !x.h2.Settled() {
			x.onIdle()
			return
		}
		x.rest()
	}
}

// awaitBlock times a header block that is not complete: nothing else can come before it is.
func (x *h2Down) awaitBlock() {
	id := x.h2.Block()
	if id == x.blockID {
		return
	}
	if x.blockID = id; id == 0 {
		x.block.Stop()
		return
	}
	t, _ := headWait(x.d.chain.HTTP)
	x.w.loop.Arm(&x.block, t)
}

// blockLate ends a connection whose header block takes too long.
func (x *h2Down) blockLate() {
	_, details := headWait(x.d.chain.HTTP)
	x.h2.Close(http2.EnhanceYourCalm)
	x.c.closeAfter()
	x.fail(details)
}

// idleWait returns how long s may bring nothing on; 0: for ever.
func (s *stream) idleWait() time.Duration {
	t := s.hcm.StreamIdleTimeout
	if s.route != nil && s.route.Action != nil && s.route.Action.IdleTimeout >= 0 {
		t = s.route.Action.IdleTimeout
	}
	if s.shadow && t <= 0 {
		t = patience // nobody else would end it
	}
	return t
}

// awaitActivity starts the idle timer.
func (s *stream) awaitActivity() {
	if t := s.idleWait(); t > 0 {
		s.w.loop.Arm(&s.idle, t)
	} else {
		s.idle.Stop()
	}
}

// lateStatus is what a client is told whose time is over: it was late itself, or the upstream was.
func (s *stream) lateStatus() int {
	if s.reqDone {
		return 504
	}
	return 408
}

func (s *stream) onIdle() {
	t := s.idleWait()
	if t <= 0 {
		return
	}
	if quiet := s.w.loop.Now().Sub(s.active); quiet < t {
		s.w.loop.Arm(&s.idle, t-quiet)
		return
	}
	s.flags |= accesslog.StreamIdleTimeout
	if s.responded {
		s.details = "stream_idle_timeout"
		s.end(false)
		return
	}
	s.detach()
	s.reply(s.lateStatus(), "stream timeout", "stream_idle_timeout")
}

func (s *stream) onMaxDuration() {
	if s.responded {
		s.details = "max_duration_timeout"
		s.end(false)
		return
	}
	s.detach()
	s.replyBody(s.lateStatus(), []byte("downstream duration timeout"), "text/plain", "max_duration_timeout", s.exceeded)
}
