package mesh

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// remake makes the marked hosts again, and the leaves that they are in.
func (b *builder) remake() {
	changed := map[string]bool{} // hosts whose Service is another, or whose routes are
	queue := slices.Sorted(maps.Keys(b.hosts))
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		old := b.Host(name)
		h := b.host(name, old)
		routed := old == nil || old.Service != h.Service || !slices.Equal(old.Routes, h.Routes)
		ruled := old == nil || old.Service != h.Service || !slices.Equal(old.Rules, h.Rules) || old.Root != h.Root
		if routed {
			changed[name] = true
		}
		if ruled {
			b.stamp = &Stamp{}
		}
		if old == nil || !old.same(h) {
			b.replace(h)
		}
		b.indexAlias(old, h)
		b.placed += btoi(h.Service.ByNode()) - btoi(old != nil && old.Service.ByNode())
		if routed || ruled {
			queue = append(queue, b.aliases.prefixed(name+" ")...)
		}
	}
	if len(changed) == 0 {
		return
	}
	var again []*Host // for they have, or had, one of changed among their targets
	for h := range b.Hosts() {
		if len(h.Routes) > 0 && (changed[h.Name] || h.leadsTo(changed)) || len(h.Routes) == 0 && h.Targets != nil {
			again = append(again, h)
		}
	}
	for _, h := range again {
		if t := b.targets(h); t != h.Targets {
			n := *h
			n.Targets = t
			b.replace(&n)
		}
	}
}

func (h *Host) leadsTo(hosts map[string]bool) bool {
	for _, r := range h.Routes {
		for _, name := range r.hosts {
			if hosts[name] {
				return true
			}
		}
	}
	return false
}

func (h *Host) same(o *Host) bool {
	return h.Service == o.Service && h.Endpoints == o.Endpoints && h.Accounts == o.Accounts && h.Targets == o.Targets && h.Root == o.Root &&
		slices.Equal(h.Rules, o.Rules) && slices.Equal(h.Routes, o.Routes)
}

// replace puts a host into a new leaf, or two if one becomes too large, or none if it becomes empty.
func (b *builder) replace(h *Host) {
	i := find(b.leaves, h.place)
	var hosts []*Host
	if i >= 0 {
		hosts = slices.Clone(b.leaves[i].Hosts)
	}
	j, ok := search(hosts, h.place)
	empty := h.Service == nil && len(h.Rules)+len(h.Routes) == 0
	switch {
	case ok && empty:
		hosts = slices.Delete(hosts, j, j+1)
	case ok:
		hosts[j] = h
	case empty:
		return
	default:
		hosts = slices.Insert(hosts, j, h)
	}
	size := max(1, len(hosts))
	if size > leafSize {
		size = (size + 1) / 2
	}
	var leaves []*Leaf
	for part := range slices.Chunk(hosts, size) {
		leaves = append(leaves, &Leaf{Hosts: part})
	}
	if !b.owns.leaves {
		b.leaves, b.owns.leaves = slices.Clone(b.leaves), true
	}
	b.leaves = slices.Replace(b.leaves, max(0, i), i+1, leaves...)
}

// host makes a host again. What has not changed keeps the pointer that old has.
func (b *builder) host(name string, old *Host) *Host {
	if old == nil {
		old = &Host{}
	}
	h := &Host{Name: name, place: place(name), Targets: old.Targets, Root: b.config.RootNamespace}
	h.Rules = about(b.rulesOf, name)
	namespace, service, ok := b.serviceOf(name)
	if !ok {
		h.Routes = b.routesOfNone(name)
		return h
	}
	s := &HostService{Host: name, Namespace: namespace, Name: service}
	for _, id := range b.clusterOrder() {
		if p := b.Service(id, namespace, service); p != nil && b.discovered(id, namespace) {
			s.Parts = append(s.Parts, p)
		}
	}
	if len(s.Parts) == 0 {
		h.Routes = b.routesOfNone(name)
		return h
	}
	h.Routes = b.routesOfService(namespace, service)
	if other := b.concrete(s); other != nil {
		s.Alias = other.Service
		h.Rules, h.Routes = other.Rules, append(slices.Clip(h.Routes), other.Routes...)
	}
	s.ExportTo = exportTo(s.Parts[0].ExportTo, b.config.Spec.GetDefaultServiceExportTo())
	s.ClusterLocal = b.config.clusterLocal(name)
	s.Distribution = s.Parts[0].Distribution
	if ns := b.Namespace(s.Parts[0].Cluster, namespace); ns != nil {
		s.Distribution = cmp.Or(s.Distribution, ns.Distribution)
	}
	if o := old.Service; o != nil && slices.Equal(o.Parts, s.Parts) && slices.Equal(o.ExportTo, s.ExportTo) && o.ClusterLocal == s.ClusterLocal &&
		o.Distribution == s.Distribution && o.Alias == s.Alias {
		s = o
	}
	h.Service = s
	h.Endpoints, h.Accounts = b.endpoints(s)
	if o := old.Endpoints; o != nil && slices.Equal(o.List, h.Endpoints.List) {
		h.Endpoints = o
	}
	if o := old.Accounts; o != nil && slices.Equal(o.List, h.Accounts.List) {
		h.Accounts = o
	}
	return h
}

// clusterOrder returns the IDs of clusters, the local one first.
func (b *builder) clusterOrder() []string {
	if b.order == nil {
		b.order = b.Clusters()
		slices.SortStableFunc(b.order, func(x, y string) int {
			return cmp.Compare(btoi(x != b.settings.Cluster), btoi(y != b.settings.Cluster))
		})
	}
	return b.order
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// endpoints joins slices, Pods, Nodes and networks of a Service in all clusters. An endpoint whose Pod
// has not been seen yet waits for it, for without its labels it might be reached without mutual TLS.
func (b *builder) endpoints(s *HostService) (*Endpoints, *Accounts) {
	e, accounts := &Endpoints{}, map[Account]bool{}
	for _, part := range s.Parts {
		sp := b.space(part.Cluster, part.Namespace)
		for _, sl := range sp.byService.prefixed(part.Name + "\x00") {
			for i := range sl.Endpoints {
				x := &sl.Endpoints[i]
				pod := sp.pods.Get(x.Pod)
				if x.Pod != "" && pod == nil || len(x.Addresses) == 0 {
					continue
				}
				if pod != nil && pod.ServiceAccount != "" {
					accounts[Account{pod.Namespace, pod.ServiceAccount}] = true
				}
				e.List = append(e.List, b.join(part, sl, x, pod)...)
			}
		}
	}
	slices.SortFunc(e.List, func(x, y Endpoint) int {
		return cmp.Or(cmp.Compare(x.ServicePort, y.ServicePort), strings.Compare(x.Cluster, y.Cluster),
			strings.Compare(x.podName(), y.podName()), strings.Compare(x.IPv4, y.IPv4), strings.Compare(x.IPv6, y.IPv6), cmp.Compare(x.Port, y.Port))
	})
	e.List = mergeFamilies(e.List)
	stay(e.List)
	list := slices.SortedFunc(maps.Keys(accounts), func(x, y Account) int {
		return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
	})
	return e, &Accounts{list}
}

// stay makes held endpoints ready where the Service has no other ready one in their cluster.
func stay(list []Endpoint) {
	for from := 0; from < len(list); {
		to, ready := from, false
		for ; to < len(list) && list[to].ServicePort == list[from].ServicePort && list[to].Cluster == list[from].Cluster; to++ {
			ready = ready || list[to].Ready
		}
		for i := from; i < to; i++ {
			list[i].Held = list[i].Held && !ready
			list[i].Ready = list[i].Ready || list[i].Held
		}
		from = to
	}
}

func (e *Endpoint) podName() string {
	if e.Pod == nil {
		return ""
	}
	return e.Pod.Name
}

// join returns an endpoint of a slice for each port of the Service that the slice has.
func (b *builder) join(part *Service, sl *EndpointSlice, x *SliceEndpoint, pod *Pod) (list []Endpoint) {
	e := Endpoint{
		Cluster: part.Cluster, Ready: x.Ready && !x.Terminating, Serving: x.Serving, Held: x.Held && !x.Terminating,
		Hostname: x.Hostname, Pod: pod, Node: x.Node,
	}
	if a := x.Addresses[0]; strings.Contains(a, ":") {
		e.IPv6 = a
	} else {
		e.IPv4 = a
	}
	if pod != nil {
		e.Network, e.Locality, e.Node = b.PodNetwork(pod), b.PodLocality(pod), pod.Node
	} else {
		e.Network = b.network(part.Cluster, x.Addresses[0])
		e.Locality = b.nodeLocality(part.Cluster, x.Node)
	}
	for _, sp := range sl.Ports {
		for _, p := range part.Ports {
			if p.Name != sp.Name || p.Protocol() == UDP {
				continue
			}
			e.ServicePort, e.Port = p.Number, sp.Number
			e.TLS = pod != nil && pod.Labels["security.istio.io/tlsMode"] == "istio" &&
				b.policies.Mode(pod.Namespace, pod.Labels, sp.Number) != Disabled
			list = append(list, e)
		}
	}
	return list
}

// mergeFamilies makes one endpoint of the two that a Pod of both IP families has, and drops repetitions.
func mergeFamilies(list []Endpoint) []Endpoint {
	out := list[:0]
	for _, e := range list {
		if n := len(out) - 1; n >= 0 {
			last := out[n]
			if last == e {
				continue
			}
			if e.Pod != nil && last.Pod == e.Pod && last.ServicePort == e.ServicePort && last.Port == e.Port && last.IPv6 != "" && last.IPv4 == "" && e.IPv6 == "" {
				out[n].IPv4 = e.IPv4
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

// targets looks up the Services that a host's routes lead to.
func (b *builder) targets(h *Host) *Targets {
	if len(h.Routes) == 0 {
		return nil
	}
	t := &Targets{map[string]*HostService{}}
	for _, r := range h.Routes {
		for _, name := range r.hosts {
			if x := b.Host(name); x != nil && x.Service != nil {
				t.services[name] = x.Service
			}
		}
	}
	if h.Targets != nil && maps.Equal(h.Targets.services, t.services) {
		return h.Targets
	}
	return t
}
