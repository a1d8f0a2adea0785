package http2

import (
	"strconv"
	"strings"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// validator takes the fields of a head into a Header and checks them (RFC 9113, 8.2 and 8.3).
type validator struct {
	h                  *header.Header
	response, trailers bool
	maxBytes           int
	maxFields          int

	bytes, fields int
	regular       bool // a field that is no pseudo-header has come
	malformed     bool
	tooLarge      bool
	seen          [6]bool // pseudo-headers, :protocol last
	protocol      bool
	status        int
	length        int64 // content-length; -1: none
	hasLength     bool
	cookie        []byte
}

func (v *validator) bad() bool { return v.malformed || v.tooLarge }

func (v *validator) field(name, value string) {
	v.bytes += len(name) + len(value) + 32
	v.fields++
	if v.bytes > v.maxBytes || v.fields > v.maxFields {
		v.tooLarge = true
	}
	if v.bad() {
		return
	}
	if !header.ValidValue(value) || value != "" && (blank(value[0]) || blank(value[len(value)-1])) {
		v.malformed = true
		return
	}
	if strings.HasPrefix(name, ":") {
		v.pseudo(name, value)
		return
	}
	v.regular = true
	if !header.ValidName(name) {
		v.malformed = true
		return
	}
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		v.malformed = true
	case "te":
		v.malformed = v.malformed || value != "trailers"
	case "content-length":
		v.contentLength(value)
		return
	case "cookie":
		// Clients split cookies for compression; they are one field elsewhere (RFC 9113, 8.2.3). It is
		// added once, when all have come: a crumb costs its sender a byte.
		if len(v.cookie) > 0 {
			v.cookie = append(v.cookie, "; "...)
		}
		v.cookie = append(v.cookie, value...)
		return
	case "host":
		if !v.response && !v.trailers && v.seen[header.Authority] {
			if a, _ := v.h.Header(":authority"); !strings.EqualFold(a, value) {
				v.malformed = true
			}
			return
		}
		if !v.response && !v.trailers && v.h.Has("host") {
			v.malformed = true
			return
		}
	}
	v.h.Add(name, value)
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

func (v *validator) contentLength(value string) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 || value[0] == '+' || v.hasLength {
		v.malformed = true
		return
	}
	v.h.Add("content-length", value)
	v.hasLength, v.length = true, n
}

func (v *validator) pseudo(name, value string) {
	p := header.Pseudo(5)
	switch name {
	case ":method":
		p = header.Method
		v.malformed = v.malformed || !validMethod(value)
	case ":scheme":
		p = header.Scheme
		v.malformed = v.malformed || value == ""
	case ":authority":
		p = header.Authority
		v.malformed = v.malformed || !header.ValidHost(value)
	case ":path":
		p = header.Path
		v.malformed = v.malformed || !validPath(value)
	case ":status":
		p = header.Status
		n, err := strconv.Atoi(value)
		v.malformed = v.malformed || err != nil || len(value) != 3 || n < 100
		v.status = n
	case ":protocol":
		v.protocol = true
	default:
		v.malformed = true
	}
	if v.regular || v.trailers || v.seen[p] || v.response != (p == header.Status) {
		v.malformed = true
	}
	if v.malformed {
		return
	}
	v.seen[p] = true
	if name == ":protocol" {
		// header.Header has no place for it: the owner finds it as what HTTP/1 calls it.
		v.h.Add("upgrade", value)
		return
	}
	v.h.SetPseudo(p, value)
}

// finish adds what was gathered from several fields. The head is not bad.
func (v *validator) finish() {
	if len(v.cookie) > 0 {
		v.h.Add("cookie", view(v.cookie))
	}
}

// complete reports whether the pseudo-headers that must be there are.
func (v *validator) complete() bool {
	if !v.hasLength {
		v.length = -1
	}
	if v.response {
		return v.seen[header.Status]
	}
	method, _ := v.h.Header(":method")
	if method == "CONNECT" && !v.protocol {
		return v.seen[header.Authority] && !v.seen[header.Scheme] && !v.seen[header.Path]
	}
	if v.protocol && method != "CONNECT" {
		return false
	}
	if !v.seen[header.Authority] {
		host := v.h.First("host")
		if host == "" || !header.ValidHost(host) {
			return false
		}
		v.h.SetPseudo(header.Authority, host)
		v.h.Remove("host")
	}
	if v.h.Pseudo(header.Authority) == "" {
		return false
	}
	return v.seen[header.Method] && v.seen[header.Scheme] && v.seen[header.Path]
}

func validMethod(s string) bool {
	for i := 0; i < len(s); i++ {
		if header.Lower[s[i]] == 0 {
			return false
		}
	}
	return s != ""
}

// validPath wants an absolute path, or "*", without blanks and control characters.
func validPath(s string) bool {
	if s == "" || s[0] != '/' && s != "*" {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}
