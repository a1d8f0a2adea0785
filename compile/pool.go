package compile

import (
	"math"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
)

// noLimit is what Istio sets where Envoy's own defaults would be low.
func noLimit() *clusterv3.CircuitBreakers_Thresholds {
	return &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections: u32(math.MaxUint32), MaxPendingRequests: u32(math.MaxUint32),
		MaxRequests: u32(math.MaxUint32), MaxRetries: u32(math.MaxUint32),
	}
}

func breakers(t *clusterv3.CircuitBreakers_Thresholds) *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
}

// applyPool writes what a policy says of connections into a cluster and its HTTP options.
func applyPool(c *clusterv3.Cluster, http *httpv3.HttpProtocolOptions, policy *networking.TrafficPolicy) {
	pool, limits := policy.GetConnectionPool(), noLimit()
	limits.RetryBudget = retryBudget(policy.GetRetryBudget())
	c.CircuitBreakers = breakers(limits)
	if tcp := pool.GetTcp(); tcp != nil {
		if tcp.MaxConnections > 0 {
			limits.MaxConnections = u32(uint32(tcp.MaxConnections))
		}
		if tcp.ConnectTimeout != nil {
			c.ConnectTimeout = tcp.ConnectTimeout
		}
		keepAlive(c, tcp.TcpKeepalive)
		if tcp.MaxConnectionDuration != nil {
			common(http).MaxConnectionDuration = tcp.MaxConnectionDuration
		}
		if tcp.IdleTimeout != nil {
			common(http).IdleTimeout = tcp.IdleTimeout
		}
	}
	h := pool.GetHttp()
	if h == nil {
		return
	}
	if h.Http2MaxRequests > 0 {
		limits.MaxRequests = u32(uint32(h.Http2MaxRequests))
	}
	if h.Http1MaxPendingRequests > 0 {
		limits.MaxPendingRequests = u32(uint32(h.Http1MaxPendingRequests))
	}
	if h.MaxRetries > 0 {
		limits.MaxRetries = u32(uint32(h.MaxRetries))
	}
	if h.MaxRequestsPerConnection > 0 {
		common(http).MaxRequestsPerConnection = u32(uint32(h.MaxRequestsPerConnection))
	}
	if h.IdleTimeout != nil {
		common(http).IdleTimeout = h.IdleTimeout
	}
}

// retryBudget limits retries to a share of the requests, which takes the place of a number of them.
func retryBudget(b *networking.TrafficPolicy_RetryBudget) *clusterv3.CircuitBreakers_Thresholds_RetryBudget {
	if b == nil {
		return nil
	}
	out := &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
		BudgetPercent: &typev3.Percent{Value: 20}, MinRetryConcurrency: u32(3), BudgetInterval: b.BudgetInterval,
	}
	if b.Percent != nil {
		out.BudgetPercent.Value = b.Percent.Value
	}
	if b.MinRetryConcurrency > 0 {
		out.MinRetryConcurrency = u32(b.MinRetryConcurrency)
	}
	return out
}

// http2Options returns what a pool says of HTTP/2 connections.
func http2Options(h *networking.ConnectionPoolSettings_HTTPSettings) *core.Http2ProtocolOptions {
	out := &core.Http2ProtocolOptions{}
	if h.GetMaxConcurrentStreams() > 0 {
		out.MaxConcurrentStreams = u32(uint32(h.MaxConcurrentStreams))
	}
	if k := h.GetHttp2KeepAlive(); k != nil {
		out.ConnectionKeepalive = &core.KeepaliveSettings{Interval: k.Interval, Timeout: k.Timeout}
	}
	return out
}

// connectionLimits are what a rule says of connections that are passed through as they are, on both sides.
// Nil fields say nothing.
type connectionLimits struct {
	idle, most *durationpb.Duration
	bySource   bool // those of one client go to one host
}

// limitsTCP reports whether a policy has connection limits.
func limitsTCP(p *networking.TrafficPolicy) bool { return connectionLimitsOf(p) != connectionLimits{} }

func connectionLimitsOf(p *networking.TrafficPolicy) connectionLimits {
	tcp := p.GetConnectionPool().GetTcp()
	return connectionLimits{
		tcp.GetIdleTimeout(), tcp.GetMaxConnectionDuration(), p.GetLoadBalancer().GetConsistentHash().GetUseSourceIp(),
	}
}

func common(h *httpv3.HttpProtocolOptions) *core.HttpProtocolOptions {
	if h.CommonHttpProtocolOptions == nil {
		h.CommonHttpProtocolOptions = &core.HttpProtocolOptions{}
	}
	return h.CommonHttpProtocolOptions
}

// keepAlive writes how idle connections are kept alive, where k says.
func keepAlive(c *clusterv3.Cluster, k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) {
	if k == nil {
		return
	}
	out := c.GetUpstreamConnectionOptions().GetTcpKeepalive()
	if out == nil {
		out = &core.TcpKeepalive{}
		c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: out}
	}
	if k.Probes > 0 {
		out.KeepaliveProbes = u32(k.Probes)
	}
	if s := k.GetTime().GetSeconds(); s > 0 {
		out.KeepaliveTime = u32(uint32(s))
	}
	if s := k.GetInterval().GetSeconds(); s > 0 {
		out.KeepaliveInterval = u32(uint32(s))
	}
}
