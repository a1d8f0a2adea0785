package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/loop"
)

// A host can be gone, or a link between networks cut, without a packet that says so, and a peer can stop
// to trust us. Until the control plane has found out, the proxy looks itself: a host that refuses a
// connection or its TLS handshake, does not take one within answersWithin, or leaves a connection until the
// kernel gives it up, is suspect; so is another network's gateway that leaves what was sent to it without a
// sign through unanswered retransmissions. New requests go to other hosts, if there are any that may be
// used; what waits for a connection to it moves there; what has been sent stays, for it may have arrived,
// until its connection is given up: then it is sent again if it may be. The suspicion ends when a connection
// is made, which is tried once a second, of hosts other than gateways less and less often.
const (
	answersWithin = time.Second
	// recheckAtLeast is how often a host is tried again, in seconds.
	recheckAtLeast = 8
	// unanswered is how many retransmissions in a row: the second is sent after three timeouts of the
	// connection, 0.6 s at least.
	unanswered = 2
)

// silent reports whether a connection failed because nothing came back, or the way to its peer is gone.
func silent(err error) bool {
	return errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// rejects are the alerts of a peer that does not take our handshake. With TLS 1.3 they come when it is
// over for us.
var rejects = [...]tls.AlertError{40, 42, 43, 44, 45, 46, 48, 49, 51, 116}

// rejected reports whether a connection ended because the peer did not take our handshake: then it has
// done nothing with what was sent.
func (c *conn) rejected(err error) bool {
	var o *net.OpError
	if c.heard || !errors.As(err, &o) || o.Op != "remote error" {
		return false
	}
	text := o.Err.Error()
	for _, a := range rejects {
		if text == a.Error() {
			return true
		}
	}
	return false
}

// suspectIf suspects c's host, if it has one, where the end of c says that it does not answer, or not to us.
func (c *conn) suspectIf(err error) {
	if c.host != nil && (silent(err) || c.rejected(err)) {
		c.host.suspected(err.Error())
	}
}

// ended is why a request that was sent on c has no answer.
func (c *conn) ended(err error) failure {
	if c.rejected(err) {
		return failure{connectFailed, (&tlsFailure{err}).Error()}
	}
	return failure{terminated, ""}
}

// suspected says that h does not answer, or not to us.
func (h *host) suspected(why string) {
	if h.cluster.cfg.Type == config.OriginalDST || h.retired.Load() || h.suspect.Swap(true) {
		return
	}
	c := h.cluster
	c.epoch.Add(1)
	c.p.log.Info(h.kind()+" does not answer, requests avoid it", "cluster", c.cfg.Name, h.kind(), h.name(), "why", why)
	for i := range h.pools {
		p := &h.pools[i]
		p.w.loop.Post(p.reroute)
	}
	for _, w := range c.p.workers {
		w.loop.Post(func() {
			for _, p := range h.named[w.idx] {
				p.reroute()
			}
		})
	}
	first := c.p.workers[0]
	first.loop.Post(func() {
		if _, ok := first.suspects[h]; !ok {
			first.suspects[h] = &suspicion{pause: 1}
		}
	})
}

func (h *host) kind() string {
	if h.gateway {
		return "gateway"
	}
	return "host"
}

// name is how a log names h.
func (h *host) name() string {
	if h.pipe != "" {
		return h.pipe
	}
	return h.addr.String()
}

// answers says that h has taken a connection.
func (h *host) answers() {
	if h.suspect.Load() && h.suspect.Swap(false) {
		h.cluster.epoch.Add(1)
		h.cluster.p.log.Info(h.kind()+" answers again", "cluster", h.cluster.cfg.Name, h.kind(), h.name())
	}
}

// suspicion is what the first worker knows of a suspect host: when to try it again.
type suspicion struct {
	checking    bool
	wait, pause int // seconds until the next try, and between tries
}

// recheck tries to connect to a suspect host.
func (h *host) recheck(w *worker, s *suspicion) {
	if s.checking {
		return
	}
	if s.wait--; s.wait > 0 {
		return
	}
	if s.wait = s.pause; !h.gateway {
		s.pause = min(2*s.pause, recheckAtLeast)
	}
	s.checking = true
	w.dial(h, dialOptions{within: answersWithin}, func(c *conn, st *tlsState, err error) {
		switch {
		case err != nil:
			s.checking = false
		case st == nil:
			s.checking = false
			h.answers()
			c.close()
		default:
			p := &probe{h: h, s: s, c: c}
			p.timer.Fire = c.guarded(func() { p.end(true) })
			c.user = p
			w.loop.Arm(&p.timer, answersWithin)
			c.again()
		}
	})
}

// probe is a connection that is made to find out whether its peer takes our TLS handshake: it does if it
// says something, or does not end the connection.
type probe struct {
	h     *host
	s     *suspicion
	c     *conn
	timer loop.Timer
}

func (p *probe) onRead() {
	for p.c.readable && !p.c.closed {
		b, err := p.c.read()
		if len(b) > 0 || err != nil {
			p.end(err == nil)
			return
		}
	}
}

func (p *probe) onWrite() {}

func (p *probe) holds() int { return 0 }

func (p *probe) onFail(error) { p.end(false) }

func (p *probe) end(ok bool) {
	p.timer.Stop()
	p.s.checking = false
	p.c.close()
	if ok {
		p.h.answers()
	}
}

// reroute gives the requests that wait for a connection to another host, if there is one that is
// not suspect. They have sent nothing, so they may.
func (p *pool) reroute() {
	if !p.h.suspect.Load() || !p.h.cluster.hasSpare() {
		return
	}
	for range len(p.waiting) {
		s := p.next()
		s.avoid = true
		s.tried = append(s.tried, p.h)
		s.closeAttempt()
		s.try()
	}
}

// hasSpare reports whether a host may be used that is not suspect.
func (c *cluster) hasSpare() bool {
	for _, p := range c.set.Load().priorities {
		for _, l := range p.localities {
			for _, m := range l.members {
				if m.healthy() && !m.host.suspect.Load() {
					return true
				}
			}
		}
	}
	return false
}

// listenToGateways looks whether what was sent to gateways is acknowledged. It is called once a second.
func (w *worker) listenToGateways() {
	for c := range w.far {
		if h := c.host; c.connected && !h.suspect.Load() && loop.Unanswered(c.fd) >= unanswered {
			h.suspected("what was sent is not acknowledged")
		}
	}
	for h, s := range w.suspects {
		if !h.suspect.Load() || h.retired.Load() {
			delete(w.suspects, h)
			continue
		}
		h.recheck(w, s)
	}
}
