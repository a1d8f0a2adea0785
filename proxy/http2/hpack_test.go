package http2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"
)

type collected []entry

func (c *collected) field(n, v string) { *c = append(*c, entry{strings.Clone(n), strings.Clone(v)}) }

func decodeAll(d *decoder, b []byte) ([]entry, error) {
	var out collected
	err := d.decode(b, &out)
	return out, err
}

type counted int

func (c *counted) field(_, v string) { *c += counted(len(v)) }

// randomFields has some that come again and some that do not.
func randomFields(r *rand.Rand) []entry {
	names := []string{":path", ":method", "user-agent", "x-request-id", "cookie", "authorization", "x-custom", "content-type", "grpc-status", "set-cookie"}
	var out []entry
	for range r.IntN(12) {
		v := ""
		switch r.IntN(4) {
		case 0:
			v = fmt.Sprint("value-", r.IntN(5))
		case 1:
			v = fmt.Sprint(r.Uint64())
		case 2:
			b := make([]byte, r.IntN(300))
			for i := range b {
				b[i] = byte(r.IntN(256))
			}
			v = string(b)
		}
		out = append(out, entry{names[r.IntN(len(names))], v})
	}
	return out
}

// The decoder understands x/net's encoder (Huffman, dynamic table, size updates).
func TestDecoder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	d := &decoder{limit: 4096, table: table{max: 4096}}
	for i := range 2000 {
		if r.IntN(20) == 0 {
			enc.SetMaxDynamicTableSize(uint32(r.IntN(4097)))
		}
		buf.Reset()
		want := randomFields(r)
		for _, f := range want {
			if err := enc.WriteField(hpack.HeaderField{Name: f.name, Value: f.value, Sensitive: r.IntN(10) == 0}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := decodeAll(d, buf.Bytes())
		if err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
			t.Fatalf("block %d: %s", i, diff)
		}
	}
}

// x/net's decoder understands the encoder.
func TestEncoder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	enc := newEncoder()
	dec := hpack.NewDecoder(4096, nil)
	for i := range 2000 {
		if r.IntN(30) == 0 {
			n := []uint32{0, 100, 1000, 4096, 65536}[r.IntN(5)]
			dec.SetAllowedMaxDynamicTableSize(n)
			enc.resize(n)
		}
		want := randomFields(r)
		b := enc.begin(nil)
		for _, f := range want {
			b = enc.field(b, f.name, f.value)
		}
		fs, err := dec.DecodeFull(b)
		if err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		var got []entry
		for _, f := range fs {
			got = append(got, entry{f.Name, f.Value})
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
			t.Fatalf("block %d: %s", i, diff)
		}
	}
}

func TestEncoderIndexes(t *testing.T) {
	enc := newEncoder()
	first := enc.field(nil, "x-custom", "some value")
	if again := enc.field(nil, "x-custom", "some value"); len(again) != 1 || len(first) < 10 {
		t.Errorf("first %d bytes, again %d", len(first), len(again))
	}
	if b := enc.field(nil, "authorization", "Bearer x"); b[0]&0xf0 != 0x10 {
		t.Errorf("authorization is indexed: %#x", b[0])
	}
	if b := enc.field(nil, ":status", "200"); len(b) != 1 || b[0] != 0x88 {
		t.Errorf(":status 200 is %x", b)
	}
}

func TestHuffman(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 1000 {
		b := make([]byte, r.IntN(60))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		got, err := appendHuffman(nil, hpack.AppendHuffmanString(nil, string(b)))
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%x: %x, %v", b, got, err)
		}
	}
	for _, bad := range [][]byte{{0xff}, {0xff, 0xff, 0xff, 0xff}, {0x00}, {0x1f, 0xff}} {
		_, want := hpack.HuffmanDecodeToString(bad)
		if _, err := appendHuffman(nil, bad); (err != nil) != (want != nil) {
			t.Errorf("%x: error %v, x/net says %v", bad, err, want)
		}
	}
}

func TestDecoderErrors(t *testing.T) {
	for name, b := range map[string][]byte{
		"index 0":            {0x80},
		"index too high":     {0xff, 0x00},
		"integer too large":  {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"truncated integer":  {0xff},
		"truncated name":     {0x40, 0x05, 'a'},
		"no value":           {0x40, 0x01, 'a'},
		"update too large":   {0x3f, 0xe2, 0x1f},
		"update after field": {0x82, 0x20},
		"three updates":      {0x20, 0x20, 0x20, 0x82},
	} {
		d := &decoder{limit: 4096, table: table{max: 4096}}
		if _, err := decodeAll(d, b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// FuzzDecoder compares with x/net's decoder.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff})
	f.Add([]byte{0x40, 0x0a, 'c', 'u', 's', 't', 'o', 'm', '-', 'k', 'e', 'y', 0x01, 'v', 0xbe})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &decoder{limit: 4096, table: table{max: 4096}}
		got, err := decodeAll(d, b)
		ref := hpack.NewDecoder(4096, nil)
		want, werr := ref.DecodeFull(b)
		if werr != nil || err != nil {
			return // which of several errors comes first may differ
		}
		if len(got) != len(want) {
			t.Fatalf("%d fields, x/net has %d", len(got), len(want))
		}
		for i := range got {
			if got[i].name != want[i].Name || got[i].value != want[i].Value {
				t.Fatalf("field %d: %q, x/net has %q", i, got[i], want[i])
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	enc := newEncoder()
	fields := []entry{{":method", "GET"}, {":scheme", "http"}, {":authority", "helloworld.sample:5000"}, {":path", "/hello?x=1"},
		{"user-agent", "curl/8.16.0"}, {"accept", "*/*"}, {"x-forwarded-proto", "http"}, {"x-request-id", "9d1f0e4a-0000-4000-8000-000000000000"}, {"x-envoy-attempt-count", "1"}}
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = out[:0]
		for i := range fields {
			out = enc.field(out, fields[i].name, fields[i].value)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	enc := newEncoder()
	d := &decoder{limit: 4096, table: table{max: 4096}}
	block := func() (out []byte) {
		for _, f := range []entry{{":method", "GET"}, {":scheme", "http"}, {":authority", "helloworld.sample:5000"}, {":path", "/hello?x=1"}, {"user-agent", "curl/8.16.0"}, {"x-request-id", "9d1f0e4a-0000-4000-8000-000000000000"}} {
			out = enc.field(out, f.name, f.value)
		}
		return out
	}
	var n counted
	if err := d.decode(block(), &n); err != nil {
		b.Fatal(err)
	}
	again := block()
	b.ReportAllocs()
	for b.Loop() {
		if err := d.decode(again, &n); err != nil {
			b.Fatal(err)
		}
	}
}
