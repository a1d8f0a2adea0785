// Package clienthello reads the server name and the application protocols out of the TLS
// ClientHello at the start of a byte stream (RFC 8446, 4.1.2). It takes part in no handshake.
package clienthello

import "errors"

// MaxSize is how long a ClientHello may be, with its record headers, in bytes.
const MaxSize = 16 << 10

// Errors of Parse.
var (
	// ErrNotTLS says that the bytes are no TLS handshake; perhaps another protocol.
	ErrNotTLS = errors.New("clienthello: not TLS")
	// ErrMalformed says that it begins like one but is broken, or longer than MaxSize.
	ErrMalformed = errors.New("clienthello: malformed")
	// ErrShort asks for more bytes.
	ErrShort = errors.New("clienthello: incomplete")
)

// Hello is what a ClientHello says. Its slices alias the input or the Hello itself.
type Hello struct {
	ServerName []byte // as sent; empty: none
	Protocols  [][]byte

	joined []byte
}

// Parse reads the ClientHello at the start of b into h.
func Parse(b []byte, h *Hello) error {
	h.ServerName, h.Protocols = nil, h.Protocols[:0]
	msg, err := h.message(b)
	if err != nil {
		return err
	}
	return h.body(reader{b: msg})
}

// message returns the handshake message without its header, joined if it came in several records.
func (h *Hello) message(b []byte) ([]byte, error) {
	h.joined = h.joined[:0]
	want := -1 // length of the message with its header, once known
	for off := 0; ; {
		r := b[off:]
		if len(r) > 0 && r[0] != 22 || len(r) > 1 && r[1] != 3 {
			if off == 0 {
				return nil, ErrNotTLS
			}
			return nil, ErrMalformed
		}
		if len(r) > 5 && off == 0 && r[5] != 1 {
			return nil, ErrNotTLS
		}
		if len(r) < 5 {
			return nil, ErrShort
		}
		n := int(r[3])<<8 | int(r[4])
		if n == 0 || n > 16384 {
			return nil, ErrMalformed
		}
		if off+5+n > MaxSize+5*64 {
			return nil, ErrMalformed
		}
		if len(r) < 5+n {
			return nil, ErrShort
		}
		p := r[5 : 5+n]
		if off == 0 && n >= 4 { // the usual case: all in one record
			if want = 4 + length(p[1:]); want <= n {
				return p[4:want], nil
			}
		}
		h.joined = append(h.joined, p...)
		if want < 0 && len(h.joined) >= 4 {
			want = 4 + length(h.joined[1:])
		}
		if want > MaxSize {
			return nil, ErrMalformed
		}
		if want >= 0 && len(h.joined) >= want {
			return h.joined[4:want], nil
		}
		off += 5 + n
	}
}

func length(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }

func (h *Hello) body(r reader) error {
	r.skip(2 + 32) // version, random
	r.vector(1)    // session
	r.vector(2)    // cipher suites
	r.vector(1)    // compression
	if !r.bad && len(r.b) == 0 {
		return nil // no extensions
	}
	ext := reader{b: r.vector(2)}
	for !r.bad && len(ext.b) > 0 {
		typ := ext.uint(2)
		data := reader{b: ext.vector(2)}
		if ext.bad {
			return ErrMalformed
		}
		switch typ {
		case 0: // server_name
			names := reader{b: data.vector(2)}
			for len(names.b) > 0 && !names.bad {
				kind := names.uint(1)
				name := names.vector(2)
				if kind == 0 && h.ServerName == nil {
					h.ServerName = name
				}
			}
			if names.bad || data.bad {
				return ErrMalformed
			}
		case 16: // application_layer_protocol_negotiation
			list := reader{b: data.vector(2)}
			for len(list.b) > 0 && !list.bad {
				h.Protocols = append(h.Protocols, list.vector(1))
			}
			if list.bad || data.bad {
				return ErrMalformed
			}
		}
	}
	if r.bad {
		return ErrMalformed
	}
	return nil
}

// reader takes apart TLS's presentation language; bad sticks.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) skip(n int) []byte {
	if len(r.b) < n {
		r.b, r.bad = nil, true
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) uint(n int) int {
	v := 0
	for _, c := range r.skip(n) {
		v = v<<8 | int(c)
	}
	return v
}

// vector takes a vector whose length is in n bytes.
func (r *reader) vector(n int) []byte { return r.skip(r.uint(n)) }
