package mesh

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// filed is the objects about one host name or pattern. Immutable.
type filed[T any] struct {
	host string
	list []T
}

type (
	hostRoutes = filed[*Route]
	hostRules  = filed[*Rule]
)

func isPattern(host string) bool { return strings.HasPrefix(host, "*") }

// routeHosts yields the names and patterns under which a VirtualService is filed.
func (b *builder) routeHosts(v *VirtualService) (hosts []string) {
	if v == nil || !v.InMesh() {
		return nil
	}
	for _, h := range v.Spec.GetHosts() {
		hosts = append(hosts, b.Resolve(h, v.Namespace))
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// InMesh reports whether the VirtualService holds for sidecars: it names no gateway, or "mesh".
func (v *VirtualService) InMesh() bool {
	return len(v.Spec.GetGateways()) == 0 || slices.Contains(v.Spec.GetGateways(), "mesh")
}

// Destinations yields the hosts, as written, that the routes of a VirtualService lead to.
func (v *VirtualService) Destinations() iter.Seq[*networking.Destination] {
	return func(yield func(*networking.Destination) bool) {
		for _, r := range v.Spec.GetHttp() {
			for _, d := range r.GetRoute() {
				if d.GetDestination() != nil && !yield(d.Destination) {
					return
				}
			}
			if r.GetMirror() != nil && !yield(r.Mirror) {
				return
			}
			for _, m := range r.GetMirrors() {
				if m.GetDestination() != nil && !yield(m.Destination) {
					return
				}
			}
		}
		for _, r := range v.Spec.GetTcp() {
			for _, d := range r.GetRoute() {
				if d.GetDestination() != nil && !yield(d.Destination) {
					return
				}
			}
		}
		for _, r := range v.Spec.GetTls() {
			for _, d := range r.GetRoute() {
				if d.GetDestination() != nil && !yield(d.Destination) {
					return
				}
			}
		}
	}
}

// SourceNamespaces yields the namespaces of clients that some match of a VirtualService names.
func (v *VirtualService) SourceNamespaces() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, r := range v.Spec.GetHttp() {
			for _, m := range r.GetMatch() {
				if m.GetSourceNamespace() != "" && !yield(m.SourceNamespace) {
					return
				}
			}
		}
		for _, r := range v.Spec.GetTcp() {
			for _, m := range r.GetMatch() {
				if m.GetSourceNamespace() != "" && !yield(m.SourceNamespace) {
					return
				}
			}
		}
		for _, r := range v.Spec.GetTls() {
			for _, m := range r.GetMatch() {
				if m.GetSourceNamespace() != "" && !yield(m.SourceNamespace) {
					return
				}
			}
		}
	}
}

// fileRoutes files a VirtualService anew under its hosts.
func (b *builder) fileRoutes(old, now *VirtualService) {
	was, is := b.routeHosts(old), b.routeHosts(now)
	for _, host := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(was, is)))) {
		var list []*Route
		if f := b.routesOf.Get(host); f != nil {
			list = slices.DeleteFunc(slices.Clone(f.list), func(r *Route) bool { return r.VirtualService == old })
		}
		if slices.Contains(is, host) {
			list = append(list, b.route(now))
			slices.SortFunc(list, func(x, y *Route) int { return older(&x.Meta, &y.Meta) })
		}
		edit(b, &b.routesOf, host, &hostRoutes{host, list}, len(list) == 0)
		b.markPattern(host)
		b.hosts[host] = true
		if full, ok := b.inFullName(host); ok {
			b.hosts[full] = true
		}
	}
}

func (b *builder) route(v *VirtualService) *Route {
	r := &Route{VirtualService: v, exportTo: exportTo(v.Spec.GetExportTo(), b.config.Spec.GetDefaultVirtualServiceExportTo()), domain: b.settings.Domain}
	for d := range v.Destinations() {
		r.hosts = append(r.hosts, b.Resolve(d.GetHost(), v.Namespace))
	}
	r.hosts = append(r.hosts, b.routeHosts(v)...)
	slices.Sort(r.hosts)
	r.hosts = slices.Compact(r.hosts)
	return r
}

// fileRules files a DestinationRule anew under its host.
func (b *builder) fileRules(old, now *DestinationRule) {
	var hosts []string
	for _, r := range []*DestinationRule{old, now} {
		if r != nil {
			hosts = append(hosts, b.Resolve(r.Spec.GetHost(), r.Namespace))
		}
	}
	for _, host := range slices.Compact(hosts) {
		var had []*Rule
		var parts []*DestinationRule
		if f := b.rulesOf.Get(host); f != nil {
			had = f.list
		}
		for _, r := range had {
			for _, p := range r.parts {
				if p != old {
					parts = append(parts, p)
				}
			}
		}
		if now != nil && host == b.Resolve(now.Spec.GetHost(), now.Namespace) {
			parts = append(parts, now)
		}
		list := b.mergeRules(parts, had)
		edit(b, &b.rulesOf, host, &hostRules{host, list}, len(list) == 0)
		b.markPattern(host)
	}
}

// mergeRules makes one rule of those of one host that have one namespace and audience: the oldest's policy,
// the subsets of all, the oldest first; in a namespace, those that select workloads first. A rule made of
// the same parts before is kept.
func (b *builder) mergeRules(parts []*DestinationRule, had []*Rule) (rules []*Rule) {
	slices.SortFunc(parts, func(x, y *DestinationRule) int {
		if c := cmp.Or(strings.Compare(x.Namespace, y.Namespace), cmp.Compare(unselective(x), unselective(y))); c != 0 {
			return c
		}
		return older(&x.Meta, &y.Meta)
	})
	for _, p := range parts {
		to := exportTo(p.Spec.GetExportTo(), b.config.Spec.GetDefaultDestinationRuleExportTo())
		i := slices.IndexFunc(rules, func(r *Rule) bool {
			return r.Namespace == p.Namespace && slices.Equal(r.exportTo, to) && proto.Equal(r.Spec.GetWorkloadSelector(), p.Spec.GetWorkloadSelector())
		})
		if i < 0 {
			rules = append(rules, &Rule{DestinationRule: p, exportTo: to, parts: []*DestinationRule{p}})
			continue
		}
		rules[i] = &Rule{DestinationRule: join(rules[i].DestinationRule, p), exportTo: to, parts: append(slices.Clone(rules[i].parts), p)}
	}
	var next *Rule
	for i, r := range slices.Backward(rules) {
		if next != nil && next.Namespace == r.Namespace {
			r.next = next
		}
		if j := slices.IndexFunc(had, func(h *Rule) bool {
			return h.next == r.next && slices.Equal(h.parts, r.parts) && slices.Equal(h.exportTo, r.exportTo)
		}); j >= 0 {
			rules[i] = had[j]
		}
		if r.Selects() && r.Visible(r.Namespace) {
			next = rules[i]
		}
	}
	return rules
}

// unselective is 0 for a rule that selects workloads and 1 for others.
func unselective(r *DestinationRule) int {
	if r.Spec.GetWorkloadSelector() != nil {
		return 0
	}
	return 1
}

func join(a, b *DestinationRule) *DestinationRule {
	out := *a
	out.Spec = proto.Clone(a.Spec).(*networking.DestinationRule)
	if out.Spec.TrafficPolicy == nil {
		out.Spec.TrafficPolicy = b.Spec.GetTrafficPolicy()
	}
	for _, s := range b.Spec.GetSubsets() {
		if !slices.ContainsFunc(out.Spec.Subsets, func(x *networking.Subset) bool { return x.GetName() == s.GetName() }) {
			out.Spec.Subsets = append(out.Spec.Subsets, s)
		}
	}
	return &out
}

// refile files all rules and routes anew, for what MeshConfig says about them has changed.
func (b *builder) refile() {
	b.routesOf, b.rulesOf = nil, nil
	for r := range b.roots.All() {
		b.merge(r.Namespace + "/" + r.Name)
	}
	for v := range b.merged.All() {
		b.fileRoutes(nil, v)
	}
	for r := range b.rules.All() {
		b.fileRules(nil, r)
	}
}

// markPattern marks the host of that name, or all hosts that a pattern matches.
func (b *builder) markPattern(host string) {
	if !isPattern(host) {
		b.hosts[host] = true
		return
	}
	for h := range b.Hosts() {
		if MatchHost(host, h.Name) {
			b.hosts[h.Name] = true
		}
	}
}

func older(a, b *Meta) int {
	return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// about returns what is filed about a host: under its own name, then under other patterns, the longest first.
func about[T any](t *Table[*filed[T]], host string) (list []T) {
	if f := t.Get(host); f != nil {
		list = f.list
	}
	return append(slices.Clip(list), aboutPatterns(t, host)...)
}

func aboutPatterns[T any](t *Table[*filed[T]], host string) (list []T) {
	patterns := t.prefixed("*")
	if len(patterns) == 0 {
		return list
	}
	matching := slices.Clone(patterns)
	matching = slices.DeleteFunc(matching, func(f *filed[T]) bool { return f.host == host || !MatchHost(f.host, host) })
	slices.SortStableFunc(matching, func(x, y *filed[T]) int { return len(y.host) - len(x.host) })
	for _, f := range matching {
		list = append(list, f.list...)
	}
	return list
}
