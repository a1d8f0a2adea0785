package proxy

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/header"
)

// maxAttempts bounds the tries of one request whatever its policy says.
const maxAttempts = 32

// send is the router: it does what the route says.
func (s *stream) send() {
	r := s.route
	switch {
	case r == nil:
		s.flags |= accesslog.NoRouteFound
		s.reply(404, "", "route_not_found")
	case r.VirtualHost != nil && s.needsTLS(r.VirtualHost):
		s.redirectTo(&config.Redirect{Status: 301, Scheme: "https"})
	case r.Redirect != nil:
		s.redirectTo(r.Redirect)
	case r.Direct != nil:
		s.direct(r.Direct)
	default:
		s.forward(r)
	}
}

// needsTLS asks X-Forwarded-Proto, which a client cannot choose where its peers are not trusted; the
// scheme of the request is the client's own words.
func (s *stream) needsTLS(v *config.VirtualHost) bool {
	if v.RequireTLS == config.TLSNone || v.RequireTLS == config.TLSExternalOnly && s.req.First("x-envoy-internal") == "true" {
		return false
	}
	proto, _ := s.req.Header("x-forwarded-proto")
	return proto != "https"
}

func (s *stream) direct(d *config.DirectResponse) {
	body, typ := d.Body, d.ContentType
	if typ == "" {
		typ = "text/plain"
	}
	if d.Format != nil {
		s.status = d.Status
		body = d.Format.Append(nil, s.entry())
	}
	var more func(h *header.Header)
	if d.Status == 201 { // what was made is where it was asked for
		loc := s.location(&config.Redirect{})
		more = func(h *header.Header) { h.Add("location", loc) }
	}
	s.replyBody(d.Status, body, typ, "direct_response", more)
}

// redirectTo answers with a redirect.
func (s *stream) redirectTo(r *config.Redirect) {
	status, loc := r.Status, s.location(r)
	if status == 0 {
		status = 301
	}
	s.replyBody(status, nil, "", "direct_response", func(h *header.Header) { h.Add("location", loc) })
}

// location is where r leads. A scheme, host, port or path that r does not give is the request's.
func (s *stream) location(r *config.Redirect) string {
	scheme := s.req.Pseudo(header.Scheme)
	if r.Scheme != "" {
		scheme = r.Scheme
	}
	host := r.Host
	if host == "" {
		host = s.redirectHost(r, scheme)
	}
	if r.Port != 0 {
		host += ":" + strconv.Itoa(int(r.Port))
	}
	path := s.req.Pseudo(header.Path)
	before, query, hasQuery := strings.Cut(path, "?")
	switch {
	case r.Path != "":
		before = r.Path
		if strings.Contains(before, "?") {
			hasQuery = false
		}
	case r.SetPrefix && r.Prefix != "":
		before = r.Prefix + strings.TrimPrefix(before, s.route.Match.Path)
	case r.Regex != nil:
		before = r.Regex.Regex.ReplaceAllString(before, r.Regex.Substitution)
	}
	loc := scheme + "://" + host + before
	if hasQuery && !r.StripQuery {
		loc += "?" + query
	}
	return loc
}

// redirectHost is the request's host for a redirect to scheme: without its port if the redirect gives
// one, or if it is the default of the scheme that is left.
func (s *stream) redirectHost(r *config.Redirect, scheme string) string {
	all := s.req.Pseudo(header.Authority)
	host, port, ok := splitPort(all)
	was := s.req.First("x-forwarded-proto")
	if ok && (r.Port != 0 || scheme != was && (was == "http" && port == "80" || was == "https" && port == "443")) {
		return host
	}
	return all
}

// splitPort splits host and port; brackets of IPv6 stay with the host.
func splitPort(a string) (host, port string, ok bool) {
	i := strings.LastIndexByte(a, ':')
	if i < 0 || strings.IndexByte(a[i:], ']') >= 0 {
		return a, "", false
	}
	return a[:i], a[i+1:], true
}

// forward sends the request to the route's cluster.
func (s *stream) forward(r *config.Route) {
	a := r.Action
	name := ""
	if s.weighted = a.Pick(s.random >> 7); s.weighted != nil {
		name = s.weighted.Name
	} else {
		name, _ = s.req.Header(a.ClusterHeader)
	}
	s.clusterName = name
	s.grpc = isGRPC(&s.req)
	s.cl = s.snap.clusters[name]
	if s.cl == nil {
		s.flags |= accesslog.NoClusterFound
		status := a.NotFoundStatus
		if status == 0 {
			status = 503
		}
		s.reply(status, "", "cluster_not_found")
		return
	}
	s.clusterName = s.cl.cfg.Name // the stream's header may be gone when it is logged
	if !s.finishRequest(r) {
		return
	}
	b := &s.cl.breakers[a.Priority]
	if b.requests.Load() >= int64(s.cl.cfg.Breakers[a.Priority].MaxRequests) {
		s.cl.stat(s.w).RqPendingOverflow.Inc()
		s.failed(failure{reason: overflow})
		return
	}
	if a.Retry != nil {
		s.retries = a.Retry.Num
	}
	s.mirror(a)
	if a.IdleTimeout >= 0 { // shorter or longer than the connection manager's
		s.awaitActivity()
	}
	if t := a.MaxStreamDuration; t >= 0 {
		s.maxTimer.Stop()
		if t > 0 {
			s.w.loop.Arm(&s.maxTimer, t)
		}
	}
	if t := s.cl.cfg.HTTP.MaxStreamDuration; t > 0 && !s.maxTimer.Armed() {
		s.w.loop.Arm(&s.maxTimer, t)
	}
	if s.reqDone {
		s.armTimeout()
	}
	s.try()
}

// armTimeout starts the route's time-out, which counts from the end of the request.
func (s *stream) armTimeout() {
	if s.over || s.responded || s.cl == nil || s.route == nil || s.route.Action == nil || s.timeout.Armed() {
		return
	}
	if t := s.routeTimeout(); t > 0 {
		s.w.loop.Arm(&s.timeout, t)
	}
}

// routeTimeout returns how long the answer may take; 0: for ever.
func (s *stream) routeTimeout() time.Duration {
	a := s.route.Action
	t := a.Timeout
	if a.GRPCTimeoutMax >= 0 && s.grpc {
		if g, ok := grpcTimeout(s.req.First("grpc-timeout")); ok {
			t, s.deadline = g, true
			if a.GRPCTimeoutMax > 0 {
				t = min(t, a.GRPCTimeoutMax)
			}
			t = max(time.Millisecond, t-a.GRPCTimeoutOffset)
		}
	}
	return t
}

// try makes an attempt.
func (s *stream) try() {
	m, ok := s.pickHost()
	if !ok {
		s.flags |= accesslog.NoHealthyUpstream
		s.cl.stat(s.w).CxNoneHealthy.Inc()
		s.finalFailure(503, "no healthy upstream", "no_healthy_upstream")
		return
	}
	s.member, s.pod = m, nil
	s.attempt++
	s.open = true
	st := s.cl.stat(s.w)
	st.RqTotal.Inc()
	st.RqActive.Inc()
	s.cl.breakers[s.priority()].requests.Add(1)
	m.host.active.Add(1)
	m.host.counts.RqTotal.Add(1)
	m.host.pool(s.w, s.protocol, s.serverName()).acquire(s)
}

// closeAttempt takes the attempt out of the counts of active requests.
func (s *stream) closeAttempt() {
	if s.open {
		s.open = false
		s.cl.breakers[s.priority()].requests.Add(-1)
		s.member.host.active.Add(-1)
		s.cl.stat(s.w).RqActive.Dec()
	}
}

// pickHost chooses the host of the next attempt.
func (s *stream) pickHost() (member, bool) {
	if s.cl.cfg.Type == config.OriginalDST {
		addr := s.d.match.Local
		if h := s.cl.cfg.OriginalDst.Header; h != "" {
			v, ok := s.req.Header(h)
			a, err := netip.ParseAddrPort(v)
			if !ok || err != nil {
				return member{}, false
			}
			addr = a
		}
		return member{s.cl.original(addr), &noMetadata}, true
	}
	o := want{}
	if s.cl.cfg.LB == config.RingHash || s.cl.cfg.LB == config.Maglev {
		o.hash, o.hasHash = s.hash()
	}
	p := s.retryPolicy()
	if s.attempt > 0 && (s.avoid || p != nil && (p.PreviousHosts || p.PreviousPriorities > 0)) {
		o.attempts = 5
		if p != nil {
			o.attempts = max(o.attempts, p.HostAttempts)
		}
		o.reject = func(h *host) bool {
			if !s.avoid && (p == nil || !p.PreviousHosts) {
				return false
			}
			for _, t := range s.tried {
				if t == h {
					return true
				}
			}
			return false
		}
		if p != nil && p.PreviousPriorities > 0 {
			// After so many attempts those made until then count, then again after as many.
			if done := s.attempt / p.PreviousPriorities * p.PreviousPriorities; done > 0 {
				for _, h := range s.tried[:min(done, len(s.tried))] {
					o.without |= s.cl.prioritiesOf(h)
				}
			}
		}
		if o.hasHash {
			o.hasHash = false // the hash would lead to the same host
		}
	}
	m, ok := s.cl.choose(s.w, o)
	if ok && p != nil && (p.PreviousHosts || p.PreviousPriorities > 0) {
		s.tried = append(s.tried, m.host)
	}
	return m, ok
}

// hash returns the hash of the route's hash policies, if any applies.
func (s *stream) hash() (h uint64, ok bool) {
	for _, p := range s.route.Action.Hash {
		v, found := "", false
		switch p.Kind {
		case config.HashHeader:
			v, found = s.req.Header(p.Name)
		case config.HashSourceIP:
			v, found = s.remote.Addr().String(), true
		case config.HashQuery:
			v, found = query(s.req.Pseudo(header.Path), p.Name)
		case config.HashCookie:
			v, found = cookie(s.req.First("cookie"), p.Name)
			if !found && p.TTL >= 0 {
				v, found = s.newCookie(&p), true
			}
		}
		if !found {
			continue
		}
		h = h<<1 | h>>63
		h ^= hashString(v)
		ok = true
		if p.Terminal {
			break
		}
	}
	return h, ok
}

// newCookie makes a cookie that will bring the client's next requests to the same host.
func (s *stream) newCookie(p *config.HashPolicy) string {
	v := strconv.FormatUint(s.random, 16)
	s.cookie = p.Name + "=" + strconv.Quote(v)
	if p.TTL > 0 {
		s.cookie += "; Max-Age=" + strconv.Itoa(int(p.TTL/time.Second))
	}
	if p.Path != "" {
		s.cookie += "; Path=" + p.Path
	}
	s.cookie += p.Attributes + "; HttpOnly"
	return v
}

func query(path, name string) (string, bool) {
	_, q, _ := strings.Cut(path, "?")
	for q != "" {
		var kv string
		kv, q, _ = strings.Cut(q, "&")
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v, true
		}
	}
	return "", false
}

func cookie(c, name string) (string, bool) {
	for c != "" {
		var kv string
		kv, c, _ = strings.Cut(c, ";")
		if k, v, ok := strings.Cut(strings.TrimSpace(kv), "="); ok && k == name {
			return strings.Trim(v, `"`), true
		}
	}
	return "", false
}

// serverName returns the SNI where it depends on the request; empty: the TLS context's.
func (s *stream) serverName() string {
	t := s.member.host.tls
	switch {
	case t == nil:
		return ""
	case t.AutoHostSNI && s.member.ep.Hostname != "":
		return s.member.ep.Hostname
	case s.cl.cfg.HTTP.AutoSNI:
		host, _, _ := splitPort(s.req.Pseudo(header.Authority))
		return host // good as long as the request's head is
	}
	return ""
}

// beforeAttempt sets the headers that differ from attempt to attempt.
func (s *stream) beforeAttempt() {
	r := s.route
	if r.VirtualHost != nil && r.VirtualHost.AttemptCount {
		s.req.Set("x-envoy-attempt-count", strconv.Itoa(s.attempt))
	}
	if r.Action.Host.Auto && s.member.ep.Hostname != "" {
		if !s.suppresses() && !s.req.Has("x-envoy-original-host") {
			s.req.Set("x-envoy-original-host", s.req.Pseudo(header.Authority))
		}
		s.req.SetPseudo(header.Authority, s.member.ep.Hostname)
	}
}

// failed handles an attempt that got no response.
func (s *stream) failed(f failure) {
	s.closeAttempt()
	s.transport = underscore(f.transport)
	if s.retryReset(f.reason) {
		return
	}
	switch f.reason {
	case connectFailed, connectTimeout:
		s.flags |= accesslog.UpstreamConnectionFailure
	case overflow:
		s.flags |= accesslog.UpstreamOverflow
	case terminated:
		s.flags |= accesslog.UpstreamConnectionTermination
	case remoteReset, refused:
		s.flags |= accesslog.UpstreamRemoteReset
	case protocolError:
		s.flags |= accesslog.UpstreamProtocolError
	}
	body := "upstream connect error or disconnect/reset before headers. "
	if s.attempt > 1 {
		body = "upstream connect error or disconnect/reset before headers. retried and the latest "
	}
	body += "reset reason: " + f.reason.text()
	details := underscore(f.reason.text())
	if f.transport != "" {
		details += "|" + s.transport
	}
	status := 503
	if f.reason == protocolError {
		status = 502
	}
	details = "upstream_reset_before_response_started{" + details + "}"
	if f.reason == overflow && !s.suppresses() { // tells peers not to try again at once
		s.detach()
		s.replyBody(status, []byte(body), "text/plain", details, func(h *header.Header) { h.Add("x-envoy-overloaded", "true") })
		return
	}
	s.finalFailure(status, body, details)
}

// finalFailure answers that there is no answer.
func (s *stream) finalFailure(status int, body, details string) {
	s.detach()
	s.reply(status, body, details)
}

// onTimeout ends a request whose answer, or whose own body, took too long.
func (s *stream) onTimeout() {
	if !s.reqDone {
		s.detach()
		s.reply(408, "request timeout", "request_overall_timeout")
		return
	}
	s.cl.stat(s.w).RqTimeout.Inc()
	if s.up != nil {
		s.member.host.counts.RqTimeout.Add(1)
		s.result(0)
	}
	if s.deadline { // the client's own, which it takes for its own if it comes from here
		s.pastDeadline()
		return
	}
	s.flags |= accesslog.UpstreamRequestTimeout
	if s.responded {
		s.details = "response_timeout"
		s.end(false)
		return
	}
	s.finalFailure(504, "upstream request timeout", "response_timeout")
}

// onPerTry ends an attempt that took too long.
func (s *stream) onPerTry() {
	s.cl.stat(s.w).RqPerTryTimeout.Inc()
	s.member.host.counts.RqTimeout.Add(1)
	s.result(0)
	s.detach()
	s.closeAttempt()
	if s.retryTimeout() {
		return
	}
	s.flags |= accesslog.UpstreamRequestTimeout
	s.finalFailure(504, "upstream request timeout", "upstream_per_try_timeout")
}

func underscore(t string) string { return strings.ReplaceAll(t, " ", "_") }

func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return true
	}
	return false
}

// mirror sends copies of the request to other clusters and ignores the answers.
func (s *stream) mirror(a *config.RouteAction) {
	if !s.reqDone || !s.keep || s.upgrade || s.connect {
		return // a tunnel's bytes are not a body; reqComplete calls again; a body that is not kept cannot be copied
	}
	for i := range a.Mirrors {
		m := &a.Mirrors[i]
		if m.Fraction != nil && !m.Fraction.Takes(s.w.random()) {
			continue
		}
		name := m.Cluster
		if m.ClusterHeader != "" {
			name, _ = s.req.Header(m.ClusterHeader)
		}
		if c := s.snap.clusters[name]; c != nil {
			s.w.shadow(s, c, m)
		}
	}
}
