package proxy

import (
	"errors"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/loop"
	"github.com/carrick-mesh/carrick/proxy/tlsconn"
)

// pool is a worker's connections of one protocol to one host and the streams that wait for one.
type pool struct {
	w       *worker
	h       *host
	name    poolName
	speaks  config.Protocol // HTTP1, HTTP2, or HTTPAuto until the first connection has told
	idle    []*upConn
	h2      []*h2Up // all that take streams
	turn    int     // the next of them, at a gateway
	waiting []*stream
	total   int // connections made or being made
	dialing int
	shunned int  // new connections in a row that led to ejected pods
	gone    bool // the host is retired: it serves the requests that began with it, and keeps no connection
}

const (
	// maxGateway bounds the connections that a worker holds to a passthrough gateway.
	maxGateway = 16
	// A connection to a passthrough gateway is one pod; it is given up after so many requests
	// or so long, so that all pods behind the gateway get their share.
	gatewayRequests = 32
	gatewayAge      = 10 * time.Second
)

// acquire gets s a connection, now or later: s.attach or s.failed is called, perhaps at once.
func (p *pool) acquire(s *stream) {
	if u := p.pickH2(); u != nil {
		p.spread()
		s.attach(u.call())
		return
	}
	for len(p.idle) > 0 && !s.fresh {
		u := p.pop()
		if u.c.closed {
			continue
		}
		if u.stale(p.w.loop.Now()) {
			u.close()
			continue
		}
		p.spread()
		s.attach(u)
		return
	}
	b := &p.h.cluster.breakers[s.priority()]
	t := &p.h.cluster.cfg.Breakers[s.priority()]
	if b.pending.Load() >= int64(t.MaxPending) {
		p.h.cluster.stat(p.w).RqPendingOverflow.Inc()
		p.forget()
		s.failed(failure{reason: overflow})
		return
	}
	b.pending.Add(1)
	st := p.h.cluster.stat(p.w)
	st.RqPending.Inc()
	st.RqPendingActive.Inc()
	s.waits = p
	p.waiting = append(p.waiting, s)
	if p.dialing < len(p.waiting) && (p.speaks == config.HTTP1 || p.dialing == 0) {
		if p.h.cluster.breakers[0].connections.Load() >= int64(p.h.cluster.cfg.Breakers[0].MaxConnections) && p.total > 0 {
			return // one of ours will become free
		}
		p.makeRoom()
		p.dial(s)
	}
}

// pop takes the connection used last, which keeps few of them warm; of those to a gateway the one
// used first, to visit all pods.
func (p *pool) pop() *upConn {
	n := len(p.idle) - 1
	if p.h.gateway {
		u := p.idle[0]
		copy(p.idle, p.idle[1:])
		p.idle[n] = nil
		p.idle = p.idle[:n]
		return u
	}
	u := p.idle[n]
	p.idle[n] = nil
	p.idle = p.idle[:n]
	return u
}

// spread makes another connection to a gateway while there are fewer than the pods behind it.
func (p *pool) spread() {
	if p.h.gateway && p.dialing == 0 && p.total < min(maxGateway, 2*int(p.h.weight.Load())) {
		p.dial(nil)
	}
}

// cancel takes s off the waiting list.
func (p *pool) cancel(s *stream) {
	for i, x := range p.waiting {
		if x == s {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			p.unwait(s)
			return
		}
	}
}

func (p *pool) unwait(s *stream) {
	s.waits = nil
	p.h.cluster.breakers[s.priority()].pending.Add(-1)
	p.h.cluster.stat(p.w).RqPendingActive.Dec()
}

// next takes the first waiting stream.
func (p *pool) next() *stream {
	if len(p.waiting) == 0 {
		return nil
	}
	s := p.waiting[0]
	p.waiting = append(p.waiting[:0], p.waiting[1:]...)
	p.unwait(s)
	return s
}

// dial makes a connection; s, which may be nil, is the stream that it is made for.
func (p *pool) dial(s *stream) {
	p.total++
	p.dialing++
	u := &upConn{p: p, born: p.w.loop.Now()}
	o := dialOptions{alpn: p.h.alpn(p.speaks), sni: p.name.server}
	p.w.dial(p.h, o, func(c *conn, st *tlsState, err error) {
		p.dialing--
		if err != nil {
			p.total--
			if x := p.next(); x != nil {
				x.failed(connectFailure(err))
			}
			if p.speaks != config.HTTP1 { // they all waited for this one
				for x := p.next(); x != nil; x = p.next() {
					x.failed(connectFailure(err))
				}
			}
			if len(p.waiting) > p.dialing {
				p.dial(p.waiting[0])
			}
			p.forget()
			return
		}
		pod := p.h.podOf(st)
		if p.shuns(pod) {
			c.close()
			pod.left()
			p.total--
			if len(p.waiting) > p.dialing {
				p.dial(p.waiting[0])
			}
			return
		}
		u.pod, u.shunned = pod, pod.ejected()
		if p.speaks == config.HTTPAuto {
			p.speaks = config.HTTP1
			if st != nil && st.info.ALPN == "h2" {
				p.speaks = config.HTTP2
			}
		}
		if p.speaks == config.HTTP2 {
			h2 := p.beginH2(c, st)
			h2.pod, h2.shunned = u.pod, u.shunned
			p.joinH2(h2)
			return
		}
		u.begin(c, st)
		p.release(u)
	})
}

// pickH2 returns the connection that a stream should go to: the one with the fewest, at a gateway
// each in turn; nil if none can take one.
func (p *pool) pickH2() *h2Up {
	var best *h2Up
	now := p.w.loop.Now()
	for i := 0; i < len(p.h2); i++ {
		u := p.h2[i]
		if u.stale(now) {
			p.dropH2(u)
			u.retire()
			i--
		} else if u.open() && (best == nil || len(u.streams) < len(best.streams)) {
			best = u
		}
	}
	if best != nil && p.h.gateway {
		for range p.h2 {
			p.turn++
			if u := p.h2[p.turn%len(p.h2)]; u.open() {
				return u
			}
		}
	}
	return best
}

// joinH2 adds a new connection and gives it to those that wait.
func (p *pool) joinH2(u *h2Up) {
	p.h2 = append(p.h2, u)
	for u.open() && len(p.waiting) > 0 {
		p.next().attach(u.call())
	}
	if p.gone {
		p.dropH2(u)
		u.retire()
	}
}

// dropH2 takes u off the list; it still counts.
func (p *pool) dropH2(u *h2Up) {
	for i, x := range p.h2 {
		if x == u {
			p.h2 = append(p.h2[:i], p.h2[i+1:]...)
			return
		}
	}
}

// removeH2 forgets a connection that is closed.
func (p *pool) removeH2(u *h2Up) {
	p.dropH2(u)
	p.total--
	u.pod.left()
	if len(p.waiting) > 0 && p.dialing == 0 {
		p.dial(p.waiting[0])
	}
	p.forget()
}

// alpn returns the protocols to offer where those of the TLS context do not fit what is spoken:
// nil to offer the context's.
func (h *host) alpn(speaks config.Protocol) []string {
	if h.tls == nil || speaks == config.HTTPAuto {
		return nil
	}
	var keep []string
	for _, a := range h.tls.ALPN {
		isH2, isH1 := a == "h2" || a == "istio-h2", strings.HasPrefix(a, "http/1") || strings.HasPrefix(a, "istio-http/1")
		if speaks == config.HTTP2 && !isH1 || speaks == config.HTTP1 && !isH2 {
			keep = append(keep, a)
		}
	}
	if len(keep) == len(h.tls.ALPN) {
		return nil
	}
	return keep
}

// release takes back a connection that can serve again.
func (p *pool) release(u *upConn) {
	if u.c.closed {
		u.close()
		return
	}
	if s := p.next(); s != nil {
		if u.stale(p.w.loop.Now()) {
			u.close()
			p.waiting = append([]*stream{s}, p.waiting...)
			s.waits = p
			p.h.cluster.breakers[s.priority()].pending.Add(1)
			p.h.cluster.stat(p.w).RqPendingActive.Inc()
			p.dial(s)
			return
		}
		s.attach(u)
		return
	}
	if p.gone {
		u.close()
		return
	}
	u.rest()
	p.idle = append(p.idle, u)
}

// remove forgets a connection that is closed.
func (p *pool) remove(u *upConn) {
	p.total--
	u.pod.left()
	for i, x := range p.idle {
		if x == u {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			break
		}
	}
	if len(p.waiting) > p.dialing {
		p.dial(p.waiting[0])
	}
	p.forget()
}

// retire closes what is idle and lets the rest end after its request.
func (p *pool) retire() {
	p.gone = true
	for len(p.idle) > 0 {
		p.pop().close()
	}
	for len(p.h2) > 0 {
		u := p.h2[0]
		p.dropH2(u)
		u.retire()
	}
}

// dialOptions are what depends on the request that a connection is made for.
type dialOptions struct {
	sni    string        // empty: the TLS context's
	alpn   []string      // nil: the TLS context's
	within time.Duration // the time-out; 0: the cluster's
	slow   func()        // called if the host has not taken the connection in answersWithin; may be nil
}

// errConnectTimeout says that connecting took too long.
var errConnectTimeout = errors.New("connection timeout")

// tlsFailure is a failed handshake with an upstream.
type tlsFailure struct{ err error }

// Error is for logs: the text has names that the other side chose.
func (e *tlsFailure) Error() string { return "TLS_error: " + printable(e.err.Error()) }
func (e *tlsFailure) Unwrap() error { return e.err }

// dialing is a connection being made: TCP, then TLS.
type dialing struct {
	w     *worker
	h     *host
	o     dialOptions
	c     *conn
	timer loop.Timer
	slow  loop.Timer
	began time.Time
	done  func(*conn, *tlsState, error)
}

// dial connects to h. done is called on the loop, never before dial returns.
func (w *worker) dial(h *host, o dialOptions, done func(*conn, *tlsState, error)) *dialing {
	d := &dialing{w: w, h: h, o: o, done: done}
	cl := h.cluster
	cl.stat(w).CxTotal.Inc()
	d.began = w.loop.Now()
	h.counts.CxTotal.Add(1)
	var fd int
	var err error
	if h.pipe != "" {
		fd, err = loop.ConnectUnix(h.pipe)
	} else {
		src := cl.cfg.Bind.For(h.addr.Addr())
		fd, err = loop.Connect(h.addr, loop.ConnectOptions{Source: src, Port: cl.cfg.Bind.Port, Freebind: cl.cfg.Bind.Freebind || src.IsValid()})
	}
	if err == nil {
		d.c, err = w.newConn(fd, h.addr, d)
	}
	if err != nil {
		w.loop.Post(func() { d.fail(err) })
		return d
	}
	if k := cl.cfg.Keepalive; k != nil {
		loop.Keepalive(fd, k.Idle, k.Interval, int(k.Probes), k.UserTimeout)
	} else if h.gateway {
		// A silent cut on the way to another network must not hang requests for minutes.
		loop.Keepalive(fd, 5*time.Second, time.Second, 3, 5*time.Second)
	}
	d.c.count(h)
	d.c.limit(cl.cfg.BufferLimit)
	d.timer.Fire = d.c.guarded(func() { d.fail(errConnectTimeout) })
	within := cl.cfg.ConnectTimeout
	if o.within > 0 {
		within = min(within, o.within)
	}
	w.loop.Arm(&d.timer, within)
	if within > answersWithin {
		d.slow.Fire = d.onSlow
		w.loop.Arm(&d.slow, answersWithin)
	}
	return d
}

func (d *dialing) onRead() {}

// onSlow says that the connection is not made yet.
func (d *dialing) onSlow() {
	d.h.suspected("it does not take a connection")
	if d.o.slow != nil {
		d.o.slow()
	}
}

// onWrite goes on when the connection is made.
func (d *dialing) onWrite() {
	d.slow.Stop()
	if d.h.tls == nil {
		d.h.answers()
		d.finish(nil)
		return
	}
	cfg := d.w.p.tls.client(d.w.p, d.h.tls, d.o)
	d.c.handshake(tlsconn.Client(cfg), nil, func(err error) {
		if err != nil {
			d.w.p.tls.report(d.w.p, "upstream "+d.h.cluster.cfg.Name, d.h.addr.String(), err)
			d.fail(&tlsFailure{err})
			return
		}
		d.finish(newTLSState(d.c.tls.State()))
	})
}

func (d *dialing) onFail(err error) { d.fail(err) }

func (d *dialing) finish(st *tlsState) {
	d.timer.Stop()
	s := d.h.cluster.stat(d.w)
	s.CxConnectMS.Observe(float64(d.w.loop.Now().Sub(d.began)) / float64(time.Millisecond))
	if st != nil {
		s.TLSHandshake.Inc()
	}
	d.done(d.c, st, nil)
}

func (d *dialing) fail(err error) {
	done := d.done
	if done == nil {
		return
	}
	d.h.suspected(err.Error())
	d.cancel()
	d.h.counts.CxConnectFail.Add(1)
	d.h.cluster.countFailure(d.w, err)
	d.h.result(0)
	done(nil, nil, err)
}

// cancel gives up; done is not called.
func (d *dialing) cancel() {
	d.done = nil
	d.timer.Stop()
	d.slow.Stop()
	if d.c != nil {
		d.c.close()
	}
}

// count lets c count as a connection to h until it is closed.
func (c *conn) count(h *host) {
	c.host = h
	if h.gateway {
		c.w.far[c] = struct{}{}
	}
	h.counts.CxActive.Add(1)
	h.cluster.breakers[0].connections.Add(1)
	h.cluster.stat(c.w).CxActive.Inc()
}

func (c *conn) uncount() {
	if h := c.host; h != nil {
		c.host = nil
		delete(c.w.far, c)
		h.counts.CxActive.Add(-1)
		h.cluster.breakers[0].connections.Add(-1)
		s := h.cluster.stat(c.w)
		s.CxActive.Dec()
		s.CxDestroy.Inc()
	}
}
