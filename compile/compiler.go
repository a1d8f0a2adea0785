package compile

import (
	"sync"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// Bundle is all resources of one proxy. Bundles that are == hold the same.
type Bundle struct {
	Clusters, Endpoints, Listeners, Routes, Secrets *resource.List
}

// Compiler compiles one snapshot after another, and remembers what the last one needed. It is for one
// goroutine.
type Compiler struct {
	leaves    []*mesh.Leaf // of the last snapshot
	clusters  kind[clusterRow, clusterView]
	endpoints kind[endpointRow, endpointView]
	listeners kind[listenerRow, listenerView]
	routes    kind[routeRow, routeView]
	workloads workloads
	lists     map[listKey]*resource.List
	faults    faults // of the last pass
}

// New returns a Compiler that remembers nothing yet.
func New() *Compiler {
	return &Compiler{
		clusters:  kind[clusterRow, clusterView]{row: toClusterRow, need: clusterRow.need, narrow: clusterView.narrow, build: buildClusters, views: map[clusterView]bool{}},
		endpoints: kind[endpointRow, endpointView]{row: toEndpointRow, need: endpointRow.need, narrow: endpointView.narrow, build: buildEndpoints, views: map[endpointView]bool{}},
		listeners: kind[listenerRow, listenerView]{row: toListenerRow, need: listenerRow.need, narrow: listenerView.narrow, build: buildListeners, frame: listenerFrame, views: map[listenerView]bool{}},
		routes:    kind[routeRow, routeView]{row: toRouteRow, need: routeRow.need, narrow: routeView.narrow, build: buildRoutes, frame: routeFrame, views: map[routeView]bool{}},
		lists:     map[listKey]*resource.List{},
	}
}

// listKey is what a list is put together from.
type listKey struct {
	shared *list
	own    *resource.Part
}

// Pass returns what each of proxies should hold. Proxies that are == need only be given once.
func (c *Compiler) Pass(s *mesh.Snapshot, proxies []Proxy) []Bundle {
	from := c.movedFrom(s)
	facts := c.workloads.pass(s, proxies)
	clients := make([]string, len(proxies))
	for i, p := range proxies {
		clients[i] = p.Namespace
	}
	var clusters, endpoints, listeners, routes []*list
	var kinds sync.WaitGroup // they share nothing but their immutable input
	kinds.Go(func() {
		clusters = c.clusters.pass(s, from, clients, viewsOf(s, proxies, facts, toClusterView))
	})
	kinds.Go(func() {
		endpoints = c.endpoints.pass(s, from, clients, viewsOf(s, proxies, facts, toEndpointView))
	})
	kinds.Go(func() {
		listeners = c.listeners.pass(s, from, clients, viewsOf(s, proxies, facts, toListenerView))
	})
	kinds.Go(func() {
		routes = c.routes.pass(s, from, clients, viewsOf(s, proxies, facts, toRouteView))
	})
	kinds.Wait()
	c.faults = nil
	for i, w := range facts {
		for _, f := range []faults{clusters[i].faults, listeners[i].faults, routes[i].faults, w.faults} {
			c.faults = append(c.faults, f...)
		}
	}
	c.leaves = s.Leaves()

	last := c.lists
	c.lists = map[listKey]*resource.List{}
	join := func(l *list, own *resource.Part) *resource.List {
		key := listKey{l, own}
		if x := c.lists[key]; x != nil {
			return x
		}
		x := last[key]
		if x == nil {
			x = l.join(own)
		}
		c.lists[key] = x
		return x
	}
	out := make([]Bundle, len(proxies))
	for i := range out {
		w := facts[i]
		out[i] = Bundle{
			Clusters: join(clusters[i], w.clusters), Endpoints: join(endpoints[i], nil),
			Listeners: join(listeners[i], w.listeners), Routes: join(routes[i], w.routes), Secrets: w.secrets,
		}
	}
	return out
}

// join returns the whole list: what many proxies share, and what is one workload's own.
func (l *list) join(own *resource.Part) *resource.List {
	parts := l.leaves
	for _, p := range []*resource.Part{l.aggregate, own} {
		if p != nil {
			parts = append(parts[:len(parts):len(parts)], p)
		}
	}
	return &resource.List{Parts: parts}
}

// movedFrom says for each leaf of s which leaf of the last snapshot it is, or was before a change.
func (c *Compiler) movedFrom(s *mesh.Snapshot) []int {
	leaves := s.Leaves()
	from := make([]int, len(leaves))
	for i, l := range leaves {
		if i < len(c.leaves) && c.leaves[i] == l {
			from[i] = i
			continue
		}
		from[i] = mesh.Find(c.leaves, l)
	}
	return from
}

func viewsOf[V any](s *mesh.Snapshot, proxies []Proxy, facts []*workload, view func(*mesh.Snapshot, Proxy, *workload) V) []V {
	views := make([]V, len(proxies))
	for i, p := range proxies {
		views[i] = view(s, p, facts[i])
	}
	return views
}
