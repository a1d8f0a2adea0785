package connect

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// start serves the proxy and returns a client that uses it.
func start(t *testing.T, dial Dial) *http.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, dial) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: l.Addr().String()}),
	}}
}

func TestTunnel(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d bytes", len(b))
	}))
	defer srv.Close()
	var asked string
	client := start(t, func(ctx context.Context, network, address string) (net.Conn, error) {
		asked = address
		var d net.Dialer
		return d.DialContext(ctx, network, srv.Listener.Addr().String())
	})
	tr := client.Transport.(*http.Transport)
	tr.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	tr.TLSClientConfig.ServerName = "example.com"
	r, err := client.Post("https://10.10.50.10:6443/x", "text/plain", strings.NewReader(strings.Repeat("x", 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || string(b) != "1048576 bytes" {
		t.Errorf("%q, %v", b, err)
	}
	if asked != "10.10.50.10:6443" {
		t.Errorf("dialled %q", asked)
	}
	tr.CloseIdleConnections()
}

func TestRefusals(t *testing.T) {
	client := start(t, func(context.Context, string, string) (net.Conn, error) {
		return nil, fmt.Errorf("no way there")
	})
	if _, err := client.Get("https://10.10.50.10:6443/"); err == nil || !strings.Contains(err.Error(), "Bad Gateway") {
		t.Errorf("an address that does not answer: %v, want Bad Gateway", err)
	}
	r, err := client.Get("http://10.10.50.10/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a plain request: %s", r.Status)
	}
}
