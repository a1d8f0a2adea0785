package config

import (
	"net/netip"
	"time"
)

// Discovery is how a cluster finds its endpoints.
type Discovery uint8

// Kinds of discovery.
const (
	Static Discovery = iota
	StrictDNS
	LogicalDNS
	EDS
	OriginalDST
)

// LBPolicy is how a cluster spreads requests.
type LBPolicy uint8

// Load balancing policies.
const (
	RoundRobin LBPolicy = iota
	LeastRequest
	Random
	RingHash
	Maglev
	ClusterProvided // ORIGINAL_DST's own
)

// Cluster is a set of endpoints and how they are talked to. Immutable.
type Cluster struct {
	Name     string
	StatName string // alt_stat_name without the trailing ";", or Name
	Type     Discovery
	EDSName  string // of the ClusterLoadAssignment; for EDS
	// Assignment is set for Static, StrictDNS and LogicalDNS. For others see Config.Assignment.
	Assignment *Assignment

	LB                 LBPolicy
	Choices            uint32  // of LeastRequest; default 2
	ActiveBias         float64 // of LeastRequest; default 1
	SlowStart          SlowStart
	PanicThreshold     float64 // percent; default 50
	LocalityWeighted   bool    // weigh localities by LocalityEndpoints.Weight
	FailTrafficOnPanic bool    // answer UH instead of balancing over all hosts

	ConnectTimeout time.Duration // default 5 s
	BufferLimit    uint32        // default 1 MiB
	Breakers       [2]Thresholds // by priority: default, high
	Outlier        *Outlier      // nil: none

	// TLS is the transport where no SocketMatch matches; nil: plaintext.
	TLS           *UpstreamTLS
	SocketMatches []SocketMatch // the first whose labels the endpoint has

	Bind        Bind
	Keepalive   *TCPKeepalive
	HTTP        UpstreamHTTP
	DNS         DNS
	OriginalDst OriginalDst

	// Service is what Istio's metadata says of the cluster (filter_metadata.istio.services[0]).
	Service Service
}

// Service names the service behind a cluster.
type Service struct{ Host, Name, Namespace string }

// Thresholds are circuit breakers; a request over one is answered 503 UO.
type Thresholds struct {
	MaxConnections, MaxPending, MaxRequests, MaxRetries uint32  // default 1024, 1024, 1024, 3
	RetryBudget                                         float64 // percent of active requests; 0: MaxRetries holds
	RetryMinimum                                        uint32
}

// Outlier is outlier detection.
type Outlier struct {
	Consecutive5xx     uint32 // default 5; 0 disables
	Enforce5xx         uint32 // percent; default 100
	ConsecutiveGateway uint32 // default 5
	EnforceGateway     uint32 // default 0
	SplitLocal         bool
	ConsecutiveLocal   uint32        // default 5
	EnforceLocal       uint32        // default 100
	BaseEjection       time.Duration // default 30 s
	MaxEjection        time.Duration // default 300 s
	Jitter             time.Duration
	MaxEjectionPercent uint32 // default 10
	AlwaysEjectOne     bool
}

// SocketMatch is a transport for endpoints with these labels (metadata
// envoy.transport_socket_match). Without labels it matches every endpoint.
type SocketMatch struct {
	Name  string
	Match []Label
	TLS   *UpstreamTLS // nil: plaintext
}

// Transport returns the TLS context for an endpoint and the name of the match that chose it; nil is
// plaintext.
func (c *Cluster) Transport(e *Endpoint) (*UpstreamTLS, string) {
	for i := range c.SocketMatches {
		m := &c.SocketMatches[i]
		if e.has(m.Match) {
			return m.TLS, m.Name
		}
	}
	return c.TLS, ""
}

func (e *Endpoint) has(want []Label) bool {
	for _, w := range want {
		found := false
		for _, l := range e.Labels {
			if l == w {
				found = true
				break
			}
		}
		if !found {
			return false
		}
	}
	return true
}

// Bind is the local address of connections.
type Bind struct {
	Source     netip.Addr   // not valid: the kernel chooses
	Additional []netip.Addr // for the other address families
	Port       uint16
	Freebind   bool
}

// For returns the source address to use towards dst, or an invalid one.
func (b *Bind) For(dst netip.Addr) netip.Addr {
	v6 := dst.Is6() && !dst.Is4In6()
	if b.Source.IsValid() && b.Source.Is6() == v6 {
		return b.Source
	}
	for _, a := range b.Additional {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// TCPKeepalive switches keepalive on. Zero fields: the kernel's defaults.
type TCPKeepalive struct {
	Probes         uint32
	Idle, Interval time.Duration
	UserTimeout    time.Duration // TCP_USER_TIMEOUT, from socket options
}

// Protocol is what is spoken to endpoints.
type Protocol uint8

// Upstream protocols.
const (
	HTTP1 Protocol = iota
	HTTP2
	HTTPAuto       // by ALPN; HTTP/1.1 without TLS
	HTTPDownstream // the protocol of the downstream request
)

// UpstreamHTTP is how HTTP is spoken to endpoints.
type UpstreamHTTP struct {
	Protocol              Protocol
	IdleTimeout           time.Duration // default 1 h; 0: none
	MaxConnectionDuration time.Duration
	MaxStreamDuration     time.Duration
	MaxRequests           uint32 // per connection; 0: no bound
	MaxHeaders            uint32
	AutoSNI               bool // SNI from Host
	HTTP1                 HTTP1Options
	HTTP2                 HTTP2Options
}

// SlowStart lets a new host get its share little by little: its weight is multiplied by
// max(Least, (age/Window)^(1/Aggression)) until it is as old as Window.
type SlowStart struct {
	Window     time.Duration // 0: none
	Aggression float64       // default 1
	Least      float64       // of 1; default 0.1
}

// DNSFamily is which addresses are looked up.
type DNSFamily uint8

// DNS families.
const (
	DNSAuto DNSFamily = iota // IPv6, then IPv4 if there is none
	DNSv4Only
	DNSv6Only
	DNSv4Preferred
	DNSAll
)

// DNS is how names are resolved.
type DNS struct {
	Family   DNSFamily
	Refresh  time.Duration // default 5 s
	FailBase time.Duration // refresh after a failure; 0: Refresh
	FailMax  time.Duration // to which it grows while names do not resolve
	Jitter   time.Duration // most that is added at random
}

// OriginalDst is how an ORIGINAL_DST cluster finds the address.
type OriginalDst struct {
	Header  string        // the request header with the address; empty: none
	Port    uint16        // instead of the original port; 0: keep
	Cleanup time.Duration // default 5 s
}

// Assignment is the endpoints of a cluster. Immutable.
type Assignment struct {
	Name          string
	Priorities    [][]*LocalityEndpoints // by priority; a priority may be empty
	Overprovision uint32                 // percent; default 140
}

// LocalityEndpoints is the endpoints in one locality at one priority.
type LocalityEndpoints struct {
	Region, Zone, Subzone string
	Weight                uint32 // 0: none given
	Endpoints             []*Endpoint
}

// Health is the health that the control plane states.
type Health uint8

// Health states.
const (
	HealthUnknown Health = iota // taken as healthy
	Healthy
	Degraded
	Unhealthy
	Draining
)

// Endpoint is one address. Immutable.
type Endpoint struct {
	Addr     netip.AddrPort // not valid: Host is a name to resolve, or Pipe is set
	Host     string         // the address as given
	Port     uint16
	Pipe     string
	Hostname string // for Host rewrite and health checks
	Weight   uint32 // default 1
	Health   Health
	Labels   []Label // metadata envoy.transport_socket_match
	Workload string  // metadata istio.workload: "workload;namespace;service;revision;cluster"
}
