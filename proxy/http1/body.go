package http1

import (
	"github.com/carrick-mesh/carrick/proxy/header"
)

// maxTrailers bounds a trailer section, maxLine a chunk's size line with its extensions, in bytes.
const (
	maxTrailers = 60 << 10
	maxLine     = 4 << 10
)

// Body finds the end of a body and takes its framing off. The zero value is an empty body.
type Body struct {
	state state
	left  int64 // of the body, or of the chunk
	line  int   // bytes of the size line, or digits, so far
	tail  []byte
}

type state uint8

const (
	done state = iota
	fixed
	untilClose
	chunkSize
	chunkExt
	chunkSizeLF
	chunkData
	chunkCR
	chunkLF
	trailer
)

// Length starts a body of n bytes.
func (d *Body) Length(n int64) {
	*d = Body{tail: d.tail[:0]}
	if n > 0 {
		d.state, d.left = fixed, n
	}
}

// UntilClose starts a body that ends with the connection.
func (d *Body) UntilClose() { *d = Body{state: untilClose, tail: d.tail[:0]} }

// Chunked starts a body in chunks.
func (d *Body) Chunked() { *d = Body{state: chunkSize, tail: d.tail[:0]} }

// Done reports whether the body has ended.
func (d *Body) Done() bool { return d.state == done }

// Held returns how many bytes it keeps: a trailer section that is not complete.
func (d *Body) Held() int { return cap(d.tail) }

// Left returns how many bytes of a body of known length are to come; 0 for others.
func (d *Body) Left() int64 {
	if d.state == fixed {
		return d.left
	}
	return 0
}

// EndsWithConnection reports whether only the end of the connection ends the body.
func (d *Body) EndsWithConnection() bool { return d.state == untilClose }

// Next returns the first piece of payload in p, aliasing it, and how many bytes of p it used; call
// it until it has used p up or Done. Trailers go into t, which may be nil to drop them.
func (d *Body) Next(p []byte, t *header.Header) (data []byte, used int, err error) {
	i := 0
	for i < len(p) && d.state != done {
		c := p[i]
		switch d.state {
		case fixed, chunkData:
			n := int(min(int64(len(p)-i), d.left))
			d.left -= int64(n)
			if d.left == 0 {
				d.state = done
				if d.line != 0 {
					d.state = chunkCR
				}
			}
			return p[i : i+n], i + n, nil
		case untilClose:
			return p[i:], len(p), nil
		case chunkSize:
			v, ok := hex(c)
			switch {
			case ok && d.line < 15:
				d.left = d.left<<4 | int64(v)
				d.line++
			case d.line == 0 || ok:
				return nil, i, ErrChunk
			case c == '\r':
				d.state = chunkSizeLF
			case c == ';' || c == ' ' || c == '\t':
				d.state = chunkExt
			default:
				return nil, i, ErrChunk
			}
		case chunkExt:
			d.line++
			if c == '\r' {
				d.state = chunkSizeLF
			} else if d.line > maxLine || !header.Value[c] {
				return nil, i, ErrChunk
			}
		case chunkSizeLF:
			if c != '\n' {
				return nil, i, ErrChunk
			}
			d.state = chunkData
			if d.left == 0 {
				d.state = trailer
			}
		case chunkCR:
			if c != '\r' {
				return nil, i, ErrChunk
			}
			d.state = chunkLF
		case chunkLF:
			if c != '\n' {
				return nil, i, ErrChunk
			}
			d.state, d.line, d.left = chunkSize, 0, 0
		case trailer:
			n, err := d.trailers(p[i:], t)
			return nil, i + n, err
		}
		i++
	}
	return nil, i, nil
}

// trailers gathers the trailer section up to its empty line.
func (d *Body) trailers(p []byte, t *header.Header) (used int, err error) {
	had := len(d.tail)
	d.tail = append(d.tail, p[:min(len(p), maxTrailers+1)]...)
	var n int
	switch {
	case len(d.tail) >= 2 && d.tail[0] == '\r' && d.tail[1] == '\n':
		n = 2
	default:
		n = End(d.tail, had)
	}
	switch {
	case n > maxTrailers, n == 0 && len(d.tail) > maxTrailers:
		return 0, ErrTooLarge
	case n == 0 && BareLF(d.tail, had):
		return 0, ErrField
	case n == 0:
		return len(p), nil
	}
	d.state = done
	if n > 2 {
		if t == nil {
			t = new(header.Header) // what is dropped must be right all the same
		}
		b := t.Load(d.tail[:n])
		m := Message{Minor: 1}
		var o Options
		if err := fields(b, 0, t, &m, &o, false, false); err != nil {
			return 0, err
		}
		if m.HasLength || m.Chunked {
			return 0, ErrField // a trailer must not frame (RFC 9110, 6.5.1)
		}
	}
	if cap(d.tail) > maxLine {
		d.tail = nil
	}
	return n - had, nil
}

func hex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
