package mesh

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"
)

func (v *validator) virtualService(s *networking.VirtualService) {
	if len(s.GetHosts()) == 0 {
		v.delegate(s)
	}
	for i, h := range s.GetHosts() {
		v.pattern(fmt.Sprintf("spec.hosts[%d]", i), h)
	}
	for i, g := range s.GetGateways() {
		if strings.Count(g, "/") > 1 || g == "" {
			v.add(fmt.Sprintf("spec.gateways[%d]", i), "write name, namespace/name or mesh", "%q is no gateway's name", g)
		}
	}
	v.exportTo(s.GetExportTo())
	for i, r := range s.GetHttp() {
		v.httpRoute(fmt.Sprintf("spec.http[%d]", i), r)
	}
	for i, r := range s.GetTcp() {
		field := fmt.Sprintf("spec.tcp[%d]", i)
		v.destinations(field+".route", r.GetRoute())
		for j, m := range r.GetMatch() {
			v.l4Match(fmt.Sprintf("%s.match[%d]", field, j), m.GetPort(), m.GetDestinationSubnets())
		}
	}
	for i, r := range s.GetTls() {
		field := fmt.Sprintf("spec.tls[%d]", i)
		v.destinations(field+".route", r.GetRoute())
		if len(r.GetMatch()) == 0 {
			v.add(field+".match", "name sniHosts", "a TLS route needs a match")
		}
		for j, m := range r.GetMatch() {
			v.tlsMatch(fmt.Sprintf("%s.match[%d]", field, j), m)
		}
	}
	if len(s.GetHttp())+len(s.GetTcp())+len(s.GetTls()) == 0 {
		v.add("spec", "add http, tcp or tls", "there are no routes")
	}
}

// delegate checks a VirtualService without hosts, which is for others to name as their delegate.
func (v *validator) delegate(s *networking.VirtualService) {
	const fix = "name hosts, or leave this to the VirtualService that delegates to it"
	for field, is := range map[string]bool{"spec.gateways": len(s.GetGateways()) > 0, "spec.tcp": len(s.GetTcp()) > 0, "spec.tls": len(s.GetTls()) > 0} {
		if is {
			v.add(field, fix, "there are no hosts, and a delegate has nothing but http routes")
		}
	}
	for i, r := range s.GetHttp() {
		if r.GetDelegate() != nil {
			v.add(fmt.Sprintf("spec.http[%d].delegate", i), fix, "there are no hosts, and a delegate cannot delegate further")
		}
	}
}

func (v *validator) tlsMatch(field string, m *networking.TLSMatchAttributes) {
	v.l4Match(field, m.GetPort(), m.GetDestinationSubnets())
	if len(m.GetSniHosts()) == 0 {
		v.add(field+".sniHosts", "name at least one", "there are none")
	}
	for i, name := range m.GetSniHosts() {
		v.host(fmt.Sprintf("%s.sniHosts[%d]", field, i), name)
	}
}

func (v *validator) l4Match(field string, port uint32, subnets []string) {
	if port != 0 {
		v.port(field+".port", port)
	}
	for i, s := range subnets {
		_, err := netip.ParsePrefix(s)
		if _, err2 := netip.ParseAddr(s); err != nil && err2 != nil {
			v.add(fmt.Sprintf("%s.destinationSubnets[%d]", field, i), "write it as 10.0.0.0/8", "%q is no range of addresses", s)
		}
	}
}

func (v *validator) httpRoute(field string, r *networking.HTTPRoute) {
	if r == nil {
		v.add(field, "remove it", "the route is empty")
		return
	}
	for i, m := range r.GetMatch() {
		v.httpMatch(fmt.Sprintf("%s.match[%d]", field, i), m)
	}
	actions := 0
	for _, is := range []bool{len(r.GetRoute()) > 0, r.GetRedirect() != nil, r.GetDirectResponse() != nil} {
		if is {
			actions++
		}
	}
	switch {
	case r.GetDelegate() != nil:
		if len(r.GetRoute()) > 0 || r.GetRedirect() != nil {
			v.add(field+".delegate", "keep one of them", "it has a delegate and also a route or redirect")
		}
		if r.GetDelegate().GetName() == "" {
			v.add(field+".delegate.name", "name a VirtualService without hosts", "there is no name")
		}
	case actions == 0:
		v.add(field, "add route, redirect or directResponse", "the route leads nowhere")
	case actions > 1:
		v.add(field, "keep one of them", "it has more than one of route, redirect and directResponse")
	}
	weigh(v, field+".route", r.GetRoute())
	for i, d := range r.GetRoute() {
		f := fmt.Sprintf("%s.route[%d]", field, i)
		v.destination(f+".destination", d.GetDestination())
		v.headers(f+".headers", d.GetHeaders())
	}
	v.headers(field+".headers", r.GetHeaders())
	v.duration(field+".timeout", r.GetTimeout(), time.Millisecond)
	v.retries(field+".retries", r.GetRetries())
	v.mirrors(field, r)
	v.fault(field+".fault", r.GetFault())
	v.rewrite(field, r)
	for i, o := range r.GetCorsPolicy().GetAllowOrigins() {
		v.stringMatch(fmt.Sprintf("%s.corsPolicy.allowOrigins[%d]", field, i), o)
	}
	if x := r.GetDirectResponse(); x != nil && (x.GetStatus() < 200 || x.GetStatus() > 599) {
		v.add(field+".directResponse.status", "name one from 200 to 599", "%d is no status of a response", x.GetStatus())
	}
}

func (v *validator) rewrite(field string, r *networking.HTTPRoute) {
	if x := r.GetRedirect(); x != nil {
		switch x.GetRedirectCode() {
		case 0, 301, 302, 303, 307, 308:
		default:
			v.add(field+".redirect.redirectCode", "name 301, 302, 303, 307 or 308", "%d is no redirection", x.GetRedirectCode())
		}
		if r.GetRewrite() != nil {
			v.add(field+".rewrite", "use redirect.uri and redirect.authority", "a redirection cannot rewrite")
		}
		if p := x.GetPort(); p > 65535 {
			v.port(field+".redirect.port", p)
		}
	}
	if x := r.GetRewrite().GetUriRegexRewrite(); x != nil {
		v.regex(field+".rewrite.uriRegexRewrite.match", x.GetMatch())
		if r.GetRewrite().GetUri() != "" {
			v.add(field+".rewrite.uri", "keep one of them", "it has both uri and uriRegexRewrite")
		}
	}
	if u := r.GetRewrite().GetUri(); strings.ContainsAny(u, "\r\n\x00") {
		v.add(field+".rewrite.uri", "write it on one line", "the value has a line break in it")
	}
}

// IsClaim reports whether what a match calls a header is a claim of a request's JWT.
func IsClaim(header string) bool {
	return strings.HasPrefix(strings.ToLower(header), "@request.auth.claims")
}

func (v *validator) httpMatch(field string, m *networking.HTTPMatchRequest) {
	if m.GetPort() != 0 {
		v.port(field+".port", m.GetPort())
	}
	v.fullMatch(field+".uri", m.GetUri())
	v.stringMatch(field+".scheme", m.GetScheme())
	v.stringMatch(field+".method", m.GetMethod())
	v.stringMatch(field+".authority", m.GetAuthority())
	for name, headers := range map[string]map[string]*networking.StringMatch{"headers": m.GetHeaders(), "withoutHeaders": m.GetWithoutHeaders()} {
		for _, k := range slices.Sorted(maps.Keys(headers)) {
			if !IsClaim(k) {
				v.headerName(field+"."+name+"."+k, k)
			}
			v.stringMatch(field+"."+name+"."+k, headers[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(m.GetQueryParams())) {
		if k == "" {
			v.add(field+".queryParams", "name the parameter", "a parameter has no name")
		}
		v.stringMatch(field+".queryParams."+k, m.GetQueryParams()[k])
	}
}

// stringMatch checks a match of something that need only be there: "" and "*" are that, as in Istio.
func (v *validator) stringMatch(field string, m *networking.StringMatch) {
	if r := m.GetRegex(); r != "" && r != "*" {
		v.regex(field+".regex", r)
	}
}

// fullMatch checks a match of something that is always there.
func (v *validator) fullMatch(field string, m *networking.StringMatch) {
	switch x := m.GetMatchType().(type) {
	case *networking.StringMatch_Regex:
		if x.Regex == "" || x.Regex == "*" {
			v.add(field+".regex", `write ".*" for anything`, "%q is not a regular expression", x.Regex)
			return
		}
		v.regex(field+".regex", x.Regex)
	}
}

func (v *validator) retries(field string, r *networking.HTTPRetry) {
	if r.GetAttempts() < 0 {
		v.add(field+".attempts", "name 0 or more", "%d attempts cannot be made", r.GetAttempts())
	}
	v.duration(field+".perTryTimeout", r.GetPerTryTimeout(), time.Millisecond)
	v.duration(field+".backoff", r.GetBackoff(), time.Millisecond)
	known := strings.Fields(`5xx gateway-error reset reset-before-request connect-failure envoy-ratelimited retriable-4xx refused-stream
		retriable-status-codes retriable-headers http3-post-connect-failure cancelled deadline-exceeded internal resource-exhausted unavailable`)
	for word := range strings.SplitSeq(r.GetRetryOn(), ",") {
		word = strings.TrimSpace(word)
		n := 0
		if _, err := fmt.Sscanf(word, "%3d", &n); word == "" || slices.Contains(known, word) || err == nil && len(word) == 3 && n >= 100 && n < 600 {
			continue
		}
		v.add(field+".retryOn", "name conditions of Envoy, such as 5xx, or status codes", "%q is no condition", word)
	}
}

func (v *validator) mirrors(field string, r *networking.HTTPRoute) {
	if m := r.GetMirror(); m != nil {
		v.destination(field+".mirror", m)
	}
	if p := r.GetMirrorPercentage(); p != nil {
		v.percentage(field+".mirrorPercentage", p.GetValue())
	}
	for i, m := range r.GetMirrors() {
		v.destination(fmt.Sprintf("%s.mirrors[%d].destination", field, i), m.GetDestination())
		v.percentage(fmt.Sprintf("%s.mirrors[%d].percentage", field, i), m.GetPercentage().GetValue())
	}
}

func (v *validator) fault(field string, f *networking.HTTPFaultInjection) {
	if d := f.GetDelay(); d != nil {
		v.percentage(field+".delay.percentage", d.GetPercentage().GetValue())
		if d.GetFixedDelay() == nil {
			v.add(field+".delay.fixedDelay", "name a duration", "there is none")
		}
		v.duration(field+".delay.fixedDelay", d.GetFixedDelay(), time.Millisecond)
	}
	a := f.GetAbort()
	if a == nil {
		return
	}
	v.percentage(field+".abort.percentage", a.GetPercentage().GetValue())
	switch x := a.GetErrorType().(type) {
	case *networking.HTTPFaultInjection_Abort_HttpStatus:
		if x.HttpStatus < 200 || x.HttpStatus > 599 {
			v.add(field+".abort.httpStatus", "name one from 200 to 599", "%d is no status of a response", x.HttpStatus)
		}
	case *networking.HTTPFaultInjection_Abort_GrpcStatus:
		if !slices.Contains(grpcStatuses, x.GrpcStatus) {
			v.add(field+".abort.grpcStatus", "name a status, such as UNAVAILABLE", "%q is no status of gRPC", x.GrpcStatus)
		}
	default:
		v.add(field+".abort", "name httpStatus or grpcStatus", "it does not say what to answer")
	}
}

var grpcStatuses = strings.Fields(`OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED
	RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED`)

func (v *validator) headers(field string, h *networking.Headers) {
	for side, ops := range map[string]*networking.Headers_HeaderOperations{"request": h.GetRequest(), "response": h.GetResponse()} {
		for op, all := range map[string]map[string]string{"set": ops.GetSet(), "add": ops.GetAdd()} {
			for _, k := range slices.Sorted(maps.Keys(all)) {
				f := field + "." + side + "." + op + "." + k
				v.headerName(f, k)
				v.headerValue(f, all[k])
			}
		}
		for i, k := range ops.GetRemove() {
			v.headerName(fmt.Sprintf("%s.%s.remove[%d]", field, side, i), k)
		}
	}
}

func (v *validator) destination(field string, d *networking.Destination) {
	if d.GetHost() == "" {
		v.add(field+".host", "name the service", "there is no host")
		return
	}
	v.host(field+".host", d.GetHost())
	if strings.Contains(d.GetHost(), "*") {
		v.add(field+".host", "name one service", "a destination cannot be a pattern")
	}
	if d.GetPort() != nil {
		v.port(field+".port.number", d.GetPort().GetNumber())
	}
}

func (v *validator) destinations(field string, all []*networking.RouteDestination) {
	if len(all) == 0 {
		v.add(field, "name a destination", "the route leads nowhere")
	}
	weigh(v, field, all)
	for i, d := range all {
		v.destination(fmt.Sprintf("%s[%d].destination", field, i), d.GetDestination())
	}
}

// weigh checks the weights of a route's destinations. An only one needs none; of several, some must
// get requests.
func weigh[D interface{ GetWeight() int32 }](v *validator, field string, all []D) {
	some := len(all) < 2
	for i, d := range all {
		if w := d.GetWeight(); w < 0 {
			v.add(fmt.Sprintf("%s[%d].weight", field, i), "name 0 or more", "%d is no weight", w)
		}
		some = some || d.GetWeight() != 0
	}
	if !some {
		v.add(field+"[0].weight", "give one of them a weight above 0", "the weights of %d destinations add up to 0", len(all))
	}
}
