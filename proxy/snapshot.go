package proxy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/carrick-mesh/carrick/proxy/config"
)

// snapshot is a configuration with the running state of its clusters. The maps do not change.
type snapshot struct {
	cfg       *config.Config
	byAddr    map[netip.AddrPort]*config.Listener // listeners by main address, bound or not
	byPipe    map[string]*config.Listener
	listeners map[string]*config.Listener
	clusters  map[string]*cluster
}

// compile makes the snapshot of cfg, keeping the running state of clusters that are the same. The errors
// say which listeners have an address that another has; they are without it.
func (p *Proxy) compile(cfg *config.Config, old *snapshot) (*snapshot, []error) {
	s := &snapshot{
		cfg:       cfg,
		byAddr:    make(map[netip.AddrPort]*config.Listener, len(cfg.Listeners)),
		byPipe:    map[string]*config.Listener{},
		listeners: make(map[string]*config.Listener, len(cfg.Listeners)),
		clusters:  make(map[string]*cluster, len(cfg.Clusters)),
	}
	var clashes []error
	for _, l := range cfg.Listeners {
		s.listeners[l.Name] = l
		if l.API != nil {
			continue
		}
		for _, a := range l.Addresses {
			if o := s.byAddr[a]; o != nil && o.Bind && l.Bind && a.Port() != 0 {
				clashes = append(clashes, fmt.Errorf("listener %q: address %s is already that of listener %q", l.Name, a, o.Name))
				continue // the first by name keeps it
			}
			s.byAddr[a] = l
		}
		if l.Pipe != "" {
			s.byPipe[l.Pipe] = l
		}
	}
	for name, cc := range cfg.Clusters {
		c := old.clusters[name]
		if c == nil || c.cfg != cc {
			c = newCluster(p, cc)
		}
		c.assign(cfg.Assignment(cc))
		s.clusters[name] = c
	}
	p.tls.keep(cfg)
	return s, clashes
}

// find returns the listener for a connection that l, which uses the original destination, hands
// on: by address, by port on the wildcard address, or l itself.
func (s *snapshot) find(l *config.Listener, dst netip.AddrPort) *config.Listener {
	if t := s.byAddr[dst]; t != nil {
		return t
	}
	wild := netip.IPv4Unspecified()
	if dst.Addr().Is6() {
		wild = netip.IPv6Unspecified()
	}
	if t := s.byAddr[netip.AddrPortFrom(wild, dst.Port())]; t != nil && t != l && !t.UseOriginalDst {
		return t
	}
	return l
}

// has reports whether chain is still one of the listener's.
func has(l *config.Listener, chain *config.FilterChain) bool {
	return l != nil && (l.Default == chain || slices.Contains(l.Chains, chain))
}
