package config

import (
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	canary "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/omit_canary_hosts/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previouspriorities "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
)

// compileHosts takes the extensions that choose the host of a retry. Envoy's older configurations
// give no typed_config, only the name.
func (p *RetryPolicy) compileHosts(m *route.RetryPolicy) error {
	for i, h := range m.RetryHostPredicate {
		if h.GetTypedConfig() == nil {
			switch h.Name {
			case "envoy.retry_host_predicates.previous_hosts":
				p.PreviousHosts = true
			case "envoy.retry_host_predicates.omit_canary_hosts":
				p.OmitCanary = true
			default:
				return inIndex("retry_host_predicate", i, in("name", notSupported(h.Name)))
			}
			continue
		}
		x, err := unpack(h.GetTypedConfig())
		if err != nil {
			return inIndex("retry_host_predicate", i, in("typed_config", err))
		}
		switch x.(type) {
		case *previoushosts.PreviousHostsPredicate:
			p.PreviousHosts = true
		case *canary.OmitCanaryHostsPredicate:
			p.OmitCanary = true
		default:
			return inIndex("retry_host_predicate", i, in("typed_config", notSupported(h.GetTypedConfig().GetTypeUrl())))
		}
	}
	if m.RetryPriority == nil {
		return nil
	}
	x, err := unpackAs[*previouspriorities.PreviousPrioritiesConfig](m.RetryPriority.GetTypedConfig())
	if err != nil {
		return in("retry_priority", in("typed_config", err))
	}
	p.PreviousPriorities = int(max(x.UpdateFrequency, 1))
	return nil
}
