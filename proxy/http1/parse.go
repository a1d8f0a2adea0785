// Package http1 reads and writes HTTP/1.x messages (RFC 9112) as byte slices: heads, chunked and
// plain bodies. It is strict where leniency would let two peers disagree on where a message ends.
// It knows no sockets, no clocks and no routing.
package http1

import (
	"bytes"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// Error is a message that cannot be taken.
type Error struct {
	Status  int    // to answer with, if it was a request
	Details string // Envoy's response code details
	text    string
}

func (e *Error) Error() string { return "http1: " + e.text }

// Errors of heads and bodies.
var (
	ErrRequestLine = &Error{400, "http1.codec_error", "malformed request line"}
	ErrMethod      = &Error{400, "http1.codec_error", "unknown method"}
	ErrStatusLine  = &Error{502, "http1.codec_error", "malformed status line"}
	ErrVersion     = &Error{505, "http1.codec_error", "HTTP version is not 1.0 or 1.1"}
	ErrField       = &Error{400, "http1.codec_error", "malformed header field"}
	ErrFields      = &Error{431, "http1.too_many_headers", "too many header fields"}
	ErrTooLarge    = &Error{431, "http1.headers_too_large", "header fields too large"}
	ErrHost        = &Error{400, "http.invalid_authority", "Host repeated or malformed"}
	ErrNoHost      = &Error{400, "missing_host_header", "Host missing"}
	ErrLength      = &Error{400, "http1.content_length_not_allowed", "Content-Length malformed, repeated or beside Transfer-Encoding"}
	ErrCoding      = &Error{501, "http1.invalid_transfer_encoding", "transfer coding is not chunked"}
	ErrChunk       = &Error{400, "http1.codec_error", "malformed chunk"}
)

// Message is what a head says of the connection and of the body, which goes no further than
// this hop.
type Message struct {
	Minor     byte // of the version: 0 or 1
	Status    int  // of a response
	Length    int64
	HasLength bool
	Chunked   bool
	Close     bool // the connection cannot be used again
	KeepAlive bool // Connection: keep-alive
	Upgrade   bool // Connection names Upgrade, and an upgrade field is in the header
	Expect100 bool // Expect: 100-continue
	Trailers  bool // TE: trailers
}

// Options are what a parser accepts beyond the strict minimum.
type Options struct {
	MaxFields int // 0: 100
	// KeepNames makes the header remember how names were spelled; see header.KeepNames.
	KeepNames    bool
	OthersProper bool // names of our own are then written in proper case
	AnyMethod    bool // takes any token for a method
	// AllowChunkedLength drops a Content-Length beside chunked instead of refusing the message.
	AllowChunkedLength bool
}

// End returns the length of the head at the start of b, including the empty line, or 0 if it is
// not complete; from is how much was searched before.
func End(b []byte, from int) int {
	from = max(0, from-3)
	if i := bytes.Index(b[from:], []byte("\r\n\r\n")); i >= 0 {
		return from + i + 4
	}
	return 0
}

// BareLF reports whether b has a line feed without a carriage return before it: a head that has one is
// refused as soon as it is seen, for its end may never come. from is how much was searched before.
func BareLF(b []byte, from int) bool {
	for i := from; ; i++ {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return false
		}
		if i += n; i == 0 || b[i-1] != '\r' {
			return true
		}
	}
}

// Unfold joins the folded lines of a response's head in place, by blanks instead of the ends of lines
// (RFC 9112, 5.2), and reports whether there were any.
func Unfold(head []byte) (folded bool) {
	i := bytes.IndexByte(head, '\n') + 1 // the status line goes on in no other
	for {
		n := bytes.IndexByte(head[i:], '\n')
		if n < 0 || i+n+1 >= len(head) {
			return folded
		}
		if i += n + 1; n > 1 && head[i-2] == '\r' && (head[i] == ' ' || head[i] == '\t') {
			head[i-2], head[i-1], folded = ' ', ' ', true
		}
	}
}

// Blank returns how many bytes of empty lines precede a request (RFC 9112, 2.2).
func Blank(b []byte) int {
	i := 0
	for i < len(b) && (b[i] == '\r' || b[i] == '\n') {
		i++
	}
	return i
}

// ParseRequest parses a request head that End delimited into h and m. Fields of this hop
// (Connection and what it names, Keep-Alive, Proxy-Connection, Transfer-Encoding, TE, and Upgrade
// unless it is asked for) are left out of h; Host becomes :authority and an absolute target is taken apart.
func ParseRequest(head []byte, h *header.Header, m *Message, o *Options) error {
	*m = Message{}
	b := o.load(head, h)
	i := 0
	for i < len(b) && header.Lower[b[i]] != 0 {
		i++
	}
	if i == 0 || i >= len(b) || b[i] != ' ' {
		return ErrRequestLine
	}
	h.SetPseudoSpan(header.Method, 0, i)
	if !o.AnyMethod && !knownMethod(b[:i]) {
		return ErrMethod
	}
	i++
	t := i
	for i < len(b) && b[i] > ' ' && b[i] < 0x7f {
		i++
	}
	if i == t || len(b)-i < len(" HTTP/1.1\r\n") || b[i] != ' ' {
		return ErrRequestLine
	}
	v := b[i+1:]
	if string(v[:5]) != "HTTP/" || v[6] != '.' || v[8] != '\r' || v[9] != '\n' {
		return ErrRequestLine
	}
	if v[5] != '1' || v[7] != '0' && v[7] != '1' {
		return ErrVersion
	}
	m.Minor = v[7] - '0'
	absolute, err := target(b, t, i, h)
	if err != nil {
		return err
	}
	if err := fields(h.Loaded(len(b)), i+11, h, m, o, true, absolute); err != nil {
		return err
	}
	if m.Minor == 0 && !m.KeepAlive {
		m.Close = true
	}
	return nil
}

// target sets :path, and of an absolute or authority target also :scheme and :authority.
func target(b []byte, lo, hi int, h *header.Header) (absolute bool, err error) {
	t := b[lo:hi]
	if t[0] == '/' || len(t) == 1 && t[0] == '*' {
		h.SetPseudoSpan(header.Path, lo, hi)
		return false, nil
	}
	if h.Pseudo(header.Method) == "CONNECT" {
		h.SetPseudoSpan(header.Authority, lo, hi)
		return true, nil
	}
	n := bytes.Index(t, []byte("://"))
	if n <= 0 {
		return false, ErrRequestLine
	}
	for i := lo; i < lo+n; i++ {
		b[i] = header.Lower[b[i]]
	}
	if s := string(t[:n]); s != "http" && s != "https" {
		return false, ErrRequestLine
	}
	h.SetPseudoSpan(header.Scheme, lo, lo+n)
	a := lo + n + 3
	e := a
	for e < hi && b[e] != '/' && b[e] != '?' {
		e++
	}
	if e == a || !header.ValidHost(b[a:e]) {
		return false, ErrHost
	}
	h.SetPseudoSpan(header.Authority, a, e)
	switch {
	case e == hi:
		h.SetPseudo(header.Path, "/")
	case b[e] == '?':
		h.SetPseudo(header.Path, "/"+string(b[e:hi]))
	default:
		h.SetPseudoSpan(header.Path, e, hi)
	}
	return true, nil
}

// ParseResponse parses a response head that End delimited into h and m, as ParseRequest does.
func ParseResponse(head []byte, h *header.Header, m *Message, o *Options) error {
	*m = Message{}
	b := o.load(head, h)
	// HTTP/1.1 200[ reason]
	if len(b) < 14 || string(b[:7]) != "HTTP/1." || b[7] != '0' && b[7] != '1' || b[8] != ' ' {
		return ErrStatusLine
	}
	m.Minor = b[7] - '0'
	for _, c := range b[9:12] {
		if c < '0' || c > '9' {
			return ErrStatusLine
		}
		m.Status = m.Status*10 + int(c-'0')
	}
	if m.Status < 100 {
		return ErrStatusLine
	}
	h.SetPseudoSpan(header.Status, 9, 12)
	i := 12
	if b[i] == ' ' {
		for i < len(b) && header.Value[b[i]] {
			i++
		}
	}
	if i+2 > len(b) || b[i] != '\r' || b[i+1] != '\n' {
		return ErrStatusLine
	}
	if err := fields(b, i+2, h, m, o, false, false); err != nil {
		return err
	}
	if m.Minor == 0 && !m.KeepAlive {
		m.Close = true
	}
	return nil
}

// load makes head the buffer of h.
func (o *Options) load(head []byte, h *header.Header) []byte {
	b := h.Load(head)
	if o.KeepNames {
		h.KeepNames(o.OthersProper)
	}
	return b
}

func fields(b []byte, i int, h *header.Header, m *Message, o *Options, request, absolute bool) error {
	maxFields := o.MaxFields
	if maxFields == 0 {
		maxFields = 100
	}
	var seen seen
	for n := 0; ; n++ {
		if b[i] == '\r' { // End saw to it that this is the empty line
			if b[i+1] != '\n' || i+2 != len(b) {
				return ErrField
			}
			break
		}
		if n == maxFields {
			return ErrFields
		}
		lo := i
		if o.KeepNames {
			h.KeepName(b[lo:])
		}
		for {
			l := header.Lower[b[i]]
			if l == 0 {
				break
			}
			b[i] = l
			i++
		}
		if b[i] != ':' || i == lo {
			return ErrField
		}
		colon := i
		i++
		for b[i] == ' ' || b[i] == '\t' {
			i++
		}
		vlo := i
		for header.Value[b[i]] {
			i++
		}
		if b[i] != '\r' || b[i+1] != '\n' {
			return ErrField
		}
		vhi := i
		i += 2
		for vhi > vlo && (b[vhi-1] == ' ' || b[vhi-1] == '\t') {
			vhi--
		}
		keep, err := seen.field(b[lo:colon], b[vlo:vhi], m, request)
		if err != nil {
			return err
		}
		switch {
		case !keep:
		case request && string(b[lo:colon]) == "host":
			if !header.ValidHost(b[vlo:vhi]) {
				return ErrHost
			}
			if !absolute { // an absolute target overrules Host (RFC 9112, 3.2.2)
				h.SetPseudoSpan(header.Authority, vlo, vhi)
			}
		case vlo == colon+2 && vhi+2 == i:
			h.AddLine(lo, colon, vhi)
		default:
			h.Add(string(b[lo:colon]), string(b[vlo:vhi]))
			b = h.Loaded(len(b))
		}
	}
	return seen.finish(h, m, o, request, absolute)
}

// seen gathers what the fields of a head say of this hop.
type seen struct {
	host, chunked, upgrade bool
	named                  []byte // value of Connection, if it names other fields
}

// field takes note of a field and reports whether it goes on.
func (s *seen) field(name, value []byte, m *Message, request bool) (keep bool, err error) {
	switch string(name) {
	case "host":
		if request && s.host {
			return false, ErrHost
		}
		s.host = true
	case "content-length":
		n, ok := parseLength(value)
		if !ok || m.HasLength {
			return false, ErrLength
		}
		m.Length, m.HasLength = n, true
	case "transfer-encoding":
		if m.Chunked || !equalFold(value, "chunked") {
			return false, ErrCoding
		}
		m.Chunked = true
		return false, nil
	case "connection":
		s.connection(value, m)
		return false, nil
	case "keep-alive", "proxy-connection":
		return false, nil
	case "te":
		m.Trailers = m.Trailers || bytes.Contains(value, []byte("trailers"))
		return false, nil
	case "upgrade":
		s.upgrade = true
	case "expect":
		if request && equalFold(value, "100-continue") {
			m.Expect100 = true
			return false, nil
		}
	}
	return true, nil
}

func (s *seen) connection(value []byte, m *Message) {
	for len(value) > 0 {
		var t []byte
		if i := bytes.IndexByte(value, ','); i >= 0 {
			t, value = value[:i], value[i+1:]
		} else {
			t, value = value, nil
		}
		t = bytes.Trim(t, " \t")
		switch {
		case len(t) == 0:
		case equalFold(t, "close"):
			m.Close = true
		case equalFold(t, "keep-alive"):
			m.KeepAlive = true
		case equalFold(t, "upgrade"):
			m.Upgrade = true
		case equalFold(t, "te"):
		default:
			s.named = append(append(s.named, t...), ',')
		}
	}
}

func (s *seen) finish(h *header.Header, m *Message, o *Options, request, absolute bool) error {
	if m.Chunked {
		if m.HasLength {
			if !o.AllowChunkedLength {
				return ErrLength
			}
			h.Remove("content-length")
			m.HasLength, m.Length = false, 0
		}
		if m.Minor == 0 {
			return ErrCoding // HTTP/1.0 has no chunks: somebody on the way would not see them
		}
	}
	if request && !s.host && m.Minor == 1 && !absolute {
		return ErrNoHost
	}
	if s.upgrade && !m.Upgrade {
		h.Remove("upgrade")
	}
	m.Upgrade = m.Upgrade && s.upgrade
	for named := s.named; len(named) > 0; {
		i := bytes.IndexByte(named, ',')
		for k := range named[:i] {
			named[k] = header.Lower[named[k]]
		}
		// Fields that frame or route the message are not the client's to drop.
		switch n := string(named[:i]); n {
		case "content-length", "authorization", "cookie":
		default:
			h.Remove(n)
		}
		named = named[i+1:]
	}
	return nil
}

func parseLength(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// knownMethod reports whether a method is one of those that are registered.
func knownMethod(b []byte) bool {
	switch string(b) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "ACL", "BIND", "CHECKOUT", "COPY",
		"LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "MSEARCH", "NOTIFY", "PROPFIND",
		"PROPPATCH", "PURGE", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE":
		return true
	}
	return false
}

func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range b {
		if header.Lower[b[i]] != lower[i] {
			return false
		}
	}
	return true
}
