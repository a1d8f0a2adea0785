package accesslog

// What passed on the wire is counted as HTTP/1 writes it, without the framing of bodies: HTTP/2 is shorter by its
// compression of headers. Without a request, it is the connection's bytes.

// sized is Headers that know their length as HTTP/1 lines.
type sized interface{ Size() int }

func sizeOf(h Headers) uint64 {
	if s, ok := h.(sized); ok {
		return uint64(s.Size())
	}
	return 0
}

const (
	requestLine = len("  HTTP/1.1\r\n") + len("\r\n")
	statusLine  = len("HTTP/1.1 200 OK\r\n") + len("\r\n")
)

func requestHead(e *Entry) uint64 {
	if e.Method == "" {
		return 0
	}
	n := uint64(len(e.Method)+len(e.Path)+requestLine) + sizeOf(e.Header)
	if e.Authority != "" {
		n += uint64(len("host: \r\n") + len(e.Authority))
	}
	return n
}

func responseHead(e *Entry) uint64 {
	if e.ResponseCode == 0 {
		return 0
	}
	return uint64(statusLine) + sizeOf(e.Response)
}

// upstreamOnly is 0 where no upstream took part.
func upstreamOnly(f func(e *Entry) uint64) func(e *Entry) uint64 {
	return func(e *Entry) uint64 {
		if !e.UpstreamHost.IsValid() && e.UpstreamHostText == "" {
			return 0
		}
		return f(e)
	}
}

func requestWire(e *Entry) uint64  { return requestHead(e) + e.BytesReceived }
func responseWire(e *Entry) uint64 { return responseHead(e) + e.BytesSent }

// wireOperators are those of bytes beside BYTES_RECEIVED and BYTES_SENT.
var wireOperators = map[string]plainOp{
	"DOWNSTREAM_HEADER_BYTES_RECEIVED":              num(requestHead),
	"DOWNSTREAM_HEADER_BYTES_SENT":                  num(responseHead),
	"DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED": num(requestHead),
	"DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT":     num(responseHead),
	"DOWNSTREAM_WIRE_BYTES_RECEIVED":                num(requestWire),
	"DOWNSTREAM_WIRE_BYTES_SENT":                    num(responseWire),
	"UPSTREAM_HEADER_BYTES_SENT":                    num(upstreamOnly(requestHead)),
	"UPSTREAM_HEADER_BYTES_RECEIVED":                num(upstreamOnly(responseHead)),
	"UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT":       num(upstreamOnly(requestHead)),
	"UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED":   num(upstreamOnly(responseHead)),
	"UPSTREAM_WIRE_BYTES_SENT":                      num(upstreamOnly(requestWire)),
	"UPSTREAM_WIRE_BYTES_RECEIVED":                  num(upstreamOnly(responseWire)),
}
