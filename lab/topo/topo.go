// Package topo plans a lab: which clusters, nodes and hosts there are, and
// their names and addresses. It knows nothing of how they come about.
package topo

import (
	"fmt"
	"net/netip"
	"regexp"
)

// Limits of a plan: addresses .10 to .70 of a segment are for nodes, .75 to .90
// for load balancers, .200 for the plain host.
const (
	MaxClusters = 50
	MaxNodes    = 60
)

// Options are what a user may choose about a lab.
type Options struct {
	RunID    string // tells labs on one machine apart: 1 to 12 letters, digits or dashes
	Clusters int    // 1 to MaxClusters
	Nodes    int    // of each cluster, 1 to MaxNodes
	Distinct bool   // clusters have different pod networks, not one and the same
	Overlay  bool   // nodes have /26 pod blocks, joined by an overlay with MTU 1480, not /24 blocks and plain routes
	Proxy    string // kube-proxy's mode: nftables or iptables

	Kubernetes string // minor version of the nodes' programs; the plan only notes it
}

// Topology is a whole lab: a router and the LAN segments it joins, one for each
// cluster.
type Topology struct {
	RunID    string
	Proxy    string
	Overlay  bool
	LANMTU   int
	PodMTU   int
	Clusters []*Cluster

	Kubernetes string `json:",omitempty"`
}

// Cluster is one Kubernetes cluster with its LAN segment.
type Cluster struct {
	Name       string // cluster1, cluster2, …: also the kubeconfig's context
	Number     int    // counts from 1
	Bridge     string // the segment's interface in the router's namespace
	LAN        netip.Prefix
	Gateway    netip.Addr // the router on this segment
	Pool       [2]netip.Addr
	Client     Host // a plain host on this segment, of no cluster
	PodNet     netip.Prefix
	ServiceNet netip.Prefix
	ServiceIP  netip.Addr // of Service kubernetes
	DNS        netip.Addr // of Service kube-dns
	Nodes      []*Node    // the first runs the control plane
}

// Host is anything with an address on a segment.
type Host struct {
	Name    string
	Address netip.Addr
}

// MAC is the hardware address of the host's interface: the same whenever it
// starts, so that its neighbours need not learn it again.
func (h Host) MAC() string {
	a := h.Address.As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3])
}

// Node is one machine of a cluster.
type Node struct {
	Host
	ControlPlane bool
	Pods         []netip.Prefix // the blocks its pods' addresses come from
	VTEP         netip.Addr     // its address on the overlay; invalid without one
}

var runID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$`)

// New plans a lab.
func New(o Options) (*Topology, error) {
	switch {
	case !runID.MatchString(o.RunID):
		return nil, fmt.Errorf("run id %q: want 1 to 12 of a-z, 0-9 and inner dashes", o.RunID)
	case o.Clusters < 1 || o.Clusters > MaxClusters:
		return nil, fmt.Errorf("%d clusters: want 1 to %d", o.Clusters, MaxClusters)
	case o.Nodes < 1 || o.Nodes > MaxNodes:
		return nil, fmt.Errorf("%d nodes: want 1 to %d", o.Nodes, MaxNodes)
	case o.Proxy != "nftables" && o.Proxy != "iptables":
		return nil, fmt.Errorf("kube-proxy mode %q: want nftables or iptables", o.Proxy)
	}
	t := &Topology{RunID: o.RunID, Proxy: o.Proxy, Overlay: o.Overlay, LANMTU: 1500, PodMTU: 1500, Kubernetes: o.Kubernetes}
	if o.Overlay {
		t.LANMTU, t.PodMTU = 1550, 1480 // the overlay's headers take 50 bytes
	}
	for n := 1; n <= o.Clusters; n++ {
		t.Clusters = append(t.Clusters, newCluster(n, o))
	}
	return t, nil
}

func newCluster(number int, o Options) *Cluster {
	lan := netip.AddrFrom4([4]byte{10, 31, byte(number), 0})
	switch number {
	case 1:
		lan = netip.AddrFrom4([4]byte{10, 10, 50, 0})
	case 2:
		lan = netip.AddrFrom4([4]byte{10, 29, 8, 0})
	}
	pods := netip.AddrFrom4([4]byte{10, 39, 0, 0})
	if o.Distinct {
		pods = netip.AddrFrom4([4]byte{10, byte(40 + number), 0, 0})
	}
	c := &Cluster{
		Name:       fmt.Sprintf("cluster%d", number),
		Number:     number,
		Bridge:     fmt.Sprintf("lan%d", number),
		LAN:        netip.PrefixFrom(lan, 24),
		Gateway:    at(lan, 0, 1),
		Pool:       [2]netip.Addr{at(lan, 0, 75), at(lan, 0, 90)},
		Client:     Host{fmt.Sprintf("client%d", number), at(lan, 0, 200)},
		PodNet:     netip.PrefixFrom(pods, 16),
		ServiceNet: netip.MustParsePrefix("10.96.0.0/16"),
		ServiceIP:  netip.MustParseAddr("10.96.0.1"),
		DNS:        netip.MustParseAddr("10.96.0.10"),
	}
	for i := range o.Nodes {
		n := &Node{Host: Host{c.Name, at(lan, 0, byte(10+i))}, ControlPlane: i == 0}
		if i > 0 {
			n.Name = fmt.Sprintf("%s-w%d", c.Name, i)
		}
		if o.Overlay { // two blocks apart from each other, as an allocator of blocks leaves them
			n.Pods = []netip.Prefix{
				netip.PrefixFrom(at(pods, byte(i), 64), 26),
				netip.PrefixFrom(at(pods, byte(128+i), 192), 26),
			}
			n.VTEP = at(netip.AddrFrom4([4]byte{192, 168, 39, 0}), 0, byte(10+i))
		} else {
			n.Pods = []netip.Prefix{netip.PrefixFrom(at(pods, byte(i), 0), 24)}
		}
		c.Nodes = append(c.Nodes, n)
	}
	return c
}

// at returns base with its last two bytes replaced; a zero third keeps base's.
func at(base netip.Addr, third, fourth byte) netip.Addr {
	b := base.As4()
	if third != 0 {
		b[2] = third
	}
	b[3] = fourth
	return netip.AddrFrom4(b)
}

// Server is the URL of the cluster's API server on the LAN.
func (c *Cluster) Server() string { return fmt.Sprintf("https://%s:6443", c.Nodes[0].Address) }

// RouterName is the router's name as a host.
const RouterName = "router"

// Find returns the node of that name and its cluster, or nil.
func (t *Topology) Find(name string) (*Cluster, *Node) {
	for _, c := range t.Clusters {
		for _, n := range c.Nodes {
			if n.Name == name {
				return c, n
			}
		}
	}
	return nil, nil
}

// Hosts lists the names of everything that a command can run in.
func (t *Topology) Hosts() []string {
	var names []string
	for _, c := range t.Clusters {
		for _, n := range c.Nodes {
			names = append(names, n.Name)
		}
	}
	for _, c := range t.Clusters {
		names = append(names, c.Client.Name)
	}
	return append(names, RouterName)
}

// Netns is the name, on the machine, of a host's network namespace.
func (t *Topology) Netns(host string) string { return NetnsPrefix(t.RunID) + host }

// NetnsPrefix begins the names of all network namespaces of one lab. It ends in
// a character that no run id has, so that no lab's prefix begins another's.
func NetnsPrefix(runID string) string { return "lab." + runID + "." }

// Cgroup is the path, below each hierarchy's root, of all of one lab's cgroups.
func Cgroup(runID string) string { return "/carrick-lab." + runID }
