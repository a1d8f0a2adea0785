package clienthello

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"testing"
)

// hello returns what crypto/tls sends first.
func hello(t testing.TB, name string, protos ...string) []byte {
	t.Helper()
	a, b := net.Pipe()
	go func() {
		tls.Client(a, &tls.Config{ServerName: name, NextProtos: protos, InsecureSkipVerify: true}).HandshakeContext(context.Background())
		a.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	b.Close()
	return append(head, body...)
}

// split cuts the one record of b into records of n bytes.
func split(b []byte, n int) (out []byte) {
	for p := b[5:]; len(p) > 0; {
		k := min(n, len(p))
		out = append(append(out, 22, 3, 1, byte(k>>8), byte(k)), p[:k]...)
		p = p[k:]
	}
	return out
}

func TestParse(t *testing.T) {
	const name = "outbound_.5000_._.helloworld.sample.svc.cluster.local"
	whole := hello(t, name, "istio-http/1.1", "istio", "http/1.1")
	for _, n := range []int{1 << 14, 100, 30} {
		b := split(whole, n)
		var h Hello
		for i := range b {
			if err := Parse(b[:i], &h); err != ErrShort {
				t.Fatalf("%d of %d bytes: %v", i, len(b), err)
			}
		}
		if err := Parse(append(b, "more"...), &h); err != nil {
			t.Fatal(err)
		}
		if string(h.ServerName) != name || string(bytes.Join(h.Protocols, []byte{' '})) != "istio-http/1.1 istio http/1.1" {
			t.Errorf("name %q, protocols %q", h.ServerName, h.Protocols)
		}
	}
}

func TestNone(t *testing.T) {
	var h Hello
	if err := Parse(hello(t, ""), &h); err != nil || len(h.ServerName) != 0 || len(h.Protocols) != 0 {
		t.Errorf("%v: %q %q", err, h.ServerName, h.Protocols)
	}
}

func TestNotTLS(t *testing.T) {
	var h Hello
	for in, want := range map[string]error{
		"":                                     ErrShort,
		"GET / HTTP/1.1\r\n":                   ErrNotTLS,
		"\x16\x02":                             ErrNotTLS,
		"\x16\x03\x01\x00\x05\x02":             ErrNotTLS, // a ServerHello
		"\x16\x03\x01\x00\x00":                 ErrMalformed,
		"\x16\x03\x01\xff\xff\x01":             ErrMalformed,
		"\x16\x03\x01\x00\x04\x01\x01\x00\x00": ErrMalformed, // 64 KiB announced
	} {
		if err := Parse([]byte(in), &h); err != want {
			t.Errorf("%q: %v, want %v", in, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(hello(f, "a.example", "h2"))
	f.Add(split(hello(f, "b.example"), 50))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Hello
		if err := Parse(b, &h); err != nil {
			return
		}
		// crypto/tls, if it gets as far as a ClientHelloInfo, reads the same.
		var info *tls.ClientHelloInfo
		c := tls.Server(&memory{Reader: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			info = i
			return nil, os.ErrClosed
		}})
		c.Handshake()
		if info != nil && (info.ServerName != string(h.ServerName) || len(info.SupportedProtos) != len(h.Protocols)) {
			t.Fatalf("crypto/tls reads %q %q, we %q %q", info.ServerName, info.SupportedProtos, h.ServerName, h.Protocols)
		}
	})
}

type memory struct {
	io.Reader
	net.Conn
}

func (m *memory) Read(p []byte) (int, error)  { return m.Reader.Read(p) }
func (m *memory) Write(p []byte) (int, error) { return len(p), nil }
func (m *memory) Close() error                { return nil }
func (m *memory) RemoteAddr() net.Addr        { return &net.TCPAddr{} }
func (m *memory) LocalAddr() net.Addr         { return &net.TCPAddr{} }

func BenchmarkParse(b *testing.B) {
	in := hello(b, "outbound_.5000_._.helloworld.sample.svc.cluster.local", "istio")
	var h Hello
	b.ReportAllocs()
	for b.Loop() {
		if err := Parse(in, &h); err != nil {
			b.Fatal(err)
		}
	}
}
