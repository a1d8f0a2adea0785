// Package proxy is the data plane: it accepts connections on the configured listeners, forwards
// their bytes or requests to the configured clusters and reports what it did. It takes its
// configuration compiled (package config) and its certificates from the caller; where either
// comes from it does not know.
package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/stats"
)

// Options are what a Proxy is made with.
type Options struct {
	// Concurrency is the number of event loops; 0: one for each CPU that Go may use.
	Concurrency int
	// Secrets are the certificates that TLS contexts name and that are not in the configuration.
	// Without it such contexts refuse connections.
	Secrets Secrets
	// Memory is how many bytes all loops may hold for connections and requests; at it new ones are
	// refused. 0: half of Go's memory limit, at most 1 GiB. The process takes about twice as much.
	Memory int64
	// Connections bounds the connections of clients; 0: no bound.
	Connections int64
	// Stats is where to count, with at least Concurrency shards; nil: a store of the proxy's own.
	Stats  *stats.Store
	Logger *slog.Logger // nil: nothing is logged
	// DrainTime is how long a connection that is to end waits for a request that may be under way, to
	// answer that it ends; 0: 45 s.
	DrainTime time.Duration
}

// Proxy is one data plane. New makes it, Run runs it, Apply configures it; all other methods may be
// called at any time from any goroutine.
type Proxy struct {
	log         *slog.Logger
	secrets     Secrets
	workers     []*worker
	load        []atomic.Int64 // downstream connections by worker
	snap        atomic.Pointer[snapshot]
	tls         tlsContexts
	connID      atomic.Uint64
	faults      atomic.Int64 // requests being delayed by the fault filter
	logs        *accesslog.Writer
	stats       *stats.Store
	own         atomic.Pointer[own]
	draining    atomic.Bool
	started     time.Time
	memory      int           // that workers may hold
	connections int64         // of clients, at most; 0: no bound
	lastPanic   atomic.Int64  // when one was logged, in seconds
	grace       time.Duration // DrainTime

	mu      sync.Mutex // held by Apply, Drain and the start and end of Run
	sockets map[socketKey]*socket
	leaving []*socket // out of the configuration; perhaps not closed yet

	run     sync.RWMutex // guards ctx and spawning against the end of Run
	ctx     context.Context
	spawned sync.WaitGroup
}

// errStopped ends what is begun when Run has ended.
var errStopped = errors.New("the proxy has stopped")

// New returns a proxy without a configuration.
func New(o Options) (*Proxy, error) {
	if o.Concurrency <= 0 {
		o.Concurrency = runtime.GOMAXPROCS(0)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Secrets == nil {
		o.Secrets = noSecrets{}
	}
	p := &Proxy{log: o.Logger, secrets: o.Secrets, sockets: map[socketKey]*socket{}, started: time.Now(), logs: accesslog.NewWriter(o.Logger), grace: cmp.Or(o.DrainTime, 45*time.Second), memory: int(memory(o.Memory)), connections: o.Connections}
	if p.stats = o.Stats; p.stats == nil {
		p.stats = stats.NewStore(o.Concurrency, stats.Local{})
	}
	p.load = make([]atomic.Int64, o.Concurrency)
	p.snap.Store(&snapshot{cfg: &config.Config{}})
	for i := range o.Concurrency {
		w, err := newWorker(p, i)
		if err != nil {
			return nil, fmt.Errorf("making event loop: %w", err)
		}
		p.workers = append(p.workers, w)
	}
	return p, nil
}

// Run serves until ctx ends; then it closes all connections. Run it once. Set GOMAXPROCS to
// Concurrency+1 or more: a loop holds on to its processor while it is busy.
func (p *Proxy) Run(ctx context.Context) error {
	writing, written := context.WithCancel(context.WithoutCancel(ctx))
	wrote := make(chan error, 1)
	go func() { wrote <- p.logs.Run(writing) }()
	defer func() { written(); <-wrote }() // after the last lines
	g, ctx := errgroup.WithContext(ctx)
	p.run.Lock()
	p.ctx = ctx
	p.run.Unlock()
	for _, w := range p.workers {
		g.Go(func() error { return w.run(ctx) })
	}
	g.Go(func() error { return p.sweep(ctx) })
	err := g.Wait()
	p.run.Lock()
	p.ctx = nil
	p.run.Unlock()
	p.spawned.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, s := range p.sockets {
		s.close()
		delete(p.sockets, k)
	}
	return err
}

// spawn runs f on a goroutine that Run waits for; ctx ends with Run. It returns false if Run is not
// running.
func (p *Proxy) spawn(f func(ctx context.Context)) bool {
	p.run.RLock()
	defer p.run.RUnlock()
	ctx := p.ctx
	if ctx == nil {
		return false
	}
	p.spawned.Add(1)
	go func() {
		defer p.spawned.Done()
		f(ctx)
	}()
	return true
}

// sweep does what is to be done once a second for all loops together.
func (p *Proxy) sweep(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			for _, c := range p.snap.Load().clusters {
				c.sweep(now)
			}
			for _, w := range p.workers {
				w.loop.Post(w.tick)
			}
		}
	}
}

// Apply makes cfg the configuration. Connections and requests keep what they began with; what is
// the same object in cfg as before keeps its sockets, connections and counters. If a listener
// cannot be bound, the others are, and the error says which and why.
func (p *Proxy) Apply(cfg *config.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.snap.Load()
	next, clashes := p.compile(cfg, old)
	p.snap.Store(next) // first: a socket must not accept for a listener that is not there
	errs := append(clashes, p.bind(next)...)
	p.keepStats(cfg)
	p.drainRemoved(old, next)
	for name, c := range old.clusters {
		if next.clusters[name] != c {
			c.retire(p.workers)
		}
	}
	return errors.Join(errs...)
}

// drainRemoved lets connections of listeners that are gone end.
func (p *Proxy) drainRemoved(old, next *snapshot) {
	gone := false
	for name := range old.listeners {
		gone = gone || next.listeners[name] == nil
	}
	if !gone {
		return
	}
	for _, w := range p.workers {
		w.loop.Post(func() {
			for s := range w.sessions {
				if next.listeners[s.listenerName()] == nil {
					s.drain()
				}
			}
		})
	}
}

// Drain lets connections end: the next answer says "connection: close", HTTP/2 clients get GOAWAY; what
// stays idle is closed after DrainTime. It returns when no connection is left, or ctx ends. New connections
// are still accepted: peers learn with delay that this proxy goes.
func (p *Proxy) Drain(ctx context.Context) {
	p.draining.Store(true)
	for _, w := range p.workers {
		w.loop.Post(func() {
			for s := range w.sessions {
				s.drain()
			}
		})
	}
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for p.Connections() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// graceFor returns how long a connection that is to end may be idle, if idle is its time-out or 0.
func (p *Proxy) graceFor(idle time.Duration) time.Duration {
	if idle > 0 {
		return min(idle, p.grace)
	}
	return p.grace
}

// Connections returns the number of downstream connections.
func (p *Proxy) Connections() int64 {
	var n int64
	for i := range p.load {
		n += p.load[i].Load()
	}
	return n
}

// Config returns the configuration that is in force.
func (p *Proxy) Config() *config.Config { return p.snap.Load().cfg }

// ListenerStatus is one listener for the admin interface.
type ListenerStatus struct {
	Listener *config.Listener
	Bound    bool // or reached through another listener
}

// Listeners describes the listeners, sorted by name.
func (p *Proxy) Listeners() []ListenerStatus {
	s := p.snap.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []ListenerStatus
	for _, l := range s.cfg.Listeners {
		bound := !l.Bind
		for _, sk := range p.sockets {
			bound = bound || sk.listener == l.Name
		}
		out = append(out, ListenerStatus{l, bound})
	}
	slices.SortFunc(out, func(a, b ListenerStatus) int { return strings.Compare(a.Listener.Name, b.Listener.Name) })
	return out
}
