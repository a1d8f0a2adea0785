package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// scope is what a table and a virtual host hand down to their routes.
type scope struct {
	request, response []HeaderMutation
	filters           map[string]FilterConfig
	mirrors           []Mirror
	retry             *RetryPolicy
	buffer            uint32
	specificLast      bool // most_specific_header_mutations_wins
}

func compileRoutes(m *route.RouteConfiguration) (*RouteTable, error) {
	t := &RouteTable{Name: m.Name, IgnorePort: m.IgnorePortInHostMatching, MaxDirectBody: orUint32(m.MaxDirectResponseBodySizeBytes, 4096)}
	s, err := scope{specificLast: m.MostSpecificHeaderMutationsWins}.within(m)
	if err != nil {
		return nil, err
	}
	for i, v := range m.VirtualHosts {
		h, err := compileVirtualHost(v, s, t.MaxDirectBody)
		if err != nil {
			return nil, inIndex("virtual_hosts", i, err)
		}
		for j, d := range v.Domains {
			if err := t.domains.add(d, h); err != nil {
				return nil, inIndex("virtual_hosts", i, inIndex("domains", j, err))
			}
		}
		t.VirtualHosts = append(t.VirtualHosts, h)
	}
	t.domains.sort()
	return t, nil
}

// level is what tables, virtual hosts, routes and weighted clusters have in common.
type level interface {
	GetRequestHeadersToAdd() []*core.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*core.HeaderValueOption
	GetResponseHeadersToRemove() []string
	GetTypedPerFilterConfig() map[string]*anypb.Any
}

// within returns the scope inside l. Header mutations of the most specific level come first, so that
// the least specific has the last word, or the other way round.
func (s scope) within(l level) (scope, error) {
	req, err := compileHeaderMutations("request_headers_to_add", l.GetRequestHeadersToAdd(), "request_headers_to_remove", l.GetRequestHeadersToRemove())
	if err != nil {
		return s, err
	}
	resp, err := compileHeaderMutations("response_headers_to_add", l.GetResponseHeadersToAdd(), "response_headers_to_remove", l.GetResponseHeadersToRemove())
	if err != nil {
		return s, err
	}
	if s.specificLast {
		s.request, s.response = slices.Concat(s.request, req), slices.Concat(s.response, resp)
	} else {
		s.request, s.response = slices.Concat(req, s.request), slices.Concat(resp, s.response)
	}
	own, err := compilePerFilter(l.GetTypedPerFilterConfig())
	if err != nil {
		return s, err
	}
	if len(own) > 0 {
		all := maps.Clone(s.filters)
		if all == nil {
			all = own
		} else {
			maps.Copy(all, own)
		}
		s.filters = all
	}
	if p, ok := l.(interface {
		GetRequestMirrorPolicies() []*route.RouteAction_RequestMirrorPolicy
	}); ok && len(p.GetRequestMirrorPolicies()) > 0 {
		if s.mirrors, err = compileMirrors(p.GetRequestMirrorPolicies()); err != nil {
			return s, err
		}
	}
	return s, nil
}

func compileVirtualHost(m *route.VirtualHost, s scope, maxBody uint32) (*VirtualHost, error) {
	h := &VirtualHost{
		Name: m.Name, Domains: m.Domains,
		AttemptCount: m.IncludeRequestAttemptCount, AttemptCountResponse: m.IncludeAttemptCountInResponse,
		RequireTLS: TLSRequirement(m.RequireTls),
	}
	s, err := s.within(m)
	if err != nil {
		return nil, err
	}
	if s.retry, err = compileRetry(m.RetryPolicy); err != nil {
		return nil, in("retry_policy", err)
	}
	s.buffer = uint32(orUint64(m.RequestBodyBufferLimit, uint64(orUint32(m.PerRequestBufferLimitBytes, s.buffer))))
	policy, err := compileOldCORS(m.Cors)
	if err != nil {
		return nil, err
	}
	for i, r := range m.Routes {
		x, err := compileRoute(r, h, s, maxBody)
		if err != nil {
			return nil, inIndex("routes", i, err)
		}
		if x.Action != nil && x.Action.CORS == nil {
			x.Action.CORS = policy
		}
		h.Routes = append(h.Routes, x)
	}
	return h, nil
}

func compileRoute(m *route.Route, h *VirtualHost, s scope, maxBody uint32) (*Route, error) {
	r := &Route{Name: m.Name, VirtualHost: h, Decorator: m.GetDecorator().GetOperation(), DecoratorPropagate: orBool(m.GetDecorator().GetPropagate(), true)}
	var err error
	if r.Match, err = compileMatch(m.Match); err != nil {
		return nil, in("match", err)
	}
	if s, err = s.within(m); err != nil {
		return nil, err
	}
	r.RequestHeaders, r.ResponseHeaders, r.Filters = s.request, s.response, s.filters
	r.BufferLimit = uint32(orUint64(m.RequestBodyBufferLimit, uint64(orUint32(m.PerRequestBufferLimitBytes, s.buffer))))
	switch a := m.Action.(type) {
	case *route.Route_Route:
		r.Action, err = compileAction(a.Route, s)
		err = in("route", err)
	case *route.Route_Redirect:
		r.Redirect, err = compileRedirect(a.Redirect)
		err = in("redirect", err)
	case *route.Route_DirectResponse:
		r.Direct, err = compileDirect(a.DirectResponse, maxBody)
		err = in("direct_response", err)
	default:
		err = errors.New("has no action")
	}
	return r, err
}

func compileMatch(m *route.RouteMatch) (RouteMatch, error) {
	r := RouteMatch{IgnoreCase: !orBool(m.GetCaseSensitive(), true), GRPC: m.GetGrpc() != nil}
	switch p := m.GetPathSpecifier().(type) {
	case *route.RouteMatch_Prefix:
		r.Kind, r.Path = PathPrefix, p.Prefix
	case *route.RouteMatch_Path:
		r.Kind, r.Path = PathExact, p.Path
	case *route.RouteMatch_PathSeparatedPrefix:
		r.Kind, r.Path = PathSeparatedPrefix, strings.TrimSuffix(p.PathSeparatedPrefix, "/")
	case *route.RouteMatch_SafeRegex:
		re, err := compileRegex(p.SafeRegex.GetRegex())
		if err != nil {
			return r, in("safe_regex.regex", err)
		}
		r.Kind, r.Path, r.Regex = PathRegex, p.SafeRegex.GetRegex(), re
	case *route.RouteMatch_ConnectMatcher_:
		r.Kind = PathConnect
	default:
		return r, errors.New("has no path")
	}
	if r.IgnoreCase && r.Kind == PathRegex {
		return r, in("case_sensitive", notSupported("false with safe_regex"))
	}
	var err error
	if r.Headers, err = compileHeaderMatchers("headers", m.Headers); err != nil {
		return r, err
	}
	for i, q := range m.QueryParameters {
		x := QueryMatcher{Name: q.Name}
		switch s := q.QueryParameterMatchSpecifier.(type) {
		case *route.QueryParameterMatcher_PresentMatch:
			x.Present, x.Invert = true, !s.PresentMatch
		case *route.QueryParameterMatcher_StringMatch:
			if x.Value, err = compileString(s.StringMatch); err != nil {
				return r, inIndex("query_parameters", i, in("string_match", err))
			}
		default:
			x.Present = true
		}
		r.Query = append(r.Query, x)
	}
	for i, c := range m.Cookies {
		x := QueryMatcher{Name: c.Name, Invert: c.InvertMatch}
		if x.Value, err = compileString(c.StringMatch); err != nil {
			return r, inIndex("cookies", i, in("string_match", err))
		}
		r.Cookies = append(r.Cookies, x)
	}
	if t := m.TlsContext; t != nil {
		if t.Presented != nil {
			r.TLSPresented = &t.Presented.Value
		}
		if t.Validated != nil {
			r.TLSValidated = &t.Validated.Value
		}
	}
	r.Fraction, err = runtimeFraction(m.RuntimeFraction)
	return r, in("runtime_fraction", err)
}

func compileAction(m *route.RouteAction, s scope) (*RouteAction, error) {
	a := &RouteAction{
		NotFoundStatus: map[route.RouteAction_ClusterNotFoundResponseCode]int{
			route.RouteAction_SERVICE_UNAVAILABLE: 503, route.RouteAction_NOT_FOUND: 404, route.RouteAction_INTERNAL_SERVER_ERROR: 500,
		}[m.ClusterNotFoundResponseCode],
		PrefixRewrite: m.PrefixRewrite,
		Timeout:       orDuration(m.Timeout, 15*time.Second),
		IdleTimeout:   orNegative(m.IdleTimeout),
		Priority:      uint8(m.Priority),
		Mirrors:       s.mirrors,
		Retry:         s.retry,
	}
	if a.NotFoundStatus == 0 {
		return nil, in("cluster_not_found_response_code", notSupported(m.ClusterNotFoundResponseCode.String()))
	}
	if a.Priority > 1 {
		return nil, in("priority", notSupported(m.Priority.String()))
	}
	if err := a.compileClusters(m); err != nil {
		return nil, err
	}
	var err error
	if m.PrefixRewrite != "" && m.RegexRewrite != nil {
		return nil, in("regex_rewrite", errors.New("does not go with prefix_rewrite: there is one path"))
	}
	if a.RegexRewrite, err = compileRewrite(m.RegexRewrite); err != nil {
		return nil, in("regex_rewrite", err)
	}
	a.Host.AppendXFHost = m.AppendXForwardedHost
	switch h := m.HostRewriteSpecifier.(type) {
	case *route.RouteAction_HostRewriteLiteral:
		a.Host.Literal = h.HostRewriteLiteral
	case *route.RouteAction_AutoHostRewrite:
		a.Host.Auto = h.AutoHostRewrite.GetValue()
	case *route.RouteAction_HostRewriteHeader:
		a.Host.Header = strings.ToLower(h.HostRewriteHeader)
	case *route.RouteAction_HostRewritePathRegex:
		if a.Host.Path, err = compileRewrite(h.HostRewritePathRegex); err != nil {
			return nil, in("host_rewrite_path_regex", err)
		}
	}
	a.compileTimeouts(m)
	if m.RetryPolicy != nil {
		if a.Retry, err = compileRetry(m.RetryPolicy); err != nil {
			return nil, in("retry_policy", err)
		}
	}
	if len(m.RequestMirrorPolicies) > 0 {
		if a.Mirrors, err = compileMirrors(m.RequestMirrorPolicies); err != nil {
			return nil, err
		}
	}
	if a.Hash, err = compileHash(m.HashPolicy); err != nil {
		return nil, err
	}
	for i, u := range m.UpgradeConfigs {
		if err := addUpgrade(&a.Upgrades, u.UpgradeType, orBool(u.Enabled, true)); err != nil {
			return nil, inIndex("upgrade_configs", i, err)
		}
	}
	a.CORS, err = compileOldCORS(m.Cors)
	return a, err
}

func (a *RouteAction) compileClusters(m *route.RouteAction) error {
	switch c := m.ClusterSpecifier.(type) {
	case *route.RouteAction_Cluster:
		a.Clusters = []WeightedCluster{{Name: c.Cluster, Weight: 1}}
	case *route.RouteAction_ClusterHeader:
		a.ClusterHeader = strings.ToLower(c.ClusterHeader)
		if a.ClusterHeader == "" {
			return in("cluster_header", errors.New("is empty"))
		}
		return nil
	case *route.RouteAction_WeightedClusters:
		for i, w := range c.WeightedClusters.GetClusters() {
			s, err := scope{}.within(w)
			if err != nil {
				return in("weighted_clusters", inIndex("clusters", i, err))
			}
			a.Clusters = append(a.Clusters, WeightedCluster{
				Name: w.Name, Weight: w.Weight.GetValue(), HostRewrite: w.GetHostRewriteLiteral(),
				RequestHeaders: s.request, ResponseHeaders: s.response,
			})
		}
	default:
		return errors.New("names no cluster")
	}
	var err error
	a.TotalWeight, err = sumWeights(a.Clusters)
	return in("weighted_clusters", err)
}

func (a *RouteAction) compileTimeouts(m *route.RouteAction) {
	d := m.GetMaxStreamDuration()
	a.MaxStreamDuration = orNegative(d.GetMaxStreamDuration())
	a.GRPCTimeoutMax = orNegative(d.GetGrpcTimeoutHeaderMax())
	a.GRPCTimeoutOffset = orDuration(d.GetGrpcTimeoutHeaderOffset(), orDuration(m.GrpcTimeoutOffset, 0))
	if a.GRPCTimeoutMax < 0 {
		a.GRPCTimeoutMax = orNegative(m.MaxGrpcTimeout)
	}
}

// orNegative returns d, or -1 if it is absent.
func orNegative(d *durationpb.Duration) time.Duration { return orDuration(d, -1) }

var retryConditions = map[string]RetryOn{
	"5xx": Retry5xx, "gateway-error": RetryGatewayError, "reset": RetryReset,
	"reset-before-request": RetryResetBeforeRequest, "connect-failure": RetryConnectFailure,
	"envoy-ratelimited": RetryEnvoyRateLimited, "retriable-4xx": RetryRetriable4xx,
	"refused-stream": RetryRefusedStream, "retriable-status-codes": RetryRetriableStatusCodes,
	"retriable-headers": RetryRetriableHeaders, "http3-post-connect-failure": RetryHTTP3PostConnectFailure,
	"cancelled": RetryGRPCCancelled, "deadline-exceeded": RetryGRPCDeadlineExceeded,
	"internal": RetryGRPCInternal, "resource-exhausted": RetryGRPCResourceExhausted,
	"unavailable": RetryGRPCUnavailable,
}

func compileRetry(m *route.RetryPolicy) (*RetryPolicy, error) {
	if m == nil {
		return nil, nil
	}
	p := &RetryPolicy{
		Num:           orUint32(m.NumRetries, 1),
		PerTryTimeout: orDuration(m.PerTryTimeout, 0),
		HostAttempts:  int(min(max(m.HostSelectionRetryMaxAttempts, 1), 1000)),
		BackoffBase:   orDuration(m.GetRetryBackOff().GetBaseInterval(), 25*time.Millisecond),
	}
	p.BackoffMax = orDuration(m.GetRetryBackOff().GetMaxInterval(), 10*p.BackoffBase)
	if p.BackoffMax < p.BackoffBase {
		return nil, in("retry_back_off", fmt.Errorf("max_interval %v is below base_interval %v", p.BackoffMax, p.BackoffBase))
	}
	for _, s := range strings.Split(m.RetryOn, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		c, ok := retryConditions[s]
		if !ok {
			return nil, in("retry_on", notSupported(fmt.Sprintf("%q", s)))
		}
		p.On |= c
	}
	for _, c := range m.RetriableStatusCodes {
		p.StatusCodes = append(p.StatusCodes, int(c))
	}
	var err error
	if p.Headers, err = compileHeaderMatchers("retriable_headers", m.RetriableHeaders); err != nil {
		return nil, err
	}
	if p.RequestHeaders, err = compileHeaderMatchers("retriable_request_headers", m.RetriableRequestHeaders); err != nil {
		return nil, err
	}
	if r := m.RateLimitedRetryBackOff; r != nil {
		p.RateLimited = &RateLimitedBackoff{Max: orDuration(r.MaxInterval, 300*time.Second)}
		for _, h := range r.ResetHeaders {
			p.RateLimited.Headers = append(p.RateLimited.Headers, ResetHeader{strings.ToLower(h.Name), h.Format == route.RetryPolicy_UNIX_TIMESTAMP})
		}
	}
	return p, p.compileHosts(m)
}

func compileMirrors(ms []*route.RouteAction_RequestMirrorPolicy) ([]Mirror, error) {
	var out []Mirror
	for i, m := range ms {
		f, err := runtimeFraction(m.RuntimeFraction)
		if err == nil && m.Cluster == "" && m.ClusterHeader == "" {
			err = in("cluster", errors.New("is empty"))
		}
		if err != nil {
			return nil, inIndex("request_mirror_policies", i, err)
		}
		out = append(out, Mirror{m.Cluster, strings.ToLower(m.ClusterHeader), f, m.DisableShadowHostSuffixAppend})
	}
	return out, nil
}

func compileHash(ps []*route.RouteAction_HashPolicy) ([]HashPolicy, error) {
	var out []HashPolicy
	for i, p := range ps {
		h := HashPolicy{Terminal: p.Terminal}
		switch s := p.PolicySpecifier.(type) {
		case *route.RouteAction_HashPolicy_Header_:
			h.Kind, h.Name = HashHeader, strings.ToLower(s.Header.GetHeaderName())
		case *route.RouteAction_HashPolicy_Cookie_:
			h.Kind, h.Name, h.Path, h.TTL = HashCookie, s.Cookie.GetName(), s.Cookie.GetPath(), orNegative(s.Cookie.GetTtl())
			for j, a := range s.Cookie.GetAttributes() {
				if a.Name == "" || strings.ContainsFunc(a.Name+a.Value, func(r rune) bool { return r == ';' || r < ' ' || r == 0x7f }) {
					return nil, inIndex("hash_policy", i, in("cookie", inIndex("attributes", j, errors.New("is not an attribute of a cookie"))))
				}
				h.Attributes += "; " + a.Name
				if a.Value != "" {
					h.Attributes += "=" + a.Value
				}
			}
		case *route.RouteAction_HashPolicy_ConnectionProperties_:
			if !s.ConnectionProperties.GetSourceIp() {
				continue
			}
			h.Kind = HashSourceIP
		case *route.RouteAction_HashPolicy_QueryParameter_:
			h.Kind, h.Name = HashQuery, s.QueryParameter.GetName()
		default:
			return nil, inIndex("hash_policy", i, errors.New("is empty"))
		}
		out = append(out, h)
	}
	return out, nil
}

func compileRedirect(m *route.RedirectAction) (*Redirect, error) {
	r := &Redirect{
		Host: m.HostRedirect, Port: m.PortRedirect, StripQuery: m.StripQuery, Scheme: m.GetSchemeRedirect(),
		Status: map[route.RedirectAction_RedirectResponseCode]int{
			route.RedirectAction_MOVED_PERMANENTLY: 301, route.RedirectAction_FOUND: 302, route.RedirectAction_SEE_OTHER: 303,
			route.RedirectAction_TEMPORARY_REDIRECT: 307, route.RedirectAction_PERMANENT_REDIRECT: 308,
		}[m.ResponseCode],
	}
	if r.Status == 0 {
		return nil, in("response_code", notSupported(m.ResponseCode.String()))
	}
	if m.GetHttpsRedirect() {
		r.Scheme = "https"
	}
	var err error
	switch p := m.PathRewriteSpecifier.(type) {
	case *route.RedirectAction_PathRedirect:
		r.Path = p.PathRedirect
	case *route.RedirectAction_PrefixRewrite:
		r.Prefix, r.SetPrefix = p.PrefixRewrite, true
	case *route.RedirectAction_RegexRewrite:
		r.Regex, err = compileRewrite(p.RegexRewrite)
		err = in("regex_rewrite", err)
	}
	return r, err
}

func compileDirect(m *route.DirectResponseAction, maxBody uint32) (*DirectResponse, error) {
	if m.Status < 200 || m.Status > 599 {
		return nil, in("status", fmt.Errorf("%d is not between 200 and 599", m.Status))
	}
	d := &DirectResponse{Status: int(m.Status), ContentType: m.GetBodyFormat().GetContentType()}
	body := compileData(m.Body)
	if body.File != "" {
		return nil, in("body.filename", errNotSupported)
	}
	if len(body.Inline) > int(maxBody) {
		return nil, in("body", fmt.Errorf("has %d bytes, more than max_direct_response_body_size_bytes, %d", len(body.Inline), maxBody))
	}
	d.Body = body.Inline
	var err error
	if m.BodyFormat != nil {
		d.Format, err = compileFormat("body_format", m.BodyFormat, false)
	}
	return d, err
}
