package config

import (
	"errors"
	"maps"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	cors "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	fault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

func compilePerFilter(m map[string]*anypb.Any) (map[string]FilterConfig, error) {
	var out map[string]FilterConfig
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if leftOut(m[name]) {
			continue
		}
		c, err := compileRouteFilter(m[name])
		if err != nil {
			return nil, inKey("typed_per_filter_config", name, err)
		}
		if out == nil {
			out = map[string]FilterConfig{}
		}
		out[name] = c
	}
	return out, nil
}

// compileRouteFilter returns nil for a FilterConfig that disables its filter.
func compileRouteFilter(a *anypb.Any) (FilterConfig, error) {
	if a.MessageIs((*route.FilterConfig)(nil)) {
		f := &route.FilterConfig{}
		if err := a.UnmarshalTo(f); err != nil {
			return nil, err
		}
		if f.Disabled {
			return nil, nil
		}
		if f.Config == nil {
			return nil, notSupported("enabling a filter without configuration")
		}
		c, err := compileRouteFilter(f.Config)
		if f.IsOptional && errors.Is(err, errNotSupported) {
			return nil, nil
		}
		return c, in("config", err)
	}
	m, err := unpack(a)
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *cors.CorsPolicy:
		return compileCORS(m)
	case *fault.HTTPFault:
		return compileFault(m)
	}
	return nil, notSupported(a.GetTypeUrl())
}

// corsPolicy is what the CORS policies of the filter and of routes have in common.
type corsPolicy interface {
	GetAllowOriginStringMatch() []*matcher.StringMatcher
	GetAllowMethods() string
	GetAllowHeaders() string
	GetExposeHeaders() string
	GetMaxAge() string
	GetFilterEnabled() *core.RuntimeFractionalPercent
}

func compileCORSPolicy(m corsPolicy) (*CORSPolicy, error) {
	c := &CORSPolicy{Methods: m.GetAllowMethods(), Headers: m.GetAllowHeaders(), Expose: m.GetExposeHeaders(), MaxAge: m.GetMaxAge()}
	for i, o := range m.GetAllowOriginStringMatch() {
		s, err := compileString(o)
		if err != nil {
			return nil, inIndex("allow_origin_string_match", i, err)
		}
		c.Origins = append(c.Origins, s)
	}
	var err error
	c.Enabled, err = runtimeFraction(m.GetFilterEnabled())
	return c, in("filter_enabled", err)
}

func compileCORS(m *cors.CorsPolicy) (*CORSPolicy, error) {
	c, err := compileCORSPolicy(m)
	if err != nil {
		return nil, err
	}
	c.Credentials = m.AllowCredentials.GetValue()
	c.PrivateNetwork = m.AllowPrivateNetworkAccess.GetValue()
	c.ForwardUnmatched = orBool(m.ForwardNotMatchingPreflights, true)
	return c, nil
}

func compileOldCORS(m *route.CorsPolicy) (*CORSPolicy, error) {
	if m == nil {
		return nil, nil
	}
	c, err := compileCORSPolicy(m)
	if err != nil {
		return nil, in("cors", err)
	}
	c.Credentials = m.AllowCredentials.GetValue()
	c.PrivateNetwork = m.AllowPrivateNetworkAccess.GetValue()
	c.ForwardUnmatched = orBool(m.ForwardNotMatchingPreflights, true)
	return c, nil
}
