package announce

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	probes        = 3
	probeInterval = 150 * time.Millisecond
	retryConflict = 30 * time.Second // after somebody else was found to have the address
	rescan        = 10 * time.Second // of the host's interfaces
	repeat        = 60 * time.Second // of announcements, for tables that have lost us
	defend        = 10 * time.Second // between answers to somebody who announces our address
)

// burst is when an address just taken is announced again, for frames may be lost.
var burst = []time.Duration{200 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}

// Address is one to answer for.
type Address struct {
	IP netip.Addr
	// Interfaces names where; nil means those whose network has the address or, if there
	// is none, all.
	Interfaces []string
}

// Config is what a Responder needs; only Log is required.
type Config struct {
	Log *slog.Logger
	// Interfaces lists the interfaces to use; LANInterfaces if nil.
	Interfaces func() ([]net.Interface, error)
	// Peer reports whether a hardware address is that of another responder of ours: from
	// that one an address is taken over although it answers.
	Peer func(net.HardwareAddr) bool
	// Sure reports whether our claims are up to date. If not, and a peer announces an
	// address of ours, it is the peer's.
	Sure func() bool
	// Conflict is told that a host that is no peer has an address of ours. It must not block.
	Conflict func(netip.Addr, net.HardwareAddr)
	// Claimed is told that an address was taken. It must not block.
	Claimed func(netip.Addr)
}

// Responder answers for addresses. Before it takes one it asks whether somebody has it, and
// then it announces it, at once, some times more, and from time to time.
type Responder struct {
	cfg  Config
	news chan struct{}

	mu     sync.Mutex
	wanted []Address

	// Owned by Run.
	links  map[int]*link // by interface index
	claims map[netip.Addr]*claim
	heard  chan heard
	wait   sync.WaitGroup
}

type phase int

const (
	probing phase = iota
	owned
	yielded // to a host that has it, or to a peer; asked for again at next
)

// claim is one wanted address.
type claim struct {
	Address
	phase    phase
	step     int       // of probes or of the burst
	next     time.Time // when the phase goes on
	defended time.Time
	joined   map[int]*link
}

// New returns a Responder that answers for nothing yet.
func New(cfg Config) *Responder {
	if cfg.Interfaces == nil {
		cfg.Interfaces = LANInterfaces
	}
	if cfg.Peer == nil {
		cfg.Peer = func(net.HardwareAddr) bool { return false }
	}
	if cfg.Sure == nil {
		cfg.Sure = func() bool { return true }
	}
	if cfg.Conflict == nil {
		cfg.Conflict = func(netip.Addr, net.HardwareAddr) {}
	}
	if cfg.Claimed == nil {
		cfg.Claimed = func(netip.Addr) {}
	}
	return &Responder{cfg: cfg, news: make(chan struct{}, 1), links: map[int]*link{}, claims: map[netip.Addr]*claim{}, heard: make(chan heard, 64)}
}

// Set replaces the addresses to answer for.
func (r *Responder) Set(addresses []Address) {
	r.mu.Lock()
	r.wanted = slices.Clone(addresses)
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// Run answers until ctx ends. An interface that cannot be used is logged and tried again.
func (r *Responder) Run(ctx context.Context) error {
	defer func() {
		for i := range r.links {
			r.drop(i)
		}
		r.wait.Wait()
	}()
	r.scan(ctx)
	scan := time.NewTicker(rescan)
	defer scan.Stop()
	for {
		timer := time.NewTimer(r.due(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-scan.C:
			r.scan(ctx)
		case <-r.news:
			r.apply(time.Now())
		case h := <-r.heard:
			r.hear(h, time.Now())
		case <-timer.C:
			r.advance(time.Now())
		}
		timer.Stop()
	}
}

// scan opens links of new interfaces and drops those that are gone or changed.
func (r *Responder) scan(ctx context.Context) {
	list, err := r.cfg.Interfaces()
	if err != nil {
		r.cfg.Log.Warn("the interfaces stay as they are", "error", err)
		return
	}
	seen := map[int]bool{}
	for _, ifi := range list {
		seen[ifi.Index] = true
		if l := r.links[ifi.Index]; l != nil {
			if !l.failed.Load() && slices.Equal(l.ifi.HardwareAddr, ifi.HardwareAddr) && l.ifi.Name == ifi.Name && slices.Equal(l.nets, prefixes(ifi)) {
				continue
			}
			r.drop(ifi.Index)
		}
		l, err := openLink(ifi, r.cfg.Log)
		if err != nil {
			r.cfg.Log.Warn("an interface is not used", "error", err)
			continue
		}
		r.links[ifi.Index] = l
		r.cfg.Log.Debug("answering on an interface", "interface", ifi.Name, "ipv6", l.ndp != nil)
		r.start(ctx, l)
		// Whoever is behind a new link has not heard of us.
		for _, c := range r.claims {
			if c.phase == owned {
				c.step, c.next = 0, time.Now()
			}
		}
	}
	for i := range r.links {
		if !seen[i] {
			r.drop(i)
		}
	}
	r.memberships()
}

func (r *Responder) start(ctx context.Context, l *link) {
	to := func(h heard) bool {
		select {
		case r.heard <- h:
			return true
		case <-ctx.Done():
			return false
		}
	}
	r.wait.Go(func() { l.read(l.arp, parseARP, to, r.cfg.Log) })
	if l.ndp != nil {
		r.wait.Go(func() { l.read(l.read6, parseNDP, to, r.cfg.Log) })
	}
}

func (r *Responder) drop(index int) {
	l := r.links[index]
	delete(r.links, index)
	l.close()
	for _, c := range r.claims {
		delete(c.joined, index)
	}
}

// apply takes over what Set left.
func (r *Responder) apply(now time.Time) {
	r.mu.Lock()
	wanted := r.wanted
	r.mu.Unlock()
	seen := map[netip.Addr]bool{}
	for _, a := range wanted {
		seen[a.IP] = true
		if c := r.claims[a.IP]; c != nil {
			c.Interfaces = a.Interfaces
			continue
		}
		r.claims[a.IP] = &claim{Address: a, next: now, joined: map[int]*link{}}
	}
	for ip, c := range r.claims {
		if !seen[ip] {
			for _, l := range c.joined {
				r.check(l, "leaving a group", l.leave(ip))
			}
			delete(r.claims, ip)
		}
	}
	r.memberships()
	r.advance(now)
}

// memberships makes each claim's links, and only those, hear questions for it.
func (r *Responder) memberships() {
	for ip, c := range r.claims {
		on := r.on(c)
		for i, l := range c.joined {
			if !slices.Contains(on, l) {
				r.check(l, "leaving a group", l.leave(ip))
				delete(c.joined, i)
			}
		}
		for _, l := range on {
			if c.joined[l.ifi.Index] == nil {
				r.check(l, "joining a group", l.join(ip))
				c.joined[l.ifi.Index] = l
			}
		}
	}
}

// on returns the links of a claim.
func (r *Responder) on(c *claim) []*link {
	var named, near, all []*link
	for _, l := range r.links {
		if !l.can(c.IP) {
			continue
		}
		all = append(all, l)
		if slices.Contains(c.Interfaces, l.ifi.Name) {
			named = append(named, l)
		}
		if slices.ContainsFunc(l.nets, func(p netip.Prefix) bool { return p.Contains(c.IP) }) {
			near = append(near, l)
		}
	}
	switch {
	case c.Interfaces != nil:
		return named
	case near != nil:
		return near
	}
	return all
}

// due is how long nothing has to be done.
func (r *Responder) due(now time.Time) time.Duration {
	d := time.Hour
	for _, c := range r.claims {
		d = min(d, max(c.next.Sub(now), 0))
	}
	return d
}

// advance does what is due.
func (r *Responder) advance(now time.Time) {
	for ip, c := range r.claims {
		if now.Before(c.next) {
			continue
		}
		switch c.phase {
		case probing:
			if c.step < probes {
				for _, l := range r.on(c) {
					r.check(l, "probing", l.probe(ip))
				}
				c.step++
				c.next = now.Add(probeInterval)
				continue
			}
			c.phase, c.step = owned, 0
			r.announce(c, now)
			r.cfg.Log.Info("answering for an address", "address", ip.String())
			r.cfg.Claimed(ip)
		case owned:
			r.announce(c, now)
		case yielded:
			if !r.cfg.Sure() {
				c.next = now.Add(time.Second)
				continue
			}
			c.phase, c.step, c.next = probing, 0, now
		}
	}
}

func (r *Responder) announce(c *claim, now time.Time) {
	for _, l := range r.on(c) {
		r.check(l, "announcing", l.announce(c.IP))
	}
	if c.step < len(burst) {
		c.next = now.Add(burst[c.step])
		c.step++
	} else {
		c.next = now.Add(repeat)
	}
}

// hear answers questions for owned addresses and notices others who have them.
func (r *Responder) hear(h heard, now time.Time) {
	if r.own(h.hw) || r.links[h.link.ifi.Index] != h.link {
		return
	}
	if h.ask {
		if c := r.claims[h.target]; c != nil && c.phase == owned && slices.Contains(r.on(c), h.link) {
			r.check(h.link, "answering", h.link.reply(h.target, h.message))
		}
		// Who asks for an address is not who has it, and an ARP probe has no sender.
	}
	c := r.claims[h.from]
	if c == nil || c.phase == yielded || h.ask && !h.from.Is4() {
		return
	}
	peer := r.cfg.Peer(h.hw)
	switch {
	case peer && c.phase == owned && !r.cfg.Sure():
		r.cfg.Log.Info("a peer has taken over an address", "address", c.IP.String(), "peer", h.hw.String())
		c.phase, c.next = yielded, now.Add(retryConflict)
	case peer:
		// It has not yet heard that the address is ours; or we have not, that it is not.
	case c.phase == probing:
		r.cfg.Log.Warn("an address is in use by another host and not taken", "address", c.IP.String(), "host", h.hw.String(), "interface", h.link.ifi.Name)
		r.cfg.Conflict(c.IP, h.hw)
		c.phase, c.next = yielded, now.Add(retryConflict)
	case now.Sub(c.defended) >= defend:
		c.defended = now
		r.cfg.Log.Warn("another host announces an address of ours", "address", c.IP.String(), "host", h.hw.String(), "interface", h.link.ifi.Name)
		r.cfg.Conflict(c.IP, h.hw)
		r.check(h.link, "announcing", h.link.announce(c.IP))
	}
}

func (r *Responder) own(hw net.HardwareAddr) bool {
	for _, l := range r.links {
		if slices.Equal(l.ifi.HardwareAddr, hw) {
			return true
		}
	}
	return false
}

func (r *Responder) check(l *link, doing string, err error) {
	if err != nil {
		r.cfg.Log.Warn("a neighbor message was not sent", "doing", doing, "interface", l.ifi.Name, "error", err)
	}
}
