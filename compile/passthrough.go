package compile

import (
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/carrick-mesh/carrick/mesh"
)

// A gateway between networks passes mutual TLS through as it is, to the cluster that the SNI names.
// Its listener is an aggregate: each host gives the filter chains of its own ports and subsets.

// passthroughChains returns a host's chains for each listener that exposes it.
func (r listenerRow) passthroughChains(v listenerView, part *mesh.Service) (m made) {
	if v.pass == "" || part.Type == mesh.ExternalName {
		return m
	}
	for spec := range strings.SplitSeq(v.pass, ";") {
		name, patterns, _ := strings.Cut(spec, "=")
		exposed := slices.ContainsFunc(strings.Split(patterns, "|"), func(p string) bool { return mesh.MatchHost(p, r.svc.Host) })
		if !exposed {
			continue
		}
		f := fragment{group: name}
		for _, p := range part.Ports {
			if p.Protocol() == mesh.UDP {
				continue
			}
			alpn := meshALPN
			if p.Protocol() == mesh.GRPC { // as gRPC's own xDS client offers it; no sidecar gives such a port's TLS to the application
				alpn = append(slices.Clip(meshALPN), "h2")
			}
			for _, subset := range subsetsOf(r.rule) {
				sni := sniName(p.Number, subset.GetName(), r.svc.Host)
				chain := &listenerv3.FilterChain{
					FilterChainMatch:              &listenerv3.FilterChainMatch{ServerNames: []string{sni}, ApplicationProtocols: alpn},
					Filters:                       v.http.tcpWithin(r.limits(v, subset, p), sni, weighted{sni, 1}),
					TransportSocketConnectTimeout: seconds(15),
				}
				if err := refusal(chain.FilterChainMatch); subset != nil && err != nil {
					m.faults.add(r.rule.Key(), err)
					continue
				}
				f.bytes = append(f.bytes, field(filterChainsField, chain)...)
			}
		}
		if len(f.bytes) > 0 {
			m.fragments = append(m.fragments, f)
		}
	}
	return m
}

const filterChainsField = 3 // Listener.filter_chains

// passthroughListener returns the listener around these chains.
func passthroughListener(name string, a *core.Address, more []*listenerv3.AdditionalAddress, v listenerView) *listenerv3.Listener {
	filters := []*listenerv3.ListenerFilter{sniffTLS(nil)}
	if v.proxied {
		filters = []*listenerv3.ListenerFilter{proxyProtocol(), sniffTLS(nil)}
	}
	return &listenerv3.Listener{
		Name: name, Address: a, AdditionalAddresses: more, TrafficDirection: core.TrafficDirection_OUTBOUND,
		MaxConnectionsToAcceptPerSocketEvent: u32(1), AccessLog: v.http.log.accessLogs(true),
		ListenerFilters: filters,
	}
}
