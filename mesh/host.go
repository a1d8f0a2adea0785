package mesh

import (
	"slices"
	"strings"
)

// Host is all that is filed under one host name: the Services of that name in all clusters, what
// stands behind them, and the rules about them. Immutable. Its parts keep their pointers as long as
// they do not change.
type Host struct {
	Name      string       // "helloworld.sample.svc.cluster.local", or what a VirtualService names
	Service   *HostService // nil if no cluster has such a Service
	Endpoints *Endpoints   // never nil where Service is not
	Accounts  *Accounts    // never nil where Service is not
	Rules     []*Rule      // in the order of namespace; of an alias, those of what it means
	Routes    []*Route     // of gateway "mesh", the oldest first; of an alias, then those of what it means
	Targets   *Targets     // what Routes lead to, and their own hosts; nil without Routes
	Root      string       // the namespace whose rules hold for all
	place     string       // the name with the namespace first, so that its hosts are neighbours
}

// HostService is the Services of one host name, in all clusters that have one. Immutable.
type HostService struct {
	Host, Namespace, Name string
	Parts                 []*Service   // the local cluster's first, then by cluster; never empty
	ExportTo              []string     // namespaces that see it: nil is all; "." its own
	ClusterLocal          bool         // each cluster keeps its own endpoints to itself
	Distribution          Distribution // of the first part
	Alias                 *HostService // of what it is another name, by type ExternalName; nil if it stands for itself
}

// ByNode reports whether it matters on which node a client is.
func (s *HostService) ByNode() bool {
	return s != nil && (s.Distribution == SameNode || slices.ContainsFunc(s.Parts, func(p *Service) bool { return p.NodeLocal }))
}

// Concrete returns the Service that is meant: the one that this is another name of, or itself.
func (s *HostService) Concrete() *HostService {
	if s.Alias != nil {
		return s.Alias
	}
	return s
}

// In returns the Service in that cluster or, if there is none, the first of another.
func (s *HostService) In(cluster string) *Service {
	for _, p := range s.Parts {
		if p.Cluster == cluster {
			return p
		}
	}
	return s.Parts[0]
}

// Visible reports whether a client of that namespace sees the Service, and what it is another name of.
func (s *HostService) Visible(client string) bool {
	return visible(s.ExportTo, s.Namespace, client) && (s.Alias == nil || visible(s.Alias.ExportTo, s.Alias.Namespace, client))
}

// Rule is a DestinationRule filed under a host. Immutable.
type Rule struct {
	*DestinationRule // one of them, or what several amount to together
	exportTo         []string
	parts            []*DestinationRule
	next             *Rule
}

// Selects reports whether the rule is for some workloads of its own namespace only, of which Selector
// says the labels.
func (r *Rule) Selects() bool { return r.Spec.GetWorkloadSelector() != nil }

// Selector is the labels of the workloads that the rule is for, if it Selects.
func (r *Rule) Selector() map[string]string { return r.Spec.GetWorkloadSelector().GetMatchLabels() }

// Next returns the next rule of the same host and namespace that Selects, or nil.
func (r *Rule) Next() *Rule { return r.next }

// Visible reports whether the rule holds for clients of that namespace.
func (r *Rule) Visible(client string) bool { return visible(r.exportTo, r.Namespace, client) }

// Route is a VirtualService filed under a host. Immutable.
type Route struct {
	*VirtualService
	exportTo []string
	hosts    []string // that it leads to or is for, in full
	domain   string
}

// Resolve returns the full name of a host that the VirtualService names.
func (r *Route) Resolve(host string) string { return resolve(host, r.Namespace, r.domain) }

// Visible reports whether the VirtualService holds for clients of that namespace.
func (r *Route) Visible(client string) bool { return visible(r.exportTo, r.Namespace, client) }

// Targets are the Services that a host's routes lead to or are for, by host name; a host that is no Service is
// absent. Immutable.
type Targets struct{ services map[string]*HostService }

// Service returns the Service of a host name, or nil.
func (t *Targets) Service(host string) *HostService {
	if t == nil {
		return nil
	}
	return t.services[host]
}

// Account is a service account of some cluster; the same name in several clusters is one.
type Account struct{ Namespace, Name string }

// Accounts are the service accounts behind a host in all clusters, ready or not, in order. Immutable.
type Accounts struct{ List []Account }

// Endpoints are what stands behind a host, in all clusters. Immutable.
type Endpoints struct {
	List []Endpoint // in the order of service port, cluster and address
}

// On returns those of one port of the Service.
func (e *Endpoints) On(port uint16) []Endpoint {
	at := func(n int) int {
		i, _ := slices.BinarySearchFunc(e.List, n, func(x Endpoint, n int) int { return int(x.ServicePort) - n })
		return i
	}
	return e.List[at(int(port)):at(int(port)+1)]
}

// Endpoint is one endpoint of one port. Comparable.
type Endpoint struct {
	ServicePort uint16
	Cluster     string
	IPv4, IPv6  string // one of them may be ""
	Port        uint16 // where it listens
	Ready       bool
	Serving     bool // still answers, though perhaps terminating
	// Held: it was ready until its API server was silent, and so were all that the Service has in its
	// cluster. They count as ready for a while, for it is rather the API server that has lost sight.
	Held     bool
	TLS      bool // it has a proxy that takes mutual TLS, and no policy forbids it
	Network  string
	Locality Locality
	Hostname string // of a headless Service's pod
	Pod      *Pod   // nil if it is none
	Node     string // "" if that is not known
}

// HostnameLabel is the label of a node by which it is itself.
const HostnameLabel = "kubernetes.io/hostname"

// Label returns a label of the endpoint: its Pod's, or one that the mesh knows.
func (e *Endpoint) Label(key string) string {
	switch key {
	case "topology.istio.io/cluster":
		return e.Cluster
	case "topology.istio.io/network":
		return e.Network
	case "topology.kubernetes.io/region":
		return e.Locality.Region
	case "topology.kubernetes.io/zone":
		return e.Locality.Zone
	case "topology.istio.io/subzone":
		return e.Locality.Subzone
	case HostnameLabel:
		return e.Node
	}
	if e.Pod == nil {
		return ""
	}
	return e.Pod.Labels[key]
}

func visible(exportTo []string, owner, client string) bool {
	return len(exportTo) == 0 || slices.ContainsFunc(exportTo, func(to string) bool {
		return to == "*" || to == client || to == "." && owner == client
	})
}

// place returns a host name with its namespace first.
func place(host string) string {
	short, rest, _ := strings.Cut(host, ".")
	return rest + " " + short
}

// Leaf is a run of neighbouring hosts, kept or made anew as one. Immutable.
type Leaf struct {
	Hosts []*Host         // never empty
	names map[string]bool // all namespaces that its objects name
}

// Names reports whether some object of the leaf names the namespace: as its own, in exportTo or in a
// match. To all namespaces that are not named the leaf looks the same.
func (l *Leaf) Names(namespace string) bool { return l.names[namespace] }

const leafSize = 64 // small leaves make a change cheap, few leaves make a list cheap

// find returns the index of the leaf that has or would have a host, or -1 if there is none.
func find(leaves []*Leaf, place string) int {
	i, ok := slices.BinarySearchFunc(leaves, place, func(l *Leaf, p string) int { return strings.Compare(l.Hosts[0].place, p) })
	if !ok && (i > 0 || len(leaves) == 0) {
		i-- // it is not the first of a leaf but inside the one before
	}
	return i
}

// Find returns the index of the leaf of a Snapshot's that has l's first host or would have it, or -1 if
// there is no leaf: where l was, if it is one of a later Snapshot.
func Find(leaves []*Leaf, l *Leaf) int { return find(leaves, l.Hosts[0].place) }

func search(hosts []*Host, place string) (int, bool) {
	return slices.BinarySearchFunc(hosts, place, func(h *Host, p string) int { return strings.Compare(h.place, p) })
}

// index makes what the leaf says about its hosts as a whole.
func (l *Leaf) index() {
	l.names = map[string]bool{}
	name := func(owner string, exportTo []string) {
		l.names[owner] = true
		for _, ns := range exportTo {
			l.names[ns] = true
		}
	}
	for _, h := range l.Hosts {
		if h.Service != nil {
			name(h.Service.Namespace, h.Service.ExportTo)
			name(h.Service.Concrete().Namespace, h.Service.Concrete().ExportTo)
		}
		for _, r := range h.Rules {
			name(r.Namespace, r.exportTo)
		}
		for _, r := range h.Routes {
			name(r.Namespace, r.exportTo)
			for ns := range r.SourceNamespaces() {
				l.names[ns] = true
			}
		}
	}
}
