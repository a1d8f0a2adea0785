package config

import (
	"net/netip"
	"time"
)

// Codec says which HTTP version a connection manager speaks.
type Codec uint8

// Codecs.
const (
	CodecAuto Codec = iota // by ALPN, else by the first bytes
	CodecHTTP1
	CodecHTTP2
)

// ForwardCert says what becomes of X-Forwarded-Client-Cert.
type ForwardCert uint8

// Treatments of X-Forwarded-Client-Cert, as Envoy's forward_client_cert_details.
const (
	CertSanitize ForwardCert = iota
	CertForwardOnly
	CertAppendForward
	CertSanitizeSet
	CertAlwaysForwardOnly
)

// ServerHeader says what becomes of the Server header.
type ServerHeader uint8

// Treatments of the Server header.
const (
	ServerOverwrite ServerHeader = iota
	ServerAppendIfAbsent
	ServerPassThrough
)

// EscapedSlashes says what becomes of %2F and %5C in paths.
type EscapedSlashes uint8

// Treatments of escaped slashes.
const (
	SlashesKeep EscapedSlashes = iota
	SlashesReject
	SlashesUnescapeRedirect
	SlashesUnescapeForward
)

// HTTPConnectionManager handles the requests of a connection. Immutable.
type HTTPConnectionManager struct {
	StatPrefix string
	Codec      Codec
	RDS        string       // the name of the route table, or
	Routes     *RouteTable  // the route table itself
	Filters    []HTTPFilter // in order; the last is the router
	AccessLogs []*AccessLog

	IdleTimeout           time.Duration // of the connection without requests; default 1 h; 0: none
	StreamIdleTimeout     time.Duration // default 5 min; 0: none
	RequestTimeout        time.Duration // to receive the whole request; 0: none
	RequestHeadersTimeout time.Duration // 0: none
	MaxConnectionDuration time.Duration // 0: none
	MaxStreamDuration     time.Duration // 0: none
	MaxRequests           uint32        // per connection; 0: no bound
	MaxHeaderBytes        uint32        // default 60 KiB
	MaxHeaders            uint32        // default 100

	ServerName   string // default "envoy"
	ServerHeader ServerHeader
	Via          string // appended to Via in both directions; empty: not

	UseRemoteAddress    bool // append the peer to X-Forwarded-For and trust nothing of it beyond TrustedHops
	TrustedHops         uint32
	InternalRanges      []netip.Prefix // clients that count as internal; none by default
	SkipXFFAppend       bool
	AppendXFPort        bool
	SchemeOverwrite     string // "http" or "https"; empty: keep
	GenerateRequestID   bool   // default true
	PreserveRequestID   bool   // keep the one of an edge request
	RequestIDInResponse bool
	ForwardCert         ForwardCert
	CertDetails         CertDetails // what CertSanitizeSet and CertAppendForward write

	NormalizePath    bool
	MergeSlashes     bool
	EscapedSlashes   EscapedSlashes
	StripHostPort    HostPort
	StripHostDot     bool
	Proxy100Continue bool
	Upgrades         map[string]bool // by lower-case name, e.g. "websocket"

	HTTP1   HTTP1Options
	HTTP2   HTTP2Options
	Tracing bool // x-envoy-decorator-operation tells the next hop what this one calls
}

// Internal reports whether a client at that address counts as internal.
func (m *HTTPConnectionManager) Internal(a netip.Addr) bool {
	for _, p := range m.InternalRanges {
		if p.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// HostPort says which port is stripped of Host.
type HostPort uint8

// Port strippings.
const (
	HostPortKeep HostPort = iota
	HostPortMatching
	HostPortAny
)

// CertDetails says which parts X-Forwarded-Client-Cert gets, beside By and Hash.
type CertDetails struct{ Subject, Cert, Chain, DNS, URI bool }

// HTTP1Options are of either side of HTTP/1.
type HTTP1Options struct {
	Accept10           bool
	DefaultHost        string // for HTTP/1.0 requests without Host
	Trailers           bool
	AllowChunkedLength bool // Content-Length beside chunked: drop it instead of refusing
	AnyMethod          bool // take any token for a method
	ProperCase         bool // write names in proper case
	KeepCase           bool // what is read keeps the spelling of its names until it is written
	OthersProper       bool // with KeepCase: names of the proxy's own in proper case
}

// HTTP2Options are of either side of HTTP/2.
type HTTP2Options struct {
	MaxStreams       uint32        // concurrent; default 2147483647 upstream, 1024 downstream (Envoy's own)
	StreamWindow     uint32        // default 16 MiB (Envoy 1.3x)
	ConnectionWindow uint32        // default 24 MiB
	HeaderTable      uint32        // default 4096
	PingInterval     time.Duration // 0: no keepalive
	PingTimeout      time.Duration
}

// HTTPFilter is one filter of the chain.
type HTTPFilter struct {
	Name     string // the name in the chain, by which routes give their own configuration
	Disabled bool   // unless a route enables it
	Config   FilterConfig
}

// FilterConfig is one of *RouterFilter, *CORSFilter, *FaultFilter, *GRPCStatsFilter, and for routes
// *CORSPolicy and *FaultFilter.
type FilterConfig interface{ httpFilter() }

// RouterFilter sends the request upstream.
type RouterFilter struct {
	SuppressEnvoyHeaders bool
}

// CORSFilter applies the CORSPolicy of the route.
type CORSFilter struct{}

// CORSPolicy is a route's cross-origin policy.
type CORSPolicy struct {
	Origins          []StringMatcher
	Methods          string
	Headers          string
	Expose           string
	MaxAge           string
	Credentials      bool
	PrivateNetwork   bool
	ForwardUnmatched bool      // forward preflights of other origins
	Enabled          *Fraction // nil: always
}

// FaultFilter delays or aborts requests; also a route's own configuration of it.
type FaultFilter struct {
	Delay        time.Duration // fixed
	DelayPercent Fraction
	DelayHeader  bool // x-envoy-fault-delay-request
	AbortStatus  int
	AbortGRPC    *uint32
	AbortPercent Fraction
	AbortHeader  bool            // x-envoy-fault-abort-request
	Headers      []HeaderMatcher // only for these requests
	Upstream     string          // only for this cluster
	MaxActive    uint32          // 0: no bound
}

// GRPCStatsFilter counts gRPC messages.
type GRPCStatsFilter struct{}

func (*RouterFilter) httpFilter()    {}
func (*GRPCStatsFilter) httpFilter() {}
func (*CORSFilter) httpFilter()      {}
func (*CORSPolicy) httpFilter()      {}
func (*FaultFilter) httpFilter()     {}
