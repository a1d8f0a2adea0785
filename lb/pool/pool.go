package pool

import (
	"cmp"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// Range is an inclusive range of addresses of one family.
type Range struct{ From, To netip.Addr }

// Contains reports whether a lies in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

func (r Range) String() string { return r.From.String() + "-" + r.To.String() }

// Pool is an IPAddressPool.
type Pool struct {
	Name       string
	Created    int64   // Unix seconds: of two pools that overlap, the later one is refused
	Ranges     []Range // ascending
	AutoAssign bool    // give addresses to Services that name neither pool nor address
	AvoidBuggy bool    // leave out IPv4 addresses ending in .0 and .255
	// Allocation, if there, restricts the pool to some Services, and prefers it for them.
	Allocation *Allocation
	// Refused, if not nil, is why the pool gives out nothing. Services that have its addresses keep them.
	Refused error
}

// Allocation is a pool's serviceAllocation.
type Allocation struct {
	Priority int // lower numbers first; 0 is last
	// Namespaces and NamespaceSelectors say together which namespaces may use the pool;
	// both empty: all.
	Namespaces         []string
	NamespaceSelectors []labels.Selector
	ServiceSelectors   []labels.Selector // one must match; empty: all Services
}

// ParseRange reads a CIDR (10.0.0.0/24) or a range (10.0.0.1-10.0.0.9), of either family.
func ParseRange(s string) (Range, error) {
	if from, to, ok := strings.Cut(s, "-"); ok {
		a, err := netip.ParseAddr(strings.TrimSpace(from))
		if err != nil {
			return Range{}, fmt.Errorf("%q: %q is no address", s, strings.TrimSpace(from))
		}
		b, err := netip.ParseAddr(strings.TrimSpace(to))
		if err != nil {
			return Range{}, fmt.Errorf("%q: %q is no address", s, strings.TrimSpace(to))
		}
		a, b = a.Unmap(), b.Unmap()
		switch {
		case a.BitLen() != b.BitLen():
			return Range{}, fmt.Errorf("%q: the two ends are of different families", s)
		case a.Zone() != "" || b.Zone() != "":
			return Range{}, fmt.Errorf("%q: addresses with a zone are not allowed", s)
		case b.Less(a):
			return Range{}, fmt.Errorf("%q: the end lies before the start", s)
		}
		return Range{a, b}, nil
	}
	p, err := netip.ParsePrefix(strings.TrimSpace(s))
	if err != nil {
		return Range{}, fmt.Errorf("%q is neither a CIDR (10.0.0.0/24) nor a range (10.0.0.1-10.0.0.9)", s)
	}
	if p.Addr().Is4In6() {
		return Range{}, fmt.Errorf("%q is an IPv4 address in IPv6 form", s)
	}
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < p.Addr().BitLen(); i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	to, _ := netip.AddrFromSlice(last)
	return Range{p.Addr(), to}, nil
}

// ParseRanges reads a pool's addresses and returns them ascending. Ranges of one pool may
// not overlap.
func ParseRanges(addresses []string) ([]Range, error) {
	var out []Range
	for _, s := range addresses {
		r, err := ParseRange(s)
		if err != nil {
			return nil, err
		}
		for _, o := range out {
			if overlap(o, r) {
				return nil, fmt.Errorf("%q overlaps %s of the same pool", s, o)
			}
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no addresses")
	}
	slices.SortFunc(out, func(a, b Range) int { return a.From.Compare(b.From) })
	return out, nil
}

func overlap(a, b Range) bool {
	return a.From.BitLen() == b.From.BitLen() && a.From.Compare(b.To) <= 0 && b.From.Compare(a.To) <= 0
}

// Overlaps returns the pools, oldest first, and refuses each that overlaps an older one; errs says why, one
// error for each.
func Overlaps(pools []Pool) (all []Pool, errs []error) {
	all = slices.Clone(pools)
	slices.SortFunc(all, func(a, b Pool) int { return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.Name, b.Name)) })
	for i := range all {
		if err := all[i].overlapsOneOf(all[:i]); err != nil {
			all[i].Refused = err
			errs = append(errs, err)
		}
	}
	return all, errs
}

func (p *Pool) overlapsOneOf(older []Pool) error {
	for _, q := range older {
		if q.Refused != nil {
			continue
		}
		for _, r := range p.Ranges {
			for _, s := range q.Ranges {
				if overlap(r, s) {
					return fmt.Errorf("IPAddressPool %s: %s overlaps %s of IPAddressPool %s, which is older; "+
						"the pool gives out nothing, and Services keep the addresses that they have; remove the overlap", p.Name, r, s, q.Name)
				}
			}
		}
	}
	return nil
}

// Contains reports whether the pool gives out a.
func (p *Pool) Contains(a netip.Addr) bool {
	if p.AvoidBuggy && buggy(a) {
		return false
	}
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return r.Contains(a) })
}

func buggy(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}

// lowest returns the first address of a family, ascending, for which free is true.
func (p *Pool) lowest(f Family, free func(netip.Addr) bool) (netip.Addr, bool) {
	for _, r := range p.Ranges {
		if familyOf(r.From) != f {
			continue
		}
		for a := r.From; r.Contains(a); a = a.Next() {
			if !(p.AvoidBuggy && buggy(a)) && free(a) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// Size returns how many addresses of a family the pool gives out, at most 2^63-1.
func (p *Pool) Size(f Family) int64 {
	total := new(big.Int)
	for _, r := range p.Ranges {
		if familyOf(r.From) != f {
			continue
		}
		from, to := new(big.Int).SetBytes(r.From.AsSlice()), new(big.Int).SetBytes(r.To.AsSlice())
		total.Add(total, to.Sub(to, from)).Add(total, big.NewInt(1))
		if p.AvoidBuggy && f == IPv4 {
			total.Sub(total, big.NewInt(buggyIn(r)))
		}
	}
	if !total.IsInt64() {
		return math.MaxInt64
	}
	return total.Int64()
}

// buggyIn counts the addresses of an IPv4 range that end in 0 or 255.
func buggyIn(r Range) int64 {
	n := func(a netip.Addr) (zeros, all255 int64) { // up to and with a
		b := a.As4()
		v := int64(b[0])<<24 | int64(b[1])<<16 | int64(b[2])<<8 | int64(b[3])
		return v/256 + 1, (v + 1) / 256
	}
	z1, f1 := n(r.To)
	if r.From == netip.IPv4Unspecified() {
		return z1 + f1
	}
	z0, f0 := n(r.From.Prev())
	return z1 - z0 + f1 - f0
}

// serves reports whether the pool's allocation rule lets s have its addresses.
func (p *Pool) serves(s *Service) bool {
	a := p.Allocation
	if a == nil {
		return true
	}
	if len(a.Namespaces)+len(a.NamespaceSelectors) > 0 && !slices.Contains(a.Namespaces, s.Namespace) && !anyMatches(a.NamespaceSelectors, s.NamespaceLabels) {
		return false
	}
	return len(a.ServiceSelectors) == 0 || anyMatches(a.ServiceSelectors, s.Labels)
}

func anyMatches(sel []labels.Selector, of map[string]string) bool {
	return slices.ContainsFunc(sel, func(s labels.Selector) bool { return s.Matches(labels.Set(of)) })
}
