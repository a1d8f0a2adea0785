package tlsconn

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"testing"
	"time"
)

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"a"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// pair returns both ends of a connection after the handshake, its bytes carried in pieces of n.
func pair(t testing.TB, n int, max uint16) (client, server *Conn) {
	t.Helper()
	cert := certificate(t)
	server = Server(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: max})
	client = Client(&tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, MaxVersion: max})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	type event struct {
		c    *Conn
		done bool
		err  error
	}
	events := make(chan event, 100)
	for _, c := range []*Conn{client, server} {
		go func() {
			err := c.Handshake(ctx, func() { events <- event{c: c} })
			events <- event{c, true, err}
		}()
	}
	for finished := 0; finished < 2; {
		e := <-events
		if e.err != nil {
			t.Fatal(e.err)
		}
		if e.done {
			finished++
		}
		to := server
		if e.c == server {
			to = client
		}
		for b := e.c.Output(nil); len(b) > 0; b = b[min(n, len(b)):] {
			to.Feed(b[:min(n, len(b))])
		}
	}
	client.Start()
	server.Start()
	return client, server
}

func TestExchange(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client, server := pair(t, 100, version)
		if v := server.State().Version; v != version || len(server.State().PeerCertificates) != 1 {
			t.Errorf("version %x, %d peer certificates", v, len(server.State().PeerCertificates))
		}
		msg := bytes.Repeat([]byte("0123456789"), 10_000)
		wire, err := client.Write(nil, msg)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		buf := make([]byte, MaxPlain(3000))
		for len(wire) > 0 {
			k := min(3000, len(wire))
			n, err := server.Read(wire[:k], buf)
			got = append(got, buf[:n]...)
			if !errors.Is(err, ErrAgain) {
				t.Fatalf("Read: %v", err)
			}
			wire = wire[k:]
		}
		if !bytes.Equal(got, msg) || server.Buffered() {
			t.Fatalf("got %d bytes of %d", len(got), len(msg))
		}
		// A reader with little room gets the rest from what was kept.
		wire, _ = server.Write(nil, msg[:40_000])
		got = got[:0]
		small := make([]byte, 1000)
		for len(got) < 40_000 {
			n, err := client.Read(wire, small)
			if err != nil {
				t.Fatal(err)
			}
			wire = nil
			got = append(got, small[:n]...)
		}
		if !bytes.Equal(got, msg[:40_000]) {
			t.Fatal("small reads garble")
		}
		if _, err := server.Read(client.CloseWrite(nil), buf); err != io.EOF {
			t.Errorf("after close_notify: %v", err)
		}
		if _, err := client.Read([]byte("\x17\x03\x03\x00\x20garbagegarbagegarbagegarbagegarb"), buf); err == nil || err == ErrAgain {
			t.Errorf("after garbage: %v", err)
		}
	}
}

func TestAbort(t *testing.T) {
	c := Client(&tls.Config{ServerName: "a"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	wrote := make(chan bool, 1)
	go func() { done <- c.Handshake(ctx, func() { wrote <- true }) }()
	<-wrote
	cancel()
	if err := <-done; err == nil {
		t.Error("handshake without a peer succeeded")
	}
}
