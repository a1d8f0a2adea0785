package proxy

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/header"
)

// admit checks and completes the request's headers as Envoy's connection manager does before it
// routes. It reports false if it has answered.
func (s *stream) admit() bool {
	h := &s.req
	scheme := "http"
	if s.d.tls != nil {
		scheme = "https"
	}
	s.forwarded(scheme)
	if !s.target() {
		return false
	}
	s.requestID()
	s.clientCert()
	if v := s.hcm.Via; v != "" {
		h.Add("via", v)
	}
	return true
}

// edgeHeaders are of this hop's own making: an outside client must not set them.
var edgeHeaders = []string{
	"x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
	"x-envoy-retry-on", "x-envoy-retry-grpc-on", "x-envoy-max-retries", "x-envoy-upstream-alt-stat-name",
	"x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms",
	"x-envoy-upstream-rq-timeout-alt-response", "x-envoy-expected-rq-timeout-ms", "x-envoy-force-trace",
	"x-envoy-ip-tags", "x-envoy-original-url", "x-envoy-hedge-on-per-try-timeout",
}

// forwarded handles X-Forwarded-For, X-Forwarded-Proto and what hangs on them.
func (s *stream) forwarded(scheme string) {
	h, m := &s.req, s.hcm
	peer := s.d.match.Remote
	s.remote = peer
	xff, hasXFF := h.Header("x-forwarded-for")
	single := false
	if !m.UseRemoteAddress || m.TrustedHops > 0 {
		hops := int(m.TrustedHops)
		if m.UseRemoteAddress {
			hops--
		}
		if a, only, ok := fromXFF(xff, hops); ok {
			s.remote, single = netip.AddrPortFrom(a, 0), only
		}
	} else {
		single = !hasXFF
	}
	internal := single && s.remote.Addr().IsPrivate()
	if m.UseRemoteAddress {
		if !m.SkipXFFAppend {
			b := append(s.w.scratch[:0], xff...)
			if hasXFF {
				b = append(b, ',')
			}
			if b = peer.Addr().AppendTo(b); m.AppendXFPort {
				b = strconv.AppendUint(append(b, ':'), uint64(peer.Port()), 10)
			}
			h.Set("x-forwarded-for", view(b))
			s.w.scratch = b[:0]
		}
		if !internal {
			for _, n := range edgeHeaders {
				h.Remove(n)
			}
			b := s.remote.Addr().AppendTo(s.w.scratch[:0])
			h.Set("x-envoy-external-address", view(b))
		}
	}
	if internal {
		h.Set("x-envoy-internal", "true")
	} else {
		h.Remove("x-envoy-internal")
	}
	proto := h.First("x-forwarded-proto")
	if m.UseRemoteAddress && m.TrustedHops == 0 || proto != "http" && proto != "https" {
		h.Set("x-forwarded-proto", scheme)
		proto = scheme
	}
	switch {
	case m.SchemeOverwrite != "":
		proto = m.SchemeOverwrite
		h.Set("x-forwarded-proto", proto)
	case h.Pseudo(header.Scheme) == "http" || h.Pseudo(header.Scheme) == "https":
		proto = h.Pseudo(header.Scheme)
	}
	h.SetPseudo(header.Scheme, proto)
}

// fromXFF returns the address that is hops before the last in X-Forwarded-For, and whether it is
// the only one.
func fromXFF(v string, hops int) (a netip.Addr, only, ok bool) {
	if v == "" {
		return a, true, false
	}
	only = !strings.Contains(v, ",")
	for ; hops > 0; hops-- {
		i := strings.LastIndexByte(v, ',')
		if i < 0 {
			return a, false, false
		}
		v = v[:i]
	}
	if i := strings.LastIndexByte(v, ','); i >= 0 {
		v = v[i+1:]
	}
	v = strings.TrimSpace(v)
	if ap, err := netip.ParseAddrPort(v); err == nil {
		return ap.Addr(), only, true
	}
	a, err := netip.ParseAddr(strings.Trim(v, "[]"))
	return a, only, err == nil
}

// target checks and normalizes path and authority. It reports false if it has answered.
func (s *stream) target() bool {
	h, m := &s.req, s.hcm
	path := h.Pseudo(header.Path)
	if strings.IndexByte(path, '#') >= 0 {
		s.reply(400, "", "path_contains_fragment")
		return false
	}
	if path != "" && path[0] == '/' {
		if m.EscapedSlashes != config.SlashesKeep && hasEscapedSlash(path) {
			switch m.EscapedSlashes {
			case config.SlashesReject:
				s.reply(400, "", "path_normalization_failed")
				return false
			case config.SlashesUnescapeForward:
				h.SetPseudo(header.Path, unescapeSlashes(path))
			case config.SlashesUnescapeRedirect:
				loc := unescapeSlashes(path)
				s.replyBody(307, nil, "", "path_normalization_failed", func(h *header.Header) { h.Add("location", loc) })
				return false
			}
			path = h.Pseudo(header.Path)
		}
		if m.NormalizePath && needsNormalizing(path) {
			p, ok := normalizePath(path)
			if !ok {
				s.reply(400, "", "path_normalization_failed")
				return false
			}
			h.SetPseudo(header.Path, p)
			path = h.Pseudo(header.Path)
		}
		if m.MergeSlashes {
			if p, _, _ := strings.Cut(path, "?"); strings.Contains(p, "//") {
				h.SetPseudo(header.Path, mergeSlashes(path))
			}
		}
	}
	host := h.Pseudo(header.Authority)
	if m.StripHostPort != config.HostPortKeep {
		if name, port, ok := splitPort(host); ok {
			n, _ := strconv.Atoi(port)
			if m.StripHostPort == config.HostPortAny || n == int(s.d.match.Local.Port()) {
				h.SetPseudo(header.Authority, name)
			}
		}
	}
	if m.StripHostDot {
		name, port, ok := splitPort(h.Pseudo(header.Authority))
		if n, cut := strings.CutSuffix(name, "."); cut {
			if ok {
				n += ":" + port
			}
			h.SetPseudo(header.Authority, n)
		}
	}
	return true
}

func (s *stream) requestID() {
	if !s.hcm.GenerateRequestID {
		return
	}
	h := &s.req
	edge := s.hcm.UseRemoteAddress && !h.Has("x-envoy-internal")
	if h.Has("x-request-id") && (!edge || s.hcm.PreserveRequestID) {
		return
	}
	b := appendUUID(s.w.scratch[:0], s.w.random(), s.w.random())
	h.Set("x-request-id", view(b))
}

// clientCert handles X-Forwarded-Client-Cert.
func (s *stream) clientCert() {
	const name = "x-forwarded-client-cert"
	h, m, t := &s.req, s.hcm, s.d.tls
	if m.ForwardCert == config.CertAlwaysForwardOnly {
		return
	}
	if t == nil || t.peer == nil || m.ForwardCert == config.CertSanitize {
		h.Remove(name)
		return
	}
	if m.ForwardCert == config.CertForwardOnly {
		return
	}
	if t.xfcc == "" {
		t.xfcc = s.w.p.xfcc(s.d, &m.CertDetails)
	}
	if old, ok := h.Header(name); ok && m.ForwardCert == config.CertAppendForward {
		h.Set(name, old+","+t.xfcc)
		return
	}
	h.Set(name, t.xfcc)
}

// xfcc returns one element of X-Forwarded-Client-Cert.
func (p *Proxy) xfcc(d *downstream, c *config.CertDetails) string {
	t := d.tls
	var parts []string
	if by := p.tls.localURI(d.chain.TLS); by != "" {
		parts = append(parts, "By="+by)
	}
	parts = append(parts, "Hash="+t.info.PeerFingerprint256)
	if c.Cert {
		parts = append(parts, `Cert="`+certPEM(t.peer)+`"`)
	}
	if c.Chain {
		parts = append(parts, `Chain="`+certPEM(t.chain...)+`"`)
	}
	if c.Subject {
		parts = append(parts, `Subject="`+strings.ReplaceAll(t.info.PeerSubject, `"`, `\"`)+`"`)
	}
	if c.URI {
		for _, u := range t.peer.URIs {
			parts = append(parts, "URI="+u.String())
		}
	}
	if c.DNS {
		for _, n := range t.peer.DNSNames {
			parts = append(parts, "DNS="+n)
		}
	}
	return strings.Join(parts, ";")
}

// finishRequest changes the request as the route says. It reports false if it has answered.
func (s *stream) finishRequest(r *config.Route) bool {
	h, a := &s.req, r.Action
	if s.connect && !s.upgradeAllowed() {
		s.reply(403, "", "upgrade_failed")
		return false
	}
	if !s.suppresses() {
		if t := a.Timeout; t > 0 {
			h.Set("x-envoy-expected-rq-timeout-ms", view(strconv.AppendInt(s.w.scratch[:0], int64(t/time.Millisecond), 10)))
		}
	}
	if s.hcm.Tracing && r.Decorator != "" && s.d.listener.Direction != config.Inbound && r.DecoratorPropagate {
		h.Set("x-envoy-decorator-operation", r.Decorator)
	}
	if wc := s.weighted; wc != nil {
		s.mutate(h, wc.RequestHeaders)
		if wc.HostRewrite != "" {
			h.SetPseudo(header.Authority, wc.HostRewrite)
		}
	}
	s.mutate(h, r.RequestHeaders)
	s.rewritePath(r)
	s.rewriteHost(&a.Host)
	if s.acceptsTrailers && isGRPC(h) {
		h.Set("te", "trailers")
	}
	return true
}

func (s *stream) suppresses() bool {
	for i := range s.hcm.Filters {
		if r, ok := s.hcm.Filters[i].Config.(*config.RouterFilter); ok {
			return r.SuppressEnvoyHeaders
		}
	}
	return false
}

func (s *stream) rewritePath(r *config.Route) {
	h, a := &s.req, r.Action
	if a.PrefixRewrite == "" && a.RegexRewrite == nil {
		return
	}
	old := h.Pseudo(header.Path)
	path, query, hasQuery := strings.Cut(old, "?")
	switch {
	case a.RegexRewrite != nil:
		path = a.RegexRewrite.Regex.ReplaceAllString(path, a.RegexRewrite.Substitution)
	case r.Match.Kind == config.PathRegex:
		path = a.PrefixRewrite
	default:
		path = a.PrefixRewrite + path[min(len(path), len(r.Match.Path)):]
	}
	if hasQuery {
		path += "?" + query
	}
	h.Set("x-envoy-original-path", old)
	h.SetPseudo(header.Path, path)
}

func (s *stream) rewriteHost(r *config.HostRewrite) {
	h := &s.req
	was := h.Pseudo(header.Authority)
	to := r.Literal
	if r.Header != "" {
		to, _ = h.Header(r.Header)
	}
	if r.Path != nil {
		path, _ := config.SplitPath(h.Pseudo(header.Path))
		to = r.Path.Regex.ReplaceAllString(path, r.Path.Substitution)
	}
	if to == "" {
		return
	}
	if r.AppendXFHost {
		h.Add("x-forwarded-host", was)
	}
	h.SetPseudo(header.Authority, to)
}

// finishResponseHead changes the response as the configuration says.
func (s *stream) finishResponseHead() {
	h := &s.resp
	if !s.suppresses() {
		since := s.reqEnd
		if since.IsZero() {
			since = s.start
		}
		ms := max(0, s.first.Sub(since).Milliseconds())
		h.Set("x-envoy-upstream-service-time", view(strconv.AppendInt(s.w.scratch[:0], ms, 10)))
	}
	switch s.hcm.ServerHeader {
	case config.ServerOverwrite:
		h.Set("server", s.hcm.ServerName)
	case config.ServerAppendIfAbsent:
		if !h.Has("server") {
			h.Add("server", s.hcm.ServerName)
		}
	}
	if !h.Has("date") {
		h.Add("date", s.w.date())
	}
	if r := s.route; r != nil {
		if v := r.VirtualHost; v != nil && v.AttemptCountResponse {
			h.Set("x-envoy-attempt-count", strconv.Itoa(s.attempt))
		}
		if s.weighted != nil {
			s.mutate(h, s.weighted.ResponseHeaders)
		}
		s.mutate(h, r.ResponseHeaders)
	}
	if s.hcm.Via != "" {
		h.Add("via", s.hcm.Via)
	}
	if s.hcm.RequestIDInResponse {
		h.Set("x-request-id", s.req.First("x-request-id"))
	}
	if s.cookie != "" {
		h.Add("set-cookie", s.cookie)
	}
	s.corsResponse()
}

// mutate applies header mutations in order.
func (s *stream) mutate(h *header.Header, ms []config.HeaderMutation) {
	for i := range ms {
		m := &ms[i]
		if m.Remove {
			h.Remove(m.Name)
			continue
		}
		v := m.Value
		if m.Format != nil {
			b := m.Format.Append(s.w.scratch[:0], s.entry())
			s.w.scratch = b[:0]
			if v = view(b); !header.ValidValue(v) {
				continue
			}
		}
		if v == "" && !m.KeepEmpty {
			continue
		}
		switch m.Name {
		case "host", ":authority":
			h.SetPseudo(header.Authority, v)
			continue
		case ":path":
			h.SetPseudo(header.Path, v)
			continue
		case ":method":
			h.SetPseudo(header.Method, v)
			continue
		case ":scheme":
			h.SetPseudo(header.Scheme, v)
			continue
		case ":status":
			continue
		}
		switch has := h.Has(m.Name); {
		case m.Action == config.HeaderOverwrite, m.Action == config.HeaderOverwriteIfExists && has:
			h.Set(m.Name, v)
		case m.Action == config.HeaderAppend, m.Action == config.HeaderAddIfAbsent && !has:
			h.Add(m.Name, v)
		}
	}
}

// view is b as a string, good as long as b does not change.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

const hexDigits = "0123456789abcdef"

// appendUUID appends a random UUID (version 4).
func appendUUID(b []byte, x, y uint64) []byte {
	x = x&^0xf000 | 0x4000
	y = y&^(0xc<<60) | 0x8<<60
	for i := 60; i >= 0; i -= 4 {
		b = append(b, hexDigits[x>>uint(i)&15])
		if i == 32 || i == 16 || i == 0 {
			b = append(b, '-')
		}
	}
	for i := 60; i >= 0; i -= 4 {
		b = append(b, hexDigits[y>>uint(i)&15])
		if i == 48 {
			b = append(b, '-')
		}
	}
	return b
}
