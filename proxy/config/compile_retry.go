package config

import (
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushosts "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previouspriorities "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
)

// previousHosts is the predicate's name, which is all that older configurations give.
const previousHosts = "envoy.retry_host_predicates.previous_hosts"

// compileHosts takes the extensions that choose the host of a retry.
func (p *RetryPolicy) compileHosts(m *route.RetryPolicy) error {
	for i, h := range m.RetryHostPredicate {
		if h.GetTypedConfig() == nil {
			if h.Name != previousHosts {
				return inIndex("retry_host_predicate", i, in("name", notSupported(h.Name)))
			}
		} else if _, err := unpackAs[*previoushosts.PreviousHostsPredicate](h.GetTypedConfig()); err != nil {
			return inIndex("retry_host_predicate", i, in("typed_config", err))
		}
		p.PreviousHosts = true
	}
	if m.RetryPriority != nil {
		x, err := unpackAs[*previouspriorities.PreviousPrioritiesConfig](m.RetryPriority.GetTypedConfig())
		if err != nil {
			return in("retry_priority.typed_config", err)
		}
		p.PreviousPriorities = int(min(max(1, x.UpdateFrequency), 1000))
	}
	return nil
}
