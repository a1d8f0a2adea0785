package proxy

import "time"

// An endpoint that stands for another network's pods must not be ejected for the answers of one of them. A
// connection through its passthrough gateway leads to one pod, which its certificate names: it is the pod
// that is ejected. Its connections end after their requests, and new ones that lead there are given up.

// maxShunned is how many new connections in a row may be given up because they lead to ejected pods while
// there is no other connection. Then one is used all the same: perhaps there are no other pods.
const maxShunned = 8

// pod is one pod behind a passthrough gateway, as outlier detection knows it.
type pod struct {
	host    *host
	name    string // fingerprint of its certificate; empty: the pod of one connection in plaintext
	conns   int    // under the cluster's mutex
	outlier outlier
}

// ejected reports whether no request should go to the pod; p may be nil.
func (p *pod) ejected() bool { return p != nil && p.outlier.ejected.Load() }

// podOf returns the pod that a new connection to h leads to; nil if h is one itself, or nobody asks.
// Call left when the connection ends.
func (h *host) podOf(st *tlsState) *pod {
	if !h.gateway || h.cluster.cfg.Outlier == nil || h.weight.Load() <= 1 {
		return nil
	}
	if st == nil || st.info.PeerFingerprint256 == "" {
		return &pod{host: h, conns: 1}
	}
	c := h.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	p := h.pods[st.info.PeerFingerprint256]
	if p == nil {
		p = &pod{host: h, name: st.info.PeerFingerprint256}
		if h.pods == nil {
			h.pods = map[string]*pod{}
		}
		h.pods[p.name] = p
	}
	p.conns++
	return p
}

// left says that a connection to the pod has ended; p may be nil.
func (p *pod) left() {
	if p == nil {
		return
	}
	c := p.host.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	p.conns--
	p.host.forgetPod(p)
}

// forgetPod forgets a pod that nothing is known of. The cluster's mutex is held.
func (h *host) forgetPod(p *pod) {
	if p.conns <= 0 && !p.outlier.ejected.Load() {
		delete(h.pods, p.name)
	}
}

// result tells outlier detection how a request of s went, as host.result does.
func (s *stream) result(status int) {
	h, p := s.member.host, s.pod
	if p == nil || status > 0 && status < 500 {
		h.result(status)
	} else {
		h.counts.RqError.Add(1)
	}
	if p != nil {
		for enforce := range p.outlier.count(h.cluster.cfg.Outlier, status) {
			h.cluster.ejectPod(p, enforce)
		}
	}
}

// ejectPod takes a pod out for a while, unless too many are out already. If all that are known are out, the
// host is.
func (c *cluster) ejectPod(p *pod, enforce uint32) {
	if uint32(c.p.workers[0].random()%100) >= enforce {
		return
	}
	if c.ejectPodOnly(p) {
		c.eject(p.host, 100)
	}
}

// ejectPodOnly reports whether there were others, and all are out now.
func (c *cluster) ejectPodOnly(p *pod) (all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, o := p.host, c.cfg.Outlier
	if p.outlier.ejected.Load() || h.retired.Load() || o.MaxEjectionPercent == 0 && !o.AlwaysEjectOne {
		return false
	}
	out := 0
	for _, x := range h.pods {
		if x.outlier.ejected.Load() {
			out++
		}
	}
	if p.name != "" && out >= max(1, len(h.pods)*int(o.MaxEjectionPercent)/100) {
		return false
	}
	d := p.outlier.eject(o, c.p.workers[0].random())
	c.stats.Shard(0).EjectionsTotal.Inc()
	c.p.log.Info("outlier detection ejects a pod behind a gateway", "cluster", c.cfg.Name, "gateway", h.addr, "certificate", p.name, "for", d)
	return p.name != "" && out+1 == len(h.pods) && out > 0
}

// unejectPods brings back pods whose time has come. The cluster's mutex is held.
func (h *host) unejectPods(now time.Time) {
	for _, p := range h.pods {
		if p.outlier.back(now) {
			h.forgetPod(p)
		}
	}
}

// shuns reports whether a new connection to a pod should be given up. What waits for it then gets another.
func (p *pool) shuns(x *pod) bool {
	if !x.ejected() {
		p.shunned = 0
		return false
	}
	p.shunned++
	others := p.total - 1 - p.dialing
	return p.shunned <= maxShunned || others > 0
}
