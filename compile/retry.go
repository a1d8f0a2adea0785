package compile

import (
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previouspriorities "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	"google.golang.org/grpc/codes"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// retryPolicy returns what a route says of retries, or MeshConfig, or Istio's default: two, on another host,
// when a connection fails, a stream is refused, or the answer is 503 (or gRPC's UNAVAILABLE or CANCELLED). The
// application may have given that 503 itself: docs/istio-differences.md says how to end this. Sticky requests
// stay with the host that their hash names. Nil if there shall be no retries.
func retryPolicy(route, byDefault *networking.HTTPRetry, sticky bool) *routev3.RetryPolicy {
	in := route
	if in == nil {
		in = byDefault
	}
	p := &routev3.RetryPolicy{
		RetryOn:              "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
		RetriableStatusCodes: []uint32{503},
		NumRetries:           u32(2),
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: toAny(&previoushosts.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: 5,
	}
	elsewhere := p.RetryHostPredicate
	if sticky {
		p.RetryHostPredicate = nil
	}
	if in == nil {
		return p
	}
	if in.GetAttempts() <= 0 {
		return nil
	}
	p.NumRetries = u32(uint32(in.Attempts))
	if in.GetRetryOn() != "" {
		p.RetryOn, p.RetriableStatusCodes = retryOn(in.RetryOn)
	}
	p.PerTryTimeout = in.GetPerTryTimeout()
	if in.GetBackoff() != nil {
		p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: in.Backoff}
	}
	if in.GetRetryRemoteLocalities().GetValue() {
		p.RetryPriority = &routev3.RetryPolicy_RetryPriority{
			Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{
				TypedConfig: toAny(&previouspriorities.PreviousPrioritiesConfig{UpdateFrequency: 2}),
			},
		}
	}
	switch x := in.GetRetryIgnorePreviousHosts(); {
	case x.GetValue():
		p.RetryHostPredicate = elsewhere
	case x != nil:
		p.RetryHostPredicate, p.HostSelectionRetryMaxAttempts = nil, 0
	}
	return p
}

// retryOn takes the status codes out of a list of conditions.
func retryOn(list string) (conditions string, statuses []uint32) {
	var words []string
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		if n, err := strconv.ParseUint(word, 10, 10); err == nil && n >= 100 && n < 600 {
			statuses = append(statuses, uint32(n))
		} else if word != "" {
			words = append(words, word)
		}
	}
	if len(statuses) > 0 && !slices.Contains(words, "retriable-status-codes") {
		words = append(words, "retriable-status-codes")
	}
	return strings.Join(words, ","), statuses
}

// grpcCode returns the number of a status that users name, such as UNAVAILABLE. Objects with other names
// do not get here.
func grpcCode(name string) uint32 {
	var c codes.Code
	if err := c.UnmarshalJSON([]byte(strconv.Quote(name))); err != nil {
		return uint32(codes.Unknown)
	}
	return uint32(c)
}

// hashes reports whether some part of a rule says to choose endpoints by a hash of the request.
func hashes(r *mesh.Rule) bool {
	is := func(p *networking.TrafficPolicy) bool {
		return p.GetLoadBalancer().GetConsistentHash() != nil || slices.ContainsFunc(p.GetPortLevelSettings(), func(s *networking.TrafficPolicy_PortTrafficPolicy) bool {
			return s.GetLoadBalancer().GetConsistentHash() != nil
		})
	}
	return is(r.Spec.GetTrafficPolicy()) || slices.ContainsFunc(r.Spec.GetSubsets(), func(s *networking.Subset) bool { return is(s.GetTrafficPolicy()) })
}

// hashPolicy returns what of a request is hashed for one port and subset.
func hashPolicy(rule *mesh.Rule, subset *networking.Subset, port uint16) []*routev3.RouteAction_HashPolicy {
	h := policyFor(rule, subset, port).GetLoadBalancer().GetConsistentHash()
	if h == nil {
		return nil
	}
	p := &routev3.RouteAction_HashPolicy{}
	switch k := h.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: k.HttpHeaderName}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		// Without a ttl, which may be 0, none is made for who has none.
		c := &routev3.RouteAction_HashPolicy_Cookie{Name: k.HttpCookie.GetName(), Path: k.HttpCookie.GetPath(), Ttl: k.HttpCookie.GetTtl()}
		for _, a := range k.HttpCookie.GetAttributes() {
			c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: k.UseSourceIp}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: k.HttpQueryParameterName}}
	default:
		return nil
	}
	return []*routev3.RouteAction_HashPolicy{p}
}

// hashPolicy returns what of a request is hashed, as the rule of its first destination that has one says.
func (t *translation) hashPolicy(http *networking.HTTPRoute) []*routev3.RouteAction_HashPolicy {
	for _, d := range http.GetRoute() {
		dest := d.GetDestination()
		host := t.resolve(dest.GetHost())
		if s := t.target(host); s != nil {
			host = s.Concrete().Host
		}
		rule := t.rule(host)
		if rule == nil {
			continue
		}
		port := t.port
		if n := dest.GetPort().GetNumber(); n != 0 {
			port = uint16(n)
		}
		for _, s := range subsetsOf(rule) {
			if s.GetName() == dest.GetSubset() {
				if h := hashPolicy(rule, s, port); h != nil {
					return h
				}
			}
		}
	}
	return nil
}
