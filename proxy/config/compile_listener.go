package config

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	snicluster "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"google.golang.org/protobuf/proto"
)

func compileListener(m *listener.Listener, ns *needs) (*Listener, error) {
	l := &Listener{
		Name:              m.Name,
		StatName:          m.StatPrefix,
		UseOriginalDst:    m.UseOriginalDst.GetValue(),
		Bind:              orBool(m.BindToPort, orBool(m.GetDeprecatedV1().GetBindToPort(), true)),
		Transparent:       m.Transparent.GetValue(),
		Freebind:          m.Freebind.GetValue(),
		Backlog:           int(orUint32(m.TcpBacklogSize, 0)),
		NoLimit:           m.IgnoreGlobalConnLimit,
		Bypass:            m.BypassOverloadManager,
		BufferLimit:       orUint32(m.PerConnectionBufferLimitBytes, 1<<20),
		MaxAccepts:        int(orUint32(m.MaxConnectionsToAcceptPerSocketEvent, 0)),
		FilterTimeout:     orDuration(m.ListenerFiltersTimeout, 15*time.Second),
		ContinueOnTimeout: m.ContinueOnListenerFiltersTimeout,
	}
	switch m.TrafficDirection {
	case core.TrafficDirection_INBOUND:
		l.Direction = Inbound
	case core.TrafficDirection_OUTBOUND:
		l.Direction = Outbound
	}
	if m.ApiListener != nil {
		h, err := unpackAs[*hcm.HttpConnectionManager](m.ApiListener.ApiListener)
		if err == nil {
			l.API, err = compileHCM(h, ns)
		}
		return l, in("api_listener", in("api_listener", err))
	}
	if err := l.compileAddresses(m); err != nil {
		return nil, err
	}
	var err error
	if l.Keepalive, err = compileSocketOptions(compileKeepalive(m.TcpKeepalive), m.SocketOptions); err != nil {
		return nil, err
	}
	for i, f := range m.ListenerFilters {
		if err := l.compileFilter(f); err != nil {
			return nil, inIndex("listener_filters", i, err)
		}
	}
	if l.AccessLogs, err = compileLogs("access_log", m.AccessLog); err != nil {
		return nil, err
	}
	for i, fc := range m.FilterChains {
		c, err := compileChain(fc, ns)
		if err != nil {
			return nil, inIndex("filter_chains", i, err)
		}
		if err := l.chains.add(fc.FilterChainMatch, c); err != nil {
			return nil, inIndex("filter_chains", i, in("filter_chain_match", err))
		}
		l.Chains = append(l.Chains, c)
	}
	if m.DefaultFilterChain != nil {
		if proto.Size(m.DefaultFilterChain.FilterChainMatch) > 0 {
			return nil, in("default_filter_chain", in("filter_chain_match", errors.New("must be empty")))
		}
		if l.Default, err = compileChain(m.DefaultFilterChain, ns); err != nil {
			return nil, in("default_filter_chain", err)
		}
	}
	if len(l.Chains) == 0 && l.Default == nil {
		return nil, in("filter_chains", errors.New("is empty"))
	}
	return l, nil
}

func (l *Listener) compileAddresses(m *listener.Listener) error {
	switch a := m.GetAddress().GetAddress().(type) {
	case *core.Address_SocketAddress:
		ap, err := ipPort(a.SocketAddress)
		if err != nil {
			return in("address", in("socket_address", err))
		}
		l.Addresses = []netip.AddrPort{ap}
	case *core.Address_Pipe:
		l.Pipe, l.PipeMode = a.Pipe.GetPath(), a.Pipe.GetMode()
		if l.PipeMode > 0o777 {
			return in("address.pipe.mode", fmt.Errorf("%#o is no file mode", l.PipeMode))
		}
	default:
		return in("address", errors.New("is missing"))
	}
	for i, a := range m.AdditionalAddresses {
		ap, err := ipPort(a.GetAddress().GetSocketAddress())
		if err != nil {
			return inIndex("additional_addresses", i, in("address", err))
		}
		l.Addresses = append(l.Addresses, ap)
	}
	if l.StatName == "" && l.Pipe == "" {
		l.StatName = strings.ReplaceAll(l.Addresses[0].String(), ":", "_")
	} else if l.StatName == "" {
		l.StatName = l.Pipe
	}
	return nil
}

func (l *Listener) compileFilter(f *listener.ListenerFilter) error {
	if leftOut(f.GetTypedConfig()) {
		return nil
	}
	m, err := unpack(f.GetTypedConfig())
	if err != nil {
		return in("typed_config", err)
	}
	set := []PortRange(nil)
	if f.FilterDisabled != nil {
		if set, err = compilePredicate(f.FilterDisabled); err != nil {
			return in("filter_disabled", err)
		}
	}
	switch m.(type) {
	case *originaldst.OriginalDst:
		if f.FilterDisabled != nil {
			return in("filter_disabled", errNotSupported)
		}
		l.OriginalDst = true
	case *proxyprotocol.ProxyProtocol:
		if f.FilterDisabled != nil {
			return in("filter_disabled", errNotSupported)
		}
		l.ProxyHeader = true
	case *tlsinspector.TlsInspector:
		l.TLSInspector = &Inspector{Disabled: set}
	case *httpinspector.HttpInspector:
		l.HTTPInspector = &Inspector{Disabled: set}
	default:
		return in("typed_config", notSupported(f.GetTypedConfig().GetTypeUrl()))
	}
	return nil
}

// compilePredicate turns the predicate, which can only ask for the destination port, into a set.
func compilePredicate(p *listener.ListenerFilterChainMatchPredicate) (PortSet, error) {
	switch r := p.Rule.(type) {
	case *listener.ListenerFilterChainMatchPredicate_AnyMatch:
		return PortSet{{0, 65535}}, nil
	case *listener.ListenerFilterChainMatchPredicate_DestinationPortRange:
		first, end := max(r.DestinationPortRange.Start, 0), min(r.DestinationPortRange.End, 65536)
		if first >= end {
			return nil, nil
		}
		return PortSet{{uint16(first), uint16(end - 1)}}, nil
	case *listener.ListenerFilterChainMatchPredicate_NotMatch:
		s, err := compilePredicate(r.NotMatch)
		return s.not(), in("not_match", err)
	case *listener.ListenerFilterChainMatchPredicate_OrMatch:
		return compilePredicates("or_match", r.OrMatch.GetRules(), PortSet.or)
	case *listener.ListenerFilterChainMatchPredicate_AndMatch:
		// De Morgan: an intersection is what no complement has.
		s, err := compilePredicates("and_match", r.AndMatch.GetRules(), func(a, b PortSet) PortSet { return a.not().or(b.not()).not() })
		return s, err
	}
	return nil, errors.New("is empty")
}

func compilePredicates(field string, ps []*listener.ListenerFilterChainMatchPredicate, join func(a, b PortSet) PortSet) (PortSet, error) {
	var out PortSet
	for i, p := range ps {
		s, err := compilePredicate(p)
		if err != nil {
			return nil, in(field, inIndex("rules", i, err))
		}
		if i == 0 {
			out = s
		} else {
			out = join(out, s)
		}
	}
	return out, nil
}

func (s PortSet) not() PortSet {
	var out PortSet
	next := 0
	for _, r := range s {
		if int(r.First) > next {
			out = append(out, PortRange{uint16(next), r.First - 1})
		}
		next = int(r.Last) + 1
	}
	if next <= 65535 {
		out = append(out, PortRange{uint16(next), 65535})
	}
	return out
}

func (s PortSet) or(t PortSet) PortSet {
	all := append(append(PortSet{}, s...), t...)
	sort.Slice(all, func(i, j int) bool { return all[i].First < all[j].First })
	var out PortSet
	for _, r := range all {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

func compileChain(m *listener.FilterChain, ns *needs) (*FilterChain, error) {
	c := &FilterChain{Name: m.Name, HandshakeTimeout: orDuration(m.TransportSocketConnectTimeout, 0)}
	if m.TransportSocket != nil {
		t, err := compileDownstreamSocket(m.TransportSocket, ns)
		if err != nil {
			return nil, in("transport_socket", err)
		}
		c.TLS = t
	}
	for i, f := range m.Filters {
		if c.HTTP != nil || c.TCP != nil {
			return nil, inIndex("filters", i, errors.New("follows the filter that ends the chain"))
		}
		if err := c.compileFilter(f, ns); err != nil {
			return nil, inIndex("filters", i, err)
		}
	}
	if c.SNICluster && c.TCP == nil {
		return nil, in("filters", errors.New("sni_cluster needs a tcp_proxy behind it"))
	}
	return c, nil
}

func (c *FilterChain) compileFilter(f *listener.Filter, ns *needs) error {
	if leftOut(f.GetTypedConfig()) {
		return nil
	}
	m, err := unpack(f.GetTypedConfig())
	if err != nil {
		return in("typed_config", err)
	}
	switch m := m.(type) {
	case *snicluster.SniCluster:
		c.SNICluster = true
	case *tcpproxy.TcpProxy:
		c.TCP, err = compileTCP(m)
	case *hcm.HttpConnectionManager:
		c.HTTP, err = compileHCM(m, ns)
	default:
		err = notSupported(f.GetTypedConfig().GetTypeUrl())
	}
	return in("typed_config", err)
}

func compileTCP(m *tcpproxy.TcpProxy) (*TCPProxy, error) {
	t := &TCPProxy{
		StatPrefix:   m.StatPrefix,
		IdleTimeout:  orDuration(m.IdleTimeout, time.Hour),
		MaxDuration:  orDuration(m.MaxDownstreamConnectionDuration, 0),
		ConnectTries: max(orUint32(m.MaxConnectAttempts, 1), 1),
		Hash:         len(m.HashPolicy) > 0,
	}
	switch s := m.ClusterSpecifier.(type) {
	case *tcpproxy.TcpProxy_Cluster:
		t.Clusters = []WeightedCluster{{Name: s.Cluster, Weight: 1}}
	case *tcpproxy.TcpProxy_WeightedClusters:
		for _, w := range s.WeightedClusters.GetClusters() {
			t.Clusters = append(t.Clusters, WeightedCluster{Name: w.Name, Weight: w.Weight})
		}
	}
	var err error
	if t.TotalWeight, err = sumWeights(t.Clusters); err != nil {
		return nil, in("weighted_clusters", err)
	}
	t.AccessLogs, err = compileLogs("access_log", m.AccessLog)
	return t, err
}

// sumWeights adds up weights, of which there must be some.
func sumWeights(cs []WeightedCluster) (uint32, error) {
	var sum uint64
	for i, c := range cs {
		if c.Name == "" {
			return 0, inIndex("clusters", i, in("name", errors.New("is empty")))
		}
		sum += uint64(c.Weight)
	}
	if len(cs) == 0 {
		return 0, errors.New("names no cluster")
	}
	if sum == 0 {
		return 0, errors.New("has no weight above 0")
	}
	if sum > 1<<32-1 {
		return 0, fmt.Errorf("weights add up to %d, more than 4294967295", sum)
	}
	return uint32(sum), nil
}
