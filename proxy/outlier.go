package proxy

import (
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
	switch {
	case status == 0 && o.SplitLocal:
		if n := h.outlier.localErrs.Add(1); o.ConsecutiveLocal > 0 && n == o.ConsecutiveLocal {
			h.cluster.eject(h, o.EnforceLocal)
		}
	case status == 0 || status >= 500:
		if status == 0 || status >= 502 && status <= 504 {
			if n := h.outlier.gatewayErr.Add(1); o.ConsecutiveGateway > 0 && n == o.ConsecutiveGateway {
				h.cluster.eject(h, o.EnforceGateway)
			}
		} else {
			h.outlier.gatewayErr.Store(0)
		}
		if n := h.outlier.serverErrs.Add(1); o.Consecutive5xx > 0 && n == o.Consecutive5xx {
			h.cluster.eject(h, o.Enforce5xx)
		}
	default:
		if h.outlier.serverErrs.Load() != 0 {
			h.outlier.serverErrs.Store(0)
		}
		if h.outlier.gatewayErr.Load() != 0 {
			h.outlier.gatewayErr.Store(0)
		}
		if h.outlier.localErrs.Load() != 0 {
			h.outlier.localErrs.Store(0)
		}
	}
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
	h.outlier.times++
	d := min(o.BaseEjection*time.Duration(h.outlier.times), max(o.MaxEjection, o.BaseEjection))
	if o.Jitter > 0 {
		d += time.Duration(c.p.workers[0].random() % uint64(o.Jitter))
	}
	h.outlier.until = time.Now().Add(d)
	h.outlier.ejected.Store(true)
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
		if !h.outlier.ejected.Load() || now.Before(h.outlier.until) {
			continue
		}
		h.outlier.serverErrs.Store(0)
		h.outlier.gatewayErr.Store(0)
		h.outlier.localErrs.Store(0)
		h.outlier.ejected.Store(false)
		c.ejected--
		back = true
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
