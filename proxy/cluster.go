package proxy

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/stats"
)

// cluster is the running state of a configured cluster, shared by the workers.
type cluster struct {
	p   *Proxy
	cfg *config.Cluster

	// epoch changes with the hosts or their health: each worker then makes its picker anew.
	epoch    atomic.Uint32
	warming  atomic.Bool // a picker counts a host for less, because it is new
	set      atomic.Pointer[hostSet]
	breakers [2]breaker
	pickers  []*picker // by worker, each touched by that worker only
	stats    *stats.Set[stats.Cluster]

	mu       sync.Mutex // guards the rest
	assigned *config.Assignment
	hosts    map[hostKey]*host
	ejected  int
	retired  bool
	resolver *resolver // of DNS clusters
}

// breaker counts what a cluster's circuit breakers bound, for one priority.
type breaker struct{ connections, pending, requests, retries atomic.Int64 }

// hostKey is what makes a host the same: connections to it can be used again.
type hostKey struct {
	addr netip.AddrPort
	pipe string
	tls  *config.UpstreamTLS
}

// host is one upstream address of a cluster.
type host struct {
	cluster   *cluster
	addr      netip.AddrPort
	pipe      string
	tls       *config.UpstreamTLS // nil: plaintext
	transport string              // the name of the transport socket match
	gateway   bool                // a passthrough gateway, which balances connections, not requests

	born    time.Time    // when it became a host of the cluster
	active  atomic.Int64 // requests, or TCP connections
	retired atomic.Bool  // no longer in the cluster
	suspect atomic.Bool  // see suspected
	used    atomic.Int64 // unix nanoseconds, for ORIGINAL_DST
	weight  atomic.Uint32
	outlier outlier
	pods    map[string]*pod // behind a gateway, by name; under the cluster's mutex
	counts  hostCounts
	pools   []pool               // two by worker, each touched by that worker only; see pool
	named   []map[poolName]*pool // by worker, as pools: those whose connections are for one server name
}

// hostCounts are a host's counters as Envoy's /clusters has them.
type hostCounts struct {
	CxActive                                                       atomic.Int64
	CxTotal, CxConnectFail, RqTotal, RqSuccess, RqError, RqTimeout atomic.Uint64
}

// hostSet is the endpoints of a cluster with their hosts. Immutable.
type hostSet struct {
	priorities    []priority
	overprovision uint32
}

type priority struct{ localities []locality }

type locality struct {
	cfg     *config.LocalityEndpoints
	members []member
}

// member is a host with what the control plane says of it now.
type member struct {
	host *host
	ep   *config.Endpoint
}

func newCluster(p *Proxy, c *config.Cluster) *cluster {
	cl := &cluster{p: p, cfg: c, hosts: map[hostKey]*host{}, pickers: make([]*picker, len(p.workers)), stats: p.stats.Cluster(c.StatName)}
	cl.set.Store(&hostSet{overprovision: 140})
	return cl
}

// assign makes a the endpoints of the cluster; nil: none are known.
func (c *cluster) assign(a *config.Assignment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a == c.assigned && c.epoch.Load() > 0 {
		return
	}
	c.assigned = a
	if c.cfg.Type == config.StrictDNS || c.cfg.Type == config.LogicalDNS {
		c.resolve()
	}
	c.rebuild()
}

// rebuild makes the host set from the assignment and, for DNS, from what the names resolve to.
// c.mu is held.
func (c *cluster) rebuild() {
	a := c.assigned
	set := &hostSet{overprovision: 140}
	seen := map[hostKey]*host{}
	if a != nil {
		if a.Overprovision > 0 {
			set.overprovision = a.Overprovision
		}
		for _, p := range a.Priorities {
			var pr priority
			for _, l := range p {
				loc := locality{cfg: l}
				for _, e := range l.Endpoints {
					for _, addr := range c.addresses(e) {
						h := c.host(addr, e)
						seen[hostKey{h.addr, h.pipe, h.tls}] = h
						h.weight.Store(e.Weight)
						loc.members = append(loc.members, member{h, e})
					}
				}
				pr.localities = append(pr.localities, loc)
			}
			set.priorities = append(set.priorities, pr)
		}
	}
	if c.cfg.Type != config.OriginalDST {
		for k, h := range c.hosts {
			if seen[k] == nil {
				delete(c.hosts, k)
				c.retireHost(h)
			}
		}
	}
	c.set.Store(set)
	c.epoch.Add(1)
	c.countMembers()
}

// addresses returns the addresses of an endpoint.
func (c *cluster) addresses(e *config.Endpoint) []netip.AddrPort {
	if e.Addr.IsValid() || e.Pipe != "" {
		return []netip.AddrPort{e.Addr}
	}
	var out []netip.AddrPort
	if c.resolver != nil {
		for _, a := range c.resolver.found[e.Host] {
			out = append(out, netip.AddrPortFrom(a, e.Port))
			if c.cfg.Type == config.LogicalDNS {
				break
			}
		}
	}
	return out
}

// host returns the host at addr, which may be there already. c.mu is held.
func (c *cluster) host(addr netip.AddrPort, e *config.Endpoint) *host {
	tls, name := c.cfg.Transport(e)
	k := hostKey{addr, e.Pipe, tls}
	h := c.hosts[k]
	if h == nil {
		h = &host{cluster: c, addr: addr, pipe: e.Pipe, tls: tls, transport: name, gateway: isGateway(e), born: time.Now()}
		h.pools = make([]pool, 2*len(c.p.workers))
		h.named = make([]map[poolName]*pool, len(c.p.workers))
		for i := range h.pools {
			h.pools[i] = h.newPool(c.p.workers[i/2], poolName{h2: i%2 == 1})
		}
		c.hosts[k] = h
	}
	return h
}

// pool returns w's pool for requests that came by protocol, over connections that are made for a
// server name; without one it is the TLS context's.
func (h *host) pool(w *worker, protocol, server string) *pool {
	p := h.cluster.cfg.HTTP.Protocol
	n := poolName{server: server, h2: p == config.HTTP2 || p == config.HTTPDownstream && protocol == "HTTP/2"}
	if server != "" {
		return h.namedPool(w, n)
	}
	if n.h2 {
		return &h.pools[2*w.idx+1]
	}
	return &h.pools[2*w.idx]
}

// isGateway reports whether an endpoint stands for the pods behind another network's gateway:
// its workload metadata names a cluster and nothing else.
func isGateway(e *config.Endpoint) bool {
	w := e.Workload
	return len(w) > 4 && w[:4] == ";;;;"
}

var noMetadata config.Endpoint

// original returns the host of an ORIGINAL_DST cluster for addr.
func (c *cluster) original(addr netip.AddrPort) *host {
	if p := c.cfg.OriginalDst.Port; p != 0 {
		addr = netip.AddrPortFrom(addr.Addr(), p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.host(addr, &noMetadata)
	h.used.Store(time.Now().UnixNano())
	return h
}

func (c *cluster) retireHost(h *host) {
	h.retired.Store(true)
	if h.outlier.ejected.Swap(false) {
		c.ejected--
	}
	for i := range h.pools {
		h.pools[i].w.loop.Post(h.pools[i].retire)
	}
	for _, w := range c.p.workers {
		w.loop.Post(func() { h.retireNamed(w) })
	}
}

// retire lets go of a cluster that is no longer configured.
func (c *cluster) retire([]*worker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = true
	for k, h := range c.hosts {
		delete(c.hosts, k)
		c.retireHost(h)
	}
	if c.resolver != nil {
		c.resolver.stop()
		c.resolver = nil
	}
}

// sweep is called once a second.
func (c *cluster) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.Outlier != nil {
		c.uneject(now)
	}
	if c.cfg.Type == config.OriginalDST {
		age := max(c.cfg.OriginalDst.Cleanup, time.Second)
		for k, h := range c.hosts {
			if h.active.Load() == 0 && h.counts.CxActive.Load() == 0 && now.UnixNano()-h.used.Load() > int64(age) {
				delete(c.hosts, k)
				c.retireHost(h)
			}
		}
	}
	if c.warming.Swap(false) {
		c.epoch.Add(1) // the next pickers count it for more
	}
	if c.resolver != nil && !c.resolver.running {
		c.resolve() // Run had not begun
	}
}
