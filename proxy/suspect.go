package proxy

import (
	"errors"
	"syscall"
	"time"

	"github.com/carrick-mesh/carrick/proxy/loop"
)

// A link between networks can be cut without a packet that says so. Until the control plane has
// found out, the proxy looks itself: a gateway that does not take a connection within answersWithin,
// or leaves what was sent to it without a sign through unanswered retransmissions, or a connection
// until the kernel gives it up, is suspect. New requests go to other hosts, if there are any that may
// be used; what waits for a connection to it moves there; what has been sent stays, for it may have
// arrived, until its connection is given up: then it is sent again if it may be. The suspicion ends
// when a connection is made, which is tried once a second.
const (
	answersWithin = time.Second
	// unanswered is how many retransmissions in a row: the second is sent after three timeouts of the
	// connection, 0.6 s at least.
	unanswered = 2
)

// silent reports whether a connection failed because nothing came back, or the way to its peer is gone.
func silent(err error) bool {
	return errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// suspected says that h, if it is a gateway, does not answer.
func (h *host) suspected(why string) {
	if !h.gateway || h.retired.Load() || h.suspect.Swap(true) {
		return
	}
	c := h.cluster
	c.epoch.Add(1)
	c.p.log.Info("gateway does not answer, requests avoid it", "cluster", c.cfg.Name, "gateway", h.addr, "why", why)
	for i := range h.pools {
		p := &h.pools[i]
		p.w.loop.Post(p.reroute)
	}
	first := c.p.workers[0]
	first.loop.Post(func() { first.suspects[h] = struct{}{} })
}

// answers says that h has taken a connection.
func (h *host) answers() {
	if h.suspect.Load() && h.suspect.Swap(false) {
		h.cluster.epoch.Add(1)
		h.cluster.p.log.Info("gateway answers again", "cluster", h.cluster.cfg.Name, "gateway", h.addr)
	}
}

// recheck tries to connect to a suspect host.
func (h *host) recheck(w *worker) {
	if h.checking {
		return
	}
	h.checking = true
	w.dial(h, dialOptions{within: answersWithin}, func(c *conn, _ *tlsState, err error) {
		h.checking = false
		if err == nil {
			c.close()
		}
	})
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
	for h := range w.suspects {
		if !h.suspect.Load() || h.retired.Load() {
			delete(w.suspects, h)
			continue
		}
		h.recheck(w)
	}
}
