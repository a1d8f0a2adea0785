package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// domainIndex finds virtual hosts by Host.
type domainIndex struct {
	exact          map[string]*VirtualHost
	suffix, prefix map[string]*VirtualHost // without the "*"
	suffixLen      []int                   // the lengths that occur, longest first
	prefixLen      []int
	any            *VirtualHost
}

func (x *domainIndex) add(domain string, h *VirtualHost) error {
	d := strings.ToLower(domain)
	m, key := &x.exact, d
	switch {
	case d == "*":
		if x.any != nil {
			return fmt.Errorf("%q is also a domain of virtual host %q", domain, x.any.Name)
		}
		x.any = h
		return nil
	case d == "":
		return fmt.Errorf("is empty")
	case d[0] == '*':
		m, key = &x.suffix, d[1:]
		x.suffixLen = append(x.suffixLen, len(key))
	case d[len(d)-1] == '*':
		m, key = &x.prefix, d[:len(d)-1]
		x.prefixLen = append(x.prefixLen, len(key))
	}
	if *m == nil {
		*m = map[string]*VirtualHost{}
	}
	if o := (*m)[key]; o != nil {
		return fmt.Errorf("%q is also a domain of virtual host %q", domain, o.Name)
	}
	(*m)[key] = h
	return nil
}

func (x *domainIndex) sort() {
	for _, l := range []*[]int{&x.suffixLen, &x.prefixLen} {
		slices.SortFunc(*l, func(a, b int) int { return cmp.Compare(b, a) })
		*l = slices.Compact(*l)
	}
}

// VirtualHost returns the virtual host for a Host header: exact, then longest suffix wildcard, longest
// prefix wildcard, then "*"; nil if there is none. A wildcard stands for at least one character.
func (t *RouteTable) VirtualHost(host string) *VirtualHost {
	if t.IgnorePort {
		host = stripPort(host)
	}
	host = lower(host)
	x := &t.domains
	if h := x.exact[host]; h != nil {
		return h
	}
	for _, n := range x.suffixLen {
		if n < len(host) {
			if h := x.suffix[host[len(host)-n:]]; h != nil {
				return h
			}
		}
	}
	for _, n := range x.prefixLen {
		if n < len(host) {
			if h := x.prefix[host[:n]]; h != nil {
				return h
			}
		}
	}
	return x.any
}

// lower returns s in lower case, itself if it is so already.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}

func stripPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.IndexByte(host[i:], ']') >= 0 {
		return host
	}
	if host[0] != '[' && strings.IndexByte(host[:i], ':') >= 0 {
		return host // an IPv6 address without brackets
	}
	return host[:i]
}

// Match returns the route for a request, or nil (404 NR). random decides fractions.
func (t *RouteTable) Match(r Request, random uint64) *Route {
	host, _ := r.Header(":authority")
	h := t.VirtualHost(host)
	if h == nil {
		return nil
	}
	return h.Match(r, random)
}

// Match returns the first of the virtual host's routes that takes the request, or nil.
func (h *VirtualHost) Match(r Request, random uint64) *Route {
	target, hasPath := r.Header(":path")
	path, query := SplitPath(target)
	for _, x := range h.Routes {
		if (hasPath || x.Match.Kind == PathConnect) && x.Match.takes(r, path, query, random) {
			return x
		}
	}
	return nil
}

// SplitPath cuts a request target into path and query, without "?" and without a fragment.
func SplitPath(target string) (path, query string) {
	if i := strings.IndexByte(target, '#'); i >= 0 {
		target = target[:i]
	}
	path, query, _ = strings.Cut(target, "?")
	return path, query
}

func (m *RouteMatch) takes(r Request, path, query string, random uint64) bool {
	if !m.path(r, path) {
		return false
	}
	for i := range m.Headers {
		if !m.Headers[i].Match(r) {
			return false
		}
	}
	for i := range m.Query {
		if !m.Query[i].match(param(query, m.Query[i].Name, '&')) {
			return false
		}
	}
	for i := range m.Cookies {
		cookies, _ := r.Header("cookie")
		v, ok := param(cookies, m.Cookies[i].Name, ';')
		if !ok || !m.Cookies[i].match(v, ok) {
			return false
		}
	}
	if m.GRPC {
		if ct, _ := r.Header("content-type"); !isGRPC(ct) {
			return false
		}
	}
	if m.TLSPresented != nil || m.TLSValidated != nil {
		var presented, validated bool
		if t, ok := r.(TLSRequest); ok {
			presented, validated = t.ClientCertificate()
		}
		if m.TLSPresented != nil && *m.TLSPresented != presented || m.TLSValidated != nil && *m.TLSValidated != validated {
			return false
		}
	}
	return m.Fraction == nil || m.Fraction.Takes(random)
}

func isGRPC(contentType string) bool {
	const g = "application/grpc"
	return strings.HasPrefix(contentType, g) && (len(contentType) == len(g) || contentType[len(g)] == '+')
}

func (m *RouteMatch) path(r Request, path string) bool {
	switch m.Kind {
	case PathConnect:
		method, _ := r.Header(":method")
		return method == "CONNECT"
	case PathRegex:
		return m.Regex.MatchString(path)
	case PathExact:
		return m.equal(path, m.Path)
	case PathSeparatedPrefix:
		n := len(m.Path)
		return len(path) >= n && m.equal(path[:n], m.Path) && (len(path) == n || path[n] == '/')
	}
	return len(path) >= len(m.Path) && m.equal(path[:len(m.Path)], m.Path)
}

func (m *RouteMatch) equal(a, b string) bool {
	if m.IgnoreCase {
		return equalFoldASCII(a, b)
	}
	return a == b
}

// Match reports whether the request's header matches. Of several fields of the name one must.
func (h *HeaderMatcher) Match(r Request) bool {
	v, ok := r.Nth(h.Name, 0)
	if h.Present {
		return ok != h.Invert
	}
	if !ok && !h.MissingAsEmpty {
		return false
	}
	found := h.takes(v)
	for i := 1; ok && !found; i++ {
		if v, ok = r.Nth(h.Name, i); ok {
			found = h.takes(v)
		}
	}
	return found != h.Invert
}

func (h *HeaderMatcher) takes(v string) bool {
	if h.Range != nil {
		n, err := strconv.ParseInt(v, 10, 64)
		return err == nil && h.Range.Start <= n && n < h.Range.End
	}
	return h.Value.Match(v)
}

func (q *QueryMatcher) match(v string, ok bool) bool {
	if q.Present {
		return ok != q.Invert
	}
	return ok && q.Value.Match(v) != q.Invert
}

// param returns the first value of a name in "a=b&c=d", or with ';' in "a=b; c=d".
func param(s, name string, sep byte) (string, bool) {
	for len(s) > 0 {
		var p string
		if i := strings.IndexByte(s, sep); i >= 0 {
			p, s = s[:i], s[i+1:]
		} else {
			p, s = s, ""
		}
		if sep == ';' {
			p = strings.TrimSpace(p)
		}
		if !strings.HasPrefix(p, name) {
			continue
		}
		switch {
		case len(p) == len(name):
			return "", true
		case p[len(name)] == '=':
			v := p[len(name)+1:]
			if sep == ';' && len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
				v = v[1 : len(v)-1]
			}
			return v, true
		}
	}
	return "", false
}
