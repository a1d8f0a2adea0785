package compile

import (
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// translation is one VirtualService for one port of one kind of client.
type translation struct {
	service  *mesh.VirtualService
	resolve  func(host string) string
	target   func(host string) *mesh.HostService // nil if it is none
	port     uint16                              // where the request comes in
	labels   map[string]string                   // of the proxy, as far as matches name them
	client   string                              // namespace of the proxy, if some match names it
	gateways []string                            // "mesh", or the names under which matches know the gateway
	tls      bool                                // requests come in by https
	retry    *networking.HTTPRetry
	rule     func(host string) *mesh.Rule // that says how requests to a host are hashed; nil if none does
}

// routes returns the Envoy routes in order, up to the first that takes everything.
func (t *translation) routes() (routes []*routev3.Route) {
	for _, http := range t.service.Spec.GetHttp() {
		if len(http.GetMatch()) == 0 {
			return append(routes, t.route(http, nil))
		}
		for _, m := range http.GetMatch() {
			if !t.applies(m) {
				continue
			}
			r := t.route(http, m)
			if routes = append(routes, r); takesAll(r.Match) {
				return routes
			}
		}
	}
	return routes
}

// applies decides what Envoy need not: port, gateway and source, which at a gateway is the gateway itself.
func (t *translation) applies(m *networking.HTTPMatchRequest) bool {
	switch {
	case m.GetPort() != 0 && m.GetPort() != uint32(t.port):
		return false
	case m.GetSourceNamespace() != "" && m.GetSourceNamespace() != t.client:
		return false
	case len(m.GetGateways()) > 0 && !slices.ContainsFunc(m.GetGateways(), func(g string) bool { return slices.Contains(t.gateways, qualify(g, t.service.Namespace)) }):
		return false
	}
	for name := range m.GetHeaders() {
		if mesh.IsClaim(name) {
			return false // JWTs are not validated, so that no request has claims
		}
	}
	return mesh.Selects(m.GetSourceLabels(), t.labels)
}

// qualify returns namespace/name of a gateway that an object names; "mesh" stays.
func qualify(gateway, namespace string) string {
	if gateway == "mesh" || strings.Contains(gateway, "/") {
		return gateway
	}
	return namespace + "/" + gateway
}

func takesAll(m *routev3.RouteMatch) bool {
	return m.GetPrefix() == "/" && len(m.Headers)+len(m.QueryParameters) == 0 && m.RuntimeFraction == nil
}

func (t *translation) route(http *networking.HTTPRoute, m *networking.HTTPMatchRequest) *routev3.Route {
	r := &routev3.Route{
		Name: http.GetName(), Match: routeMatch(m), StatPrefix: m.GetStatPrefix(),
		Metadata: &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"istio": fields("config", text("/apis/networking.istio.io/v1alpha3/namespaces/"+t.service.Namespace+"/virtual-service/"+t.service.Name)),
		}},
	}
	if http.GetName() != "" && m.GetName() != "" {
		r.Name += "." + m.GetName()
	} else if m.GetName() != "" {
		r.Name = m.GetName()
	}
	headers := http.GetHeaders()
	switch {
	case http.GetRedirect() != nil:
		r.Action = &routev3.Route_Redirect{Redirect: t.redirect(http.Redirect)}
	case http.GetDirectResponse() != nil:
		r.Action = &routev3.Route_DirectResponse{DirectResponse: directResponse(http.DirectResponse)}
	default:
		t.forward(r, http)
	}
	r.RequestHeadersToAdd, r.RequestHeadersToRemove = headerOps(headers.GetRequest())
	r.ResponseHeadersToAdd, r.ResponseHeadersToRemove = headerOps(headers.GetResponse())
	if f := http.GetFault(); f != nil {
		perFilter(r, faultFilter, toAny(fault(f)))
	}
	if c := http.GetCorsPolicy(); c != nil {
		perFilter(r, corsFilter, toAny(cors(c)))
	}
	r.Decorator = &routev3.Decorator{Operation: t.operation(r)}
	return r
}

func perFilter(r *routev3.Route, name string, config *anypb.Any) {
	if r.TypedPerFilterConfig == nil {
		r.TypedPerFilterConfig = map[string]*anypb.Any{}
	}
	r.TypedPerFilterConfig[name] = config
}

// forward fills in where requests go, and how.
func (t *translation) forward(r *routev3.Route, http *networking.HTTPRoute) {
	a := &routev3.RouteAction{HashPolicy: t.hashPolicy(http)}
	a.RetryPolicy = retryPolicy(http.GetRetries(), t.retry, len(http.GetRoute()) == 1 && len(a.HashPolicy) > 0)
	r.Action = &routev3.Route_Route{Route: a}
	setTimeout(a, http)
	if w := http.GetRewrite(); w != nil {
		if x := w.GetUriRegexRewrite(); x != nil {
			a.RegexRewrite = &matcher.RegexMatchAndSubstitute{Pattern: regex(x.GetMatch()), Substitution: x.GetRewrite()}
		} else {
			a.PrefixRewrite = w.GetUri()
		}
		if w.GetAuthority() != "" {
			a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: w.Authority}
		}
	}
	if host := hostHeader(http.GetHeaders().GetRequest()); host != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: host}
	}
	t.mirror(a, http)
	t.destinations(r, a, http)
}

func (t *translation) destinations(r *routev3.Route, a *routev3.RouteAction, http *networking.HTTPRoute) {
	all := http.GetRoute()
	if len(all) == 1 {
		d := all[0]
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: t.cluster(d.GetDestination())}
		if d.GetHeaders() != nil {
			t.single(r, a, d)
		}
		return
	}
	w := &routev3.WeightedCluster{}
	for _, d := range all {
		if d.GetWeight() == 0 {
			continue
		}
		c := &routev3.WeightedCluster_ClusterWeight{Name: t.cluster(d.GetDestination()), Weight: u32(uint32(d.Weight))}
		c.RequestHeadersToAdd, c.RequestHeadersToRemove = headerOps(d.GetHeaders().GetRequest())
		c.ResponseHeadersToAdd, c.ResponseHeadersToRemove = headerOps(d.GetHeaders().GetResponse())
		if host := hostHeader(d.GetHeaders().GetRequest()); host != "" {
			c.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: host}
		}
		w.Clusters = append(w.Clusters, c)
	}
	if len(w.Clusters) == 0 { // nothing gets anything
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: blackHole}
		return
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: w}
}

// single writes the headers of an only destination: a weighted cluster of one, so that the route's own
// stay apart.
func (t *translation) single(r *routev3.Route, a *routev3.RouteAction, d *networking.HTTPRouteDestination) {
	c := &routev3.WeightedCluster_ClusterWeight{Name: a.GetCluster(), Weight: u32(100)}
	c.RequestHeadersToAdd, c.RequestHeadersToRemove = headerOps(d.GetHeaders().GetRequest())
	c.ResponseHeadersToAdd, c.ResponseHeadersToRemove = headerOps(d.GetHeaders().GetResponse())
	if host := hostHeader(d.GetHeaders().GetRequest()); host != "" {
		c.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: host}
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: []*routev3.WeightedCluster_ClusterWeight{c}}}
}

func (t *translation) mirror(a *routev3.RouteAction, http *networking.HTTPRoute) {
	add := func(d *networking.Destination, percentage float64) {
		if percentage > 0 {
			a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
				Cluster:         t.cluster(d),
				RuntimeFraction: &core.RuntimeFractionalPercent{DefaultValue: fraction(percentage)},
				// A copy is for the host that its original is for, not for a "-shadow" of it.
				DisableShadowHostSuffixAppend: true,
			})
		}
	}
	for _, m := range http.GetMirrors() {
		p := 100.0
		if m.GetPercentage() != nil {
			p = m.GetPercentage().GetValue()
		}
		add(m.GetDestination(), p)
	}
	if m := http.GetMirror(); m != nil {
		p := 100.0
		if http.GetMirrorPercentage() != nil {
			p = http.GetMirrorPercentage().GetValue()
		} else if http.GetMirrorPercent() != nil { //nolint:staticcheck // users still write it
			p = float64(http.GetMirrorPercent().GetValue()) //nolint:staticcheck
		}
		add(m, p)
	}
}

func (t *translation) cluster(d *networking.Destination) string {
	return destinationCluster(d, t.target, t.resolve, t.port)
}

// destinationCluster returns the cluster of a destination. A port that is not said is the service's only
// one, or the one that the request came in on. What another name of a service leads to is the service.
func destinationCluster(d *networking.Destination, target func(string) *mesh.HostService, resolve func(string) string, port uint16) string {
	host := resolve(d.GetHost())
	s := target(host)
	if s != nil {
		s = s.Concrete()
		host = s.Host
	}
	if n := d.GetPort().GetNumber(); n != 0 {
		port = uint16(n)
	} else if s != nil && len(s.Parts[0].Ports) == 1 {
		port = s.Parts[0].Ports[0].Number
	}
	return clusterName(port, d.GetSubset(), host)
}

// operation describes a route in one line: destination and path.
func (t *translation) operation(r *routev3.Route) string {
	path := "/*"
	switch p := r.Match.PathSpecifier.(type) {
	case *routev3.RouteMatch_Path:
		path = p.Path
	case *routev3.RouteMatch_Prefix:
		path = p.Prefix + "*"
	case *routev3.RouteMatch_SafeRegex:
		path = p.SafeRegex.Regex
	}
	if c := r.GetRoute().GetCluster(); c != "" {
		if parts := strings.Split(c, "|"); len(parts) == 4 {
			return parts[3] + ":" + parts[1] + path
		}
	}
	return t.service.Name + ":" + strconv.Itoa(int(t.port)) + path
}

func (t *translation) redirect(in *networking.HTTPRedirect) *routev3.RedirectAction {
	out := &routev3.RedirectAction{HostRedirect: in.GetAuthority()}
	if in.GetScheme() != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: in.Scheme}
	}
	if in.GetPrefixRewrite() != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: in.PrefixRewrite}
	} else if rest, ok := strings.CutPrefix(in.GetUri(), "%PREFIX()%"); ok {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: rest}
	} else if in.GetUri() != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: in.Uri}
	}
	switch p := in.GetRedirectPort().(type) {
	case *networking.HTTPRedirect_Port:
		out.PortRedirect = p.Port
	case *networking.HTTPRedirect_DerivePort:
		if p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT {
			out.PortRedirect = uint32(t.port)
		}
	}
	https := in.GetScheme() == "https" || in.GetScheme() == "" && t.tls
	if out.PortRedirect == 443 && https || out.PortRedirect == 80 && !https {
		out.PortRedirect = 0 // the scheme says it
	}
	switch in.GetRedirectCode() {
	case 302:
		out.ResponseCode = routev3.RedirectAction_FOUND
	case 303:
		out.ResponseCode = routev3.RedirectAction_SEE_OTHER
	case 307:
		out.ResponseCode = routev3.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		out.ResponseCode = routev3.RedirectAction_PERMANENT_REDIRECT
	}
	return out
}

func directResponse(in *networking.HTTPDirectResponse) *routev3.DirectResponseAction {
	out := &routev3.DirectResponseAction{Status: in.GetStatus()}
	switch b := in.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: b.String_}}
	case *networking.HTTPBody_Bytes:
		out.Body = &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b.Bytes}}
	}
	return out
}

func routeMatch(m *networking.HTTPMatchRequest) *routev3.RouteMatch {
	out := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	if m == nil {
		return out
	}
	switch u := m.GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: u.Exact}
	case *networking.StringMatch_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: u.Prefix}
	case *networking.StringMatch_Regex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: regex(u.Regex)}
	}
	out.CaseSensitive = boolean(!m.GetIgnoreUriCase() || out.GetSafeRegex() != nil) // which says it by itself: (?i)
	for _, h := range []struct {
		name string
		m    *networking.StringMatch
	}{{":method", m.GetMethod()}, {":authority", m.GetAuthority()}, {":scheme", m.GetScheme()}} {
		if h.m != nil {
			out.Headers = append(out.Headers, headerMatch(h.name, h.m, false))
		}
	}
	for _, name := range sortedKeys(m.GetHeaders()) {
		out.Headers = append(out.Headers, headerMatch(name, m.Headers[name], false))
	}
	for _, name := range sortedKeys(m.GetWithoutHeaders()) {
		if mesh.IsClaim(name) {
			continue // see applies
		}
		out.Headers = append(out.Headers, headerMatch(name, m.WithoutHeaders[name], true))
	}
	for _, name := range sortedKeys(m.GetQueryParams()) {
		q := &routev3.QueryParameterMatcher{Name: name}
		if s := stringMatch(m.QueryParams[name]); s != nil {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: s}
		} else {
			q.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		}
		out.QueryParameters = append(out.QueryParameters, q)
	}
	return out
}

func headerMatch(name string, m *networking.StringMatch, invert bool) *routev3.HeaderMatcher {
	out := &routev3.HeaderMatcher{Name: name, InvertMatch: invert}
	if s := stringMatch(m); s != nil {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: s}
		out.TreatMissingHeaderAsEmpty = invert
	} else {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	}
	return out
}

// stringMatch returns nil for a match that anything present fulfils.
func stringMatch(m *networking.StringMatch) *matcher.StringMatcher {
	switch x := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return exact(x.Exact)
	case *networking.StringMatch_Prefix:
		if x.Prefix != "" {
			return prefix(x.Prefix)
		}
	case *networking.StringMatch_Regex:
		if x.Regex != "*" && x.Regex != "" {
			return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: regex(x.Regex)}}
		}
	}
	return nil
}

// originMatch returns what an origin must be. "Anything" must be said, for there is no origin that is always
// present; a match that says nothing allows none.
func originMatch(m *networking.StringMatch) *matcher.StringMatcher {
	if s := stringMatch(m); s != nil {
		return s
	}
	_, isPrefix := m.GetMatchType().(*networking.StringMatch_Prefix)
	if isPrefix || m.GetRegex() == "*" {
		return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: regex(".*")}}
	}
	return nil
}

func regex(s string) *matcher.RegexMatcher { return &matcher.RegexMatcher{Regex: s} }

func headerOps(o *networking.Headers_HeaderOperations) (add []*core.HeaderValueOption, remove []string) {
	option := func(k, v string, action core.HeaderValueOption_HeaderAppendAction) {
		if !isHost(k) {
			add = append(add, &core.HeaderValueOption{Header: &core.HeaderValue{Key: k, Value: v}, AppendAction: action})
		}
	}
	for _, k := range sortedKeys(o.GetSet()) {
		option(k, o.Set[k], core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	}
	for _, k := range sortedKeys(o.GetAdd()) {
		option(k, o.Add[k], core.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	}
	for _, k := range o.GetRemove() {
		if !isHost(k) {
			remove = append(remove, k)
		}
	}
	return add, remove
}

func isHost(header string) bool {
	return strings.EqualFold(header, "host") || strings.EqualFold(header, ":authority")
}

// hostHeader returns the Host that header operations set or else add, for that is a rewrite.
func hostHeader(o *networking.Headers_HeaderOperations) string {
	for _, all := range []map[string]string{o.GetSet(), o.GetAdd()} {
		for _, k := range sortedKeys(all) {
			if isHost(k) && all[k] != "" {
				return all[k]
			}
		}
	}
	return ""
}

func setTimeout(a *routev3.RouteAction, http *networking.HTTPRoute) {
	d := http.GetTimeout()
	if d == nil {
		a.Timeout = seconds(0)
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: seconds(0), GrpcTimeoutHeaderMax: seconds(0)}
		return
	}
	a.Timeout = d
	a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{GrpcTimeoutHeaderMax: d}
}

func fraction(percentage float64) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: uint32(percentage*10000 + 0.5), Denominator: typev3.FractionalPercent_MILLION}
}

func fault(f *networking.HTTPFaultInjection) *faultv3.HTTPFault {
	out := &faultv3.HTTPFault{}
	if d := f.GetDelay(); d != nil {
		out.Delay = &commonfault.FaultDelay{
			FaultDelaySecifier: &commonfault.FaultDelay_FixedDelay{FixedDelay: d.GetFixedDelay()},
			Percentage:         fraction(percentOf(d.GetPercentage(), float64(d.GetPercent()))), //nolint:staticcheck // users still write it
		}
	}
	if a := f.GetAbort(); a != nil {
		out.Abort = &faultv3.FaultAbort{Percentage: fraction(percentOf(a.GetPercentage(), 0))}
		if s := a.GetGrpcStatus(); s != "" {
			out.Abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: grpcCode(s)}
		} else {
			out.Abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(a.GetHttpStatus())}
		}
	}
	return out
}

// percentOf returns a percentage, or an old-style one. A fault that names neither is for no request, as the
// API says.
func percentOf(p *networking.Percent, old float64) float64 {
	if p != nil {
		return p.GetValue()
	}
	return old
}

func cors(c *networking.CorsPolicy) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		AllowMethods: strings.Join(c.GetAllowMethods(), ","), AllowHeaders: strings.Join(c.GetAllowHeaders(), ","),
		ExposeHeaders: strings.Join(c.GetExposeHeaders(), ","), AllowCredentials: c.GetAllowCredentials(),
		FilterEnabled: &core.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}},
	}
	if c.GetMaxAge() != nil {
		out.MaxAge = strconv.FormatInt(c.MaxAge.GetSeconds(), 10)
	}
	switch c.GetUnmatchedPreflights() {
	case networking.CorsPolicy_FORWARD:
		out.ForwardNotMatchingPreflights = boolean(true)
	case networking.CorsPolicy_IGNORE:
		out.ForwardNotMatchingPreflights = boolean(false)
	}
	for _, o := range c.GetAllowOrigins() {
		if s := originMatch(o); s != nil {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, s)
		}
	}
	for _, o := range c.GetAllowOrigin() { //nolint:staticcheck // users still write it
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, exact(o))
	}
	return out
}
