package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestFetchAndEcho(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		e, _, _ := env()
		ended <- run(ctx, e, []string{"echo", addr, "cluster1"})
	}()
	for end := time.Now().Add(10 * time.Second); ; {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	e, out, errs := env()
	if code := run(t.Context(), e, []string{"fetch", "-n", "2", "-H", "x-a: b", "http://" + addr + "/"}); code != exitOK || out.String() != "cluster1\ncode=200\ncluster1\ncode=200\n" {
		t.Errorf("exit %d, %q, %s", code, out, errs)
	}
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("echo: exit %d", code)
	}
	e, out, errs = env()
	if code := run(t.Context(), e, []string{"fetch", "http://" + addr + "/"}); code != exitFailed || !strings.Contains(out.String(), "connection refused\ncode=000\n") || !strings.Contains(errs.String(), "1 of 1 requests") {
		t.Errorf("nothing listens: exit %d, %q, %s", code, out, errs)
	}
	for _, args := range []string{"fetch", "fetch -n 0 http://x", "fetch -H x http://x", "echo :1"} {
		e, _, errs := env()
		if code := run(t.Context(), e, strings.Fields(args)); code != exitUsage || errs.Len() == 0 {
			t.Errorf("%s: exit %d, %s", args, code, errs)
		}
	}
}

// The request has the headers that were asked for, and a redirect is an answer.
func TestFetchHeaders(t *testing.T) {
	s := serveOnce(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(302)
		fmt.Fprintf(w, "%s %s\nand more", r.Host, r.Header.Get("X-Request-Id"))
	})
	e, out, _ := env()
	if code := run(t.Context(), e, []string{"fetch", "-H", "Host: a.example", "-H", "x-request-id: 7", s}); code != exitOK || out.String() != "a.example 7 and more\ncode=302\n" {
		t.Errorf("exit %d, %q", code, out)
	}
}

func serveOnce(t *testing.T, f http.HandlerFunc) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: f}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return "http://" + l.Addr().String() + "/"
}
