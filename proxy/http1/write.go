package http1

import (
	"strconv"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// Framing says how a message that is written ends and what becomes of the connection.
type Framing struct {
	Chunked bool // else the header has a Content-Length, or there is no body
	Empty   bool // a Content-Length of 0 says that there is no body
	Close   bool // Connection: close
	Upgrade bool // Connection: upgrade; the header has an upgrade field
	Minor0  bool // answer a client of HTTP/1.0
	Proper  bool // names in proper case, unless the header remembers how they were spelled
}

// AppendRequest appends a request head.
func AppendRequest(dst []byte, h *header.Header, f Framing) []byte {
	dst = append(dst, h.Pseudo(header.Method)...)
	dst = append(dst, ' ')
	if p := h.Pseudo(header.Path); p != "" {
		dst = append(dst, p...)
	} else { // CONNECT
		dst = append(dst, h.Pseudo(header.Authority)...)
	}
	dst = f.name(append(dst, " HTTP/1.1\r\n"...), h, "host: ")
	dst = append(dst, h.Pseudo(header.Authority)...)
	dst = append(dst, "\r\n"...)
	return f.finish(dst, h)
}

// AppendResponse appends a response head; its status is the pseudo-header.
func AppendResponse(dst []byte, h *header.Header, f Framing) []byte {
	dst = append(dst, "HTTP/1."...)
	if f.Minor0 {
		dst = append(dst, "0 "...)
	} else {
		dst = append(dst, "1 "...)
	}
	s := h.Pseudo(header.Status)
	dst = append(dst, s...)
	dst = append(dst, ' ')
	dst = append(dst, Reason(s)...)
	dst = append(dst, "\r\n"...)
	return f.finish(dst, h)
}

// finish appends the fields, those that frame the message, and the empty line.
func (f Framing) finish(dst []byte, h *header.Header) []byte {
	if h.Spells() || f.Proper {
		dst = h.AppendSpelled(dst, f.Proper)
	} else {
		dst = h.AppendTo(dst)
	}
	if f.Chunked {
		dst = append(f.name(dst, h, "transfer-encoding: "), "chunked\r\n"...)
	}
	if f.Empty {
		dst = append(f.name(dst, h, "content-length: "), "0\r\n"...)
	}
	switch {
	case f.Upgrade:
		dst = append(f.name(dst, h, "connection: "), "upgrade\r\n"...)
	case f.Close:
		dst = append(f.name(dst, h, "connection: "), "close\r\n"...)
	case f.Minor0:
		dst = append(f.name(dst, h, "connection: "), "keep-alive\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// name appends the name of a field with its colon and blank.
func (f Framing) name(dst []byte, h *header.Header, name string) []byte {
	if !h.Spells() && !f.Proper {
		return append(dst, name...)
	}
	return append(h.AppendName(dst, name[:len(name)-2], f.Proper), ": "...)
}

// AppendChunkHead appends the line before a chunk of n bytes, n > 0; ChunkEnd goes after it.
func AppendChunkHead(dst []byte, n int) []byte {
	dst = strconv.AppendUint(dst, uint64(n), 16)
	return append(dst, "\r\n"...)
}

// ChunkEnd follows the bytes of a chunk.
const ChunkEnd = "\r\n"

// AppendLastChunk ends a chunked body, with trailers if t is not nil.
func AppendLastChunk(dst []byte, t *header.Header) []byte {
	dst = append(dst, "0\r\n"...)
	if t != nil {
		dst = t.AppendTo(dst)
	}
	return append(dst, "\r\n"...)
}

// Reason returns the reason phrase of a status of three digits.
func Reason(status string) string {
	switch status {
	case "100":
		return "Continue"
	case "101":
		return "Switching Protocols"
	case "102":
		return "Processing"
	case "103":
		return "Early Hints"
	case "200":
		return "OK"
	case "201":
		return "Created"
	case "202":
		return "Accepted"
	case "203":
		return "Non-Authoritative Information"
	case "204":
		return "No Content"
	case "205":
		return "Reset Content"
	case "206":
		return "Partial Content"
	case "207":
		return "Multi-Status"
	case "208":
		return "Already Reported"
	case "226":
		return "IM Used"
	case "300":
		return "Multiple Choices"
	case "301":
		return "Moved Permanently"
	case "302":
		return "Found"
	case "303":
		return "See Other"
	case "304":
		return "Not Modified"
	case "305":
		return "Use Proxy"
	case "307":
		return "Temporary Redirect"
	case "308":
		return "Permanent Redirect"
	case "400":
		return "Bad Request"
	case "401":
		return "Unauthorized"
	case "402":
		return "Payment Required"
	case "403":
		return "Forbidden"
	case "404":
		return "Not Found"
	case "405":
		return "Method Not Allowed"
	case "406":
		return "Not Acceptable"
	case "407":
		return "Proxy Authentication Required"
	case "408":
		return "Request Timeout"
	case "409":
		return "Conflict"
	case "410":
		return "Gone"
	case "411":
		return "Length Required"
	case "412":
		return "Precondition Failed"
	case "413":
		return "Payload Too Large"
	case "414":
		return "URI Too Long"
	case "415":
		return "Unsupported Media Type"
	case "416":
		return "Range Not Satisfiable"
	case "417":
		return "Expectation Failed"
	case "421":
		return "Misdirected Request"
	case "422":
		return "Unprocessable Entity"
	case "423":
		return "Locked"
	case "424":
		return "Failed Dependency"
	case "426":
		return "Upgrade Required"
	case "428":
		return "Precondition Required"
	case "429":
		return "Too Many Requests"
	case "431":
		return "Request Header Fields Too Large"
	case "451":
		return "Unavailable For Legal Reasons"
	case "500":
		return "Internal Server Error"
	case "501":
		return "Not Implemented"
	case "502":
		return "Bad Gateway"
	case "503":
		return "Service Unavailable"
	case "504":
		return "Gateway Timeout"
	case "505":
		return "HTTP Version Not Supported"
	case "507":
		return "Insufficient Storage"
	case "511":
		return "Network Authentication Required"
	}
	return "Unknown"
}
