package http2

import (
	"errors"
	"unsafe"
)

// decoder decodes header blocks (RFC 7541).
type decoder struct {
	table   table
	limit   int // what we allow the table to be: our SETTINGS_HEADER_TABLE_SIZE
	scratch []byte
}

// table is a dynamic table: a ring, the newest entry last.
type table struct {
	ring  []entry
	first int // index of the oldest
	n     int
	size  int
	max   int
}

func (t *table) at(i int) *entry { // 0: the newest
	return &t.ring[(t.first+t.n-1-i)%len(t.ring)]
}

func (t *table) add(e entry) {
	if e.size() > t.max {
		t.resize(0, t.max)
		return
	}
	t.evict(t.max - e.size())
	if t.n == len(t.ring) {
		ring := make([]entry, max(2*len(t.ring), 16))
		for i := range t.n {
			ring[i] = t.ring[(t.first+i)%len(t.ring)]
		}
		t.ring, t.first = ring, 0
	}
	t.ring[(t.first+t.n)%len(t.ring)] = e
	t.n++
	t.size += e.size()
}

// evict drops the oldest entries until the size is at most so much.
func (t *table) evict(size int) {
	for t.size > size {
		e := &t.ring[t.first]
		t.size -= e.size()
		*e = entry{}
		t.first = (t.first + 1) % len(t.ring)
		t.n--
	}
}

// resize evicts down to size and sets the maximum.
func (t *table) resize(size, maximum int) {
	t.evict(size)
	t.max = maximum
}

var (
	errTruncated = errors.New("truncated header block")
	errInteger   = errors.New("integer too large")
	errIndex     = errors.New("index beyond the tables")
	errUpdate    = errors.New("bad size update of the dynamic table")
)

// sink takes the fields of a block, one by one. Name and value are good during the call only.
type sink interface{ field(name, value string) }

// decode gives the fields of a block to s.
func (d *decoder) decode(b []byte, s sink) error {
	updates := 0
	begun := false
	for len(b) > 0 {
		c := b[0]
		var err error
		var i uint64
		switch {
		case c&0x80 != 0: // indexed
			if i, b, err = integer(b, 7); err != nil {
				return err
			}
			e, err := d.entry(i)
			if err != nil {
				return err
			}
			s.field(e.name, e.value)
			begun = true
		case c&0xe0 == 0x20: // size update
			if i, b, err = integer(b, 5); err != nil {
				return err
			}
			if updates++; begun || updates > 2 || i > uint64(d.limit) {
				return errUpdate
			}
			d.table.resize(int(i), int(i))
		default: // literal
			prefix, index := uint(4), false
			if c&0xc0 == 0x40 {
				prefix, index = 6, true
			}
			if i, b, err = integer(b, prefix); err != nil {
				return err
			}
			if b, err = d.literal(b, i, index, s); err != nil {
				return err
			}
			begun = true
		}
	}
	return nil
}

func (d *decoder) literal(b []byte, nameIndex uint64, index bool, s sink) ([]byte, error) {
	d.scratch = d.scratch[:0]
	var err error
	var name string
	if nameIndex != 0 {
		e, err := d.entry(nameIndex)
		if err != nil {
			return nil, err
		}
		name = e.name
	} else {
		if d.scratch, b, err = d.text(d.scratch, b); err != nil {
			return nil, err
		}
	}
	cut := len(d.scratch)
	if d.scratch, b, err = d.text(d.scratch, b); err != nil {
		return nil, err
	}
	if nameIndex == 0 {
		name = view(d.scratch[:cut])
	}
	value := view(d.scratch[cut:])
	s.field(name, value)
	if index {
		// The name may be in an entry that the new one evicts; strings keep it alive.
		e := entry{name, string(d.scratch[cut:])}
		if nameIndex == 0 {
			e.name = string(d.scratch[:cut])
		}
		d.table.add(e)
	}
	return b, nil
}

func (d *decoder) entry(i uint64) (*entry, error) {
	switch {
	case i == 0:
		return nil, errIndex
	case i <= uint64(staticLen):
		return &staticTable[i], nil
	case i-uint64(staticLen) <= uint64(d.table.n):
		return d.table.at(int(i) - staticLen - 1), nil
	}
	return nil, errIndex
}

// integer reads a prefixed integer (RFC 7541, 5.1) below 2^32.
func integer(b []byte, prefix uint) (uint64, []byte, error) {
	limit := uint64(1)<<prefix - 1
	v := uint64(b[0]) & limit
	b = b[1:]
	if v < limit {
		return v, b, nil
	}
	for shift := uint(0); len(b) > 0; shift += 7 {
		c := b[0]
		b = b[1:]
		if shift > 28 {
			return 0, nil, errInteger
		}
		v += uint64(c&0x7f) << shift
		if c&0x80 == 0 {
			if v > 1<<32-1 {
				return 0, nil, errInteger
			}
			return v, b, nil
		}
	}
	return 0, nil, errTruncated
}

// text appends a string literal (RFC 7541, 5.2) to dst.
func (d *decoder) text(dst, b []byte) (out, rest []byte, err error) {
	if len(b) == 0 {
		return dst, nil, errTruncated
	}
	huff := b[0]&0x80 != 0
	n, b, err := integer(b, 7)
	if err != nil {
		return dst, nil, err
	}
	if n > uint64(len(b)) {
		return dst, nil, errTruncated
	}
	if !huff {
		return append(dst, b[:n]...), b[n:], nil
	}
	dst, err = appendHuffman(dst, b[:n])
	return dst, b[n:], err
}

func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
