package http2

import (
	"strings"
	"sync"
)

// encoder encodes header blocks (RFC 7541). It writes strings plain: on a local or gigabit link
// Huffman costs more than it saves.
type encoder struct {
	table  table
	added  uint32      // entries ever added; entry k (from 1) is at added-k
	cache  [128]uint32 // by a field's hash: the entry (as in added) that it is in; 0: none
	update bool        // the table's size has changed since the last block
	least  int         // the least size it had since then
}

// tableSize is the size of our encoder's table: more is not worth the memory for each connection.
const tableSize = 4096

func newEncoder() *encoder { return &encoder{table: table{max: tableSize}} }

// resize follows the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *encoder) resize(n uint32) {
	size := min(int(n), tableSize)
	if size == e.table.max {
		return
	}
	if !e.update || size < e.least {
		e.least = size
	}
	e.update = true
	e.table.resize(size, size)
}

// begin begins a block.
func (e *encoder) begin(dst []byte) []byte {
	if !e.update {
		return dst
	}
	e.update = false
	if e.least < e.table.max {
		dst = appendInteger(dst, 0x20, 5, uint64(e.least))
	}
	return appendInteger(dst, 0x20, 5, uint64(e.table.max))
}

// static finds fields and names in the static table.
var static = sync.OnceValue(func() map[string]uint8 {
	m := map[string]uint8{}
	for i := staticLen; i > 0; i-- { // the first of a name wins
		m[staticTable[i].name] = uint8(i)
	}
	return m
})

// changing are fields whose values seldom come again: they would only push others out of the table.
var changing = map[string]bool{
	":path": true, "x-request-id": true, "content-length": true, "date": true, "age": true, "etag": true,
	"last-modified": true, "x-envoy-upstream-service-time": true, "x-envoy-expected-rq-timeout-ms": true,
	"traceparent": true, "x-b3-traceid": true, "x-b3-spanid": true, "x-b3-parentspanid": true, "if-none-match": true,
	"if-modified-since": true, "set-cookie": true, "grpc-timeout": true, "location": true, "content-range": true,
}

// field appends one field.
func (e *encoder) field(dst []byte, name, value string) []byte {
	i := static()[name]
	for k := int(i); k > 0 && k <= staticLen && staticTable[k].name == name; k++ {
		if staticTable[k].value == value {
			return append(dst, 0x80|byte(k))
		}
	}
	switch {
	case name == "authorization" || name == "proxy-authorization" || name == "cookie" && len(value) < 20:
		// Never indexed: guessing it by the length of blocks must not pay (RFC 7541, 7.1.3).
		return e.literal(dst, 0x10, 4, i, name, value)
	case changing[name]:
		return e.literal(dst, 0, 4, i, name, value)
	}
	c := &e.cache[hash(name, value)%uint32(len(e.cache))]
	if age := e.added - *c; *c != 0 && int(age) < e.table.n {
		if x := e.table.at(int(age)); x.value == value && x.name == name {
			return appendInteger(dst, 0x80, 7, uint64(age)+uint64(staticLen)+1)
		}
	}
	x := entry{name, value}
	if x.size() > e.table.max/4 {
		return e.literal(dst, 0, 4, i, name, value)
	}
	dst = e.literal(dst, 0x40, 6, i, name, value)
	e.table.add(entry{strings.Clone(name), strings.Clone(value)})
	e.added++
	*c = e.added
	return dst
}

func (e *encoder) literal(dst []byte, pattern byte, prefix uint, index uint8, name, value string) []byte {
	dst = appendInteger(dst, pattern, prefix, uint64(index))
	if index == 0 {
		dst = append(appendInteger(dst, 0, 7, uint64(len(name))), name...)
	}
	return append(appendInteger(dst, 0, 7, uint64(len(value))), value...)
}

func appendInteger(dst []byte, pattern byte, prefix uint, v uint64) []byte {
	limit := uint64(1)<<prefix - 1
	if v < limit {
		return append(dst, pattern|byte(v))
	}
	dst = append(dst, pattern|byte(limit))
	for v -= limit; v >= 0x80; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

// hash looks at lengths and the ends of both strings: a bad hash costs a few bytes on the wire.
func hash(name, value string) uint32 {
	h := uint32(len(name))<<16 ^ uint32(len(value))
	mix := func(s string) {
		for i := 0; i < len(s); i++ {
			if i == 4 && len(s) > 8 {
				i = len(s) - 4
			}
			h = (h ^ uint32(s[i])) * 16777619
		}
	}
	mix(name)
	mix(value)
	return h ^ h>>15
}
