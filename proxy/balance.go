package proxy

import (
	"container/heap"
	"math"
	"slices"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
)

// want is what a request asks of the balancer.
type want struct {
	hash    uint64
	hasHash bool
	// reject refuses a host, at most attempts times; may be nil.
	reject   func(*host) bool
	attempts int
	// without are priorities (bits) to leave out, unless there are no others.
	without uint64
}

// picker chooses hosts for one worker. It is made anew when the cluster's epoch changes.
type picker struct {
	epoch  uint32
	levels []level // by priority
}

// level is a priority: the share of requests that go to it, and the groups of its hosts.
type level struct {
	load   uint32 // percent
	groups []group
	total  uint32 // weight of the groups
}

// group is hosts among which the policy chooses: all of a priority, or of a locality.
type group struct {
	weight uint32
	ms     []member
	shares []float64 // of each: weight, and less while it is new
	equal  bool      // all shares are
	next   int       // round robin
	edf    edf
	ring   []point
}

// choose returns a host, or nil if there is none.
func (c *cluster) choose(w *worker, o want) (member, bool) {
	p := c.pickers[w.idx]
	if e := c.epoch.Load(); p == nil || p.epoch != e {
		p = c.newPicker(w, e)
		c.pickers[w.idx] = p
	}
	var m member
	var ok bool
	for range max(1, o.attempts) {
		if m, ok = p.choose(c, w, o); !ok || o.reject == nil || !o.reject(m.host) {
			break
		}
	}
	return m, ok
}

// prioritiesOf returns the priorities (bits) that h is in; one above 63 is not told.
func (c *cluster) prioritiesOf(h *host) (bits uint64) {
	for i, p := range c.set.Load().priorities {
		for _, l := range p.localities {
			for _, m := range l.members {
				if m.host == h {
					bits |= 1 << uint(i)
				}
			}
		}
	}
	return bits
}

func (p *picker) choose(c *cluster, w *worker, o want) (member, bool) {
	n := uint32(w.random() % 100)
	if o.hasHash {
		n = uint32(o.hash % 100)
	}
	if o.without != 0 {
		for i := range p.levels {
			if l := &p.levels[i]; o.without>>uint(i)&1 == 0 && len(l.groups) > 0 {
				return l.choose(c, w, o)
			}
		}
	}
	for i := range p.levels {
		l := &p.levels[i]
		if n >= l.load {
			n -= l.load
			continue
		}
		return l.choose(c, w, o)
	}
	return member{}, false
}

func (l *level) choose(c *cluster, w *worker, o want) (member, bool) {
	if len(l.groups) == 0 {
		return member{}, false
	}
	g := &l.groups[0]
	if len(l.groups) > 1 && l.total > 0 {
		n := uint32(w.random() % uint64(l.total))
		for i := range l.groups {
			g = &l.groups[i]
			if n < g.weight {
				break
			}
			n -= g.weight
		}
	}
	return g.choose(c, w, o), true
}

func (g *group) choose(c *cluster, w *worker, o want) member {
	if len(g.ms) == 1 {
		return g.ms[0]
	}
	switch c.cfg.LB {
	case config.Random:
		if g.equal {
			return g.ms[w.random()%uint64(len(g.ms))]
		}
	case config.RingHash, config.Maglev:
		h := o.hash
		if !o.hasHash {
			h = w.random()
		}
		return g.onRing(h)
	case config.LeastRequest:
		if g.equal {
			best := g.ms[w.random()%uint64(len(g.ms))]
			for range max(2, c.cfg.Choices) - 1 {
				m := g.ms[w.random()%uint64(len(g.ms))]
				if m.host.active.Load() < best.host.active.Load() {
					best = m
				}
			}
			return best
		}
		return g.weighted(w, c.cfg.ActiveBias)
	}
	if g.equal {
		m := g.ms[g.next%len(g.ms)]
		g.next = (g.next + 1) % len(g.ms)
		return m
	}
	return g.weighted(w, 0)
}

// weighted is earliest deadline first: each host is due again after the inverse of its weight.
func (g *group) weighted(w *worker, bias float64) member {
	if g.edf == nil {
		for i := range g.ms {
			// A random start keeps workers and proxies from all beginning with the same host.
			at := float64(w.random()>>11) / (1 << 53) / g.shares[i]
			g.edf = append(g.edf, due{at, i})
		}
		heap.Init(&g.edf)
	}
	d := &g.edf[0]
	m := g.ms[d.i]
	weight := g.shares[d.i]
	if bias > 0 {
		weight /= math.Pow(float64(m.host.active.Load()+1), bias)
	}
	d.at += 1 / weight
	heap.Fix(&g.edf, 0)
	return m
}

type due struct {
	at float64
	i  int
}

type edf []due

func (e edf) Len() int           { return len(e) }
func (e edf) Less(i, k int) bool { return e[i].at < e[k].at }
func (e edf) Swap(i, k int)      { e[i], e[k] = e[k], e[i] }
func (e *edf) Push(x any)        { *e = append(*e, x.(due)) }
func (e *edf) Pop() any          { o := *e; x := o[len(o)-1]; *e = o[:len(o)-1]; return x }

// newPicker works out from health and weights where requests go.
func (c *cluster) newPicker(w *worker, epoch uint32) *picker {
	set := c.set.Load()
	p := &picker{epoch: epoch, levels: make([]level, len(set.priorities))}
	avail := make([]uint32, len(set.priorities))
	var sum uint32
	usable := member.healthy
	if c.hasSpare() {
		usable = func(m member) bool { return m.healthy() && !m.host.suspect.Load() }
	}
	for i := range set.priorities {
		healthy, all := set.priorities[i].count(usable)
		if all > 0 {
			avail[i] = min(100, set.overprovision*uint32(healthy)/uint32(all))
		}
		sum += avail[i]
	}
	total := min(100, sum)
	rest := uint32(100)
	for i := range p.levels {
		l := &p.levels[i]
		if total > 0 {
			l.load = min(rest, avail[i]*100/total)
			rest -= l.load
		}
		healthy, all := set.priorities[i].count(usable)
		panicking := total < 100 && float64(healthy)*100 < c.cfg.PanicThreshold*float64(all)
		l.groups, l.total = c.groups(&set.priorities[i], panicking, usable)
	}
	if total == 0 { // nothing is healthy: in panic, everything goes to the first priority that has hosts
		for i := range p.levels {
			if len(p.levels[i].groups) > 0 {
				p.levels[i].load, rest = 100, 0
				break
			}
		}
	}
	if rest > 0 && total > 0 { // rounding
		for i := range p.levels {
			if p.levels[i].load > 0 {
				p.levels[i].load += rest
				break
			}
		}
	}
	return p
}

func (p *priority) count(usable func(member) bool) (healthy, all int) {
	for _, l := range p.localities {
		for _, m := range l.members {
			all++
			if usable(m) {
				healthy++
			}
		}
	}
	return healthy, all
}

// healthy reports whether requests should go to m. Draining hosts count as unhealthy.
func (m member) healthy() bool {
	switch m.ep.Health {
	case config.Unhealthy, config.Draining:
		return false
	}
	return !m.host.outlier.ejected.Load()
}

// share returns how much of the requests m should get beside others: its weight, or less while it is
// new and the cluster has a slow start.
func (c *cluster) share(m member, now time.Time) float64 {
	weight := float64(max(1, m.ep.Weight))
	s := &c.cfg.SlowStart
	age := now.Sub(m.host.born)
	if age >= s.Window {
		return weight
	}
	c.warming.Store(true)
	return weight * max(s.Least, math.Pow(float64(max(age, 0))/float64(s.Window), 1/s.Aggression), 1e-3)
}

func (c *cluster) groups(p *priority, panicking bool, usable func(member) bool) (gs []group, total uint32) {
	now := time.Now()
	for _, l := range p.localities {
		g := group{weight: l.cfg.Weight}
		for _, m := range l.members {
			if panicking && !c.cfg.FailTrafficOnPanic && m.ep.Health != config.Draining || usable(m) {
				g.ms = append(g.ms, m)
			}
		}
		if len(g.ms) == 0 {
			continue
		}
		if c.cfg.LocalityWeighted {
			if g.weight > 0 {
				gs = append(gs, g)
				total += g.weight
			}
		} else if len(gs) == 0 {
			gs = append(gs, g)
		} else {
			gs[0].ms = append(gs[0].ms, g.ms...)
		}
	}
	for i := range gs {
		g := &gs[i]
		g.equal = true
		for _, m := range g.ms {
			g.shares = append(g.shares, c.share(m, now))
			g.equal = g.equal && g.shares[len(g.shares)-1] == g.shares[0]
		}
		g.next = int(c.p.workers[0].random() % uint64(len(g.ms)))
		if c.cfg.LB == config.RingHash || c.cfg.LB == config.Maglev {
			g.makeRing()
		}
	}
	return gs, total
}

// point is a place of a host on the hash ring.
type point struct {
	hash uint64
	i    int
}

// perWeight is how many places a host of the least weight has.
const perWeight = 160

func (g *group) makeRing() {
	least := g.ms[0].ep.Weight
	for _, m := range g.ms {
		least = min(least, m.ep.Weight)
	}
	for i, m := range g.ms {
		n := perWeight * int(max(1, m.ep.Weight)) / int(max(1, least))
		name := m.host.addr.String()
		for k := range min(n, 1<<16) {
			g.ring = append(g.ring, point{hashString(name) ^ mix(uint64(k)+1), i})
		}
	}
	for i := range g.ring {
		g.ring[i].hash = mix(g.ring[i].hash)
	}
	slices.SortFunc(g.ring, func(a, b point) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return a.i - b.i
	})
}

func (g *group) onRing(h uint64) member {
	i, _ := slices.BinarySearchFunc(g.ring, h, func(p point, h uint64) int {
		switch {
		case p.hash < h:
			return -1
		case p.hash > h:
			return 1
		}
		return 0
	})
	return g.ms[g.ring[i%len(g.ring)].i]
}

// hashString is FNV-1a, mixed.
func hashString(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finalizer of MurmurHash3.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
