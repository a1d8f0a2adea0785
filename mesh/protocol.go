package mesh

import (
	"cmp"
	"strings"
)

// Protocol is what a port speaks, as far as it changes how a proxy treats it.
type Protocol string

// Protocols. Auto means that the proxy looks at the first bytes.
const (
	Auto    Protocol = ""
	TCP     Protocol = "TCP"
	UDP     Protocol = "UDP"
	HTTP    Protocol = "HTTP"
	HTTP2   Protocol = "HTTP2"
	GRPC    Protocol = "GRPC"
	GRPCWeb Protocol = "GRPC-Web"
	HTTPS   Protocol = "HTTPS"
	TLS     Protocol = "TLS"
	Mongo   Protocol = "Mongo"
	MySQL   Protocol = "MySQL"
	Redis   Protocol = "Redis"
)

// IsHTTP reports whether requests of the protocol can be routed one by one.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 || p == GRPC || p == GRPCWeb }

// IsHTTP2 reports whether the protocol needs HTTP/2.
func (p Protocol) IsHTTP2() bool { return p == HTTP2 || p == GRPC || p == GRPCWeb }

// IsTLS reports whether the application encrypts, so that only the server name can be read.
func (p Protocol) IsTLS() bool { return p == HTTPS || p == TLS }

var protocols = map[string]Protocol{
	"tcp": TCP, "udp": UDP, "http": HTTP, "http2": HTTP2, "grpc": GRPC, "grpc-web": GRPCWeb,
	"https": HTTPS, "tls": TLS, "mongo": Mongo, "mysql": MySQL, "redis": Redis,
}

// wellKnown are ports whose protocol cannot be looked for in the first bytes, because the server
// speaks first (SMTP, DNS over TCP, MySQL, MongoDB), as in Istio.
var wellKnown = map[uint16]Protocol{25: TCP, 53: TCP, 3306: TCP, 27017: TCP}

// ParseProtocol reads a protocol's name as users write it in a Gateway or a port name, in any case;
// ok is false if there is none of that name.
func ParseProtocol(name string) (p Protocol, ok bool) {
	p, ok = protocols[strings.ToLower(name)]
	return p, ok
}

// Protocol returns what the port speaks, by Istio's rules: appProtocol or else the name, up to the first "-"
// ("grpc-web" as a whole). If that is not a protocol it is TCP on the ports of servers that speak first, whoever
// named it, and else Auto.
func (p ServicePort) Protocol() Protocol {
	if p.Transport == "UDP" || p.Transport == "SCTP" {
		return UDP
	}
	if p.AppProtocol != "" {
		switch p.AppProtocol {
		case "kubernetes.io/h2c":
			return HTTP2
		case "kubernetes.io/ws":
			return HTTP
		case "kubernetes.io/wss":
			return HTTPS
		}
	}
	if q, ok := p.said(); ok {
		return q
	}
	return wellKnown[p.Number] // or Auto
}

// said returns the protocol that appProtocol or else the name says.
func (p ServicePort) said() (q Protocol, ok bool) {
	name := strings.ToLower(cmp.Or(p.AppProtocol, p.Name))
	if strings.HasPrefix(name, "grpc-web") {
		return GRPCWeb, true
	}
	prefix, _, _ := strings.Cut(name, "-")
	q, ok = ParseProtocol(prefix)
	return q, ok && q != UDP
}
