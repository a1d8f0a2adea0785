package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// TestEcho runs the server, and the client with each of its flags.
func TestEcho(t *testing.T) {
	port := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	}
	env := map[string]string{"SERVICE_VERSION": "v9", "PORT": port(), "HTTP_PORTS": port() + "," + port()}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, func(k string) string { return env[k] }) }()
	client := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if err := runClient(t.Context(), args[0], append(args[1:], "127.0.0.1:"+env["PORT"]), &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	for until := time.Now().Add(10 * time.Second); !strings.HasPrefix(client("call"), "OK v9 "); {
		if time.Now().After(until) {
			t.Fatal("the server does not answer")
		}
	}
	for _, c := range []struct {
		args []string
		want string // of the last line: its beginning
		n    int    // lines
	}{
		{[]string{"call", "-n", "3"}, "OK v9 ", 3},
		{[]string{"call", "-code", "9"}, "FAILED_PRECONDITION v9 ", 1},
		{[]string{"call", "-H", "fail-attempts=1", "-H", "x-envoy-attempt-count=1"}, "UNAVAILABLE v9 ", 1},
		{[]string{"call", "-H", "fail-attempts=1", "-H", "x-envoy-attempt-count=2"}, "OK v9 ", 1},
		{[]string{"call", "-H", "delay=10s", "-deadline", "100ms"}, "DEADLINE_EXCEEDED - - ", 1},
		{[]string{"stream", "-n", "5", "-size", "1000"}, "OK v9 ", 2},
		{[]string{"stream", "-n", "2", "-code", "14"}, "UNAVAILABLE v9 ", 2},
	} {
		lines := strings.Split(strings.TrimSpace(client(c.args...)), "\n")
		if last := lines[len(lines)-1]; len(lines) != c.n || !strings.HasPrefix(last, c.want) {
			t.Errorf("%v: %q, want %d lines, the last with %q", c.args, lines, c.n, c.want)
		}
	}
	if got := client("stream", "-n", "3", "-size", "5000"); !strings.Contains(got, " 15000 ") {
		t.Errorf("bytes of a stream: %q", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
