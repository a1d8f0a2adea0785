package proxy

import (
	"strings"

	"github.com/carrick-mesh/carrick/proxy/config"
)

// poolName is what the connections of a host's pool were made for beyond what all of the host's have
// in common. A connection is used again only for what its handshake was made for: the name that was
// asked for decides which certificate the other side showed, and what it was checked against.
type poolName struct {
	h2     bool
	server string // empty: the TLS context's
}

func (h *host) newPool(w *worker, n poolName) pool {
	p := pool{w: w, h: h, name: n, speaks: config.HTTP1}
	switch {
	case n.h2:
		p.speaks = config.HTTP2
	case h.cluster.cfg.HTTP.Protocol == config.HTTPAuto:
		p.speaks = config.HTTPAuto
	}
	return p
}

// namedPool returns w's pool for a server name, which is made if there is none. It is forgotten with
// its last connection, so that there are never more of them than connections and waiting requests.
func (h *host) namedPool(w *worker, n poolName) *pool {
	if p := h.named[w.idx][n]; p != nil {
		return p
	}
	n.server = strings.Clone(n.server)
	p := h.newPool(w, n)
	p.gone = h.retired.Load()
	if h.named[w.idx] == nil {
		h.named[w.idx] = map[poolName]*pool{}
	}
	h.named[w.idx][n] = &p
	return &p
}

// forget lets go of a pool for a server name that has nothing left.
func (p *pool) forget() {
	if p.name.server != "" && p.total == 0 && len(p.waiting) == 0 && p.h.named[p.w.idx][p.name] == p {
		delete(p.h.named[p.w.idx], p.name)
	}
}

// makeRoom closes an idle connection of another name if the cluster may have no more connections:
// names that clients choose must not keep others from being served.
func (p *pool) makeRoom() {
	if p.name.server == "" || p.h.cluster.breakers[0].connections.Load() < int64(p.h.cluster.cfg.Breakers[0].MaxConnections) {
		return
	}
	for _, o := range p.h.named[p.w.idx] {
		if o == p {
			continue
		}
		if len(o.idle) > 0 {
			o.idle[0].close()
			return
		}
		for _, u := range o.h2 {
			if len(u.streams) == 0 {
				o.dropH2(u)
				u.retire()
				return
			}
		}
	}
}

func (h *host) retireNamed(w *worker) {
	for _, p := range h.named[w.idx] {
		p.retire()
	}
}
