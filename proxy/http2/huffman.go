package http2

import (
	"errors"
	"sync"

	"golang.org/x/net/http2/hpack"
)

// The Huffman code (RFC 7541, appendix B) is decoded four bits at a time. The table is made from the
// encoder of x/net: a symbol written eight times is as many bytes long as its code has bits.

// huffStep is what four bits lead to from a node of the code's tree.
type huffStep struct {
	next uint16
	sym  byte
	emit bool
	bad  bool // these bits are in no symbol (the end-of-string symbol)
}

type huffTable struct {
	steps  [][16]huffStep
	accept []bool // the bits since the last symbol are padding: at most 7, all ones
}

var huffman = sync.OnceValue(func() *huffTable {
	type node struct {
		child [2]int // 0: none
		sym   int    // -1: inner
	}
	tree := []node{{sym: -1}}
	for s := range 256 {
		b := make([]byte, 8)
		for i := range b {
			b[i] = byte(s)
		}
		enc := hpack.AppendHuffmanString(nil, string(b))
		at := 0
		for i := range len(enc) { // so many bits has the code
			bit := enc[i/8] >> (7 - i%8) & 1
			if tree[at].child[bit] == 0 {
				tree = append(tree, node{sym: -1})
				tree[at].child[bit] = len(tree) - 1
			}
			at = tree[at].child[bit]
		}
		tree[at].sym = s
	}
	t := &huffTable{steps: make([][16]huffStep, len(tree)), accept: make([]bool, len(tree))}
	for n := range tree {
		if tree[n].sym >= 0 {
			continue
		}
		for bits := range 16 {
			st := huffStep{}
			at := n
			for i := 3; i >= 0; i-- {
				at = tree[at].child[bits>>i&1]
				if at == 0 {
					st.bad = true
					break
				}
				if tree[at].sym >= 0 { // at most one: the shortest code has five bits
					st.emit, st.sym = true, byte(tree[at].sym)
					at = 0
				}
			}
			st.next = uint16(at)
			t.steps[n][bits] = st
		}
	}
	at := 0
	for range 8 { // 0 to 7 ones
		t.accept[at] = true
		at = tree[at].child[1]
	}
	return t
})

var errHuffman = errors.New("bad Huffman code")

// appendHuffman appends what b is the code of.
func appendHuffman(dst, b []byte) ([]byte, error) {
	t := huffman()
	at := uint16(0)
	for _, c := range b {
		for _, bits := range [2]byte{c >> 4, c & 15} {
			st := &t.steps[at][bits]
			if st.bad {
				return dst, errHuffman
			}
			if st.emit {
				dst = append(dst, st.sym)
			}
			at = st.next
		}
	}
	if !t.accept[at] {
		return dst, errHuffman
	}
	return dst, nil
}
