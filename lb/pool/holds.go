package pool

import (
	"net/netip"
	"slices"
	"time"
)

// HoldTime is how long a freed address is kept for the Services that had it. Peers and DNS records that
// still name the address must not reach another Service meanwhile.
const HoldTime = time.Hour

// Hold says who has, or last had, an address.
type Hold struct {
	Services []string  `json:"services"` // NAMESPACE/NAME, sorted
	Freed    time.Time `json:"freed"`    // zero while a Service has it
}

// Holds is immutable; Next makes the following state. The zero value holds nothing.
type Holds map[netip.Addr]Hold

// Next returns the holds after services have their Current addresses: what they have is theirs, what
// nobody has any more is kept from now on, and what was kept for HoldTime is free. changed is false if
// the result equals h.
func (h Holds) Next(services []Service, now time.Time) (next Holds, changed bool) {
	next = Holds{}
	for i := range services {
		for _, a := range services[i].Current {
			hold := next[a]
			hold.Services = append(hold.Services, services[i].key())
			next[a] = hold
		}
	}
	for a, hold := range next {
		slices.Sort(hold.Services)
		old, ok := h[a]
		changed = changed || !ok || !old.Freed.IsZero() || !slices.Equal(old.Services, hold.Services)
	}
	for a, old := range h {
		switch {
		case next[a].Services != nil:
		case old.Freed.IsZero():
			next[a], changed = Hold{old.Services, now}, true
		case now.Sub(old.Freed) < HoldTime:
			next[a] = old
		default:
			changed = true
		}
	}
	return next, changed
}

// keptFrom reports whether a is kept for other Services than s.
func (h Holds) keptFrom(s *Service, a netip.Addr) bool {
	hold, ok := h[a]
	return ok && !hold.Freed.IsZero() && !slices.Contains(hold.Services, s.key())
}

// Kept returns the freed addresses of a pool that are kept for the Services that had them, ascending.
func (h Holds) Kept(p *Pool) (out []netip.Addr) {
	for a, hold := range h {
		if !hold.Freed.IsZero() && p.Contains(a) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
