package proxy

import (
	"runtime/debug"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/stats"
)

const (
	// What a connection, its TLS and a request take beside their buffers, about.
	connSize   = 2 << 10
	tlsSize    = 16 << 10
	streamSize = 2 << 10

	// maxConn bounds what one connection holds with its requests: from there on it begins no more.
	maxConn = 8 << 20
	// crowd is from where on the requests of one connection hold no more than smallRead each of
	// answers that their client's windows keep back.
	crowd     = 1 << 20
	smallRead = 4 << 10
	// maxSpare bounds a worker's free buffers.
	maxSpare = 8 << 20
	// defaultMemory bounds what all workers hold where nothing says how much memory there is.
	defaultMemory = 1 << 30
)

// account is how many bytes a worker holds for what clients and upstreams have sent: what was read,
// what is queued for either side, what is kept for retries, and heads. It is the sum of its parts, and
// each part says anew how large it is whenever it may have changed, so that nothing is counted twice or
// forgotten.
type account struct {
	held, limit int
	wasBusy     bool // at the last tick
}

// set makes n the size of a part.
func (a *account) set(part *int, n int) {
	a.held += n - *part
	*part = n
}

// busy reports whether there is room only for work that has begun: requests are refused with 503, and
// what is read is read in small pieces.
func (a *account) busy() bool { return a.held >= a.limit-a.limit/8 }

// full reports whether there is no room for connections either.
func (a *account) full() bool { return a.held >= a.limit }

// memory returns how much workers may hold: what was asked for, or half of what Go may use, for the
// garbage collector needs as much again.
func memory(asked int64) int64 {
	if asked > 0 {
		return asked
	}
	if limit := debug.SetMemoryLimit(-1); limit/2 < defaultMemory {
		return limit / 2
	}
	return defaultMemory
}

// Held returns how many bytes all workers hold for connections and requests, as of the last second.
func (p *Proxy) Held() int64 { return p.stats.Process.Held.Value() }

// refuses reports whether a new connection of l is one too many, and counts it then.
func (w *worker) refuses(l *config.Listener) bool {
	st := func() *stats.Listener { return w.p.stats.Listener(l.StatName).Shard(w.idx) }
	switch most := w.p.connections; {
	case w.account.full() && !l.Bypass:
		st().CxOverload.Inc()
	case most > 0 && !l.NoLimit && w.p.Connections() >= most:
		st().CxGlobalOverflow.Inc()
	default:
		return false
	}
	return true
}

// measure brings c's part of the account up to date.
func (c *conn) measure() {
	if c.closed {
		return
	}
	n := connSize + cap(c.out) + cap(c.wire) + c.user.holds()
	if c.src != nil {
		n += c.src.Size()
	}
	if c.tls != nil {
		n += tlsSize
		if c.handshaking {
			n += c.early
		}
	}
	c.w.account.set(&c.size, n)
}

// holds returns what c and its requests hold.
func (c *conn) holds() int { return c.size + c.streams }

// laden reports whether c holds so much that the larger bodies of its requests should no longer be kept for
// retries: that comes before requests are refused.
func (c *conn) laden() bool { return c.w.account.busy() || c.holds() > maxConn/2 }

// crowded reports whether what is held back for c should be little for each of its requests.
func (c *conn) crowded() bool { return c.w.account.busy() || c.holds() > crowd }

// streamMark returns how many bytes may wait for one of c's streams before whoever fills it should stop.
func (c *conn) streamMark() int {
	if c.crowded() {
		return smallRead
	}
	return highWater
}

// room returns b, or the start of it where little is to be read at once.
func (c *conn) room(b []byte) []byte {
	if c.small || c.w.account.busy() {
		return b[:smallRead]
	}
	return b
}

// measure brings s's part of the account up to date, the worker's and its client's connection's.
func (s *stream) measure() {
	n := streamSize + cap(s.body) + s.req.Memory() + s.resp.Memory() + s.trailers.Memory() + s.reqTrailers.Memory()
	s.weigh(n)
}

func (s *stream) weigh(n int) {
	s.d.c.streams += n - s.size
	s.w.account.set(&s.size, n)
}

// overloaded refuses a request for which there is no room.
func (s *stream) overloaded() bool {
	if !s.w.account.busy() && s.d.c.holds() < maxConn || s.d.listener.Bypass {
		return false
	}
	s.flags |= accesslog.OverloadManager
	s.hstat.RqOverload.Inc()
	s.reply(503, "envoy overloaded", "overload") // Envoy's words
	return true
}

// publish states what the worker holds; it is called once a second.
func (w *worker) publish() {
	p := w.p.stats.Process
	p.Held.Add(int64(w.account.held) - w.published)
	w.published = int64(w.account.held)
	if busy := w.account.busy(); busy != w.account.wasBusy {
		w.account.wasBusy = busy
		if busy {
			p.OverloadActive.Inc()
			w.p.log.Warn("a worker is at its bound of memory: new requests are answered 503", "bytes", w.account.held, "bound", w.account.limit)
		} else {
			p.OverloadActive.Dec()
		}
	}
}

// What a user of a connection holds beside the connection's own buffers.

func (d *downstream) holds() int { return cap(d.first) }
func (x *downConn) holds() int   { return cap(x.in) + x.body.Held() }
func (u *upConn) holds() int     { return cap(u.head) + u.body.Held() + u.trailer.Memory() }
func (f *flow) holds() int       { return cap(f.t.d.first) }
func (*h2Down) holds() int       { return 0 } // its codec is the connection's source
func (*h2Up) holds() int         { return 0 }
func (*dialing) holds() int      { return 0 }
func (*lingerer) holds() int     { return 0 }

// bufferLimit is how much of a request's body is kept, in bytes. For retries and mirrors of the route it
// is what the route allows, else the listener's buffer limit; without any it is little, for the retry
// that needs no policy. Where memory is short only what is little is kept.
func (s *stream) bufferLimit() int {
	limit := int(s.d.listener.BufferLimit)
	if s.route != nil && s.route.BufferLimit > 0 {
		limit = int(s.route.BufferLimit)
	}
	if !s.mayRepeat() || s.w.account.busy() || s.d.c.holds() > maxConn/2 {
		return min(limit, highWater)
	}
	return min(limit, maxConn/2)
}

// mayRepeat reports whether the route may send the request again.
func (s *stream) mayRepeat() bool {
	return s.route != nil && s.route.Action != nil && (s.route.Action.Retry != nil || len(s.route.Action.Mirrors) > 0)
}

// forgetBody gives up what was kept of the body, and with it retries and mirrors.
func (s *stream) forgetBody() {
	s.keep = false
	s.w.recycle(s.body)
	s.body = nil
	s.measure()
	if s.cl != nil && s.mayRepeat() {
		s.cl.stat(s.w).RepeatAbandoned.Inc()
	}
}
