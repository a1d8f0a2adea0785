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
	addVia(h, s.hcm.Via)
	return true
}

// outsideHeaders tell a proxy what to do: a client that is not internal must not set them.
var outsideHeaders = []string{
	"x-envoy-retry-on", "x-envoy-retry-grpc-on", "x-envoy-max-retries", "x-envoy-retriable-status-codes",
	"x-envoy-retriable-header-names", "x-envoy-upstream-alt-stat-name", "x-envoy-upstream-rq-timeout-ms",
	"x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response", "x-envoy-force-trace",
	"x-envoy-ip-tags", "x-envoy-original-url", "x-envoy-hedge-on-per-try-timeout", "x-envoy-upstream-stream-duration-ms",
	"x-envoy-expected-rq-timeout-ms",
}

// edgeHeaders are of this hop's own making: at the edge, a client must not set them either.
var edgeHeaders = []string{
	"x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
	"x-envoy-original-path", "x-envoy-original-host",
}

// forwarded handles X-Forwarded-For, X-Forwarded-Proto and what hangs on them.
func (s *stream) forwarded(scheme string) {
	h, m := &s.req, s.hcm
	peer := s.d.match.Remote
	s.remote = peer
	xff, hasXFF := h.Header("x-forwarded-for")
	hasXFF = xff != "" // an empty one says nothing
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
	internal := single && m.Internal(s.remote.Addr())
	if m.UseRemoteAddress {
		if !m.SkipXFFAppend {
			b := append(s.w.scratch[:0], xff...)
			if hasXFF {
				b = append(b, ',')
			}
			b = peer.Addr().AppendTo(b)
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
		for _, n := range outsideHeaders {
			h.Remove(n)
		}
	}
	if m.AppendXFPort && (m.UseRemoteAddress && m.TrustedHops == 0 || !h.Has("x-forwarded-port")) {
		h.Set("x-forwarded-port", view(strconv.AppendUint(s.w.scratch[:0], uint64(s.d.match.Local.Port()), 10)))
	}
	s.scheme(scheme)
}

// scheme settles :scheme and X-Forwarded-Proto, where transport is how the client's bytes came.
func (s *stream) scheme(transport string) {
	h, m := &s.req, s.hcm
	if m.UseRemoteAddress && m.TrustedHops == 0 || !h.Has("x-forwarded-proto") {
		h.Set("x-forwarded-proto", transport)
	}
	if m.SchemeOverwrite != "" {
		h.Set("x-forwarded-proto", m.SchemeOverwrite)
		h.SetPseudo(header.Scheme, m.SchemeOverwrite)
		return
	}
	if v := h.Pseudo(header.Scheme); v == "http" || v == "https" {
		return
	}
	if v := h.First("x-forwarded-proto"); v == "http" || v == "https" {
		transport = v
	}
	h.SetPseudo(header.Scheme, transport)
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
	a, err := netip.ParseAddr(strings.TrimSpace(v))
	return a, only, err == nil
}

// target checks and normalizes path and authority. It reports false if it has answered.
func (s *stream) target() bool {
	h, m := &s.req, s.hcm
	path := h.Pseudo(header.Path)
	if strings.IndexByte(path, '#') >= 0 {
		s.reply(400, "", "path_normalization_failed")
		return false
	}
	if path != "" && path[0] == '/' && !s.cleanPath(path) {
		return false
	}
	host := h.Pseudo(header.Authority)
	if m.StripHostPort != config.HostPortKeep {
		name, port, ok := splitPort(host)
		if n, err := strconv.ParseUint(port, 10, 16); ok && err == nil {
			if m.StripHostPort == config.HostPortAny || uint16(n) == s.d.match.Local.Port() {
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

// cleanPath unescapes, normalizes and merges as the connection manager says. It reports false if it has
// answered. A redirect goes to what comes out in the end: half of it could lead elsewhere.
func (s *stream) cleanPath(path string) bool {
	m, was, redirect := s.hcm, path, false
	if m.EscapedSlashes != config.SlashesKeep && hasEscapedSlash(path) {
		if m.EscapedSlashes == config.SlashesReject {
			s.reply(400, "", "path_normalization_failed")
			return false
		}
		redirect = m.EscapedSlashes == config.SlashesUnescapeRedirect
		path = unescapeSlashes(path)
	}
	if m.NormalizePath && needsNormalizing(path) {
		p, ok := normalizePath(path)
		if !ok {
			s.reply(400, "", "path_normalization_failed")
			return false
		}
		path = p
	}
	if m.MergeSlashes {
		if p, _, _ := strings.Cut(path, "?"); strings.Contains(p, "//") {
			path = mergeSlashes(path)
		}
	}
	if redirect {
		// A browser takes two slashes, also leaning ones, for the beginning of another host.
		for len(path) > 1 && (path[1] == '/' || path[1] == '\\') {
			path = "/" + path[2:]
		}
		s.req.SetPseudo(header.Path, path)
		s.replyBody(307, nil, "", "path_normalization_failed", func(h *header.Header) { h.Add("location", path) })
		return false
	}
	if len(path) != len(was) || path != was {
		s.req.SetPseudo(header.Path, path)
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
		parts = append(parts, "By="+quoteXFCC(by))
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
		if len(t.peer.URIs) == 0 {
			parts = append(parts, "URI=")
		}
		for _, u := range t.peer.URIs {
			parts = append(parts, "URI="+quoteXFCC(u.String()))
		}
	}
	if c.DNS {
		for _, n := range t.peer.DNSNames {
			parts = append(parts, "DNS="+quoteXFCC(n))
		}
	}
	return strings.Join(parts, ";")
}

// quoteXFCC writes a name that is in a certificate so that it can be nothing but a value: whoever had it
// signed chose it.
func quoteXFCC(v string) string {
	if !header.ValidValue(v) {
		v = printable(v)
	}
	if !strings.ContainsAny(v, `,;="`) {
		return v
	}
	return `"` + strings.ReplaceAll(v, `"`, `\"`) + `"`
}

// finishRequest changes the request as the route says. It reports false if it has answered.
func (s *stream) finishRequest(r *config.Route) bool {
	h, a := &s.req, r.Action
	if s.connect && !s.upgradeAllowed() {
		s.reply(403, "", "upgrade_failed")
		return false
	}
	if !s.suppresses() {
		t := a.Timeout
		if p := a.Retry; p != nil && p.PerTryTimeout > 0 && (t == 0 || p.PerTryTimeout < t) {
			t = p.PerTryTimeout
		}
		if a.GRPCTimeoutMax >= 0 && isGRPC(h) && h.Has("grpc-timeout") {
			t = 0 // the client's own holds, and it knows that
		}
		if t > 0 {
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
	if s.acceptsTrailers {
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
	if !s.suppresses() {
		h.Set("x-envoy-original-host", was)
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
	if r := s.route; r != nil {
		if v := r.VirtualHost; v != nil && v.AttemptCountResponse {
			h.Set("x-envoy-attempt-count", strconv.Itoa(s.attempt))
		}
		if s.weighted != nil {
			s.mutate(h, s.weighted.ResponseHeaders)
		}
		s.mutate(h, r.ResponseHeaders)
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
	addVia(h, s.hcm.Via)
	if id := s.req.First("x-request-id"); s.hcm.RequestIDInResponse && id != "" {
		h.Set("x-request-id", id)
	}
	if s.cookie != "" {
		h.Add("set-cookie", s.cookie)
	}
	s.corsResponse()
}

// addVia appends this hop to Via, if it is configured to.
func addVia(h *header.Header, via string) {
	if via == "" {
		return
	}
	if old, ok := h.Header("via"); ok {
		via = old + ", " + via
	}
	h.Set("via", via)
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
