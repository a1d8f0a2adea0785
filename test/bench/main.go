// Bench measures the proxy beside its peers: the same work, the same upstream and the same load for
// each of them, in turn, so that their ratio means something on whatever machine it runs. It knows
// no figure that must be reached, and asserts nothing.
//
//	go run ./test/bench --carrick bin/carrick-proxy [--envoy FILE] [--round 2s] [--rounds 2] [--only TEXT]
//
// It needs h2load (the load) and nginx (what is behind the proxies, and a peer); haproxy is a peer if
// it is there. All of it is on loopback, with one worker for each proxy. CPU is user and system time
// of the proxies' processes, from /proc/PID/stat, divided by the requests that succeeded.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	carrick, envoy string
	round          time.Duration
	rounds         int
	only           string
}

func run(ctx context.Context) error {
	var o options
	flag.StringVar(&o.carrick, "carrick", "bin/carrick-proxy", "the proxy to measure")
	flag.StringVar(&o.envoy, "envoy", "", "genuine Envoy (default: the newest that `make envoy` fetched)")
	flag.DurationVar(&o.round, "round", 2*time.Second, "how long one measurement takes")
	flag.IntVar(&o.rounds, "rounds", 2, "measurements of each proxy, taken in turn; the median counts (of two the better)")
	flag.StringVar(&o.only, "only", "", "only workloads whose name contains this")
	flag.Parse()
	if o.round < time.Second || o.rounds < 1 {
		return errors.New("a round takes a second at least, and there is one at least")
	}
	o.round = o.round.Round(time.Second)
	for _, p := range []string{"h2load", "nginx"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is not installed: `make bench` installs it", p)
		}
	}
	if o.envoy == "" {
		o.envoy = fetched()
	}
	dir, err := os.MkdirTemp("", "carrick-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	keys, err := makeKeys(dir)
	if err != nil {
		return fmt.Errorf("making certificates: %w", err)
	}
	b := &bench{options: o, dir: dir, keys: keys}
	own := b.envoyLike("carrick", o.carrick, "envoy")
	b.engines = append(b.engines, own, own.withHTTP2())
	if o.envoy != "" {
		e := b.envoyLike("envoy", o.envoy, "--disable-hot-restart", "-l", "error")
		b.engines = append(b.engines, e, e.withHTTP2())
	} else {
		fmt.Fprintln(os.Stderr, "no Envoy here: `make envoy` fetches it")
	}
	b.engines = append(b.engines, nginx())
	if _, err := exec.LookPath("haproxy"); err == nil {
		b.engines = append(b.engines, haproxy())
	}
	return b.all(ctx)
}

// fetched returns the Envoy that `make envoy` put into the cache; empty if there is none.
func fetched() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	found, _ := filepath.Glob(filepath.Join(cache, "carrick", "envoy-*", "envoy"))
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}

type bench struct {
	options
	dir     string
	keys    keys
	engines []engine
	app     ports // of the upstream
}

// workload is work that is the same for all engines.
type workload struct {
	name string
	// roles are the proxies that a request passes, the first first; each is a configuration.
	roles []string
	// upstream is the port of the application that the last of them calls.
	upstream func(ports) int
	load     func(ctx context.Context, b *bench, port int, lasting time.Duration) (result, error)
	memory   bool // how much the first proxy holds is told afterwards
}

// result is what one round has done.
type result struct {
	requests  int
	seconds   float64
	mean      time.Duration // of the time to the answer
	cpu       time.Duration // of all proxies
	rss, anon int           // KiB, of the first proxy
	after     func()        // ends the load, if it lasts; may be nil
}

func (r result) rate() float64  { return float64(r.requests) / r.seconds }
func (r result) micro() float64 { return float64(r.cpu.Microseconds()) / float64(max(1, r.requests)) }

func workloads() []workload {
	http := func(p ports) int { return p.http }
	return []workload{
		{name: "HTTP/1.1, 64 connections", roles: []string{"outbound"}, upstream: http, load: h2load("http", "/1k", "--h1", "-c64")},
		{name: "HTTP/1.1, 2,000 requests/s", roles: []string{"outbound"}, upstream: http, load: h2load("http", "/1k", "--h1", "-c40", "--rps=50")},
		{name: "HTTP/1.1, answers of 100 KB", roles: []string{"outbound"}, upstream: http, load: h2load("http", "/100k", "--h1", "-c16")},
		{name: "mTLS, sidecar to sidecar", roles: []string{"outbound-mtls", "inbound-mtls"}, upstream: http, load: h2load("http", "/1k", "--h1", "-c64")},
		{name: "mTLS, 1,000 requests/s", roles: []string{"outbound-mtls", "inbound-mtls"}, upstream: http, load: h2load("http", "/1k", "--h1", "-c40", "--rps=25")},
		{name: "mTLS, one connection", roles: []string{"outbound-mtls", "inbound-mtls"}, upstream: http, load: h2load("http", "/1k", "--h1", "-c1")},
		{name: "mTLS, answers of 100 KB", roles: []string{"outbound-mtls", "inbound-mtls"}, upstream: http, load: h2load("http", "/100k", "--h1", "-c16")},
		{name: "mTLS, a handshake a request", roles: []string{"inbound-mtls"}, upstream: http, load: handshakes(true)},
		{name: "SNI passthrough, 100 KB", roles: []string{"passthrough"}, upstream: func(p ports) int { return p.https }, load: h2load("https", "/100k", "--h1", "-c16")},
		{name: "SNI passthrough, a connection a request", roles: []string{"passthrough"}, upstream: func(p ports) int { return p.https }, load: handshakes(false)},
		{name: "HTTP/2, 8 connections of 16 streams", roles: []string{"outbound-h2"}, upstream: func(p ports) int { return p.h2c }, load: h2load("http", "/1k", "-c8", "-m16")},
		{name: "1,000 idle HTTP/1.1 connections", roles: []string{"outbound"}, upstream: http, load: idle(1000), memory: true},
	}
}

func (b *bench) all(ctx context.Context) error {
	stop, app, err := startApp(ctx, b.dir, b.keys)
	if err != nil {
		return err
	}
	defer stop()
	b.app = app
	fmt.Printf("%d CPUs (%s), one worker a proxy, %d rounds of %s each, in turn; the median of each.\n", runtime.NumCPU(), runtime.GOARCH, b.rounds, b.round)
	fmt.Print("Client, application and proxies share the machine: compare within a table, not across machines.\n\n")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	fmt.Fprint(w, "workload\tproxy\trequests/s\tmean ms\tCPU µs/request\ttimes Carrick: rate\tCPU\t\n")
	var memory []string
	for _, l := range workloads() {
		if !strings.Contains(l.name, b.only) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s ...\n", l.name)
		rs, err := b.measure(ctx, l)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		name := l.name
		for i, e := range b.engines {
			r, ok := rs[e.name]
			if !ok {
				continue
			}
			if l.memory {
				memory = append(memory, fmt.Sprintf("%s\t%s\t%.1f\t%.1f\t%.1f\t%.1f\t\n", name, e.name, mb(r.before.rss), mb(r.before.anon), mb(r.rss), mb(r.anon)))
				name = ""
				continue
			}
			ratio := "\t\t"
			if own := rs["carrick"]; i > 0 {
				ratio = fmt.Sprintf("%.2f\t%.2f\t", r.rate()/own.rate(), r.micro()/own.micro())
			}
			fmt.Fprintf(w, "%s\t%s\t%.0f\t%.2f\t%.1f\t%s\n", name, e.name, r.rate(), float64(r.mean.Microseconds())/1000, r.micro(), ratio)
			name = ""
		}
	}
	if len(memory) > 0 {
		w.Flush()
		fmt.Fprint(w, "\nmemory, MB\tproxy\tRSS at start\tof it anonymous\tRSS then\tof it anonymous\t\n")
		for _, line := range memory {
			fmt.Fprint(w, line)
		}
	}
	return nil
}

func mb(kib int) float64 { return float64(kib) / 1024 }

// measured is a result with what the first proxy held before there was load.
type measured struct {
	result
	before result
}

// measure starts all engines and gives them the load in turn.
func (b *bench) measure(ctx context.Context, l workload) (map[string]measured, error) {
	type running struct {
		procs  []*process
		port   int
		rounds []result
		before result
	}
	rs := map[string]*running{}
	defer func() {
		for _, r := range rs {
			for _, p := range r.procs {
				p.stop()
			}
		}
	}()
	for _, e := range b.engines {
		if !e.can(l.roles) {
			continue
		}
		r := &running{port: l.upstream(b.app)}
		rs[e.name] = r
		for i := len(l.roles) - 1; i >= 0; i-- {
			p, err := b.start(ctx, e, l.roles[i], r.port)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.name, err)
			}
			r.procs = append([]*process{p}, r.procs...)
			r.port = p.port
		}
		r.procs[0].memory(&r.before)
	}
	n := b.rounds
	if l.memory {
		n = 1
	}
	for round := range n + 1 { // the first is to warm up
		for _, e := range b.engines {
			r := rs[e.name]
			if r == nil || l.memory && round == 0 {
				continue
			}
			var before time.Duration
			for _, p := range r.procs {
				before -= p.cpu()
			}
			lasting := b.round
			if round == 0 {
				lasting = time.Second
			}
			x, err := l.load(ctx, b, r.port, lasting)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.name, err)
			}
			if x.requests == 0 {
				return nil, fmt.Errorf("%s: no request succeeded", e.name)
			}
			for _, p := range r.procs {
				before += p.cpu()
			}
			x.cpu = before
			r.procs[0].memory(&x)
			if x.after != nil {
				x.after()
			}
			if round > 0 {
				r.rounds = append(r.rounds, x)
			}
		}
	}
	out := map[string]measured{}
	for name, r := range rs {
		slices.SortFunc(r.rounds, func(a, c result) int { return int(1000 * (a.micro() - c.micro())) })
		out[name] = measured{r.rounds[(len(r.rounds)-1)/2], r.before}
	}
	return out, nil
}
