package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

var (
	h2loadDone = regexp.MustCompile(`(\d+) succeeded, (\d+) failed`)
	h2loadRate = regexp.MustCompile(`finished in ([0-9.]+)(us|ms|s),`)
	h2loadTime = regexp.MustCompile(`time for request: +\S+ +\S+ +([0-9.]+)(us|ms|s)`)
)

// serverName is what clients ask for by SNI. (A mesh asks for outbound_.5000_._.HOST, which h2load
// takes for no host.)
const serverName = "helloworld.sample.svc.cluster.local"

// h2load returns a load of requests for path by h2load.
func h2load(scheme, path string, args ...string) func(context.Context, *bench, int, time.Duration) (result, error) {
	return func(ctx context.Context, b *bench, port int, lasting time.Duration) (result, error) {
		args, url := slices.Clone(args), fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, port, path)
		if scheme == "https" {
			url = scheme + "://" + serverName + path
			args = append(args, fmt.Sprintf("--connect-to=127.0.0.1:%d", port))
		}
		args = append(args, "-t1", fmt.Sprintf("-D%d", int(lasting.Seconds())), "-H:authority: helloworld.sample:5000", "-Huser-agent: curl/8.14.1", "-Haccept: */*", url)
		ctx, stop := context.WithTimeout(ctx, lasting+20*time.Second)
		defer stop()
		out, err := exec.CommandContext(ctx, "h2load", args...).CombinedOutput()
		if err != nil {
			return result{}, fmt.Errorf("h2load: %w: %s", err, out)
		}
		done, rate := h2loadDone.FindSubmatch(out), h2loadRate.FindSubmatch(out)
		if done == nil || rate == nil {
			return result{}, fmt.Errorf("h2load says something unknown: %s", out)
		}
		if string(done[2]) != "0" {
			return result{}, fmt.Errorf("requests failed: %s", out)
		}
		var r result
		r.requests, _ = strconv.Atoi(string(done[1]))
		r.seconds = duration(rate[1], rate[2]).Seconds()
		if m := h2loadTime.FindSubmatch(out); m != nil {
			r.mean = duration(m[1], m[2])
		}
		return r, nil
	}
}

func duration(n, unit []byte) time.Duration {
	d, _ := time.ParseDuration(string(n) + string(unit))
	return d
}

// handshakes returns a load of connections, each with a TLS handshake, one request and the end. With
// mutual the proxy is the one that ends the TLS, and asks for a certificate.
func handshakes(mutual bool) func(context.Context, *bench, int, time.Duration) (result, error) {
	return func(ctx context.Context, b *bench, port int, lasting time.Duration) (result, error) {
		cfg := &tls.Config{RootCAs: b.keys.pool, ServerName: serverName, NextProtos: []string{"istio-http/1.1", "istio", "http/1.1"}, CurvePreferences: []tls.CurveID{tls.X25519}}
		cfg.InsecureSkipVerify = true // the client's own work is not what is measured
		if mutual {
			cfg.Certificates = []tls.Certificate{b.keys.pair}
		}
		ctx, stop := context.WithTimeout(ctx, lasting)
		defer stop()
		var n, spent atomic.Int64
		var wg sync.WaitGroup
		var once sync.Once
		var failed error
		begin := time.Now()
		for range 8 {
			wg.Go(func() {
				for ctx.Err() == nil {
					t := time.Now()
					if err := handshake(port, cfg); err != nil {
						once.Do(func() { failed = err })
						return
					}
					n.Add(1)
					spent.Add(int64(time.Since(t)))
				}
			})
		}
		wg.Wait()
		return result{requests: int(n.Load()), seconds: time.Since(begin).Seconds(), mean: time.Duration(spent.Load() / max(1, n.Load()))}, failed
	}
}

func handshake(port int, cfg *tls.Config) error {
	raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	c := tls.Client(raw, cfg)
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return ask(c)
}

// ask sends one request and reads its answer, which ends with the connection or after 1,024 bytes of body.
func ask(c net.Conn) error {
	if _, err := io.WriteString(c, "GET /1k HTTP/1.1\r\nHost: helloworld.sample:5000\r\n\r\n"); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n := 0
	for {
		m, err := c.Read(buf[n:])
		n += m
		if i := headEnd(buf[:n]); i > 0 && n-i >= 1024 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the answer: %w after %d bytes", err, n)
		}
	}
}

func headEnd(b []byte) int {
	for i := 3; i < len(b); i++ {
		if b[i] == '\n' && b[i-2] == '\n' {
			return i + 1
		}
	}
	return 0
}

// idle returns a load of n connections, each of which has served a request and stays open while the
// memory is read.
func idle(n int) func(context.Context, *bench, int, time.Duration) (result, error) {
	return func(ctx context.Context, b *bench, port int, lasting time.Duration) (result, error) {
		var open []net.Conn
		begin := time.Now()
		for range n {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return result{}, err
			}
			open = append(open, c)
			c.SetDeadline(time.Now().Add(10 * time.Second))
			if err := ask(c); err != nil {
				return result{}, err
			}
		}
		r := result{requests: n, seconds: time.Since(begin).Seconds(), after: func() {
			for _, c := range open {
				c.Close()
			}
		}}
		return r, nil
	}
}
