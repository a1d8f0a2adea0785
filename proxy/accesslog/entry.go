package accesslog

import (
	"net/netip"
	"time"
)

// Entry is what a log line or a header format may say of one request or connection. Strings that
// are empty and addresses that are not valid print as "-". The filler may reuse an Entry; nothing
// is kept of it after Append returns.
type Entry struct {
	Start    time.Time     // of the request, or of the connection
	Duration time.Duration // from Start to the last byte

	Method, Path, Authority, Scheme string
	Protocol                        string // "HTTP/1.1", "HTTP/2"; empty for TCP
	// Header gives a request header by lower-case name (also pseudo-headers); it may be nil.
	Header Headers
	// Response and Trailer likewise.
	Response, Trailer Headers

	ResponseCode        int
	ResponseCodeDetails string
	Flags               Flags
	TerminationDetails  string // CONNECTION_TERMINATION_DETAILS
	BytesReceived       uint64
	BytesSent           uint64

	// Times from Start; negative: did not happen.
	RequestDuration  time.Duration // last byte of the request received
	RequestTx        time.Duration // last byte of the request sent upstream
	ResponseDuration time.Duration // first byte of the response received
	ResponseTx       time.Duration // last byte of the response sent downstream

	UpstreamHost       netip.AddrPort
	UpstreamHostText   string // instead of UpstreamHost, where the host is no IP (pipe)
	UpstreamLocal      netip.AddrPort
	UpstreamCluster    string // alt_stat_name if there is one
	UpstreamClusterRaw string
	UpstreamFailure    string // UPSTREAM_TRANSPORT_FAILURE_REASON
	UpstreamAttempts   int
	UpstreamProtocol   string

	DownstreamLocal        netip.AddrPort // the original destination
	DownstreamRemote       netip.AddrPort // after X-Forwarded-For, if trusted
	DownstreamDirectRemote netip.AddrPort
	DownstreamFailure      string // DOWNSTREAM_TRANSPORT_FAILURE_REASON
	ServerName             string // SNI
	RouteName              string
	VirtualHost            string
	VirtualClusterName     string
	FilterChain            string
	ConnectionID           uint64
	TLS                    *TLSInfo // of the downstream connection; nil: plaintext
	UpstreamTLS            *TLSInfo
}

// Headers gives header values by lower-case name: Get joins several by a comma, Nth returns one of them,
// from 0. They are only good until the next call.
type Headers interface {
	Get(name string) ([]byte, bool)
	Nth(name string, i int) (string, bool)
}

// TLSInfo is what a TLS connection said of itself and its peer.
type TLSInfo struct {
	Version, Cipher, ALPN                string
	PeerSubject, PeerIssuer, PeerSerial  string
	PeerFingerprint1, PeerFingerprint256 string // SHA-1 and SHA-256, hexadecimal
	PeerURISAN, PeerDNSSAN, PeerIPSAN    string // several joined by a comma
	PeerNotBefore, PeerNotAfter          time.Time
	LocalURISAN                          string
}
