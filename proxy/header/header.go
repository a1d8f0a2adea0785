// Package header has the fields of one HTTP message head, kept as lines over one buffer so that
// most of them are forwarded by a single copy. It knows field names and pseudo-headers, not
// their meaning, nor how HTTP/1 or HTTP/2 frame them.
package header

import (
	"strings"
	"unsafe"
)

// Pseudo is a pseudo-header (RFC 9113, 8.3).
type Pseudo uint8

// The pseudo-headers.
const (
	Method Pseudo = iota
	Scheme
	Authority
	Path
	Status
	pseudos
)

var pseudoNames = [pseudos]string{":method", ":scheme", ":authority", ":path", ":status"}

// Header is an ordered list of fields and the pseudo-headers. Names are lower case. The zero
// value is empty and ready; Reset makes it so again and keeps its memory.
//
// Strings that it returns alias its buffer and are good until Reset (or Load).
type Header struct {
	buf    []byte
	fields []field
	pseudo [pseudos]span
	joined []byte
	names  names
}

type span struct{ lo, hi uint32 } // hi 0: not there

// field is a line "name: value\r\n" in buf: name is buf[lo:colon], value buf[colon+2:hi].
type field struct{ lo, colon, hi uint32 }

// keep bounds the buffer that an empty Header holds on to.
const keep = 8 << 10

// Reset empties h.
func (h *Header) Reset() {
	if cap(h.buf) > keep {
		h.buf = nil
	}
	if cap(h.joined) > keep {
		h.joined = nil
	}
	if cap(h.names.text) > keep {
		h.names.text = nil
	}
	h.buf = h.buf[:0]
	h.fields = h.fields[:0]
	h.pseudo = [pseudos]span{}
	h.names = names{text: h.names.text[:0]}
}

// Load empties h and makes b, copied, its buffer; it returns the copy, in which a parser may fold
// names to lower case before it calls AddLine and SetPseudoSpan.
func (h *Header) Load(b []byte) []byte {
	h.Reset()
	h.buf = append(h.buf, b...)
	return h.buf
}

// Loaded returns the first n bytes of the buffer, which Add and SetPseudo may have moved.
func (h *Header) Loaded(n int) []byte { return h.buf[:n] }

// AddLine adds the field whose line in the buffer is name: lo to colon, value: colon+2 to hi. The
// line must read exactly "name: value\r\n", the name in lower case.
func (h *Header) AddLine(lo, colon, hi int) {
	h.fields = append(h.fields, field{uint32(lo), uint32(colon), uint32(hi)})
}

// SetPseudoSpan makes the part of the buffer from lo to hi a pseudo-header.
func (h *Header) SetPseudoSpan(p Pseudo, lo, hi int) { h.pseudo[p] = span{uint32(lo), uint32(hi)} }

// Pseudo returns a pseudo-header, empty if it is not there.
func (h *Header) Pseudo(p Pseudo) string {
	s := h.pseudo[p]
	return view(h.buf[s.lo:s.hi])
}

// SetPseudo sets a pseudo-header; v may alias h.
func (h *Header) SetPseudo(p Pseudo, v string) {
	lo := len(h.buf)
	h.buf = append(h.buf, v...)
	h.pseudo[p] = span{uint32(lo), uint32(len(h.buf))}
}

// Len returns the number of fields, without pseudo-headers.
func (h *Header) Len() int { return len(h.fields) }

// Memory returns how many bytes h holds on to.
func (h *Header) Memory() int { return cap(h.buf) + cap(h.joined) + 12*cap(h.fields) }

// Size returns the length of the fields in bytes as HTTP/1 lines.
func (h *Header) Size() int {
	n := 0
	for _, f := range h.fields {
		n += int(f.hi - f.lo + 2)
	}
	return n
}

// At returns the i-th field.
func (h *Header) At(i int) (name, value string) {
	f := h.fields[i]
	return view(h.buf[f.lo:f.colon]), view(h.buf[f.colon+2 : f.hi])
}

func (h *Header) find(name string, from int) int {
	for i := from; i < len(h.fields); i++ {
		f := &h.fields[i]
		if int(f.colon-f.lo) == len(name) && string(h.buf[f.lo:f.colon]) == name {
			return i
		}
	}
	return -1
}

// Has reports whether there is a field of that lower-case name.
func (h *Header) Has(name string) bool { return h.find(name, 0) >= 0 }

// First returns the value of the first field of that name, or "".
func (h *Header) First(name string) string {
	if i := h.find(name, 0); i >= 0 {
		f := h.fields[i]
		return view(h.buf[f.colon+2 : f.hi])
	}
	return ""
}

// Header returns the value of the field or pseudo-header of that lower-case name, several values
// joined by commas.
func (h *Header) Header(name string) (string, bool) {
	b, ok := h.Get(name)
	return view(b), ok
}

// Get is Header for callers that want bytes; they are good until the next call.
func (h *Header) Get(name string) ([]byte, bool) {
	if strings.HasPrefix(name, ":") {
		for p, n := range pseudoNames {
			if n == name {
				s := h.pseudo[p]
				return h.buf[s.lo:s.hi], s.hi != 0
			}
		}
		return nil, false
	}
	i := h.find(name, 0)
	if i < 0 {
		return nil, false
	}
	f := h.fields[i]
	v := h.buf[f.colon+2 : f.hi]
	k := h.find(name, i+1)
	if k < 0 {
		return v, true
	}
	h.joined = append(h.joined[:0], v...)
	for ; k >= 0; k = h.find(name, k+1) {
		f := h.fields[k]
		h.joined = append(h.joined, ',')
		h.joined = append(h.joined, h.buf[f.colon+2:f.hi]...)
	}
	return h.joined, true
}

// Nth returns the value of the field of that lower-case name that is the i-th of them, from 0; of a
// pseudo-header there is one.
func (h *Header) Nth(name string, i int) (value string, ok bool) {
	if strings.HasPrefix(name, ":") {
		if i > 0 {
			return "", false
		}
		return h.Header(name)
	}
	k := h.find(name, 0)
	for ; k >= 0 && i > 0; i-- {
		k = h.find(name, k+1)
	}
	if k < 0 {
		return "", false
	}
	f := h.fields[k]
	return view(h.buf[f.colon+2 : f.hi]), true
}

// Add adds a field after the others; strings may alias h. The name must be a lower-case token
// and the value free of CR, LF and NUL: see ValidValue.
func (h *Header) Add(name, value string) { h.fields = append(h.fields, h.line(name, value)) }

func (h *Header) line(name, value string) field {
	lo := len(h.buf)
	h.buf = append(h.buf, name...)
	colon := len(h.buf)
	h.buf = append(h.buf, ": "...)
	h.buf = append(h.buf, value...)
	hi := len(h.buf)
	h.buf = append(h.buf, "\r\n"...)
	return field{uint32(lo), uint32(colon), uint32(hi)}
}

// Set makes value the only one of that name, in the place of the first, else at the end.
func (h *Header) Set(name, value string) {
	i := h.find(name, 0)
	if i < 0 {
		h.Add(name, value)
		return
	}
	h.fields[i] = h.line(name, value)
	h.remove(name, i+1)
}

// Remove removes all fields of that name.
func (h *Header) Remove(name string) { h.remove(name, 0) }

func (h *Header) remove(name string, from int) {
	i := h.find(name, from)
	if i < 0 {
		return
	}
	k := i
	for ; i < len(h.fields); i++ {
		f := &h.fields[i]
		if int(f.colon-f.lo) != len(name) || string(h.buf[f.lo:f.colon]) != name {
			h.fields[k] = *f
			k++
		}
	}
	h.fields = h.fields[:k]
}

// RemoveAt removes the i-th field.
func (h *Header) RemoveAt(i int) { h.fields = append(h.fields[:i], h.fields[i+1:]...) }

// AppendTo appends "\r\n"-ended lines of all fields to dst, in as few copies as their places allow.
func (h *Header) AppendTo(dst []byte) []byte {
	for i := 0; i < len(h.fields); {
		lo, hi := h.fields[i].lo, h.fields[i].hi+2
		for i++; i < len(h.fields) && h.fields[i].lo == hi; i++ {
			hi = h.fields[i].hi + 2
		}
		dst = append(dst, h.buf[lo:hi]...)
	}
	return dst
}

// CopyFrom makes h a copy of o.
func (h *Header) CopyFrom(o *Header) {
	h.Reset()
	h.buf = append(h.buf, o.buf...)
	h.fields = append(h.fields, o.fields...)
	h.pseudo = o.pseudo
	h.names.on, h.names.proper = o.names.on, o.names.proper
	h.names.text = append(h.names.text, o.names.text...)
}

// ValidName reports whether s is a lower-case token.
func ValidName(s string) bool {
	for i := 0; i < len(s); i++ {
		if Lower[s[i]] != s[i] || s[i] == 0 {
			return false
		}
	}
	return s != ""
}

// ValidValue reports whether s may be a field value: no control characters but tab (RFC 9110, 5.5).
func ValidValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if !Value[s[i]] {
			return false
		}
	}
	return true
}

func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
