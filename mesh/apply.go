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
	all       bool // every host
}

func (b *builder) event(e Event) {
	gone := e.Gone
	switch o := e.Object.(type) {
	case *Service, *EndpointSlice, *Pod, *Node, *Namespace:
		if gone && b.clusters[o.(Object).Key().Cluster] == nil {
			return // a late word of a cluster that has left
		}
	}
	switch o := e.Object.(type) {
	case *Cluster:
		b.cluster(o, gone)
	case *Service:
		b.service(o, gone)
	case *EndpointSlice:
		b.slice(o, gone)
	case *Pod:
		sp := b.spaceOf(o.Cluster, o.Namespace)
		if _, ok := edit(b, &sp.pods, o.Name, o, gone); ok {
			mark(b.pods, sp, o.Name)
		}
	case *Node:
		c := b.clusterOf(o.Cluster)
		if _, ok := edit(b, &c.nodes, o.Name, o, gone); ok {
			mark(b.nodes, c, o.Name)
		}
	case *Namespace:
		b.namespaced(o, gone)
	case *GatewayHealth:
		if _, ok := edit(b, &b.health, o.Key().Name, o, gone); ok {
			b.networked = true
		}
	case Object: // the rest counts in the local cluster only
		if k := o.Key(); k.Cluster == b.settings.Cluster && b.accept(o, k, gone) {
			b.local(o, k.Namespace+"/"+k.Name, gone)
		}
	}
}

// accept refuses an object that cannot mean anything, and keeps account of it.
func (b *builder) accept(o Object, k Key, gone bool) bool {
	var r *refusal
	if !gone {
		if found := validate(o); len(found) > 0 {
			r = &refusal{k, found}
		}
	}
	edit(b, &b.refusals, k.String(), r, r == nil)
	return r == nil
}

func (b *builder) local(o Object, name string, gone bool) {
	switch o := o.(type) {
	case *Gateway:
		edit(b, &b.gateways, name, o, gone)
	case *VirtualService:
		if old, ok := edit(b, &b.routes, name, o, gone); ok {
			b.fileRoutes(old, b.routes.Get(name))
		}
	case *DestinationRule:
		if old, ok := edit(b, &b.rules, name, o, gone); ok {
			b.fileRules(old, b.rules.Get(name))
		}
	case *PeerAuthentication:
		all := b.policies.all
		if _, ok := edit(b, &all, name, o, gone); ok {
			b.policies = &Policies{b.policies.root, all}
			b.markNamespace(o.Namespace)
			b.all = b.all || o.Namespace == b.policies.root
		}
	case *Credential:
		edit(b, &b.credentials, name, o, gone)
	case *MeshConfig:
		b.meshConfig(o, gone)
	}
}

func (b *builder) cluster(o *Cluster, gone bool) {
	c := b.clusters[o.ID]
	if gone {
		if c == nil {
			return
		}
		for namespace, sp := range c.spaces {
			for svc := range sp.services.All() {
				b.hosts[b.HostName(namespace, svc.Name)] = true
			}
		}
		b.ownClusters()
		delete(b.clusters, o.ID)
		b.touched, b.networked = true, true
		return
	}
	if c != nil && c.info != nil && *c.info == *o {
		return
	}
	b.clusterOf(o.ID).info = o
	b.touched = true
}

func (b *builder) service(o *Service, gone bool) {
	sp := b.spaceOf(o.Cluster, o.Namespace)
	old, ok := edit(b, &sp.services, o.Name, o, gone)
	if !ok {
		return
	}
	b.hosts[b.HostName(o.Namespace, o.Name)] = true
	gateway := old != nil && old.Labels[networkLabel] != "" || !gone && o.Labels[networkLabel] != ""
	b.networked = b.networked || gateway || len(b.config.networks.GetNetworks()) > 0
}

func (b *builder) slice(o *EndpointSlice, gone bool) {
	sp := b.spaceOf(o.Cluster, o.Namespace)
	old, ok := edit(b, &sp.slices, o.Name, o, gone)
	if !ok {
		return
	}
	if old != nil {
		edit(b, &sp.byService, old.Service+"\x00"+old.Name, old, true)
		b.hosts[b.HostName(o.Namespace, old.Service)] = true
	}
	if !gone {
		edit(b, &sp.byService, o.Service+"\x00"+o.Name, o, false)
		b.hosts[b.HostName(o.Namespace, o.Service)] = true
	}
}

func (b *builder) namespaced(o *Namespace, gone bool) {
	sp := b.spaceOf(o.Cluster, o.Name)
	switch {
	case gone && sp.namespace == nil, !gone && sp.namespace != nil && reflect.DeepEqual(sp.namespace, o):
		return
	case gone:
		sp.namespace = nil
	default:
		sp.namespace = o
	}
	b.touched = true
	b.networked = b.networked || o.Name == b.settings.SystemNamespace
}

func (b *builder) meshConfig(o *MeshConfig, gone bool) {
	if gone {
		o = nil
	}
	last, next := b.config, newConfig(o, b.settings)
	if proto.Equal(last.Spec, next.Spec) && proto.Equal(last.networks, next.networks) {
		return
	}
	if proto.Equal(last.LocalityLB, next.LocalityLB) {
		next.LocalityLB = last.LocalityLB // the same pointer, for the same content
	}
	if proto.Equal(last.Retry, next.Retry) {
		next.Retry = last.Retry
	}
	b.config, b.policies = next, &Policies{next.RootNamespace, b.policies.all}
	b.touched, b.networked, b.filing, b.all = true, true, true, true
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
	switch x := a.(type) {
	case *Gateway:
		y := b.(*Gateway)
		return reflect.DeepEqual(x.Meta, y.Meta) && proto.Equal(x.Spec, y.Spec)
	case *VirtualService:
		y := b.(*VirtualService)
		return reflect.DeepEqual(x.Meta, y.Meta) && proto.Equal(x.Spec, y.Spec)
	case *DestinationRule:
		y := b.(*DestinationRule)
		return reflect.DeepEqual(x.Meta, y.Meta) && proto.Equal(x.Spec, y.Spec)
	case *PeerAuthentication:
		y := b.(*PeerAuthentication)
		return reflect.DeepEqual(x.Meta, y.Meta) && proto.Equal(x.Spec, y.Spec)
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
		b.markPattern(f.host)
	}
	for f := range b.rulesOf.All() {
		b.markPattern(f.host)
	}
}
