// Package redirect makes the TCP connections of a network namespace pass through a proxy in it:
// it knows the rules, in nftables and iptables form, and nothing of what the proxy does with a
// connection.
package redirect

import (
	"errors"
	"net/netip"

	"github.com/carrick-mesh/carrick/agent/redirect/spec"
)

// Config says which connections go through the proxy. The meanings are those of Istio's
// istio-iptables flags.
type Config struct {
	ProxyPort   uint16 // takes outbound connections; 15001
	InboundPort uint16 // takes inbound connections; 15006
	TunnelPort  uint16 // HBONE, reaches the proxy as it is; 15008

	UIDs []uint32 // the proxy's users, whose connections are left alone; 1337
	GIDs []uint32 // the proxy's groups, likewise; 1337

	Inbound             spec.Ports // inbound ports to redirect
	ExcludeInboundPorts []uint16   // not these; only with Inbound.All

	OutboundRanges        spec.Ranges    // destinations to redirect
	ExcludeOutboundRanges []netip.Prefix // not these; before OutboundPorts and OutboundRanges
	OutboundPorts         []uint16       // redirect these ports whatever OutboundRanges says
	ExcludeOutboundPorts  []uint16       // never these; before everything else

	ExcludeInterfaces []string // connections in or out of these are left alone
	VirtualInterfaces []string // what comes in here (from a virtual machine) is treated as outbound

	OutboundGroups        spec.Groups // only processes of these groups are redirected
	ExcludeOutboundGroups []uint32    // not these; only with OutboundGroups.All
}

// The proxy's own ports, where the kubelet and Prometheus reach it: never redirected.
var ownPorts = []uint16{15020, 15021, 15090}

// Default returns the configuration that redirects everything, as injection without annotations asks for.
func Default() Config {
	return Config{
		ProxyPort: 15001, InboundPort: 15006, TunnelPort: 15008,
		UIDs: []uint32{1337}, GIDs: []uint32{1337},
		Inbound: spec.Ports{All: true}, OutboundRanges: spec.Ranges{All: true}, OutboundGroups: spec.Groups{All: true},
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
		if _, err := spec.ParseInterfaces(name); err != nil {
			return err
		}
	}
	return nil
}
