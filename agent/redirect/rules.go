package redirect

import (
	"net/netip"
	"slices"
)

// family is one of the two IP families; each has a table of its own, so that a kernel without
// one still takes the other.
type family struct {
	name     string     // "ip", "ip6", as nft calls it
	bits     int        // of an address
	loopback netip.Addr // the address that applications mean by localhost
	inbound  netip.Addr // the proxy's source address towards the application
}

var (
	ip4 = family{"ip", 32, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.6")}
	ip6 = family{"ip6", 128, netip.MustParseAddr("::1"), netip.MustParseAddr("::6")}
)

// rule is one rule for TCP connections: all the conditions that are set must hold. Prefixes
// that are not valid, ports and ids that are zero or nil are not set.
type rule struct {
	in, out  string // interfaces
	src, dst netip.Prefix
	notDst   netip.Prefix
	dport    uint16
	notDport uint16
	uid, gid *uint32
	notGIDs  []uint32
	to       uint16 // redirects to this local port; 0: leave the connection alone
}

// chain is the rules of one hook.
type chain struct {
	name  string // "inbound", "outbound"
	rules []rule
}

// chains returns the rules for one family, in order. It is pure.
func chains(c Config, f family) []chain {
	return []chain{{"inbound", inbound(c, f)}, {"outbound", outbound(c, f)}}
}

// inbound returns the rules for what comes into the namespace.
func inbound(c Config, f family) (rs []rule) {
	for _, i := range c.ExcludeInterfaces {
		rs = append(rs, rule{in: i})
	}
	for _, i := range c.VirtualInterfaces {
		if c.OutboundRanges.All {
			rs = append(rs, rule{in: i, to: c.ProxyPort})
		}
		for _, p := range of(f, c.OutboundRanges.List) {
			rs = append(rs, rule{in: i, dst: p, to: c.ProxyPort})
		}
		rs = append(rs, rule{in: i})
	}
	if !c.Inbound.All && len(c.Inbound.List) == 0 {
		return rs
	}
	if c.TunnelPort != 0 {
		rs = append(rs, rule{dport: c.TunnelPort})
	}
	for _, p := range ownPorts {
		rs = append(rs, rule{dport: p})
	}
	if !c.Inbound.All {
		for _, p := range c.Inbound.List {
			if !slices.Contains(ownPorts, p) {
				rs = append(rs, rule{dport: p, to: c.InboundPort})
			}
		}
		return rs
	}
	for _, p := range c.ExcludeInboundPorts {
		if !slices.Contains(ownPorts, p) {
			rs = append(rs, rule{dport: p})
		}
	}
	return append(rs, rule{to: c.InboundPort})
}

// outbound returns the rules for what processes in the namespace start.
func outbound(c Config, f family) (rs []rule) {
	for _, i := range c.ExcludeInterfaces {
		rs = append(rs, rule{out: i})
	}
	for _, p := range c.ExcludeOutboundPorts {
		rs = append(rs, rule{dport: p})
	}
	// The proxy's connections to the application, marked by their source address.
	rs = append(rs, rule{out: "lo", src: host(f.inbound)})
	// The application called its own Service and the proxy's load balancing chose this very pod:
	// the connection comes in like any other.
	each(c, func(r rule) {
		r.out, r.notDst, r.notDport, r.to = "lo", host(f.loopback), c.TunnelPort, c.InboundPort
		if r.to != 0 {
			rs = append(rs, r)
		}
	})
	// The application's own connections within the pod. With loopback among the ranges to
	// redirect, the user wants some of them to go through the proxy.
	loops := slices.ContainsFunc(c.OutboundRanges.List, func(p netip.Prefix) bool { return p.Addr().IsLoopback() })
	if !loops {
		rs = append(rs, rule{out: "lo"})
	}
	each(c, func(r rule) { rs = append(rs, r) })
	if c.OutboundGroups.All {
		for _, g := range c.ExcludeOutboundGroups {
			rs = append(rs, rule{gid: &g})
		}
	} else {
		rs = append(rs, rule{notGIDs: c.OutboundGroups.List})
	}
	rs = append(rs, rule{dst: host(f.loopback)})
	for _, p := range of(f, c.ExcludeOutboundRanges) {
		rs = append(rs, rule{dst: p})
	}
	for _, p := range c.OutboundPorts {
		rs = append(rs, rule{dport: p, to: c.ProxyPort})
	}
	if c.OutboundRanges.All {
		return append(rs, rule{to: c.ProxyPort})
	}
	for _, p := range of(f, c.OutboundRanges.List) {
		rs = append(rs, rule{dst: p, to: c.ProxyPort})
	}
	return rs
}

// each calls add with a rule for each user and group of the proxy.
func each(c Config, add func(rule)) {
	for _, id := range c.UIDs {
		add(rule{uid: &id})
	}
	for _, id := range c.GIDs {
		add(rule{gid: &id})
	}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// of returns the ranges of that family.
func of(f family, ps []netip.Prefix) (l []netip.Prefix) {
	for _, p := range ps {
		if p.Addr().BitLen() == f.bits {
			l = append(l, p)
		}
	}
	return l
}
