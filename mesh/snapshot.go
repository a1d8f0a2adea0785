package mesh

import (
	"iter"
	"maps"
	"slices"
	"strings"
)

// Settings are what a control plane knows before it has seen any object.
type Settings struct {
	Cluster         string // ID of the local cluster, whose user objects and MeshConfig hold
	SystemNamespace string // where the control plane runs; default "istio-system"
	Domain          string // DNS suffix of Services; default "cluster.local"
	// Check looks for what else makes an object meaningless by itself, once the mesh's own rules have found
	// nothing: a trial compilation. A pure function. Nil finds nothing.
	Check func(Object) []Finding
}

// Snapshot is the whole mesh at one moment. Immutable. Whatever it returns is shared and must not
// be written to; the same pointer from two Snapshots means that it has not changed.
type Snapshot struct {
	settings Settings
	clusters map[string]*cluster
	leaves   []*Leaf
	config   *Config

	configured bool // config is of a MeshConfig, not of none

	gateways    *Table[*Gateway]
	routes      *Table[*VirtualService]
	rules       *Table[*DestinationRule]
	policies    *Policies
	credentials *Table[*Credential]
	health      *Table[*GatewayHealth]
	refusals    *Table[*refusal]
	networks    *Networks
	stamp       *Stamp
	inert       *Table[*Inert]
	ineffective []Finding // see WithoutEffect

	roots    *Table[*VirtualService] // of routes, those that delegate
	merged   *Table[*VirtualService] // of routes, those with hosts, and with the routes of their delegates
	routesOf *Table[*hostRoutes]     // of merged, by host name or pattern
	rulesOf  *Table[*hostRules]
	placed   int            // hosts of which it matters on which node a client is
	aliases  *Table[string] // hosts whose Service leads to another by name, by "OTHER HOST"
}

// cluster is the objects of one API server, by namespace. Immutable once out.
type cluster struct {
	id     string
	info   *Cluster // nil if it was not announced
	spaces map[string]*space
	nodes  *Table[*Node]
}

// space is one namespace of one cluster. Immutable once out.
type space struct {
	namespace *Namespace
	services  *Table[*Service]
	slices    *Table[*EndpointSlice]
	byService *Table[*EndpointSlice] // key: service, NUL, slice
	pods      *Table[*Pod]
}

// New returns the Snapshot of a mesh of which nothing has been seen yet.
func New(s Settings) *Snapshot {
	if s.SystemNamespace == "" {
		s.SystemNamespace = "istio-system"
	}
	if s.Domain == "" {
		s.Domain = "cluster.local"
	}
	return &Snapshot{
		settings: s,
		clusters: map[string]*cluster{},
		config:   newConfig(nil, s),
		policies: &Policies{root: s.SystemNamespace},
		networks: &Networks{},
	}
}

// Settings returns what New was given, with defaults filled in.
func (s *Snapshot) Settings() Settings { return s.settings }

// Local returns the ID of the local cluster.
func (s *Snapshot) Local() string { return s.settings.Cluster }

// Config returns the local cluster's MeshConfig with defaults filled in. Never nil.
func (s *Snapshot) Config() *Config { return s.config }

// Clusters returns the IDs of all clusters that have objects or were announced, in order.
func (s *Snapshot) Clusters() []string { return slices.Sorted(maps.Keys(s.clusters)) }

// Cluster returns what was announced of a cluster, or nil.
func (s *Snapshot) Cluster(id string) *Cluster {
	if c := s.clusters[id]; c != nil {
		return c.info
	}
	return nil
}

// Namespaces returns the names of the namespaces of a cluster, in order.
func (s *Snapshot) Namespaces(cluster string) (names []string) {
	c := s.clusters[cluster]
	if c == nil {
		return nil
	}
	for name, sp := range c.spaces {
		if sp.namespace != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Namespace returns a Namespace, or nil.
func (s *Snapshot) Namespace(cluster, name string) *Namespace {
	return s.space(cluster, name).namespace
}

// Service returns a cluster's Service, or nil.
func (s *Snapshot) Service(cluster, namespace, name string) *Service {
	return s.space(cluster, namespace).services.Get(name)
}

// Services returns the Services of a namespace of a cluster, by name.
func (s *Snapshot) Services(cluster, namespace string) *Table[*Service] {
	return s.space(cluster, namespace).services
}

// Pod returns a Pod, or nil.
func (s *Snapshot) Pod(cluster, namespace, name string) *Pod {
	return s.space(cluster, namespace).pods.Get(name)
}

// Pods yields all Pods of a cluster, a namespace after the other in no order.
func (s *Snapshot) Pods(cluster string) iter.Seq[*Pod] {
	return func(yield func(*Pod) bool) {
		c := s.clusters[cluster]
		if c == nil {
			return
		}
		for _, sp := range c.spaces {
			for p := range sp.pods.All() {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// PodNetwork returns the network that a Pod is in: its label topology.istio.io/network, or that of its
// cluster.
func (s *Snapshot) PodNetwork(p *Pod) string {
	if n := p.Labels[networkLabel]; n != "" {
		return n
	}
	ip := ""
	if len(p.IPs) > 0 {
		ip = p.IPs[0]
	}
	return s.network(p.Cluster, ip)
}

// PodNode returns the node of a Pod, or "" while no Service makes a difference between nodes.
func (s *Snapshot) PodNode(p *Pod) string {
	if s.placed == 0 {
		return ""
	}
	return p.Node
}

// PodLocality returns where a Pod runs.
func (s *Snapshot) PodLocality(p *Pod) Locality { return s.locality(p, p.Node) }

// Gateways returns the Gateways of the local cluster, by namespace and name.
func (s *Snapshot) Gateways() *Table[*Gateway] { return s.gateways }

// VirtualServices returns the VirtualServices of the local cluster, by namespace and name.
func (s *Snapshot) VirtualServices() *Table[*VirtualService] { return s.routes }

// MergedVirtualServices returns those VirtualServices that have hosts, each with the routes of its delegates, by
// namespace and name.
func (s *Snapshot) MergedVirtualServices() *Table[*VirtualService] { return s.merged }

// SeesRoute reports whether a VirtualService holds for clients of that namespace, by its exportTo or the mesh's
// default.
func (s *Snapshot) SeesRoute(v *VirtualService, client string) bool {
	return visible(exportTo(v.Spec.GetExportTo(), s.config.Spec.GetDefaultVirtualServiceExportTo()), v.Namespace, client)
}

// DestinationRules returns the DestinationRules of the local cluster, by namespace and name.
func (s *Snapshot) DestinationRules() *Table[*DestinationRule] { return s.rules }

// UserObjects yields the users' objects of the local cluster, kind by kind, by namespace and name.
func (s *Snapshot) UserObjects() iter.Seq[UserObject] {
	return func(yield func(UserObject) bool) {
		_ = each(s.gateways, yield) && each(s.routes, yield) && each(s.rules, yield) && each(s.policies.all, yield)
	}
}

// each yields the rows of a table, and reports whether more may be yielded.
func each[T interface {
	comparable
	UserObject
}](t *Table[T], yield func(UserObject) bool) bool {
	for o := range t.All() {
		if !yield(o) {
			return false
		}
	}
	return true
}

// Policies returns the PeerAuthentications of the local cluster. Never nil.
func (s *Snapshot) Policies() *Policies { return s.policies }

// Credential returns the TLS material of that name in the local cluster, or nil.
func (s *Snapshot) Credential(namespace, name string) *Credential {
	return s.credentials.Get(namespace + "/" + name)
}

// Findings returns what is wrong with objects that were refused, by object. What the mesh held of them
// before stays in it.
func (s *Snapshot) Findings() (all []Finding) {
	for r := range s.refusals.All() {
		all = append(all, r.found...)
	}
	return all
}

// Networks returns what is known of networks and their gateways. Never nil.
func (s *Snapshot) Networks() *Networks { return s.networks }

// Stamp is another whenever the Service of some host, or the rules about it, are.
type Stamp struct{ _ byte }

// Stamp returns the Stamp of the hosts, which tells whether what was looked up by Host may be another
// now. Endpoints do not count.
func (s *Snapshot) Stamp() *Stamp { return s.stamp }

// Leaves returns all hosts, neighbours together.
func (s *Snapshot) Leaves() []*Leaf { return s.leaves }

// Hosts yields all hosts, in the order of leaves.
func (s *Snapshot) Hosts() iter.Seq[*Host] {
	return func(yield func(*Host) bool) {
		for _, l := range s.leaves {
			for _, h := range l.Hosts {
				if !yield(h) {
					return
				}
			}
		}
	}
}

// Host returns what is filed under a host name, or nil.
func (s *Snapshot) Host(name string) *Host {
	p := place(name)
	if i := find(s.leaves, p); i >= 0 {
		if j, ok := search(s.leaves[i].Hosts, p); ok {
			return s.leaves[i].Hosts[j]
		}
	}
	return nil
}

// HostName returns the mesh's name of a Service.
func (s *Snapshot) HostName(namespace, service string) string {
	return service + "." + namespace + ".svc." + s.settings.Domain
}

// Resolve returns the full name of a host that an object of that namespace names: a name without dots
// is a Service of the namespace, any other is taken as it is, in lower case.
func (s *Snapshot) Resolve(host, namespace string) string {
	return resolve(host, namespace, s.settings.Domain)
}

func resolve(host, namespace, domain string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "" || strings.ContainsAny(host, ".*:") {
		return host
	}
	return host + "." + namespace + ".svc." + domain
}

// serviceOf is the opposite of HostName.
func (s *Snapshot) serviceOf(host string) (namespace, name string, ok bool) {
	rest, ok := strings.CutSuffix(host, ".svc."+s.settings.Domain)
	if !ok {
		return "", "", false
	}
	name, namespace, ok = strings.Cut(rest, ".")
	return namespace, name, ok && !strings.Contains(namespace, ".") && name != ""
}

var noSpace = &space{} // never written to

func (s *Snapshot) space(cluster, namespace string) *space {
	if c := s.clusters[cluster]; c != nil {
		if sp := c.spaces[namespace]; sp != nil {
			return sp
		}
	}
	return noSpace
}

// locality returns where a pod runs, or an endpoint of that node that is none.
func (s *Snapshot) locality(p *Pod, node string) Locality {
	cluster := s.settings.Cluster
	if p != nil {
		if l := p.Labels["istio-locality"]; l != "" {
			parts := strings.SplitN(strings.ReplaceAll(l, ".", "/"), "/", 3)
			parts = append(parts, "", "")
			return Locality{parts[0], parts[1], parts[2]}
		}
		cluster, node = p.Cluster, p.Node
	}
	return s.nodeLocality(cluster, node)
}

func (s *Snapshot) nodeLocality(cluster, node string) Locality {
	if c := s.clusters[cluster]; c != nil {
		if n := c.nodes.Get(node); n != nil {
			return n.Locality
		}
	}
	return Locality{}
}

// Credentials returns the TLS material of the local cluster, by namespace and name.
func (s *Snapshot) Credentials() *Table[*Credential] { return s.credentials }
