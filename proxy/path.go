package proxy

import (
	"strconv"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/proxy/header"
)

func hasEscapedSlash(path string) bool {
	for i := 0; i+2 < len(path) && path[i] != '?'; i++ {
		if path[i] == '%' && escapedSlash(path[i:]) != 0 {
			return true
		}
	}
	return false
}

// escapedSlash returns the slash that s begins with in escaped form, or 0.
func escapedSlash(s string) byte {
	if len(s) < 3 {
		return 0
	}
	switch s[1:3] {
	case "2f", "2F":
		return '/'
	case "5c", "5C":
		return '\\'
	}
	return 0
}

func unescapeSlashes(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '?' {
			b.WriteString(path[i:])
			break
		}
		if path[i] == '%' {
			if c := escapedSlash(path[i:]); c != 0 {
				b.WriteByte(c)
				i += 2
				continue
			}
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

func mergeSlashes(path string) string {
	path, query, hasQuery := strings.Cut(path, "?")
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '/' || i == 0 || path[i-1] != '/' {
			b.WriteByte(path[i])
		}
	}
	if hasQuery {
		return b.String() + "?" + query
	}
	return b.String()
}

// needsNormalizing is true for paths with dots, escapes, backslashes or characters that normalizePath
// may change.
func needsNormalizing(path string) bool {
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '?':
			return false
		case c == '\\' || c == '%' || unwise(c):
			return true
		case c == '/' && i+1 < len(path) && path[i+1] == '.':
			return true
		}
	}
	return false
}

// unwise are characters that do not belong into a path unescaped.
func unwise(c byte) bool {
	switch c {
	case '"', '<', '>', '^', '`', '{', '|', '}':
		return true
	}
	return c >= 0x80
}

// normalizePath removes dot segments, decodes escaped unreserved characters, escapes those that should
// be and takes backslashes for slashes (RFC 3986, 6.2.2, and what Envoy does beyond it). What only looks
// like an escape stays as it is; false for an escaped NUL.
func normalizePath(path string) (string, bool) {
	path, query, hasQuery := strings.Cut(path, "?")
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '\\':
			c = '/'
		case unwise(c):
			b = append(b, '%', upper(hexDigits[c>>4]), upper(hexDigits[c&15]))
			continue
		case c == '%':
			n, ok := escaped(path[i:])
			if ok && n == 0 {
				return "", false
			}
			if ok && unreserved(n) {
				c = n
				i += 2
			}
		}
		b = append(b, c)
	}
	segs := strings.Split(string(b), "/")
	out := segs[:0]
	for i, seg := range segs {
		last := i == len(segs)-1
		dots, _, _ := strings.Cut(seg, ";") // parameters do not make dots a name
		if dots != "." && dots != ".." {
			dots = seg
		}
		switch dots {
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) > 1 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, seg)
		}
	}
	p := strings.Join(out, "/")
	if p == "" {
		p = "/"
	}
	if hasQuery {
		p += "?" + query
	}
	return p, true
}

// escaped returns the byte that s begins with in escaped form.
func escaped(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[1:3], 16, 8)
	return byte(n), err == nil && s[1] != '+' && s[1] != '-'
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'f' {
		c -= 'a' - 'A'
	}
	return c
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// isGRPC reports whether a request is gRPC by its content type.
func isGRPC(h *header.Header) bool {
	const g = "application/grpc"
	t := h.First("content-type")
	return strings.HasPrefix(t, g) && (len(t) == len(g) || t[len(g)] == '+')
}

// Statuses of gRPC.
const (
	grpcDeadlineExceeded = 4
	grpcUnavailable      = 14
)

// grpcTimeout parses grpc-timeout: at most eight digits and a unit.
func grpcTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	u, ok := units[v[len(v)-1]]
	return time.Duration(n) * u, ok
}

// grpcStatus maps an HTTP status to a gRPC status (grpc/doc/http-grpc-status-mapping.md).
func grpcStatus(http int) int {
	switch http {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}

// percentEncode encodes a grpc-message.
func percentEncode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			b.WriteByte('%')
			b.WriteByte(upper(hexDigits[c>>4]))
			b.WriteByte(upper(hexDigits[c&15]))
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
