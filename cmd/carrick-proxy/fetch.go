package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// runFetch sends requests as a workload would, from wherever it runs; carrick trace and carrick mesh
// check use it in pods that have no other client. For each request it prints the first bytes of the
// answer's body as one line, then code=STATUS; what did not come is code=000 after a line error=….
func runFetch(ctx context.Context, e environment, args []string) error {
	f := newFlags("fetch", e)
	n := f.Int("n", 1, "how many requests, one after the other, each on a connection of its own; at most 1000")
	limit := f.Duration("max-time", 15*time.Second, "how long one may take")
	header := http.Header{}
	f.Func("H", "a header, NAME: VALUE; may be repeated", func(s string) error {
		name, value, ok := strings.Cut(s, ":")
		if !ok {
			return errors.New("want NAME: VALUE")
		}
		header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		return nil
	})
	rest, err := f.parse(args, 1)
	if err != nil {
		return err
	}
	if len(rest) != 1 || *n < 1 || *n > 1000 {
		fmt.Fprintln(e.stderr, "carrick-proxy fetch [-n N] [-H HEADER] [-max-time 15s] URL, with 1 to 1000 requests")
		return errUsage
	}
	client := &http.Client{Timeout: *limit, Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	failed := 0
	for range *n {
		code, body, err := fetchOne(ctx, client, rest[0], header)
		if err != nil {
			failed++
			body = "error=" + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Fprintf(e.stdout, "%s\ncode=%03d\n", body, code)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d requests were not answered", failed, *n)
	}
	return nil
}

func fetchOne(ctx context.Context, client *http.Client, url string, header http.Header) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	r.Header = header.Clone()
	if h := r.Header.Get("Host"); h != "" {
		r.Host = h
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 200))
	if err != nil {
		return 0, "", err
	}
	return resp.StatusCode, string(bytes.TrimSpace(bytes.ReplaceAll(b, []byte("\n"), []byte(" ")))), nil
}

// runEcho answers every HTTP request with a text, until it is ended.
func runEcho(ctx context.Context, e environment, args []string) error {
	rest, err := newFlags("echo", e).parse(args, 2)
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		fmt.Fprintln(e.stderr, "carrick-proxy echo HOST:PORT TEXT")
		return errUsage
	}
	l, err := net.Listen("tcp", rest[0])
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, rest[1]) })}
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		s.Shutdown(end)
	})
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("echo: %w", err)
	}
	return nil
}
