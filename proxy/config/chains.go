package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
)

// chainIndex finds filter chains: destination port, then prefix, server name, transport protocol,
// application protocol, and last the source. Each level takes the most specific entry and does not
// come back to a less specific one, as in Envoy.
type chainIndex map[uint16]*byPrefix // 0: any port

type byPrefix struct {
	prefixes []prefixEntry // longest first
	any      *byName
}

type prefixEntry struct {
	prefix netip.Prefix
	names  *byName
}

// byName is keyed by server name, by ".suffix" for "*.suffix", or "" for any.
type byName struct{ names map[string]*byTransport }

// byTransport and byALPN have the key "" for any.
type (
	byTransport map[string]byALPN
	byALPN      map[string]*sources
)

// sources are tried in order, the most specific first.
type sources []source

type source struct {
	direct, prefix netip.Prefix // not valid: any
	kind           listener.FilterChainMatch_ConnectionSourceType
	port           uint16 // 0: any
	chain          *FilterChain
}

// Match returns the filter chain for a connection: the most specific by destination port, destination
// prefix, server name, transport protocol, application protocol, then source; else Default, which may
// be nil: close.
func (l *Listener) Match(c *Conn) *FilterChain {
	if fc := l.chains.match(c); fc != nil {
		return fc
	}
	return l.Default
}

func (x chainIndex) match(c *Conn) *FilterChain {
	p, ok := x[c.Local.Port()]
	if !ok {
		if p, ok = x[0]; !ok {
			return nil
		}
	}
	t := p.find(c.Local.Addr()).find(c.SNI)
	a, ok := t[c.Transport]
	if !ok {
		a = t[""]
	}
	var s *sources
	for _, proto := range c.ALPN {
		if s = a[proto]; s != nil {
			break
		}
	}
	if s == nil {
		if s = a[""]; s == nil {
			return nil
		}
	}
	return s.find(c)
}

func (p *byPrefix) find(ip netip.Addr) *byName {
	ip = ip.Unmap()
	for i := range p.prefixes {
		if p.prefixes[i].prefix.Contains(ip) {
			return p.prefixes[i].names
		}
	}
	return p.any
}

func (n *byName) find(sni string) byTransport {
	if n == nil {
		return nil
	}
	if sni != "" {
		if t, ok := n.names[sni]; ok {
			return *t
		}
		for i := 1; i < len(sni)-1; i++ {
			if sni[i] == '.' {
				if t, ok := n.names[sni[i:]]; ok {
					return *t
				}
			}
		}
	}
	if t, ok := n.names[""]; ok {
		return *t
	}
	return nil
}

func (s *sources) find(c *Conn) *FilterChain {
	direct := c.Direct
	if !direct.IsValid() {
		direct = c.Remote
	}
	local := c.Remote.Addr().IsLoopback() || c.Remote.Addr().Unmap() == c.Local.Addr().Unmap()
	for i := range *s {
		e := &(*s)[i]
		if e.direct.IsValid() && !e.direct.Contains(direct.Addr().Unmap()) ||
			e.prefix.IsValid() && !e.prefix.Contains(c.Remote.Addr().Unmap()) ||
			e.port != 0 && e.port != c.Remote.Port() ||
			e.kind == listener.FilterChainMatch_SAME_IP_OR_LOOPBACK && !local ||
			e.kind == listener.FilterChainMatch_EXTERNAL && local {
			continue
		}
		return e.chain
	}
	return nil
}

// add files c under all combinations of m.
func (x *chainIndex) add(m *listener.FilterChainMatch, c *FilterChain) error {
	if *x == nil {
		*x = chainIndex{}
	}
	port := orUint32(m.GetDestinationPort(), 0)
	if port > 65535 {
		return in("destination_port", fmt.Errorf("%d is no port", port))
	}
	p := (*x)[uint16(port)]
	if p == nil {
		p = &byPrefix{}
		(*x)[uint16(port)] = p
	}
	prefixes, err := compilePrefixes("prefix_ranges", m.GetPrefixRanges())
	if err != nil {
		return err
	}
	names, err := serverNames(m.GetServerNames())
	if err != nil {
		return err
	}
	srcs, err := compileSources(m, c)
	if err != nil {
		return err
	}
	for _, prefix := range prefixes {
		n := p.at(prefix)
		for _, name := range names {
			t := n.names[name]
			if t == nil {
				t = &byTransport{}
				n.names[name] = t
			}
			a := (*t)[m.GetTransportProtocol()]
			if a == nil {
				a = byALPN{}
				(*t)[m.GetTransportProtocol()] = a
			}
			for _, proto := range orAny(m.GetApplicationProtocols()) {
				s := a[proto]
				if s == nil {
					s = &sources{}
					a[proto] = s
				}
				if err := s.add(srcs); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p *byPrefix) at(prefix netip.Prefix) *byName {
	if !prefix.IsValid() {
		if p.any == nil {
			p.any = &byName{map[string]*byTransport{}}
		}
		return p.any
	}
	for i := range p.prefixes {
		if p.prefixes[i].prefix == prefix {
			return p.prefixes[i].names
		}
	}
	n := &byName{map[string]*byTransport{}}
	p.prefixes = append(p.prefixes, prefixEntry{prefix, n})
	slices.SortStableFunc(p.prefixes, func(a, b prefixEntry) int { return b.prefix.Bits() - a.prefix.Bits() })
	return n
}

func (s *sources) add(more []source) error {
	for _, n := range more {
		for _, o := range *s {
			if o.direct == n.direct && o.prefix == n.prefix && o.kind == n.kind && o.port == n.port {
				return fmt.Errorf("is the same as that of chain %q", o.chain.Name)
			}
		}
		*s = append(*s, n)
	}
	slices.SortStableFunc(*s, func(a, b source) int {
		for _, d := range []int{b.direct.Bits() - a.direct.Bits(), specific(b) - specific(a), b.prefix.Bits() - a.prefix.Bits()} {
			if d != 0 {
				return d
			}
		}
		return int(b.port) - int(a.port)
	})
	return nil
}

func specific(s source) int {
	if s.kind == listener.FilterChainMatch_ANY {
		return 0
	}
	return 1
}

func compileSources(m *listener.FilterChainMatch, c *FilterChain) ([]source, error) {
	direct, err := compilePrefixes("direct_source_prefix_ranges", m.GetDirectSourcePrefixRanges())
	if err != nil {
		return nil, err
	}
	prefixes, err := compilePrefixes("source_prefix_ranges", m.GetSourcePrefixRanges())
	if err != nil {
		return nil, err
	}
	ports := m.GetSourcePorts()
	if len(ports) == 0 {
		ports = []uint32{0}
	}
	var out []source
	for _, d := range direct {
		for _, p := range prefixes {
			for i, port := range ports {
				if port > 65535 {
					return nil, inIndex("source_ports", i, fmt.Errorf("%d is no port", port))
				}
				out = append(out, source{d, p, m.GetSourceType(), uint16(port), c})
			}
		}
	}
	return out, nil
}

// compilePrefixes returns one invalid prefix, any address, for none.
func compilePrefixes(field string, rs []*core.CidrRange) ([]netip.Prefix, error) {
	if len(rs) == 0 {
		return []netip.Prefix{{}}, nil
	}
	var out []netip.Prefix
	for i, r := range rs {
		ip, err := netip.ParseAddr(r.AddressPrefix)
		if err != nil {
			return nil, inIndex(field, i, in("address_prefix", fmt.Errorf("%q is no IP address", r.AddressPrefix)))
		}
		p, err := ip.Prefix(int(orUint32(r.PrefixLen, 0)))
		if err != nil {
			return nil, inIndex(field, i, in("prefix_len", fmt.Errorf("%d is too long", r.PrefixLen.GetValue())))
		}
		out = append(out, p)
	}
	return out, nil
}

func serverNames(names []string) ([]string, error) {
	var out []string
	for i, n := range names {
		n = strings.ToLower(n)
		if strings.HasPrefix(n, "*.") {
			n = n[1:]
		}
		if n == "" || strings.Contains(n, "*") {
			return nil, inIndex("server_names", i, errors.New(`is neither a name nor "*." and a name`))
		}
		out = append(out, n)
	}
	return orAny(out), nil
}

func orAny(s []string) []string {
	if len(s) == 0 {
		return []string{""}
	}
	return s
}
