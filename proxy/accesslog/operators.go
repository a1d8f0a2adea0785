package accesslog

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

var errNotSupported = errors.New("not supported")

func compileOperator(name, arg string, hasArg bool) (op, error) {
	if p, ok := parameterised[name]; ok {
		if p.required && arg == "" {
			return op{}, errors.New("needs an argument in parentheses")
		}
		fn, err := p.compile(arg)
		return op{fn: fn, kind: p.kind}, err
	}
	if hasArg {
		_, known := plain[name]
		_, wire := wireOperators[name]
		if known || wire {
			return op{}, errors.New("takes no argument")
		}
	}
	if name == "HOSTNAME" {
		host, err := os.Hostname()
		if err != nil {
			host = "-"
		}
		return op{fn: func(dst []byte, _ *Entry) ([]byte, bool) { return append(dst, host...), true }}, nil
	}
	p, ok := plain[name]
	if !ok {
		p, ok = wireOperators[name]
	}
	if !ok {
		return op{}, errNotSupported
	}
	return op{fn: p.fn, kind: p.kind}, nil
}

type parameter struct {
	required bool
	kind     kind
	compile  func(arg string) (valueFunc, error)
}

var parameterised = map[string]parameter{
	"REQ":                          {true, text, func(a string) (valueFunc, error) { return headerOp(a, requestHeader, false) }},
	"RESP":                         {true, text, func(a string) (valueFunc, error) { return headerOp(a, responseHeader, false) }},
	"TRAILER":                      {true, text, func(a string) (valueFunc, error) { return headerOp(a, trailer, false) }},
	"REQ_WITHOUT_QUERY":            {true, text, func(a string) (valueFunc, error) { return headerOp(a, requestHeader, true) }},
	"QUERY_PARAM":                  {true, text, queryParam},
	"START_TIME":                   {false, text, timeOp(func(e *Entry) time.Time { return e.Start })},
	"EMIT_TIME":                    {false, text, timeOp(func(e *Entry) time.Time { return e.Start.Add(e.Duration) })},
	"DOWNSTREAM_PEER_CERT_V_START": {false, text, timeOp(func(e *Entry) time.Time { return e.TLS.notBefore() })},
	"DOWNSTREAM_PEER_CERT_V_END":   {false, text, timeOp(func(e *Entry) time.Time { return e.TLS.notAfter() })},
	"GRPC_STATUS":                  {false, text, grpcStatusOp},
	// Nothing sets metadata or filter state.
	"DYNAMIC_METADATA":      {true, text, absent},
	"CLUSTER_METADATA":      {true, text, absent},
	"UPSTREAM_METADATA":     {true, text, absent},
	"METADATA":              {true, text, absent},
	"FILTER_STATE":          {true, text, absent},
	"UPSTREAM_FILTER_STATE": {true, text, absent},
	"PATH":                  {false, text, pathOp},
}

func absent(string) (valueFunc, error) {
	return func(dst []byte, _ *Entry) ([]byte, bool) { return dst, false }, nil
}

type plainOp struct {
	kind kind
	fn   valueFunc
}

func str(f func(e *Entry) string) plainOp {
	return plainOp{text, func(dst []byte, e *Entry) ([]byte, bool) {
		s := f(e)
		return append(dst, s...), s != ""
	}}
}

func num(f func(e *Entry) uint64) plainOp {
	return plainOp{number, func(dst []byte, e *Entry) ([]byte, bool) { return strconv.AppendUint(dst, f(e), 10), true }}
}

func ms(f func(e *Entry) time.Duration) plainOp {
	return plainOp{number, func(dst []byte, e *Entry) ([]byte, bool) {
		d := f(e)
		return strconv.AppendInt(dst, d.Milliseconds(), 10), d >= 0
	}}
}

func addr(f func(e *Entry) netip.AddrPort) plainOp {
	return plainOp{text, func(dst []byte, e *Entry) ([]byte, bool) { return appendAddrPort(dst, f(e)) }}
}

func appendAddrPort(dst []byte, a netip.AddrPort) ([]byte, bool) {
	if !a.IsValid() {
		return dst, false
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).AppendTo(dst), true
}

func ip(f func(e *Entry) netip.AddrPort) plainOp {
	return plainOp{text, func(dst []byte, e *Entry) ([]byte, bool) {
		a := f(e).Addr()
		if !a.IsValid() {
			return dst, false
		}
		return a.Unmap().AppendTo(dst), true
	}}
}

func port(f func(e *Entry) netip.AddrPort) plainOp {
	return plainOp{number, func(dst []byte, e *Entry) ([]byte, bool) {
		a := f(e)
		return strconv.AppendUint(dst, uint64(a.Port()), 10), a.IsValid()
	}}
}

func tls(f func(t *TLSInfo) string) plainOp {
	return tlsOf(func(e *Entry) *TLSInfo { return e.TLS }, f)
}

func upstreamTLS(f func(t *TLSInfo) string) plainOp {
	return tlsOf(func(e *Entry) *TLSInfo { return e.UpstreamTLS }, f)
}

func tlsOf(of func(e *Entry) *TLSInfo, f func(t *TLSInfo) string) plainOp {
	return str(func(e *Entry) string {
		if t := of(e); t != nil {
			return f(t)
		}
		return ""
	})
}

var plain = map[string]plainOp{
	"PROTOCOL":                       str(func(e *Entry) string { return e.Protocol }),
	"UPSTREAM_PROTOCOL":              str(func(e *Entry) string { return e.UpstreamProtocol }),
	"RESPONSE_CODE":                  num(func(e *Entry) uint64 { return uint64(e.ResponseCode) }),
	"RESPONSE_CODE_DETAILS":          str(func(e *Entry) string { return e.ResponseCodeDetails }),
	"CONNECTION_TERMINATION_DETAILS": str(func(e *Entry) string { return e.TerminationDetails }),
	"RESPONSE_FLAGS":                 {text, func(dst []byte, e *Entry) ([]byte, bool) { return e.Flags.Append(dst), true }},
	"RESPONSE_FLAGS_LONG":            {text, func(dst []byte, e *Entry) ([]byte, bool) { return e.Flags.AppendLong(dst), true }},
	"BYTES_RECEIVED":                 num(func(e *Entry) uint64 { return e.BytesReceived }),
	"BYTES_SENT":                     num(func(e *Entry) uint64 { return e.BytesSent }),
	"DURATION":                       ms(func(e *Entry) time.Duration { return e.Duration }),
	"REQUEST_DURATION":               ms(func(e *Entry) time.Duration { return e.RequestDuration }),
	"REQUEST_TX_DURATION":            ms(func(e *Entry) time.Duration { return e.RequestTx }),
	"RESPONSE_DURATION":              ms(func(e *Entry) time.Duration { return e.ResponseDuration }),
	"RESPONSE_TX_DURATION": ms(func(e *Entry) time.Duration {
		if e.ResponseDuration < 0 || e.ResponseTx < 0 {
			return -1
		}
		return max(e.ResponseTx-e.ResponseDuration, 0)
	}),

	"UPSTREAM_HOST": {text, func(dst []byte, e *Entry) ([]byte, bool) {
		if e.UpstreamHostText != "" {
			return append(dst, e.UpstreamHostText...), true
		}
		return appendAddrPort(dst, e.UpstreamHost)
	}},
	"UPSTREAM_CLUSTER":                              str(func(e *Entry) string { return or(e.UpstreamCluster, e.UpstreamClusterRaw) }),
	"UPSTREAM_CLUSTER_RAW":                          str(func(e *Entry) string { return or(e.UpstreamClusterRaw, e.UpstreamCluster) }),
	"UPSTREAM_TRANSPORT_FAILURE_REASON":             str(func(e *Entry) string { return e.UpstreamFailure }),
	"UPSTREAM_REQUEST_ATTEMPT_COUNT":                num(func(e *Entry) uint64 { return uint64(e.UpstreamAttempts) }),
	"UPSTREAM_LOCAL_ADDRESS":                        addr(upstreamLocal),
	"UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":           ip(upstreamLocal),
	"UPSTREAM_LOCAL_PORT":                           port(upstreamLocal),
	"UPSTREAM_REMOTE_ADDRESS":                       addr(upstreamHost),
	"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":          ip(upstreamHost),
	"UPSTREAM_REMOTE_PORT":                          port(upstreamHost),
	"DOWNSTREAM_LOCAL_ADDRESS":                      addr(downstreamLocal),
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         ip(downstreamLocal),
	"DOWNSTREAM_LOCAL_PORT":                         port(downstreamLocal),
	"DOWNSTREAM_REMOTE_ADDRESS":                     addr(downstreamRemote),
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        ip(downstreamRemote),
	"DOWNSTREAM_REMOTE_PORT":                        port(downstreamRemote),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              addr(downstreamDirect),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": ip(downstreamDirect),
	"DOWNSTREAM_DIRECT_REMOTE_PORT":                 port(downstreamDirect),
	"DOWNSTREAM_TRANSPORT_FAILURE_REASON":           str(func(e *Entry) string { return e.DownstreamFailure }),

	"REQUESTED_SERVER_NAME": str(func(e *Entry) string { return e.ServerName }),
	"ROUTE_NAME":            str(func(e *Entry) string { return e.RouteName }),
	"VIRTUAL_CLUSTER_NAME":  str(func(e *Entry) string { return e.VirtualClusterName }),
	"FILTER_CHAIN_NAME":     str(func(e *Entry) string { return e.FilterChain }),
	"CONNECTION_ID":         num(func(e *Entry) uint64 { return e.ConnectionID }),
	"ACCESS_LOG_TYPE": str(func(e *Entry) string {
		switch {
		case e.Method != "":
			return "DownstreamEnd"
		case e.UpstreamClusterRaw != "":
			return "TcpConnectionEnd"
		}
		return "NotSet" // the listener's own log
	}),
	"UNIQUE_ID": {text, func(dst []byte, e *Entry) ([]byte, bool) { return appendUUID(dst), true }},
	"TRACE_ID":  str(func(e *Entry) string { return "" }),
	"GRPC_STATUS_NUMBER": {number, func(dst []byte, e *Entry) ([]byte, bool) {
		n, ok := grpcStatus(e)
		return strconv.AppendInt(dst, int64(n), 10), ok
	}},

	"DOWNSTREAM_TLS_VERSION":          tls(func(t *TLSInfo) string { return t.Version }),
	"DOWNSTREAM_TLS_CIPHER":           tls(func(t *TLSInfo) string { return t.Cipher }),
	"DOWNSTREAM_PEER_SUBJECT":         tls(func(t *TLSInfo) string { return t.PeerSubject }),
	"DOWNSTREAM_PEER_ISSUER":          tls(func(t *TLSInfo) string { return t.PeerIssuer }),
	"DOWNSTREAM_PEER_SERIAL":          tls(func(t *TLSInfo) string { return t.PeerSerial }),
	"DOWNSTREAM_PEER_FINGERPRINT_256": tls(func(t *TLSInfo) string { return t.PeerFingerprint256 }),
	"DOWNSTREAM_PEER_FINGERPRINT_1":   tls(func(t *TLSInfo) string { return t.PeerFingerprint1 }),
	"DOWNSTREAM_PEER_IP_SAN":          tls(func(t *TLSInfo) string { return t.PeerIPSAN }),
	"DOWNSTREAM_PEER_URI_SAN":         tls(func(t *TLSInfo) string { return t.PeerURISAN }),
	"DOWNSTREAM_PEER_DNS_SAN":         tls(func(t *TLSInfo) string { return t.PeerDNSSAN }),
	"DOWNSTREAM_LOCAL_URI_SAN":        tls(func(t *TLSInfo) string { return t.LocalURISAN }),
	"UPSTREAM_TLS_VERSION":            upstreamTLS(func(t *TLSInfo) string { return t.Version }),
	"UPSTREAM_TLS_CIPHER":             upstreamTLS(func(t *TLSInfo) string { return t.Cipher }),
	"UPSTREAM_PEER_SUBJECT":           upstreamTLS(func(t *TLSInfo) string { return t.PeerSubject }),
	"UPSTREAM_PEER_ISSUER":            upstreamTLS(func(t *TLSInfo) string { return t.PeerIssuer }),
	"UPSTREAM_PEER_URI_SAN":           upstreamTLS(func(t *TLSInfo) string { return t.PeerURISAN }),
	"UPSTREAM_PEER_DNS_SAN":           upstreamTLS(func(t *TLSInfo) string { return t.PeerDNSSAN }),
}

func upstreamLocal(e *Entry) netip.AddrPort    { return e.UpstreamLocal }
func upstreamHost(e *Entry) netip.AddrPort     { return e.UpstreamHost }
func downstreamLocal(e *Entry) netip.AddrPort  { return e.DownstreamLocal }
func downstreamRemote(e *Entry) netip.AddrPort { return e.DownstreamRemote }
func downstreamDirect(e *Entry) netip.AddrPort {
	if e.DownstreamDirectRemote.IsValid() {
		return e.DownstreamDirectRemote
	}
	return e.DownstreamRemote
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (t *TLSInfo) notBefore() time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.PeerNotBefore
}

func (t *TLSInfo) notAfter() time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.PeerNotAfter
}

// get is a source of headers.
type get func(e *Entry, name string) ([]byte, string, bool)

// requestHeader gives pseudo-headers from the entry's own fields.
func requestHeader(e *Entry, name string) ([]byte, string, bool) {
	switch name {
	case ":method":
		return nil, e.Method, e.Method != ""
	case ":path":
		return nil, e.Path, e.Path != ""
	case ":authority", "host":
		return nil, e.Authority, e.Authority != ""
	case ":scheme":
		return nil, e.Scheme, e.Scheme != ""
	}
	return of(e.Header, name)
}

func responseHeader(e *Entry, name string) ([]byte, string, bool) {
	if name == ":status" {
		return nil, strconv.Itoa(e.ResponseCode), e.ResponseCode != 0
	}
	return of(e.Response, name)
}

func trailer(e *Entry, name string) ([]byte, string, bool) { return of(e.Trailer, name) }

func of(h Headers, name string) ([]byte, string, bool) {
	if h == nil {
		return nil, "", false
	}
	if name == "x-forwarded-for" || name == "cookie" { // one value, in however many lines
		b, ok := h.Get(name)
		return b, "", ok
	}
	v, ok := h.Nth(name, 0)
	return nil, v, ok
}

// headerOp is a header, or else an alternative: "X?Y".
func headerOp(arg string, from get, cutQuery bool) (valueFunc, error) {
	first, second, _ := strings.Cut(strings.ToLower(arg), "?")
	if first == "" || strings.Contains(second, "?") {
		return nil, fmt.Errorf("%q is not NAME or NAME?ALTERNATIVE", arg)
	}
	return func(dst []byte, e *Entry) ([]byte, bool) {
		b, s, ok := from(e, first)
		if !ok && second != "" {
			b, s, ok = from(e, second)
		}
		start := len(dst)
		dst = append(append(dst, b...), s...)
		if cutQuery {
			for i := start; i < len(dst); i++ {
				if dst[i] == '?' {
					dst = dst[:i]
					break
				}
			}
		}
		return dst, ok
	}, nil
}

// appendUUID appends a random UUID (version 4).
func appendUUID(b []byte) []byte {
	var u [16]byte
	binary.LittleEndian.PutUint64(u[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(u[8:], rand.Uint64())
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	for i, n := 0, 0; i < len(u); i += n {
		if i > 0 {
			b = append(b, '-')
		}
		if n = 2; i == 0 {
			n = 4
		} else if i == 10 {
			n = 6
		}
		b = hex.AppendEncode(b, u[i:i+n])
	}
	return b
}

// pathOp is PATH(QUERY:WHICH), as Envoy has it: QUERY is WQ (with the query) or NQ (without), WHICH
// is ORIG, PATH or ORIG_OR_PATH; both may be left out.
func pathOp(arg string) (valueFunc, error) {
	query, which, _ := strings.Cut(arg, ":")
	if query != "" && query != "WQ" && query != "NQ" {
		return nil, fmt.Errorf("%q is neither WQ nor NQ", query)
	}
	from := ":path"
	switch which {
	case "PATH":
	case "ORIG":
		from = "x-envoy-original-path"
	case "", "ORIG_OR_PATH":
		from = "x-envoy-original-path?:path"
	default:
		return nil, fmt.Errorf("%q is none of ORIG, PATH and ORIG_OR_PATH", which)
	}
	return headerOp(from, requestHeader, query == "NQ")
}

func queryParam(name string) (valueFunc, error) {
	return func(dst []byte, e *Entry) ([]byte, bool) {
		_, q, _ := strings.Cut(e.Path, "?")
		for q != "" {
			var p string
			p, q, _ = strings.Cut(q, "&")
			if k, v, _ := strings.Cut(p, "="); k == name {
				return append(dst, v...), true
			}
		}
		return dst, false
	}, nil
}
