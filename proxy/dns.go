package proxy

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/carrick-mesh/carrick/proxy/config"
)

// resolver looks the names of a DNS cluster up, again and again.
type resolver struct {
	found   map[string][]netip.Addr // guarded by the cluster's mutex
	cancel  context.CancelFunc
	running bool
}

func (r *resolver) stop() {
	if r.cancel != nil {
		r.cancel()
	}
}

// resolve starts looking up the names of the assignment. c.mu is held.
func (c *cluster) resolve() {
	old := c.resolver
	r := &resolver{found: map[string][]netip.Addr{}}
	if old != nil {
		r.found = old.found // good until better is known
		old.stop()
	}
	c.resolver = r
	var names []string
	if c.assigned != nil {
		for _, p := range c.assigned.Priorities {
			for _, l := range p {
				for _, e := range l.Endpoints {
					if !e.Addr.IsValid() && e.Host != "" && !slices.Contains(names, e.Host) {
						names = append(names, e.Host)
					}
				}
			}
		}
	}
	r.running = c.p.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		c.mu.Lock()
		r.cancel = cancel
		gone := c.resolver != r
		c.mu.Unlock()
		if !gone {
			c.lookUp(ctx, r, names)
		}
	})
}

func (c *cluster) lookUp(ctx context.Context, r *resolver, names []string) {
	failures := 0
	for {
		wait, failed := c.cfg.DNS.Refresh, false
		for _, name := range names {
			addrs, err := lookUp(ctx, name, c.cfg.DNS.Family)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				failed = true
				c.p.log.Warn("cannot resolve", "cluster", c.cfg.Name, "name", name, "error", err)
				continue
			}
			c.mu.Lock()
			if c.resolver == r && !slices.Equal(r.found[name], addrs) {
				r.found[name] = addrs
				c.rebuild()
			}
			c.mu.Unlock()
		}
		if !failed {
			failures = 0
		} else if o := &c.cfg.DNS; o.FailBase > 0 {
			wait = min(o.FailBase<<min(failures, 20), max(o.FailMax, o.FailBase))
			failures++
		}
		if j := c.cfg.DNS.Jitter; j > 0 {
			wait += rand.N(j)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(wait, time.Second)):
		}
	}
}

func lookUp(ctx context.Context, name string, family config.DNSFamily) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, err
	}
	var v4, v6 []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	slices.SortFunc(v6, netip.Addr.Compare)
	switch family {
	case config.DNSv4Only:
		return v4, nil
	case config.DNSv6Only:
		return v6, nil
	case config.DNSAll:
		return append(v4, v6...), nil
	case config.DNSv4Preferred:
		if len(v4) > 0 {
			return v4, nil
		}
		return v6, nil
	}
	if len(v6) > 0 {
		return v6, nil
	}
	return v4, nil
}
