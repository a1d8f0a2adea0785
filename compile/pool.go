package compile

import (
	"math"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
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

// applyPool writes a connection pool's settings into a cluster and its HTTP options.
func applyPool(c *clusterv3.Cluster, http *httpv3.HttpProtocolOptions, pool *networking.ConnectionPoolSettings) {
	limits := noLimit()
	c.CircuitBreakers = breakers(limits)
	if tcp := pool.GetTcp(); tcp != nil {
		if tcp.MaxConnections > 0 {
			limits.MaxConnections = u32(uint32(tcp.MaxConnections))
		}
		if tcp.ConnectTimeout != nil {
			c.ConnectTimeout = tcp.ConnectTimeout
		}
		if k := tcp.TcpKeepalive; k != nil {
			c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: keepalive(k)}
		}
		if tcp.MaxConnectionDuration != nil {
			common(http).MaxConnectionDuration = tcp.MaxConnectionDuration
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

func common(h *httpv3.HttpProtocolOptions) *core.HttpProtocolOptions {
	if h.CommonHttpProtocolOptions == nil {
		h.CommonHttpProtocolOptions = &core.HttpProtocolOptions{}
	}
	return h.CommonHttpProtocolOptions
}

func keepalive(k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) *core.TcpKeepalive {
	out := &core.TcpKeepalive{}
	if k.Probes > 0 {
		out.KeepaliveProbes = u32(k.Probes)
	}
	if s := k.GetTime().GetSeconds(); s > 0 {
		out.KeepaliveTime = u32(uint32(s))
	}
	if s := k.GetInterval().GetSeconds(); s > 0 {
		out.KeepaliveInterval = u32(uint32(s))
	}
	return out
}
