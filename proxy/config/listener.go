package config

import (
	"net/netip"
	"time"
)

// Direction is the traffic direction that a listener declares.
type Direction uint8

// Directions.
const (
	Unspecified Direction = iota
	Inbound
	Outbound
)

// Listener is a listening address and what happens to its connections. Immutable.
type Listener struct {
	Name      string
	StatName  string           // stat_prefix, else the main address as Envoy spells it: "0.0.0.0_5000"
	Addresses []netip.AddrPort // the first is the main one
	Pipe      string           // a unix socket path instead
	PipeMode  uint32           // permissions of the socket file; 0: as the umask has it
	Bind      bool             // false: reached only through a listener with UseOriginalDst
	// UseOriginalDst hands a connection to the listener that matches its original destination
	// (its address, then its port on the wildcard address), if there is one.
	UseOriginalDst bool
	Direction      Direction
	Transparent    bool
	Freebind       bool
	Backlog        int
	NoLimit        bool   // its connections are taken beyond Overload.Connections
	Bypass         bool   // nothing is refused for want of memory
	BufferLimit    uint32 // soft limit of buffers per connection; default 1 MiB
	// MaxAccepts bounds the connections accepted per readiness event; 0: no bound.
	MaxAccepts int
	Keepalive  *TCPKeepalive

	// Listener filters. ProxyHeader wants a PROXY header before the first byte; OriginalDst takes the original
	// destination from the kernel.
	ProxyHeader   bool
	OriginalDst   bool
	TLSInspector  *Inspector
	HTTPInspector *Inspector
	// FilterTimeout is how long inspectors may wait for bytes; 0: for ever; default 15 s.
	FilterTimeout     time.Duration
	ContinueOnTimeout bool // go on with what is known instead of closing

	Chains  []*FilterChain
	Default *FilterChain // may be nil
	// AccessLogs log connections that no chain took, and others as Envoy's listener log does.
	AccessLogs []*AccessLog
	// API is set on listeners for gRPC clients; such a listener accepts nothing.
	API *HTTPConnectionManager

	chains chainIndex
}

// Inspector is a listener filter that looks at the first bytes. It is off for the destination ports
// of Disabled.
type Inspector struct {
	Disabled PortSet
}

// PortSet is a set of ports: sorted ranges that do not touch. The nil set is empty.
type PortSet []PortRange

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Holds reports whether the port is in the set.
func (s PortSet) Holds(port uint16) bool {
	for _, r := range s {
		if port <= r.Last {
			return r.First <= port
		}
	}
	return false
}

// FilterChain is what handles a connection: optionally TLS, then HTTP or TCP. Immutable.
type FilterChain struct {
	Name string
	TLS  *DownstreamTLS // nil: plaintext
	// HandshakeTimeout bounds the TLS handshake; 0: no bound.
	HandshakeTimeout time.Duration

	// At most one of HTTP and TCP is set; with neither the connection is closed at once.
	HTTP *HTTPConnectionManager
	TCP  *TCPProxy
	// SNICluster makes TCP go to the cluster named as the SNI (if there is an SNI).
	SNICluster bool
}

// Conn is what filter chain matching needs to know of a connection.
type Conn struct {
	Local     netip.AddrPort // the (original) destination
	Remote    netip.AddrPort
	Direct    netip.AddrPort // the peer of the socket, if Remote was taken from a proxy header
	SNI       string         // lower case; empty: none
	Transport string         // "tls" if a TLS inspector found TLS, else "raw_buffer"
	// ALPN is what the ClientHello offers, or "http/1.0", "http/1.1", "h2c" as an HTTP inspector found.
	ALPN []string
}

// TCPProxy forwards bytes to a cluster.
type TCPProxy struct {
	StatPrefix   string
	Clusters     []WeightedCluster // at least one
	TotalWeight  uint32
	AccessLogs   []*AccessLog
	IdleTimeout  time.Duration // default 1 h; 0: none
	MaxDuration  time.Duration // 0: none
	ConnectTries uint32        // default 1
	Hash         bool          // by source address
}

// Cluster picks a cluster by weight with a random number.
func (t *TCPProxy) Cluster(random uint64) string {
	return t.Clusters[pick(t.Clusters, t.TotalWeight, random)].Name
}
