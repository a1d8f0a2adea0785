package mesh

import (
	"net/netip"
	"slices"
	"strings"
)

// One Service may have several names: those that DNS completes, and those of Services of type ExternalName that
// lead to it. And a VirtualService may be for names that are not a Service's.

// markService marks the host of a Service that is new, changed or gone, and names that depend on whether it is there.
func (b *builder) markService(namespace, service string) {
	host := b.HostName(namespace, service)
	b.hosts[host] = true
	for _, name := range shortNames(namespace, service) {
		if b.routesOf.Get(name) != nil {
			b.hosts[name] = true
		}
	}
	for _, f := range b.routesOf.prefixed("*") {
		if MatchHost(f.host, host) || isPodsOf(f.host, namespace, service, host) {
			b.hosts[f.host] = true
		}
	}
}

// isPodsOf reports whether a pattern is how clients may call the pods of a Service, if it is headless.
func isPodsOf(pattern, namespace, service, host string) bool {
	name, ok := strings.CutPrefix(pattern, "*.")
	return ok && (name == service || name == host || slices.Contains(shortNames(namespace, service), name))
}

// shortNames returns the names with a dot that DNS completes to a Service's. They may be those of other hosts,
// where there is no such Service.
func shortNames(namespace, service string) []string {
	return []string{service + "." + namespace, service + "." + namespace + ".svc"}
}

// inFullName returns what DNS makes of such a name.
func (b *builder) inFullName(host string) (string, bool) {
	service, namespace, ok := strings.Cut(strings.TrimSuffix(host, ".svc"), ".")
	if !ok || isPattern(host) || strings.Contains(namespace, ".") {
		return "", false
	}
	return b.HostName(namespace, service), true
}

// isService reports whether some cluster has a Service of that host name.
func (b *builder) isService(host string) bool {
	namespace, service, ok := b.serviceOf(host)
	for id := range b.clusters {
		if ok && b.Service(id, namespace, service) != nil {
			return true
		}
	}
	return false
}

// routesOfService returns the VirtualServices for a Service, by any of its names.
func (b *builder) routesOfService(namespace, service string) (list []*Route) {
	host := b.HostName(namespace, service)
	for _, name := range append(shortNames(namespace, service), host) {
		if f := b.routesOf.Get(name); f != nil {
			list = append(list, f.list...)
		}
	}
	slices.SortStableFunc(list, func(x, y *Route) int { return older(&x.Meta, &y.Meta) })
	return append(list, aboutPatterns(b.routesOf, host)...)
}

// routesOfNone returns the VirtualServices for a name that is not a Service's. There are none where the name means
// Services after all: it is a pattern that some match, a Service's name in short, or an address, which may be one's.
func (b *builder) routesOfNone(host string) []*Route {
	f := b.routesOf.Get(host)
	if f == nil {
		return nil
	}
	if isPattern(host) {
		if b.matchesService(host) {
			return nil
		}
		return f.list
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if full, ok := b.inFullName(host); ok && b.isService(full) {
		return nil
	}
	return about(b.routesOf, host)
}

// matchesService reports whether a pattern matches some Service, or its pods. Everything is never a host by itself.
func (b *builder) matchesService(pattern string) bool {
	for _, c := range b.clusters {
		for namespace, sp := range c.spaces {
			for svc := range sp.services.All() {
				host := b.HostName(namespace, svc.Name)
				if MatchHost(pattern, host) || isPodsOf(pattern, namespace, svc.Name, host) {
					return true
				}
			}
		}
	}
	return pattern == "*"
}

// otherName returns the host that a Service leads to by name, if it is one of the mesh's by its form and all
// clusters agree on it; or "".
func (s *Snapshot) otherName(h *HostService) string {
	if h == nil {
		return ""
	}
	first := h.Parts[0].ExternalName
	for _, p := range h.Parts {
		if p.Type != ExternalName || p.ExternalName != first {
			return ""
		}
	}
	name := strings.TrimSuffix(strings.ToLower(first), ".")
	if _, _, ok := s.serviceOf(name); !ok {
		return ""
	}
	return name
}

// concrete returns the host whose Service another's name leads to in the end, or nil: it leads out of the mesh, in
// a circle, or nowhere.
func (b *builder) concrete(s *HostService) *Host {
	const longest = 8 // as many as resolvers follow
	name := b.otherName(s)
	for range longest {
		h := b.Host(name)
		if name == "" || h == nil || h.Service == nil {
			return nil
		}
		if next := b.otherName(h.Service); next != "" {
			name = next
			continue
		}
		if slices.ContainsFunc(h.Service.Parts, func(p *Service) bool { return p.Type == ExternalName }) {
			return nil
		}
		return h
	}
	return nil
}

// indexAlias notes what the Service of a host leads to, for it has to be made again when that changes.
func (b *builder) indexAlias(old, h *Host) {
	was, is := "", b.otherName(h.Service)
	if old != nil {
		was = b.otherName(old.Service)
	}
	if was == is {
		return
	}
	if was != "" {
		edit(b, &b.aliases, was+" "+h.Name, "", true)
	}
	if is != "" {
		edit(b, &b.aliases, is+" "+h.Name, h.Name, false)
	}
}
