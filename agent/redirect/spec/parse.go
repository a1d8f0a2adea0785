// Package spec reads the values of redirection's flags and annotations: ports, ranges, users, interfaces.
// It loads nothing, so that the injector refuses a value by the same code as the init container.
package spec

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

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

// ParsePorts reads a comma-separated list of ports. An empty string is an empty list.
func ParsePorts(s string) ([]uint16, error) {
	return list(s, func(f string) (uint16, error) {
		n, err := strconv.ParseUint(f, 10, 16)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("%q is not a port (1-65535)", f)
		}
		return uint16(n), nil
	})
}

// ParsePortSet reads "*" or a comma-separated list of ports. An empty string is an empty list.
func ParsePortSet(s string) (Ports, error) {
	if strings.TrimSpace(s) == "*" {
		return Ports{All: true}, nil
	}
	l, err := ParsePorts(s)
	return Ports{List: l}, err
}

// ParseRanges reads a comma-separated list of IP ranges in CIDR form. An empty string is an empty list.
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

// ParseRangeSet reads "*" or a comma-separated list of IP ranges. An empty string is an empty list.
func ParseRangeSet(s string) (Ranges, error) {
	if strings.TrimSpace(s) == "*" {
		return Ranges{All: true}, nil
	}
	l, err := ParseRanges(s)
	return Ranges{List: l}, err
}

// ParseIDs reads a comma-separated list of user or group numbers; lookup, unless nil, finds
// the number of a name. An empty string is an empty list.
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

// ParseInterfaces reads a comma-separated list of names of interfaces. An empty string is an empty list.
func ParseInterfaces(s string) ([]string, error) {
	return list(s, func(name string) (string, error) {
		if len(name) > 15 || strings.ContainsAny(name, " /\t\n\"") {
			return "", fmt.Errorf("interface %q: not an interface name", name)
		}
		return name, nil
	})
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
