package mesh

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// A VirtualService may leave the routes of some path to others, its delegates, which have no hosts. What it
// amounts to with theirs is merged here, once, and filed like any other.

// delegates reports whether some route of a VirtualService is written in another.
func delegates(v *VirtualService) bool {
	return slices.ContainsFunc(v.Spec.GetHttp(), func(r *networking.HTTPRoute) bool { return r.GetDelegate() != nil })
}

// delegateName returns the namespace/name of a delegate.
func delegateName(root *VirtualService, d *networking.Delegate) string {
	if d.GetNamespace() != "" {
		return d.Namespace + "/" + d.GetName()
	}
	return root.Namespace + "/" + d.GetName()
}

// Delegate returns the VirtualService that a route of another names as its delegate, or nil if there is none of
// that name, it has hosts of its own, or the other's namespace does not see it.
func (s *Snapshot) Delegate(root *VirtualService, d *networking.Delegate) *VirtualService {
	v := s.routes.Get(delegateName(root, d))
	if v == nil || len(v.Spec.GetHosts()) > 0 || !s.SeesRoute(v, root.Namespace) {
		return nil
	}
	return v
}

// virtualService takes in a VirtualService that is new, changed or gone, and all that delegate to it.
func (b *builder) virtualService(o *VirtualService, name string) {
	if _, changed := edit(b, &b.routes, name, o, o == nil); !changed {
		return
	}
	edit(b, &b.roots, name, o, o == nil || !delegates(o))
	b.mergeAndFile(name)
	for r := range b.roots.All() {
		if slices.ContainsFunc(r.Spec.GetHttp(), func(x *networking.HTTPRoute) bool {
			return x.GetDelegate() != nil && delegateName(r, x.Delegate) == name
		}) {
			b.mergeAndFile(r.Namespace + "/" + r.Name)
		}
	}
}

func (b *builder) mergeAndFile(name string) {
	if old, changed := b.merge(name); changed {
		b.fileRoutes(old, b.merged.Get(name))
	}
}

// merge makes again what a VirtualService amounts to.
func (b *builder) merge(name string) (old *VirtualService, changed bool) {
	v := b.routes.Get(name)
	if v != nil && len(v.Spec.GetHosts()) == 0 {
		v = nil // it is a part of others
	}
	if v == nil || !delegates(v) {
		return edit(b, &b.merged, name, v, v == nil)
	}
	whole := *v
	whole.Spec = proto.Clone(v.Spec).(*networking.VirtualService)
	whole.Spec.Http = nil
	for _, r := range v.Spec.GetHttp() {
		if r.GetDelegate() == nil {
			whole.Spec.Http = append(whole.Spec.Http, r)
			continue
		}
		d := b.Delegate(v, r.Delegate)
		if d == nil {
			continue // the other routes hold
		}
		for i := range d.Spec.GetHttp() {
			if x := b.MergeRoute(r, d, i); x != nil {
				whole.Spec.Http = append(whole.Spec.Http, x)
			}
		}
	}
	return edit(b, &b.merged, name, &whole, false)
}

// mostMatches bounds what a route and its delegate's multiply to.
const mostMatches = 4096

// MergeRoute returns a delegate's route as the route that delegates to it lets it be: what both match, with what
// the delegate says before what the other says. Nil if some match of the delegate is not within one of the other.
func (s *Snapshot) MergeRoute(root *networking.HTTPRoute, delegate *VirtualService, i int) *networking.HTTPRoute {
	out := s.inFull(delegate.Spec.GetHttp()[i], delegate.Namespace)
	var ok bool
	if out.Match, ok = mergeMatches(root.GetMatch(), out.GetMatch()); !ok {
		return nil
	}
	out.Name = joinNames(root.GetName(), out.GetName())
	// What the delegate does not say is as the other says it.
	from, to := root.ProtoReflect(), out.ProtoReflect()
	for _, field := range []string{"rewrite", "direct_response", "timeout", "retries", "fault", "mirror", "mirror_percent",
		"mirror_percentage", "cors_policy", "mirrors", "headers"} {
		fd := from.Descriptor().Fields().ByTextName(field)
		if !to.Has(fd) && from.Has(fd) {
			to.Set(fd, from.Get(fd))
		}
	}
	return proto.Clone(out).(*networking.HTTPRoute)
}

func joinNames(root, delegate string) string {
	if root == "" || delegate == "" {
		return root + delegate
	}
	return root + "-" + delegate
}

// inFull returns a copy of a route with the hosts and gateways that its namespace means by their short names.
func (s *Snapshot) inFull(r *networking.HTTPRoute, namespace string) *networking.HTTPRoute {
	out := proto.Clone(r).(*networking.HTTPRoute)
	full := func(d *networking.Destination) {
		if d != nil {
			d.Host = s.Resolve(d.GetHost(), namespace)
		}
	}
	for _, d := range out.GetRoute() {
		full(d.GetDestination())
	}
	full(out.GetMirror())
	for _, m := range out.GetMirrors() {
		full(m.GetDestination())
	}
	for _, m := range out.GetMatch() {
		for i, g := range m.GetGateways() {
			if g != "mesh" && !strings.Contains(g, "/") {
				m.Gateways[i] = namespace + "/" + g
			}
		}
	}
	return out
}

// mergeMatches returns what some match of each list matches, or false if one of the delegate's is not within any
// of the other's.
func mergeMatches(root, delegate []*networking.HTTPMatchRequest) ([]*networking.HTTPMatchRequest, bool) {
	if len(root) == 0 || len(delegate) == 0 {
		return slices.Concat(root, delegate), true
	}
	if len(root)*len(delegate) > mostMatches {
		return nil, false
	}
	var out []*networking.HTTPMatchRequest
	for _, d := range delegate {
		n := len(out)
		for _, r := range root {
			if within(r, d) {
				out = append(out, mergeMatch(r, d))
			}
		}
		if len(out) == n {
			return nil, false
		}
	}
	return out, true
}

// within reports whether a delegate's match can be within another.
func within(root, d *networking.HTTPMatchRequest) bool {
	texts := func(root, d map[string]*networking.StringMatch, narrower func(root, d *networking.StringMatch) bool) bool {
		for k, m := range d {
			if r, both := root[k]; both && !narrower(r, m) {
				return false
			}
		}
		return true
	}
	for k, v := range d.GetSourceLabels() {
		if r, both := root.GetSourceLabels()[k]; both && r != v {
			return false
		}
	}
	either := func(root, d string) bool { return root == "" || d == "" || root == d }
	return narrower(root.GetUri(), d.GetUri()) && narrower(root.GetScheme(), d.GetScheme()) &&
		narrower(root.GetMethod(), d.GetMethod()) && narrower(root.GetAuthority(), d.GetAuthority()) &&
		texts(root.GetHeaders(), d.GetHeaders(), narrower) && texts(root.GetQueryParams(), d.GetQueryParams(), narrower) &&
		texts(root.GetWithoutHeaders(), d.GetWithoutHeaders(), func(root, d *networking.StringMatch) bool {
			return narrower(d, root)
		}) &&
		(root.GetUri() == nil || d.GetUri() == nil || root.GetIgnoreUriCase() == d.GetIgnoreUriCase()) &&
		(root.GetPort() == 0 || d.GetPort() == 0 || root.GetPort() == d.GetPort()) &&
		either(root.GetSourceNamespace(), d.GetSourceNamespace()) &&
		(len(root.GetGateways()) == 0 || !slices.ContainsFunc(d.GetGateways(), func(g string) bool {
			return !slices.Contains(root.GetGateways(), g)
		}))
}

// narrower reports whether a match matches nothing that another does not; one that says nothing becomes the other.
func narrower(root, d *networking.StringMatch) bool {
	if root.GetMatchType() == nil || d.GetMatchType() == nil {
		return true
	}
	switch r := root.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		x, ok := d.GetMatchType().(*networking.StringMatch_Exact)
		return ok && x.Exact == r.Exact
	case *networking.StringMatch_Prefix:
		switch x := d.GetMatchType().(type) {
		case *networking.StringMatch_Exact:
			return strings.HasPrefix(x.Exact, r.Prefix)
		case *networking.StringMatch_Prefix:
			return strings.HasPrefix(x.Prefix, r.Prefix)
		}
	}
	return false // who knows what an expression matches
}

func mergeMatch(root, d *networking.HTTPMatchRequest) *networking.HTTPMatchRequest {
	out := proto.Clone(root).(*networking.HTTPMatchRequest)
	x := proto.Clone(d).(*networking.HTTPMatchRequest)
	out.Name = joinNames(root.GetName(), d.GetName())
	if x.GetUri() != nil {
		out.Uri, out.IgnoreUriCase = x.Uri, x.IgnoreUriCase
	}
	if x.GetScheme() != nil {
		out.Scheme = x.Scheme
	}
	if x.GetMethod() != nil {
		out.Method = x.Method
	}
	if x.GetAuthority() != nil {
		out.Authority = x.Authority
	}
	out.Headers = over(out.GetHeaders(), x.GetHeaders())
	out.QueryParams = over(out.GetQueryParams(), x.GetQueryParams())
	out.WithoutHeaders = over(out.GetWithoutHeaders(), x.GetWithoutHeaders())
	out.SourceLabels = over(out.GetSourceLabels(), x.GetSourceLabels())
	out.Port = max(out.GetPort(), x.GetPort()) // one is 0, or they are equal
	if x.GetSourceNamespace() != "" {
		out.SourceNamespace = x.SourceNamespace
	}
	if len(x.GetGateways()) > 0 {
		out.Gateways = x.Gateways
	}
	if x.GetStatPrefix() != "" {
		out.StatPrefix = x.StatPrefix
	}
	return out
}

// over returns a map with the entries of two, of which more's hold before base's.
func over[V any](base, more map[string]V) map[string]V {
	if len(base) == 0 {
		return more
	}
	maps.Copy(base, more)
	return base
}
