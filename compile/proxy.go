// Package compile turns a mesh.Snapshot into the Envoy resources (CDS, EDS, LDS, RDS, SDS) of each
// proxy, one file for each xDS type. Builders are pure functions of a row (pointers into the mesh) and
// a view (values of a proxy), and what they gave is remembered beside exactly these. It knows nothing
// of connections, versions that clients hold, or API servers.
package compile

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/mesh"
)

// Dialect is the form of resources that a client takes.
type Dialect uint8

// Dialects. Carrick's own proxy takes what Envoy takes.
const (
	Envoy   Dialect = iota
	Carrick         // Node metadata has CARRICK_VERSION
	GRPC            // Node metadata has GENERATOR: grpc
)

// form returns the dialect that has the same bytes: Carrick's are Envoy's for now.
func (d Dialect) form() Dialect {
	if d == Carrick {
		return Envoy
	}
	return d
}

// Family is the IP families that a proxy has.
type Family uint8

// Families.
const (
	IPv4 Family = 1 << iota
	IPv6
)

// Proxy is all of a proxy that its configuration may depend on. Comparable: proxies that are == get
// the same. Make it with Of.
type Proxy struct {
	Router    bool // a gateway, not a sidecar
	Cluster   string
	Namespace string
	Network   string
	View      string // REQUESTED_NETWORK_VIEW: the networks, comma-separated, whose endpoints alone it sees; "" for all
	Locality  mesh.Locality
	Dialect   Dialect
	SNI       bool // of the dialect gRPC: sends the server names that gateways to other networks choose by
	Families  Family
	Node      string // "" while no Service makes a difference between nodes
	Labels    string // of the Pod, as "k=v" sorted and joined by commas
	Ports     string // that containers name, as "name=number" sorted and joined by commas
	HTTP1     HTTP1
	Topology  Topology
}

// HTTP1 is what a proxy's owner asks of it for HTTP/1 beside what objects say.
type HTTP1 struct {
	Accept10 bool          // HTTP/1.0 requests
	KeepCase bool          // of the names of headers
	Idle     time.Duration // after which connections of clients end; 0 for the default
}

// Node is what a client says of itself that the Pod does not say. Nothing in it decides who the
// client is.
type Node struct {
	Router  bool // node id begins with "router~"
	Dialect Dialect
	View    string // metadata REQUESTED_NETWORK_VIEW
	SNI     bool   // a gRPC client that sends server names (gRFC A101); proxies all do
	HTTP1   HTTP1

	Topology Topology // of metadata PROXY_CONFIG
}

// Of returns the Proxy that runs in a Pod. Its namespace, cluster, network and labels are those of the
// Pod, whatever the Node says.
func Of(s *mesh.Snapshot, pod *mesh.Pod, n Node) Proxy {
	p := Proxy{
		Router: n.Router, Dialect: n.Dialect, SNI: n.SNI && n.Dialect == GRPC, View: sortedSet(n.View),
		Cluster: pod.Cluster, Namespace: pod.Namespace,
		Network: s.PodNetwork(pod), Locality: s.PodLocality(pod), Node: s.PodNode(pod),
		Labels: joinLabels(pod.Labels), HTTP1: n.HTTP1,
	}
	if n.Router {
		p.Topology = n.Topology
	}
	for _, ip := range pod.IPs {
		if strings.Contains(ip, ":") {
			p.Families |= IPv6
		} else {
			p.Families |= IPv4
		}
	}
	if p.Families == 0 {
		p.Families = IPv4
	}
	var ports []string
	for _, c := range pod.Ports {
		if c.Name != "" {
			ports = append(ports, c.Name+"="+strconv.Itoa(int(c.Number)))
		}
	}
	slices.Sort(ports)
	p.Ports = strings.Join(slices.Compact(ports), ",")
	return p
}

func joinLabels(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for k, v := range labels {
		if k == "pod-template-hash" || k == "controller-revision-hash" {
			continue // nobody selects by these, and each rollout would make other proxies
		}
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// labelMap is the opposite of joinLabels: neither keys nor values have commas or equals signs.
func labelMap(joined string) map[string]string {
	m := map[string]string{}
	for part := range strings.SplitSeq(joined, ",") {
		if k, v, ok := strings.Cut(part, "="); ok {
			m[k] = v
		}
	}
	return m
}

// namedPort looks up the number of a container's port.
func (p *Proxy) namedPort(name string) uint16 {
	for part := range strings.SplitSeq(p.Ports, ",") {
		if k, v, ok := strings.Cut(part, "="); ok && k == name {
			n, _ := strconv.ParseUint(v, 10, 16)
			return uint16(n)
		}
	}
	return 0
}

func sortedSet(list string) string {
	if list == "" {
		return ""
	}
	parts := strings.Split(list, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), ",")
}

// pick returns those of labels that have one of keys.
func pick(labels, keys string) string {
	if labels == "" || keys == "" {
		return ""
	}
	all, out := labelMap(labels), []string(nil)
	for k := range strings.SplitSeq(keys, ",") {
		if v, ok := all[k]; ok {
			out = append(out, k+"="+v)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
