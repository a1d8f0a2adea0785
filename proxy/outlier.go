package proxy

import (
	"iter"
	"sync/atomic"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
)

// outlier is what outlier detection knows of a host.
type outlier struct {
	ejected    atomic.Bool
	serverErrs atomic.Uint32 // consecutive 5xx, local failures among them unless split
	gatewayErr atomic.Uint32 // consecutive 502, 503, 504
	localErrs  atomic.Uint32 // consecutive local failures
	until      time.Time     // under the cluster's mutex
	times      int           // how often ejected, under the cluster's mutex
}

// result tells outlier detection how a request went: status 0 is a local failure (no connection,
// reset, time-out).
func (h *host) result(status int) {
	o := h.cluster.cfg.Outlier
	if status >= 500 || status == 0 {
		h.counts.RqError.Add(1)
	} else {
		h.counts.RqSuccess.Add(1)
	}
	if o == nil {
		return
	}
	for enforce := range h.outlier.count(o, status) {
		h.cluster.eject(h, enforce)
	}
}

// count takes note of how a request went, and yields, for each bound that is reached, how likely it is
// to be enforced, in percent.
func (x *outlier) count(o *config.Outlier, status int) iter.Seq[uint32] {
	return func(reached func(uint32) bool) {
		switch {
		case status == 0 && o.SplitLocal:
			if n := x.localErrs.Add(1); o.ConsecutiveLocal > 0 && n == o.ConsecutiveLocal {
				reached(o.EnforceLocal)
			}
		case status == 0 || status >= 500:
			if status == 0 || status >= 502 && status <= 504 {
				if n := x.gatewayErr.Add(1); o.ConsecutiveGateway > 0 && n == o.ConsecutiveGateway && !reached(o.EnforceGateway) {
					return
				}
			} else {
				x.gatewayErr.Store(0)
			}
			if n := x.serverErrs.Add(1); o.Consecutive5xx > 0 && n == o.Consecutive5xx {
				reached(o.Enforce5xx)
			}
		default:
			x.forgive()
		}
	}
}

// forgive forgets the failures.
func (x *outlier) forgive() {
	for _, n := range [...]*atomic.Uint32{&x.serverErrs, &x.gatewayErr, &x.localErrs} {
		if n.Load() != 0 {
			n.Store(0)
		}
	}
}

// eject marks x as ejected and returns for how long. The cluster's mutex is held.
func (x *outlier) eject(o *config.Outlier, random uint64) time.Duration {
	x.times++
	d := min(o.BaseEjection*time.Duration(x.times), max(o.MaxEjection, o.BaseEjection))
	if o.Jitter > 0 {
		d += time.Duration(random % uint64(o.Jitter))
	}
	x.until = time.Now().Add(d)
	x.ejected.Store(true)
	return d
}

// back ends x's ejection if its time has come, and reports whether it did. The cluster's mutex is held.
func (x *outlier) back(now time.Time) bool {
	if !x.ejected.Load() || now.Before(x.until) {
		return false
	}
	x.forgive()
	x.ejected.Store(false)
	return true
}

// eject takes h out of balancing for a while, unless too many are out already.
func (c *cluster) eject(h *host, enforce uint32) {
	if uint32(c.p.workers[0].random()%100) >= enforce {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.cfg.Outlier
	if h.outlier.ejected.Load() || h.retired.Load() {
		return
	}
	// At least one may always go, as in Envoy, unless the percentage is 0.
	most := max(1, len(c.hosts)*int(o.MaxEjectionPercent)/100)
	if c.ejected >= most || o.MaxEjectionPercent == 0 && !o.AlwaysEjectOne {
		return
	}
	d := h.outlier.eject(o, c.p.workers[0].random())
	c.ejected++
	c.epoch.Add(1)
	c.countMembers()
	c.stats.Shard(0).EjectionsTotal.Inc()
	c.p.log.Info("outlier detection ejects host", "cluster", c.cfg.Name, "host", h.addr, "for", d)
}

// uneject brings back hosts whose time has come. c.mu is held.
func (c *cluster) uneject(now time.Time) {
	back := false
	for _, h := range c.hosts {
		h.unejectPods(now)
		if h.outlier.back(now) {
			c.ejected--
			back = true
		}
	}
	if back {
		c.epoch.Add(1)
		c.countMembers()
	}
}

// HostStatus is one host for the admin interface.
type HostStatus struct {
	Cluster  string
	Addr     string
	Endpoint *config.Endpoint
	Locality *config.LocalityEndpoints
	Priority int
	Ejected  bool

	CxActive, RqActive                                             int64
	CxTotal, CxConnectFail, RqTotal, RqSuccess, RqError, RqTimeout uint64
}

// Hosts returns the hosts of a cluster as they are now, in the order of priority.
func (p *Proxy) Hosts(clusterName string) []HostStatus {
	c := p.snap.Load().clusters[clusterName]
	if c == nil {
		return nil
	}
	var out []HostStatus
	for i, pr := range c.set.Load().priorities {
		for _, l := range pr.localities {
			for _, m := range l.members {
				h := m.host
				addr := h.addr.String()
				if h.pipe != "" {
					addr = h.pipe
				}
				out = append(out, HostStatus{
					Cluster: clusterName, Addr: addr, Endpoint: m.ep, Locality: l.cfg, Priority: i, Ejected: h.outlier.ejected.Load(),
					CxActive: h.counts.CxActive.Load(), RqActive: h.active.Load(),
					CxTotal: h.counts.CxTotal.Load(), CxConnectFail: h.counts.CxConnectFail.Load(),
					RqTotal: h.counts.RqTotal.Load(), RqSuccess: h.counts.RqSuccess.Load(), RqError: h.counts.RqError.Load(), RqTimeout: h.counts.RqTimeout.Load(),
				})
			}
		}
	}
	return out
}
