package pool

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Family is an address family.
type Family int

const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("IPv%d", int(f)) }

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Port is one port that a Service takes on its address.
type Port struct {
	Protocol string // TCP, UDP, SCTP
	Number   int32
}

// Service is what of a Service of type LoadBalancer decides its addresses.
type Service struct {
	Namespace, Name string
	Labels          map[string]string
	NamespaceLabels map[string]string
	Created         int64 // Unix seconds: who comes first is served first

	// Families are those of its cluster IPs, in their order. Both must be served if
	// AllFamilies (RequireDualStack), else one is enough.
	Families    []Family
	AllFamilies bool
	Ports       []Port

	Pool      string       // the pool asked for, "" for any
	Addresses []netip.Addr // the addresses asked for, nil for any

	// ShareKey, if not empty, lets Services with the same key have one address, as long as
	// their ports differ. Backend tells which pods are behind where the traffic policy is
	// Local, "" where it is Cluster: it must be equal, too, for only one node answers.
	ShareKey, Backend string

	Current []netip.Addr // what it has now
	From    string       // the pool that Current is of, "" if not known
}

func (s *Service) key() string { return s.Namespace + "/" + s.Name }

// Reason says why a Service has no address.
type Reason string

const (
	Exhausted Reason = "Exhausted" // every pool it may use is full
	Taken     Reason = "Taken"     // the address asked for belongs to another Service
	Outside   Reason = "Outside"   // the address or pool asked for is in or of no pool it may use
)

// Refusal is why a Service has no address. Message names the address or pool and what to do.
type Refusal struct {
	Reason  Reason
	Message string
}

func (r *Refusal) Error() string { return r.Message }

// Assignment is the answer for one Service: addresses of one pool, or a refusal.
type Assignment struct {
	Addresses []netip.Addr
	Pool      string
	Refusal   *Refusal
}

// Assign gives each Service its addresses; the answers are in the order of services. Pools are from
// Overlaps. A Service keeps what it has for as long as a pool has it and the Service asks for nothing else,
// whatever happens to pools elsewhere. Then those that ask for an address are served, then all others, older
// Services first, with the lowest address that is free and not kept for others, or shared as ShareKey
// allows. The result depends on nothing but the arguments.
func Assign(pools []Pool, services []Service, holds Holds) []Assignment {
	a := &assigner{pools: pools, holds: holds, use: map[netip.Addr][]*Service{}}
	out := make([]Assignment, len(services))
	order := make([]int, len(services))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		s, t := &services[i], &services[j]
		return cmp.Or(cmp.Compare(s.Created, t.Created), cmp.Compare(s.key(), t.key()))
	})
	rounds := []func(*Service) (Assignment, bool){a.keep, a.requested, a.any}
	for _, round := range rounds {
		for _, i := range order {
			if out[i].Addresses != nil || out[i].Refusal != nil {
				continue
			}
			s := &services[i]
			if r, ok := round(s); ok {
				for _, addr := range r.Addresses {
					a.use[addr] = append(a.use[addr], s)
				}
				out[i] = r
			}
		}
	}
	return out
}

type assigner struct {
	pools []Pool
	holds Holds
	use   map[netip.Addr][]*Service
}

// keep returns what s has, if that is still what it should have.
func (a *assigner) keep(s *Service) (Assignment, bool) {
	if len(s.Current) == 0 || s.Addresses != nil && !sameSet(s.Current, s.Addresses) || !fits(s.Current, s) {
		return Assignment{}, false
	}
	p := a.poolOf(s.Current, s.From)
	if p == nil || s.Pool != "" && s.Pool != p.Name {
		return Assignment{}, false
	}
	// A pool that is no longer given out, or no longer to this Service, keeps those who are in it.
	for _, addr := range s.Current {
		if a.conflict(s, addr) != nil {
			return Assignment{}, false
		}
	}
	return Assignment{Addresses: s.Current, Pool: p.Name}, true
}

// requested answers a Service that asks for addresses.
func (a *assigner) requested(s *Service) (Assignment, bool) {
	if s.Addresses == nil {
		return Assignment{}, false
	}
	p := a.poolOf(s.Addresses, s.Pool)
	list := join(s.Addresses)
	switch {
	case p == nil:
		return refuse(Outside, "%s asked for is not in one IPAddressPool; there are %s", list, a.describe())
	case s.Pool != "" && s.Pool != p.Name:
		return refuse(Outside, "%s asked for is in IPAddressPool %s, not in %s, which is also asked for", list, p.Name, s.Pool)
	case p.Refused != nil:
		return refuse(Outside, "%s asked for cannot be given: %v", list, p.Refused)
	case !p.serves(s):
		return refuse(Outside, "%s asked for is in IPAddressPool %s, whose serviceAllocation does not allow this Service", list, p.Name)
	case !fits(s.Addresses, s):
		return refuse(Outside, "%s asked for is not of the Service's families (%s)", list, families(s))
	}
	for _, addr := range s.Addresses {
		if other := a.conflict(s, addr); other != nil {
			return refuse(Taken, "%s asked for is taken by Service %s; choose another, or let both share it: annotation metallb.io/allow-shared-ip with one value, different ports, and the same traffic policy", addr, other.key())
		}
	}
	return Assignment{Addresses: s.Addresses, Pool: p.Name}, true
}

// any gives s the lowest free address of the first pool that has one.
func (a *assigner) any(s *Service) (Assignment, bool) {
	var candidates []*Pool
	for i := range a.pools {
		p := &a.pools[i]
		if s.Pool == p.Name || s.Pool == "" && p.AutoAssign && p.Refused == nil && p.serves(s) {
			candidates = append(candidates, p)
		}
	}
	if s.Pool != "" {
		switch {
		case len(candidates) == 0:
			return refuse(Outside, "IPAddressPool %s asked for does not exist; there are %s", s.Pool, a.describe())
		case candidates[0].Refused != nil:
			return refuse(Outside, "%v", candidates[0].Refused)
		case !candidates[0].serves(s):
			return refuse(Outside, "the serviceAllocation of IPAddressPool %s does not allow this Service", s.Pool)
		}
	}
	slices.SortStableFunc(candidates, func(p, q *Pool) int { return cmp.Or(cmp.Compare(p.rank(), q.rank()), cmp.Compare(p.Name, q.Name)) })
	// First a pool that serves all families, then, where one is enough, any.
	for _, all := range []bool{true, false} {
		if !all && (s.AllFamilies || len(s.Families) < 2) {
			break
		}
		for _, p := range candidates {
			if got := a.from(p, s, all); got != nil {
				return Assignment{Addresses: got, Pool: p.Name}, true
			}
		}
	}
	if len(candidates) == 0 {
		return refuse(Exhausted, "no IPAddressPool gives an address to this Service; there are %s", a.describe())
	}
	return refuse(Exhausted, "no %s address is free in %s; add addresses to it", families(s), a.exhausted(s, candidates))
}

// exhausted names the pools that have nothing for s, and what they keep for others.
func (a *assigner) exhausted(s *Service, pools []*Pool) string {
	var names []string
	var kept []netip.Addr
	for _, p := range pools {
		names = append(names, p.Name)
		for _, x := range a.holds.Kept(p) {
			if a.holds.keptFrom(s, x) && len(kept) < 8 {
				kept = append(kept, x)
			}
		}
	}
	list := "IPAddressPool " + strings.Join(names, ", ")
	if len(kept) > 0 {
		list += fmt.Sprintf(" (%s is kept for an hour for the Service that had it; ask for it by name to have it now)", join(kept))
	}
	return list
}

// rank is the order in which pools are tried, lowest first.
func (p *Pool) rank() int {
	switch {
	case p.Allocation == nil:
		return 1 << 62
	case p.Allocation.Priority <= 0:
		return 1<<62 - 1
	}
	return p.Allocation.Priority
}

func (a *assigner) from(p *Pool, s *Service, all bool) []netip.Addr {
	var got []netip.Addr
	for _, f := range s.Families {
		addr, ok := p.lowest(f, func(x netip.Addr) bool { return a.conflict(s, x) == nil && !a.holds.keptFrom(s, x) })
		if ok {
			got = append(got, addr)
		} else if all {
			return nil
		}
	}
	return got
}

// conflict returns a Service with which s cannot share addr, nil if there is none.
func (a *assigner) conflict(s *Service, addr netip.Addr) *Service {
	for _, o := range a.use[addr] {
		if s.ShareKey == "" || s.ShareKey != o.ShareKey || s.Backend != o.Backend {
			return o
		}
		for _, p := range s.Ports {
			if slices.Contains(o.Ports, p) {
				return o
			}
		}
	}
	return nil
}

// poolOf returns the pool that has all of the addresses: the one named first if it does, else one that is
// not refused, else any; nil if none does.
func (a *assigner) poolOf(addrs []netip.Addr, first string) (found *Pool) {
	for i := range a.pools {
		p := &a.pools[i]
		switch {
		case slices.ContainsFunc(addrs, func(x netip.Addr) bool { return !p.Contains(x) }):
		case p.Name == first:
			return p
		case found == nil || found.Refused != nil && p.Refused == nil:
			found = p
		}
	}
	return found
}

func (a *assigner) describe() string {
	if len(a.pools) == 0 {
		return "none"
	}
	var out []string
	for _, p := range a.pools {
		var ranges []string
		for _, r := range p.Ranges {
			ranges = append(ranges, r.String())
		}
		out = append(out, p.Name+" ("+strings.Join(ranges, ", ")+")")
	}
	if len(out) > 8 {
		out = append(out[:8], fmt.Sprintf("and %d more", len(out)-8))
	}
	return strings.Join(out, ", ")
}

// fits reports whether addresses are at most one of each family of s, and enough of them.
func fits(addrs []netip.Addr, s *Service) bool {
	seen := map[Family]bool{}
	for _, x := range addrs {
		f := familyOf(x)
		if seen[f] || !slices.Contains(s.Families, f) {
			return false
		}
		seen[f] = true
	}
	return len(seen) == len(s.Families) || len(seen) > 0 && !s.AllFamilies
}

func families(s *Service) string {
	var out []string
	for _, f := range s.Families {
		out = append(out, f.String())
	}
	return strings.Join(out, " and ")
}

func sameSet(a, b []netip.Addr) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x netip.Addr) bool { return !slices.Contains(b, x) })
}

func join(addrs []netip.Addr) string {
	var out []string
	for _, x := range addrs {
		out = append(out, x.String())
	}
	return strings.Join(out, ", ")
}

func refuse(r Reason, format string, args ...any) (Assignment, bool) {
	return Assignment{Refusal: &Refusal{r, fmt.Sprintf(format, args...)}}, true
}
