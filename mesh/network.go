package mesh

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

const (
	networkLabel     = "topology.istio.io/network"
	gatewayPortLabel = "networking.istio.io/gatewayPort"
	gatewayPort      = 15443
)

// NetworkGateway is one address of a gateway through which a network is reached from others. Comparable.
type NetworkGateway struct {
	Network string
	Cluster string // whose Service says so; "" if MeshNetworks does
	Address string // IP
	Port    uint16
	Down    bool // a prober found that it does not answer
}

// Networks is the networks of clusters, and the gateways between them. Immutable.
type Networks struct {
	Gateways []NetworkGateway  // by network, cluster and address
	clusters map[string]string // by cluster ID: what the system namespace's label says
	ranges   []ipRange         // of MeshNetworks
	byNode   bool              // some gateway is reached through its cluster's nodes
}

type ipRange struct {
	prefix  netip.Prefix
	network string
}

// Of returns the network of a cluster. One that says nothing is a network of its own, never "the
// same as others": its name then is not one that a label could give.
func (n *Networks) Of(cluster string) string {
	if net := n.clusters[cluster]; net != "" {
		return net
	}
	return "cluster/" + cluster
}

// To returns the gateways of a network.
func (n *Networks) To(network string) []NetworkGateway {
	i, _ := slices.BinarySearchFunc(n.Gateways, network, func(g NetworkGateway, s string) int { return strings.Compare(g.Network, s) })
	j := i
	for j < len(n.Gateways) && n.Gateways[j].Network == network {
		j++
	}
	return n.Gateways[i:j]
}

func (n *Networks) equal(o *Networks) bool {
	if len(n.clusters) != len(o.clusters) || n.byNode != o.byNode {
		return false
	}
	for k, v := range n.clusters {
		if o.clusters[k] != v {
			return false
		}
	}
	return slices.Equal(n.Gateways, o.Gateways) && slices.Equal(n.ranges, o.ranges)
}

// network returns the network of an address of a cluster that no label names.
func (s *Snapshot) network(cluster, ip string) string {
	if s.networks.clusters[cluster] == "" && len(s.networks.ranges) > 0 {
		if a, err := netip.ParseAddr(ip); err == nil {
			for _, r := range s.networks.ranges {
				if r.prefix.Contains(a) {
					return r.network
				}
			}
		}
	}
	return s.networks.Of(cluster)
}

// findNetworks reads Namespaces, Services and MeshNetworks anew.
func (s *Snapshot) findNetworks() *Networks {
	n := &Networks{clusters: map[string]string{}}
	add := func(network, cluster, address string, port uint16) {
		h := s.health.Get((&GatewayHealth{Address: address, Port: port}).Key().Name)
		n.Gateways = append(n.Gateways, NetworkGateway{network, cluster, address, port, h != nil && h.Down})
	}
	configured := s.config.networks.GetNetworks()
	for name, mn := range configured {
		for _, e := range mn.GetEndpoints() {
			switch x := e.GetNe().(type) {
			case *meshconfig.Network_NetworkEndpoints_FromRegistry:
				n.clusters[x.FromRegistry] = name
			case *meshconfig.Network_NetworkEndpoints_FromCidr:
				if p, err := netip.ParsePrefix(x.FromCidr); err == nil {
					n.ranges = append(n.ranges, ipRange{p.Masked(), name})
				}
			}
		}
	}
	slices.SortFunc(n.ranges, func(a, b ipRange) int { // the longest first
		if d := b.prefix.Bits() - a.prefix.Bits(); d != 0 {
			return d
		}
		return strings.Compare(a.prefix.String(), b.prefix.String())
	})
	for id, c := range s.clusters {
		if sp := c.spaces[s.settings.SystemNamespace]; sp != nil && sp.namespace != nil {
			if net := sp.namespace.Labels[networkLabel]; net != "" {
				n.clusters[id] = net
			}
		}
		for _, sp := range c.spaces {
			for svc := range sp.services.All() {
				net := svc.Labels[networkLabel]
				if net == "" {
					continue
				}
				for _, a := range svc.Addresses {
					add(net, id, a, svc.gatewayPort())
				}
				if port := svc.nodePort(svc.gatewayPort()); port != 0 {
					n.byNode = true
					for _, a := range c.addresses(svc.NodeSelector) {
						add(net, id, a, port)
					}
				}
			}
		}
	}
	for name, mn := range configured {
		for _, g := range mn.GetGateways() {
			port := uint16(g.GetPort())
			switch x := g.GetGw().(type) {
			case *meshconfig.Network_IstioNetworkGateway_Address:
				if _, err := netip.ParseAddr(x.Address); err == nil {
					add(name, "", x.Address, port)
				}
				for _, a := range s.config.addresses[x.Address] {
					add(name, "", a, port)
				}
			case *meshconfig.Network_IstioNetworkGateway_RegistryServiceName:
				namespace, svc, ok := s.serviceOf(x.RegistryServiceName)
				for id := range s.clusters {
					if part := s.Service(id, namespace, svc); ok && part != nil && n.clusters[id] == name {
						for _, a := range part.Addresses {
							add(name, id, a, port)
						}
					}
				}
			}
		}
	}
	slices.SortFunc(n.Gateways, func(a, b NetworkGateway) int {
		for _, d := range []int{strings.Compare(a.Network, b.Network), strings.Compare(a.Cluster, b.Cluster), strings.Compare(a.Address, b.Address)} {
			if d != 0 {
				return d
			}
		}
		return int(a.Port) - int(b.Port)
	})
	n.Gateways = slices.CompactFunc(n.Gateways, func(a, b NetworkGateway) bool {
		return a.Network == b.Network && a.Address == b.Address && a.Port == b.Port
	})
	return n
}

// nodePort returns the port of nodes that leads to one of a Service by which it is reached through them, or 0.
func (s *Service) nodePort(port uint16) uint16 {
	if s.Type != NodePort || s.NodeSelector == nil {
		return 0
	}
	for _, p := range s.Ports {
		if p.Number == port && p.Protocol() != UDP {
			return p.NodePort
		}
	}
	return 0
}

// addresses returns those of the nodes that have all these labels.
func (c *cluster) addresses(selector map[string]string) (list []string) {
	for n := range c.nodes.All() {
		if n.Address != "" && Selects(selector, n.Labels) {
			list = append(list, n.Address)
		}
	}
	return list
}

// gatewayPort returns the port for other networks of a Service that is a gateway.
func (s *Service) gatewayPort() uint16 {
	if n, err := strconv.ParseUint(s.Labels[gatewayPortLabel], 10, 16); err == nil && n > 0 {
		return uint16(n)
	}
	return gatewayPort
}
