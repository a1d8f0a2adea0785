package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamcodec "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	upstreamhttp "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/carrick-mesh/carrick/resource"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func compileCluster(m *cluster.Cluster, ns *needs) (*Cluster, error) {
	c := &Cluster{
		Name:           m.Name,
		StatName:       strings.TrimSuffix(m.AltStatName, ";"),
		ConnectTimeout: orDuration(m.ConnectTimeout, 5*time.Second),
		BufferLimit:    orUint32(m.PerConnectionBufferLimitBytes, 1<<20),
		Keepalive:      compileKeepalive(m.GetUpstreamConnectionOptions().GetTcpKeepalive()),
		OriginalDst: OriginalDst{
			Port:    uint16(orUint32(m.GetOriginalDstLbConfig().GetUpstreamPortOverride(), 0)),
			Cleanup: orDuration(m.CleanupInterval, 5*time.Second),
		},
	}
	if c.StatName == "" {
		c.StatName = c.Name
	}
	if o := m.GetOriginalDstLbConfig(); o.GetUseHttpHeader() {
		c.OriginalDst.Header = "x-envoy-original-dst-host"
		if o.HttpHeaderName != "" {
			c.OriginalDst.Header = strings.ToLower(o.HttpHeaderName)
		}
	}
	steps := []func(*cluster.Cluster, *needs) error{
		c.compileDiscovery, c.compileLB, c.compileBreakers, c.compileOutlier,
		c.compileTransport, c.compileBind, c.compileHTTP, c.compileDNS, c.compileFilters,
	}
	for _, step := range steps {
		if err := step(m, ns); err != nil {
			return nil, err
		}
	}
	c.Service = clusterService(m.Metadata)
	return c, nil
}

func (c *Cluster) compileDiscovery(m *cluster.Cluster, ns *needs) error {
	switch m.GetType() {
	case cluster.Cluster_STATIC:
		c.Type = Static
	case cluster.Cluster_STRICT_DNS:
		c.Type = StrictDNS
	case cluster.Cluster_LOGICAL_DNS:
		c.Type = LogicalDNS
	case cluster.Cluster_ORIGINAL_DST:
		c.Type = OriginalDST
	case cluster.Cluster_EDS:
		c.Type = EDS
		c.EDSName = m.GetEdsClusterConfig().GetServiceName()
		if c.EDSName == "" {
			c.EDSName = c.Name
		}
		if err := viaADS(m.GetEdsClusterConfig().GetEdsConfig()); err != nil {
			return in("eds_cluster_config.eds_config", err)
		}
		ns.add(resource.EndpointType, c.EDSName)
	}
	if m.LoadAssignment == nil {
		return nil
	}
	if c.Type == EDS || c.Type == OriginalDST {
		return in("load_assignment", fmt.Errorf("does not go with type %s", m.GetType()))
	}
	a, err := compileAssignment(m.LoadAssignment)
	if err != nil {
		return in("load_assignment", err)
	}
	c.Assignment = a
	if c.Type == Static {
		for p, ls := range a.Priorities {
			for _, l := range ls {
				for _, e := range l.Endpoints {
					if e.Pipe == "" && !e.Addr.IsValid() {
						return in("load_assignment", fmt.Errorf("%q (priority %d) is no IP address, as type STATIC wants", e.Host, p))
					}
				}
			}
		}
	}
	return nil
}

func (c *Cluster) compileLB(m *cluster.Cluster, _ *needs) error {
	c.Choices, c.ActiveBias = 2, 1
	switch m.LbPolicy {
	case cluster.Cluster_ROUND_ROBIN:
		c.LB = RoundRobin
		c.compileSlowStart(m.GetRoundRobinLbConfig().GetSlowStartConfig())
	case cluster.Cluster_LEAST_REQUEST:
		c.LB = LeastRequest
		l := m.GetLeastRequestLbConfig()
		c.Choices = max(orUint32(l.GetChoiceCount(), 2), 2)
		if b := l.GetActiveRequestBias(); b != nil {
			c.ActiveBias = b.DefaultValue
		}
		c.compileSlowStart(l.GetSlowStartConfig())
	case cluster.Cluster_RANDOM:
		c.LB = Random
	case cluster.Cluster_RING_HASH:
		c.LB = RingHash
	case cluster.Cluster_MAGLEV:
		c.LB = Maglev
	case cluster.Cluster_CLUSTER_PROVIDED:
		c.LB = ClusterProvided
	default:
		return in("lb_policy", notSupported(m.LbPolicy.String()))
	}
	if (c.LB == ClusterProvided) != (c.Type == OriginalDST) {
		if c.LB == ClusterProvided {
			return in("lb_policy", errors.New("CLUSTER_PROVIDED goes with type ORIGINAL_DST only"))
		}
		c.LB = ClusterProvided
	}
	l := m.CommonLbConfig
	c.PanicThreshold = 50
	if p := l.GetHealthyPanicThreshold(); p != nil {
		c.PanicThreshold = p.Value
	}
	c.LocalityWeighted = l.GetLocalityWeightedLbConfig() != nil
	c.FailTrafficOnPanic = l.GetZoneAwareLbConfig().GetFailTrafficOnPanic()
	return nil
}

func (c *Cluster) compileSlowStart(m *cluster.Cluster_SlowStartConfig) {
	c.SlowStart = SlowStart{Window: orDuration(m.GetSlowStartWindow(), 0), Aggression: 1, Least: .1}
	if a := m.GetAggression(); a != nil && a.DefaultValue > 0 {
		c.SlowStart.Aggression = a.DefaultValue
	}
	if p := m.GetMinWeightPercent(); p != nil {
		c.SlowStart.Least = min(p.Value, 100) / 100
	}
}

func (c *Cluster) compileBreakers(m *cluster.Cluster, _ *needs) error {
	for i := range c.Breakers {
		c.Breakers[i] = Thresholds{MaxConnections: 1024, MaxPending: 1024, MaxRequests: 1024, MaxRetries: 3}
	}
	for i, t := range m.GetCircuitBreakers().GetThresholds() {
		if t.Priority > core.RoutingPriority_HIGH || t.Priority < 0 {
			return in("circuit_breakers", inIndex("thresholds", i, in("priority", notSupported(t.Priority.String()))))
		}
		x := &c.Breakers[t.Priority]
		x.MaxConnections = orUint32(t.MaxConnections, x.MaxConnections)
		x.MaxPending = orUint32(t.MaxPendingRequests, x.MaxPending)
		x.MaxRequests = orUint32(t.MaxRequests, x.MaxRequests)
		x.MaxRetries = orUint32(t.MaxRetries, x.MaxRetries)
		if b := t.RetryBudget; b != nil {
			x.RetryBudget, x.RetryMinimum = 20, orUint32(b.MinRetryConcurrency, 3)
			if b.BudgetPercent != nil {
				x.RetryBudget = b.BudgetPercent.Value
			}
		}
	}
	return nil
}

func (c *Cluster) compileOutlier(m *cluster.Cluster, _ *needs) error {
	o := m.OutlierDetection
	if o == nil {
		return nil
	}
	// Hosts are ejected for failures in a row only.
	for field, v := range map[string]*wrapperspb.UInt32Value{
		"enforcing_success_rate": o.EnforcingSuccessRate, "enforcing_failure_percentage": o.EnforcingFailurePercentage,
		"enforcing_local_origin_success_rate": o.EnforcingLocalOriginSuccessRate, "enforcing_failure_percentage_local_origin": o.EnforcingFailurePercentageLocalOrigin,
	} {
		if v.GetValue() > 0 {
			return in("outlier_detection", in(field, notSupported("a value above 0")))
		}
	}
	c.Outlier = &Outlier{
		Consecutive5xx: orUint32(o.Consecutive_5Xx, 5), Enforce5xx: orUint32(o.EnforcingConsecutive_5Xx, 100),
		ConsecutiveGateway: orUint32(o.ConsecutiveGatewayFailure, 5), EnforceGateway: orUint32(o.EnforcingConsecutiveGatewayFailure, 0),
		SplitLocal: o.SplitExternalLocalOriginErrors, ConsecutiveLocal: orUint32(o.ConsecutiveLocalOriginFailure, 5),
		EnforceLocal:       orUint32(o.EnforcingConsecutiveLocalOriginFailure, 100),
		BaseEjection:       orDuration(o.BaseEjectionTime, 30*time.Second),
		Jitter:             orDuration(o.MaxEjectionTimeJitter, 0),
		MaxEjectionPercent: min(orUint32(o.MaxEjectionPercent, 10), 100), AlwaysEjectOne: o.AlwaysEjectOneHost.GetValue(),
	}
	c.Outlier.MaxEjection = orDuration(o.MaxEjectionTime, max(300*time.Second, c.Outlier.BaseEjection))
	return nil
}

func (c *Cluster) compileBind(m *cluster.Cluster, _ *needs) error {
	b := m.UpstreamBindConfig
	if b == nil {
		return nil
	}
	c.Bind.Freebind = b.Freebind.GetValue()
	if b.SourceAddress != nil {
		ap, err := ipPort(b.SourceAddress)
		if err != nil {
			return in("upstream_bind_config.source_address", err)
		}
		c.Bind.Source, c.Bind.Port = ap.Addr(), ap.Port()
	}
	for i, e := range b.ExtraSourceAddresses {
		ap, err := ipPort(e.GetAddress())
		if err != nil {
			return in("upstream_bind_config", inIndex("extra_source_addresses", i, in("address", err)))
		}
		c.Bind.Additional = append(c.Bind.Additional, ap.Addr())
	}
	for i, e := range b.AdditionalSourceAddresses {
		ap, err := ipPort(e)
		if err != nil {
			return in("upstream_bind_config", inIndex("additional_source_addresses", i, err))
		}
		c.Bind.Additional = append(c.Bind.Additional, ap.Addr())
	}
	k, err := compileSocketOptions(c.Keepalive, b.SocketOptions)
	c.Keepalive = k
	return in("upstream_bind_config", err)
}

func (c *Cluster) compileDNS(m *cluster.Cluster, _ *needs) error {
	c.DNS = DNS{Refresh: orDuration(m.DnsRefreshRate, 5*time.Second), Jitter: orDuration(m.DnsJitter, 0)}
	if r := m.DnsFailureRefreshRate; r != nil {
		c.DNS.FailBase = orDuration(r.BaseInterval, 0)
		c.DNS.FailMax = orDuration(r.MaxInterval, 10*c.DNS.FailBase)
	}
	switch m.DnsLookupFamily {
	case cluster.Cluster_AUTO:
	case cluster.Cluster_V4_ONLY:
		c.DNS.Family = DNSv4Only
	case cluster.Cluster_V6_ONLY:
		c.DNS.Family = DNSv6Only
	case cluster.Cluster_V4_PREFERRED:
		c.DNS.Family = DNSv4Preferred
	case cluster.Cluster_ALL:
		c.DNS.Family = DNSAll
	default:
		return in("dns_lookup_family", notSupported(m.DnsLookupFamily.String()))
	}
	return nil
}

func (c *Cluster) compileFilters(m *cluster.Cluster, _ *needs) error {
	for i, f := range m.Filters {
		if !leftOut(f.GetTypedConfig()) {
			return inIndex("filters", i, notSupported(f.Name))
		}
	}
	return nil
}

// httpOptions is the name of the only protocol options there are.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func (c *Cluster) compileHTTP(m *cluster.Cluster, _ *needs) error {
	for name, a := range m.TypedExtensionProtocolOptions {
		if name != httpOptions && !leftOut(a) {
			return inKey("typed_extension_protocol_options", name, errNotSupported)
		}
	}
	a := m.TypedExtensionProtocolOptions[httpOptions]
	if a == nil {
		return c.compileOldHTTP(m)
	}
	o, err := unpackAs[*upstreamhttp.HttpProtocolOptions](a)
	if err != nil {
		return inKey("typed_extension_protocol_options", httpOptions, err)
	}
	if err := c.HTTP.compile(o); err != nil {
		return inKey("typed_extension_protocol_options", httpOptions, err)
	}
	c.autoSAN(o.UpstreamHttpProtocolOptions)
	return nil
}

// compileOldHTTP takes the fields of clusters that came before HttpProtocolOptions.
func (c *Cluster) compileOldHTTP(m *cluster.Cluster) error {
	h := &c.HTTP
	h.compileCommon(m.CommonHttpProtocolOptions, m.UpstreamHttpProtocolOptions)
	c.autoSAN(m.UpstreamHttpProtocolOptions)
	h.MaxRequests = orUint32(m.MaxRequestsPerConnection, h.MaxRequests)
	var err error
	if h.HTTP1, err = compileHTTP1(m.HttpProtocolOptions); err != nil {
		return in("http_protocol_options", err)
	}
	h.HTTP2 = compileHTTP2(m.Http2ProtocolOptions, 1<<31-1)
	switch {
	case m.ProtocolSelection == cluster.Cluster_USE_DOWNSTREAM_PROTOCOL:
		h.Protocol = HTTPDownstream
	case m.Http2ProtocolOptions != nil:
		h.Protocol = HTTP2
	}
	return nil
}

// autoSAN makes the cluster's TLS contexts, which are compiled before, check peers by the SNI.
func (c *Cluster) autoSAN(u *core.UpstreamHttpProtocolOptions) {
	if !u.GetAutoSanValidation() {
		return
	}
	if c.TLS != nil {
		c.TLS.AutoSAN = true
	}
	for _, m := range c.SocketMatches {
		if m.TLS != nil {
			m.TLS.AutoSAN = true
		}
	}
}

func (h *UpstreamHTTP) compileCommon(m *core.HttpProtocolOptions, u *core.UpstreamHttpProtocolOptions) {
	h.IdleTimeout = orDuration(m.GetIdleTimeout(), time.Hour)
	h.MaxConnectionDuration = orDuration(m.GetMaxConnectionDuration(), 0)
	h.MaxStreamDuration = orDuration(m.GetMaxStreamDuration(), 0)
	h.MaxRequests = orUint32(m.GetMaxRequestsPerConnection(), 0)
	h.MaxHeaders = orUint32(m.GetMaxHeadersCount(), 100)
	h.AutoSNI = u.GetAutoSni()
}

func (h *UpstreamHTTP) compile(m *upstreamhttp.HttpProtocolOptions) error {
	h.compileCommon(m.CommonHttpProtocolOptions, m.UpstreamHttpProtocolOptions)
	for i, f := range m.HttpFilters {
		if _, err := unpackAs[*upstreamcodec.UpstreamCodec](f.GetTypedConfig()); err != nil {
			return inIndex("http_filters", i, in("typed_config", err))
		}
	}
	var h1 *core.Http1ProtocolOptions
	var h2 *core.Http2ProtocolOptions
	field := "explicit_http_config.http_protocol_options"
	switch o := m.UpstreamProtocolOptions.(type) {
	case *upstreamhttp.HttpProtocolOptions_ExplicitHttpConfig_:
		h1, h2 = o.ExplicitHttpConfig.GetHttpProtocolOptions(), o.ExplicitHttpConfig.GetHttp2ProtocolOptions()
		if h2 != nil {
			h.Protocol = HTTP2
		}
	case *upstreamhttp.HttpProtocolOptions_UseDownstreamProtocolConfig:
		h1, h2 = o.UseDownstreamProtocolConfig.GetHttpProtocolOptions(), o.UseDownstreamProtocolConfig.GetHttp2ProtocolOptions()
		h.Protocol, field = HTTPDownstream, "use_downstream_protocol_config.http_protocol_options"
	case *upstreamhttp.HttpProtocolOptions_AutoConfig:
		h1, h2 = o.AutoConfig.GetHttpProtocolOptions(), o.AutoConfig.GetHttp2ProtocolOptions()
		h.Protocol, field = HTTPAuto, "auto_config.http_protocol_options"
	}
	var err error
	h.HTTP1, err = compileHTTP1(h1)
	h.HTTP2 = compileHTTP2(h2, 1<<31-1)
	return in(field, err)
}

// clusterService reads Istio's filter_metadata.istio.services[0].
func clusterService(m *core.Metadata) Service {
	for _, v := range m.GetFilterMetadata()["istio"].GetFields()["services"].GetListValue().GetValues() {
		f := v.GetStructValue().GetFields()
		return Service{f["host"].GetStringValue(), f["name"].GetStringValue(), f["namespace"].GetStringValue()}
	}
	return Service{}
}
