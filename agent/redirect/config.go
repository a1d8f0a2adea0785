// Package redirect makes the TCP connections of a network namespace pass through a proxy in it:
// it knows the rules, in nftables and iptables form, and nothing of what the proxy does with a
// connection.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Config says which connections go through the proxy. The meanings are those of Istio's
// istio-iptables flags.
type Config struct {
	ProxyPort   uint16 // takes outbound connections; 15001
	InboundPort uint16 // takes inbound connections; 15006
	TunnelPort  uint16 // HBONE, reaches the proxy as it is; 15008

	UIDs []uint32 // the proxy's users, whose connections are left alone; 1337
	GIDs []uint32 // the proxy's groups, likewise; 1337

	Inbound             Ports    // inbound ports to redirect
	ExcludeInboundPorts []uint16 // not these; only with Inbound.All

	OutboundRanges        Ranges         // destinations to redirect
	ExcludeOutboundRanges []netip.Prefix // not these; before OutboundPorts and OutboundRanges
	OutboundPorts         []uint16       // redirect these ports whatever OutboundRanges says
	ExcludeOutboundPorts  []uint16       // never these; before everything else

	ExcludeInterfaces []string // connections in or out of these are left alone
	VirtualInterfaces []string // what comes in here (from a virtual machine) is treated as outbound

	OutboundGroups        Groups   // only processes of these groups are redirected
	ExcludeOutboundGroups []uint32 // not these; only with OutboundGroups.All
}

// Ports is all ports or those listed.
type Ports struct {
	All  bool
	List []uint16
}

// Ranges is all addresses or those listed.
type Ranges struct {
	All  bool
	List []netip.Prefix
}

// Groups is all groups or those listed, by number.
type Groups struct {
	All  bool
	List []uint32
}

// The proxy's own ports, where the kubelet and Prometheus reach it: never redirected.
var ownPorts = []uint16{15020, 15021, 15090}

// Default returns the configuration that redirects everything, as injection without annotations asks for.
func Default() Config {
	return Config{
		ProxyPort: 15001, InboundPort: 15006, TunnelPort: 15008,
		UIDs: []uint32{1337}, GIDs: []uint32{1337},
		Inbound: Ports{All: true}, OutboundRanges: Ranges{All: true}, OutboundGroups: Groups{All: true},
	}
}

// check refuses what could not work.
func (c Config) check() error {
	switch {
	case c.ProxyPort == 0:
		return errors.New("no outbound proxy port (-p)")
	case c.InboundPort == 0 && (c.Inbound.All || len(c.Inbound.List) > 0):
		return errors.New("no inbound proxy port (-z)")
	case len(c.UIDs) == 0 && len(c.GIDs) == 0:
		return errors.New("no user or group of the proxy (-u, -g): its own connections would be redirected to it for ever")
	}
	for _, name := range append(append([]string(nil), c.ExcludeInterfaces...), c.VirtualInterfaces...) {
		if len(name) > 15 || strings.ContainsAny(name, " /\t\n\"") {
			return fmt.Errorf("interface %q: not an interface name", name)
		}
	}
	return nil
}

// ParsePorts reads a comma-separated list of ports. Empty is none.
func ParsePorts(s string) ([]uint16, error) {
	return list(s, func(f string) (uint16, error) {
		n, err := strconv.ParseUint(f, 10, 16)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("%q is not a port (1-65535)", f)
		}
		return uint16(n), nil
	})
}

// ParsePortSet reads "*" or a comma-separated list of ports. Empty is none.
func ParsePortSet(s string) (Ports, error) {
	if strings.TrimSpace(s) == "*" {
		return Ports{All: true}, nil
	}
	l, err := ParsePorts(s)
	return Ports{List: l}, err
}

// ParseRanges reads a comma-separated list of IP ranges in CIDR form. Empty is none.
func ParseRanges(s string) ([]netip.Prefix, error) {
	return list(s, func(f string) (netip.Prefix, error) {
		p, err := netip.ParsePrefix(f)
		if err != nil {
			return p, fmt.Errorf("%q is not an IP range such as 10.0.0.0/8 or fd00::/8", f)
		}
		if p.Addr().Is4In6() {
			return p, fmt.Errorf("%q: write an IPv4 range as such", f)
		}
		return p.Masked(), nil
	})
}

// ParseRangeSet reads "*" or a comma-separated list of IP ranges. Empty is none.
func ParseRangeSet(s string) (Ranges, error) {
	if strings.TrimSpace(s) == "*" {
		return Ranges{All: true}, nil
	}
	l, err := ParseRanges(s)
	return Ranges{List: l}, err
}

// ParseIDs reads a comma-separated list of user or group numbers; lookup, unless nil, finds
// the number of a name. Empty is none.
func ParseIDs(s string, lookup func(name string) (string, error)) ([]uint32, error) {
	return list(s, func(f string) (uint32, error) {
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil && lookup != nil {
			id, lerr := lookup(f)
			if lerr != nil {
				return 0, lerr
			}
			n, err = strconv.ParseUint(id, 10, 32)
		}
		if err != nil {
			return 0, fmt.Errorf("%q is not a user or group number", f)
		}
		return uint32(n), nil
	})
}

// ParseNames reads a comma-separated list of names. Empty is none.
func ParseNames(s string) []string {
	l, _ := list(s, func(f string) (string, error) { return f, nil })
	return l
}

func list[T any](s string, parse func(string) (T, error)) ([]T, error) {
	var l []T
	for f := range strings.SplitSeq(s, ",") {
		if f = strings.TrimSpace(f); f == "" {
			continue
		}
		v, err := parse(f)
		if err != nil {
			return nil, err
		}
		l = append(l, v)
	}
	return l, nil
}
