package mesh

import (
	"maps"
	"reflect"
	"slices"

	"google.golang.org/protobuf/proto"
)

// Apply returns the Snapshot after events. It shares with s all that they do not touch, and is s if
// they change nothing. A user object that cannot mean anything is refused: what the mesh held of it
// stays, and Findings says why.
func (s *Snapshot) Apply(events ...Event) *Snapshot {
	next := *s
	b := &builder{
		Snapshot: &next, last: s, own: map[any]bool{}, hosts: map[string]bool{},
		pods: map[*space]map[string]bool{}, nodes: map[*cluster]map[string]bool{},
	}
	for _, e := range events {
		b.event(e)
	}
	if !b.touched {
		return s
	}
	b.finish()
	return b.Snapshot
}

// builder is a Snapshot in the making.
type builder struct {
	*Snapshot
	last    *Snapshot
	own     map[any]bool // tables, clusters and spaces made by this builder, which may be written to
	owns    struct{ clusters, leaves bool }
	touched bool
	order   []string // see clusterOrder

	// What has to be made again:
	hosts     map[string]bool
	pods      map[*space]map[string]bool
	nodes     map[*cluster]map[string]bool
	networked bool // networks
	filing    bool // the tables of rules and routes
	judging   bool // what is known of objects without effect
	all       bool // every host
}

func (b *builder) event(e Event) {
	k, gone := e.About(), e.Object == nil
	switch k.Kind {
	case KindService, KindEndpointSlice, KindPod, KindNode, KindNamespace:
		if gone && b.clusters[k.Cluster] == nil {
			return // a late event of a cluster that has been removed
		}
	}
	switch k.Kind {
	case KindCluster:
		b.cluster(k, row[*Cluster](e))
	case KindService:
		b.service(k, row[*Service](e))
	case KindEndpointSlice:
		b.slice(k, row[*EndpointSlice](e))
	case KindPod:
		sp := b.spaceOf(k.Cluster, k.Namespace)
		if _, ok := edit(b, &sp.pods, k.Name, row[*Pod](e), gone); ok {
			mark(b.pods, sp, k.Name)
		}
	case KindNode:
		c := b.clusterOf(k.Cluster)
		now := row[*Node](e)
		if old, ok := edit(b, &c.nodes, k.Name, now, gone); ok {
			b.networked = b.networked || b.networks.byNode
			if old == nil || now == nil || old.Locality != now.Locality {
				mark(b.nodes, c, k.Name)
			}
		}
	case KindNamespace:
		b.namespaced(k, row[*Namespace](e))
	case KindGatewayHealth:
		if _, ok := edit(b, &b.health, k.Name, row[*GatewayHealth](e), gone); ok {
			b.networked = true
		}
	case KindMeshConfig:
		if k.Cluster == b.settings.Cluster {
			b.meshConfig(k, row[*MeshConfig](e))
		}
	default: // the rest counts in the local cluster only
		if k.Cluster == b.settings.Cluster {
			if o, ok := b.accept(k, e.Object); ok {
				b.local(k, Event{k, o})
			}
		}
	}
}

// row returns the object of an event, nil if it is gone.
func row[T Object](e Event) (o T) {
	o, _ = e.Object.(T)
	return o
}

func (b *builder) local(k Key, e Event) {
	name, gone := k.Namespace+"/"+k.Name, e.Object == nil
	switch k.Kind {
	case KindGateway:
		edit(b, &b.gateways, name, row[*Gateway](e), gone)
	case KindVirtualService:
		b.virtualService(row[*VirtualService](e), name)
	case KindDestinationRule:
		if old, ok := edit(b, &b.rules, name, row[*DestinationRule](e), gone); ok {
			b.fileRules(old, b.rules.Get(name))
		}
	case KindPeerAuthentication:
		all := b.policies.all
		if _, ok := edit(b, &all, name, row[*PeerAuthentication](e), gone); ok {
			b.policies = &Policies{b.policies.root, all}
			b.markNamespace(k.Namespace)
			b.all = b.all || k.Namespace == b.policies.root
		}
	case KindCredential:
		edit(b, &b.credentials, name, row[*Credential](e), gone)
	default:
		if _, ok := edit(b, &b.inert, k.String(), row[*Inert](e), gone); ok {
			b.judging = true
		}
	}
}

func (b *builder) cluster(k Key, o *Cluster) {
	c := b.clusters[k.Cluster]
	if o == nil {
		if c == nil {
			return
		}
		for namespace, sp := range c.spaces {
			for svc := range sp.services.All() {
				b.markService(namespace, svc.Name)
			}
		}
		b.ownClusters()
		delete(b.clusters, k.Cluster)
		b.touched, b.networked = true, true
		return
	}
	if c != nil && c.info != nil && *c.info == *o {
		return
	}
	b.clusterOf(o.ID).info = o
	b.touched = true
}

func (b *builder) service(k Key, o *Service) {
	sp := b.spaceOf(k.Cluster, k.Namespace)
	old, ok := edit(b, &sp.services, k.Name, o, o == nil)
	if !ok {
		return
	}
	b.markService(k.Namespace, k.Name)
	gateway := old != nil && old.Labels[networkLabel] != "" || o != nil && o.Labels[networkLabel] != ""
	b.networked = b.networked || gateway || len(b.config.networks.GetNetworks()) > 0
}

func (b *builder) slice(k Key, o *EndpointSlice) {
	sp := b.spaceOf(k.Cluster, k.Namespace)
	old, ok := edit(b, &sp.slices, k.Name, o, o == nil)
	if !ok {
		return
	}
	if old != nil {
		edit(b, &sp.byService, old.Service+"\x00"+old.Name, old, true)
		b.hosts[b.HostName(k.Namespace, old.Service)] = true
	}
	if o != nil {
		edit(b, &sp.byService, o.Service+"\x00"+o.Name, o, false)
		b.hosts[b.HostName(o.Namespace, o.Service)] = true
	}
}

func (b *builder) namespaced(k Key, o *Namespace) {
	sp := b.spaceOf(k.Cluster, k.Name)
	if reflect.DeepEqual(sp.namespace, o) {
		return
	}
	if sp.namespace.distribution() != o.distribution() || len(b.config.Spec.GetDiscoverySelectors()) > 0 {
		b.markNamespace(k.Name)
	}
	sp.namespace = o
	b.touched = true
	b.networked = b.networked || k.Name == b.settings.SystemNamespace
}

func (b *builder) meshConfig(k Key, o *MeshConfig) {
	var found []Finding
	if o != nil {
		o, found = b.fallBack(o)
	}
	edit(b, &b.refusals, k.String(), &refusal{k, found}, len(found) == 0)
	if b.configured != (o != nil) {
		b.configured, b.touched = o != nil, true
	}
	last, next := b.config, newConfig(o, b.settings)
	if o != nil && o.KeepNetworks {
		next.networks, next.addresses = last.networks, last.addresses
	}
	if proto.Equal(last.Spec, next.Spec) && proto.Equal(last.networks, next.networks) && maps.EqualFunc(last.addresses, next.addresses, slices.Equal[[]string]) {
		return
	}
	keep(&next.LocalityLB, last.LocalityLB)
	keep(&next.Retry, last.Retry)
	keep(&next.DefaultPolicy, last.DefaultPolicy)
	keep(&next.Keepalive, last.Keepalive)
	keep(&next.TLSDefaults, last.TLSDefaults)
	keep(&next.MeshTLS, last.MeshTLS)
	b.config, b.policies = next, &Policies{next.RootNamespace, b.policies.all}
	b.touched, b.networked, b.filing, b.judging, b.all = true, true, true, true, true
}

// edit sets a row of a table of the Snapshot in the making. It returns the row before, and reports
// whether anything changed.
func edit[T comparable](b *builder, t **Table[T], key string, row T, gone bool) (old T, changed bool) {
	var none T
	old = (*t).Get(key)
	if gone && old == none || !gone && old != none && equal(old, row) {
		return old, false
	}
	if *t == nil || !b.own[*t] {
		*t = (*t).clone()
		b.own[*t] = true
	}
	(*t).set(key, row, gone)
	b.touched = true
	return old, true
}

func equal(a, b any) bool {
	if a == b {
		return true
	}
	if x, ok := a.(UserObject); ok {
		mx, sx := x.Written()
		my, sy := b.(UserObject).Written()
		return reflect.DeepEqual(mx, my) && proto.Equal(sx, sy)
	}
	return reflect.DeepEqual(a, b)
}

func mark[K comparable](m map[K]map[string]bool, k K, name string) {
	if m[k] == nil {
		m[k] = map[string]bool{}
	}
	m[k][name] = true
}

func (b *builder) ownClusters() {
	if !b.owns.clusters {
		b.clusters, b.owns.clusters = maps.Clone(b.clusters), true
	}
}

// clusterOf returns a cluster that may be written to.
func (b *builder) clusterOf(id string) *cluster {
	c := b.clusters[id]
	if c != nil && b.own[c] {
		return c
	}
	b.ownClusters()
	n := &cluster{id: id, spaces: map[string]*space{}}
	if c != nil {
		*n = *c
		n.spaces = maps.Clone(c.spaces)
	}
	b.clusters[id], b.own[n] = n, true
	return n
}

// spaceOf returns a space that may be written to.
func (b *builder) spaceOf(id, namespace string) *space {
	c := b.clusterOf(id)
	sp := c.spaces[namespace]
	if sp != nil && b.own[sp] {
		return sp
	}
	n := &space{}
	if sp != nil {
		*n = *sp
	}
	c.spaces[namespace], b.own[n] = n, true
	return n
}

// markNamespace marks all hosts of a namespace.
func (b *builder) markNamespace(namespace string) {
	for _, c := range b.clusters {
		if sp := c.spaces[namespace]; sp != nil {
			for svc := range sp.services.All() {
				b.hosts[b.HostName(namespace, svc.Name)] = true
			}
		}
	}
}

// finish makes again what events have touched.
func (b *builder) finish() {
	if b.networked {
		b.findNetworksAgain()
	}
	if b.filing {
		b.refile()
	}
	if b.judging {
		b.findInert()
	}
	b.markSlices()
	if b.all {
		b.markAll()
	}
	b.remake()
	for _, l := range b.leaves {
		if l.names == nil {
			l.index()
		}
	}
}

func (b *builder) findNetworksAgain() {
	n := b.findNetworks()
	if n.equal(b.networks) {
		return
	}
	placed := maps.Equal(n.clusters, b.networks.clusters) && slices.Equal(n.ranges, b.networks.ranges)
	b.networks, b.all = n, b.all || !placed
}

// markSlices marks the hosts of which some endpoint's Pod or Node has changed.
func (b *builder) markSlices() {
	for _, c := range b.clusters {
		nodes := b.nodes[c]
		for namespace, sp := range c.spaces {
			pods := b.pods[sp]
			if pods == nil && nodes == nil {
				continue
			}
			for sl := range sp.slices.All() {
				host := b.HostName(namespace, sl.Service)
				if !b.hosts[host] && slices.ContainsFunc(sl.Endpoints, func(e SliceEndpoint) bool {
					if pods[e.Pod] || nodes[e.Node] {
						return true
					}
					p := sp.pods.Get(e.Pod)
					return nodes != nil && p != nil && nodes[p.Node]
				}) {
					b.hosts[host] = true
				}
			}
		}
	}
}

func (b *builder) markAll() {
	for h := range b.Hosts() {
		b.hosts[h.Name] = true
	}
	for _, c := range b.clusters {
		for namespace, sp := range c.spaces {
			for svc := range sp.services.All() {
				b.hosts[b.HostName(namespace, svc.Name)] = true
			}
		}
	}
	for f := range b.routesOf.All() {
		b.hosts[f.host] = true
		b.markPattern(f.host)
	}
	for f := range b.rulesOf.All() {
		b.markPattern(f.host)
	}
}
