package differential

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/proxy"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/test/envoytest"
)

// engine is one of the two proxies with an upstream of its own. Both have loopback addresses of their
// own, so that all ports of the bootstrap can be the same numbers.
type engine struct {
	name string
	addr string // where it listens, and where its upstreams do
	log  string // the access log
	up   *upstream
}

const (
	carrick = "carrick"
	envoy   = "envoy"
)

// loopback returns an address of 127.0.0.0/8 that another run of the tests on this machine hardly uses.
func loopback(last int) string {
	p := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64+p>>7&63, p&127, last)
}

var clients atomic.Uint32

// clientAddr returns a loopback address that no case had before: log lines and requests that arrive
// upstream are told apart by it.
func clientAddr() string {
	n := clients.Add(1)
	p := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 128+p%64, 1+n/250, 1+n%250)
}

// bootstrapOf puts an engine's addresses and files into the bootstrap that all share.
func (e *engine) bootstrapOf(text string) string {
	return strings.NewReplacer("@ADDR@", e.addr, "@LOG@", e.log).Replace(text)
}

// startEngines runs both on the bootstrap and returns when they listen.
func startEngines(t *testing.T, text string, p *pki, ports []int) []*engine {
	t.Helper()
	dir := t.TempDir()
	var es []*engine
	for i, name := range []string{envoy, carrick} {
		e := &engine{name: name, addr: loopback(i + 1), log: filepath.Join(dir, name+".log")}
		e.up = newUpstream(t, e.addr, p)
		es = append(es, e)
	}
	envoytest.Start(t, es[0].bootstrapOf(text), "--file-flush-interval-msec", "30")
	startCarrick(t, es[1].bootstrapOf(text))
	for _, e := range es {
		for _, port := range ports {
			addr := net.JoinHostPort(e.addr, strconv.Itoa(port))
			eventually(t, e.name+" listens on "+addr, func() bool {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					return false
				}
				c.Close()
				return true
			})
		}
	}
	return es
}

func startCarrick(t *testing.T, text string) {
	t.Helper()
	var log lockedBuffer
	px, err := proxy.New(proxy.Options{Concurrency: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := compile([]byte(text))
	if err != nil {
		t.Fatalf("the built-in proxy refuses what Envoy takes: %v", err)
	}
	if err := px.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- px.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Logf("carrick: %s", log.String())
		}
	})
}

// compile does what `carrick-proxy envoy --mode validate` does.
func compile(text []byte) (*config.Config, error) {
	boot, err := config.ParseBootstrap(text)
	if err != nil {
		return nil, err
	}
	var c config.Compiler
	return c.Compile(boot.Static)
}

// eventually polls until ok, and fails the test after a while.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// logLines returns the log's lines by client, once the lines of all requests before now are there:
// a request of its own, whose client is last, tells.
func (e *engine) logLines(t *testing.T) map[string][]string {
	t.Helper()
	last := clientAddr()
	c, err := dialFrom(last, fmt.Sprintf("%s:%d", e.addr, portOf("plain")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /last HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n")
	var lines map[string][]string
	eventually(t, e.name+"'s log", func() bool {
		b, _ := os.ReadFile(e.log)
		lines = map[string][]string{}
		for line := range strings.Lines(string(b)) {
			client, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			lines[client] = append(lines[client], rest)
		}
		return len(lines[last]) > 0
	})
	return lines
}
