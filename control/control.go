// Package control is the loop of the control plane: it gathers what the clusters say, applies it to
// the mesh, compiles for the proxies that are connected, and publishes. It knows who is connected,
// which Pod that is, and when to compile; what comes out is the compiler's business.
package control

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/debug"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/xds"
)

// Times of the loop.
const (
	quiet    = 10 * time.Millisecond  // events that come closer together are applied together
	longest  = 100 * time.Millisecond // but none waits longer
	settling = 10 * time.Second       // the longest wait for remote clusters before proxies get their first configuration
)

// Config is what a Control works with.
type Config struct {
	Mesh     mesh.Settings // Cluster is the own cluster's ID, SystemNamespace the control plane's namespace
	Local    kube.Local    // the own cluster; ID and Namespace are taken from Mesh
	Instance string        // names this replica and its version to istioctl: JSON of Component, ID and Info.version
	Audience string        // that proxies' tokens are for; default "istio-ca"
	HTTP10   bool          // all proxies accept HTTP/1.0, whatever their nodes say

	// Report is given all that is wrong with users' objects whenever that changes, by object. It
	// is called from the loop and must not wait. Nil reports to nobody.
	Report func(map[mesh.Key][]mesh.Finding)

	Log *slog.Logger
}

// Control is one control plane. Its methods may be called from any goroutine.
type Control struct {
	config   Config
	clusters *kube.Clusters
	server   *xds.Server
	pages    *debug.Pages
	events   chan []mesh.Event
	found    chan finding
	stopped  chan struct{} // closed when Run ends, so that nobody waits for the loop
	roots    atomic.Pointer[roots]
	rootsSet chan struct{}
	state    atomic.Pointer[state]
	ready    atomic.Bool
	metrics  *metrics

	mu       sync.Mutex
	findings map[mesh.Key][]mesh.Finding // all that is wrong, for Findings
}

// state is what the loop last published.
type state struct {
	snapshot *mesh.Snapshot
	version  uint64
	at       time.Time
}

type finding struct {
	about mesh.Key
	now   []mesh.Finding
}

// New returns a control plane that has seen nothing yet.
func New(config Config) *Control {
	if config.Audience == "" {
		config.Audience = "istio-ca"
	}
	config.Mesh.Check = compile.Trial
	c := &Control{
		config: config, events: make(chan []mesh.Event, 64), found: make(chan finding, 64),
		stopped: make(chan struct{}), rootsSet: make(chan struct{}, 1), metrics: newMetrics(),
		findings: map[mesh.Key][]mesh.Finding{},
	}
	c.state.Store(&state{snapshot: mesh.New(config.Mesh), at: time.Now()})
	local := config.Local
	local.ID, local.Namespace = config.Mesh.Cluster, c.Snapshot().Settings().SystemNamespace
	c.clusters = kube.NewClusters(local, kube.Sink{Events: c.feed, Findings: c.complain}, config.Log)
	c.pages = debug.New(view{c})
	c.server = xds.New(xds.Config{Authorize: c.authorize, Answer: c.pages.Answer, Instance: config.Instance, Log: config.Log})
	return c
}

// Server returns the ADS server, to be registered with gRPC servers.
func (c *Control) Server() *xds.Server { return c.server }

// Clusters returns the clusters that are watched.
func (c *Control) Clusters() *kube.Clusters { return c.clusters }

// Snapshot returns the mesh as it was last seen.
func (c *Control) Snapshot() *mesh.Snapshot { return c.state.Load().snapshot }

// Ready reports whether proxies get their configuration: the own cluster has been seen whole, and
// the remote ones too or not in time.
func (c *Control) Ready() bool { return c.ready.Load() }

// Findings returns what is wrong with users' objects, by object.
func (c *Control) Findings() map[mesh.Key][]mesh.Finding {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.findings)
}

// Collectors returns metrics with istiod's names.
func (c *Control) Collectors() []prometheus.Collector {
	return append(c.metrics.collectors(), c.server, clusterMetrics{c}, inertMetrics{c})
}

func (c *Control) feed(es []mesh.Event) {
	select {
	case c.events <- es:
	case <-c.stopped:
	}
}

func (c *Control) complain(about mesh.Key, now []mesh.Finding) {
	select {
	case c.found <- finding{about, now}:
	case <-c.stopped:
	}
}

// Run is the control plane until ctx ends.
func (c *Control) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(c.stopped)
	defer cancel()
	wg.Go(func() { c.clusters.Run(ctx) })
	wg.Go(func() { c.probe(ctx) })
	defer c.server.Drain()
	l := &loop{Control: c, compiler: compile.New(), snap: c.Snapshot(), seen: map[*xds.Client]*seen{}, secrets: map[*resource.List]*resource.List{}}
	l.run(ctx)
	return nil
}

// loop is what its one goroutine owns.
type loop struct {
	*Control
	compiler *compile.Compiler
	snap     *mesh.Snapshot
	clients  []*xds.Client
	seen     map[*xds.Client]*seen
	version  uint64
	own      map[mesh.Key][]mesh.Finding // of kube
	checked  *mesh.Snapshot              // that misfits are of
	misfits  []mesh.Finding              // what does not fit together
	nacks    []mesh.Finding              // what proxies refuse
	// unreadable is the namespaces whose Secrets could not be read when misfits was made.
	unreadable map[string]string
	reported   map[mesh.Key][]mesh.Finding
	judged     *mesh.Snapshot // whose findings were last reported
	faults     []mesh.Finding // of the compiler, then

	roots   *roots
	secrets map[*resource.List]*resource.List // with the roots, by without
}

func (l *loop) run(ctx context.Context) {
	var batch []mesh.Event
	var since time.Time // of the oldest event of the batch
	hold := time.NewTimer(time.Hour)
	hold.Stop()
	start := time.Now()
	var local time.Time // when the own cluster was first seen whole
	wake := time.NewTicker(50 * time.Millisecond)
	defer wake.Stop()
	l.own = map[mesh.Key][]mesh.Finding{}
	for {
		publish := false
		select {
		case es := <-l.events:
			if len(batch) == 0 {
				since = time.Now()
			}
			batch = append(batch, es...)
			hold.Reset(min(quiet, max(0, longest-time.Since(since))))
		case <-hold.C:
			begin := time.Now()
			next := l.snap.Apply(batch...)
			l.config.Log.Debug("events applied", "events", len(batch), "took", time.Since(begin).String())
			l.metrics.trigger(batch)
			batch, publish = nil, next != l.snap
			l.snap = next
		case f := <-l.found:
			if l.own[f.about] = f.now; len(f.now) == 0 {
				delete(l.own, f.about)
			}
			l.report()
			continue
		case l.clients = <-l.server.Connected():
			publish = true
		case <-l.rootsSet:
			publish = true
		case <-wake.C:
			if l.Ready() {
				wake.Reset(time.Second)
				l.missing()
				l.check()
				continue
			}
			if k := l.snap.Cluster(l.snap.Local()); local.IsZero() && k != nil && k.Synced {
				local = time.Now()
			}
			if local.IsZero() || len(batch) > 0 {
				continue
			}
			l.clusters.ReadCredentials(compile.CredentialNamespaces(l.snap))
			if !l.clusters.Settled() && time.Since(local) < settling || len(l.events) > 0 {
				continue
			}
			l.ready.Store(true)
			l.config.Log.Info("ready", "clusters", strings.Join(l.snap.Clusters(), ","), "took", time.Since(start).Round(time.Millisecond).String())
			publish = true
		case <-ctx.Done():
			return
		}
		if publish {
			l.publish()
		}
	}
}

// publish compiles for those who are connected and says what each should hold.
func (l *loop) publish() {
	begin := time.Now()
	if !l.Ready() {
		l.state.Store(&state{snapshot: l.snap, version: l.version, at: begin})
		return // half a mesh is worse than the one that proxies hold
	}
	l.version++
	l.state.Store(&state{snapshot: l.snap, version: l.version, at: begin})
	index := map[compile.Proxy]int{}
	var proxies []compile.Proxy
	of := make(map[*xds.Client]int, len(l.clients))
	next := make(map[*xds.Client]*seen, len(l.clients))
	for _, client := range l.clients {
		s := l.see(client)
		next[client] = s
		if s.pod == nil {
			continue // it waits for its Pod to be seen
		}
		i, ok := index[s.proxy]
		if !ok {
			i = len(proxies)
			index[s.proxy] = i
			proxies = append(proxies, s.proxy)
		}
		of[client] = i
	}
	l.seen = next
	compiled := l.compiler.Pass(l.snap, proxies)
	l.refreshRoots()
	version := fmt.Sprintf("%s/%d", begin.UTC().Format(time.RFC3339), l.version)
	bundles := make(map[*xds.Client]*xds.Bundle, len(of))
	type form struct {
		proxy  int
		secret bool
	}
	made := map[form]*xds.Bundle{}
	for client, i := range of {
		f := form{i, client.Identity.(*Peer).Authenticated}
		b := made[f]
		if b == nil {
			b = l.bundle(compiled[i], version, f.secret)
			made[f] = b
		}
		bundles[client] = b
	}
	l.server.Publish(bundles)
	l.dropSecrets(compiled)
	took := time.Since(begin)
	l.metrics.pushed(took, l.snap)
	l.config.Log.Debug("published", "version", l.version, "proxies", len(of), "distinct", len(proxies), "took", took.String())
	faults := l.compiler.Faults()
	if l.judged == nil || !l.snap.SameFindings(l.judged) || !slices.Equal(faults, l.faults) {
		l.judged, l.faults = l.snap, faults
		l.report()
	}
}

func (l *loop) bundle(b compile.Bundle, version string, secrets bool) *xds.Bundle {
	lists := map[string]*resource.List{
		resource.ClusterType: b.Clusters, resource.EndpointType: b.Endpoints,
		resource.ListenerType: b.Listeners, resource.RouteType: b.Routes,
	}
	if secrets {
		lists[resource.SecretType] = l.withRoots(b.Secrets)
	}
	return &xds.Bundle{Version: version, Lists: lists}
}

// check looks for what does not fit together, if the mesh is another one than at the last time. It
// reads the whole mesh, so it is for once a second, not for each change.
func (l *loop) check() {
	if nacks := l.refusals(); !slices.Equal(nacks, l.nacks) {
		l.nacks = nacks
		l.report()
	}
	unreadable := l.clusters.Unreadable()
	if l.checked == l.snap && maps.Equal(l.unreadable, unreadable) {
		return
	}
	l.clusters.ReadCredentials(compile.CredentialNamespaces(l.snap))
	l.checked, l.unreadable, l.misfits = l.snap, unreadable, compile.Check(l.snap, unreadable)
	l.report()
}

// report tells what is wrong now, if it is not what was told before.
func (l *loop) report() {
	all := maps.Clone(l.own)
	for _, f := range slices.Concat(l.snap.Findings(), l.snap.WithoutEffect(), l.misfits, l.faults, l.nacks) {
		all[f.Object] = append(slices.Clip(all[f.Object]), f)
	}
	if maps.EqualFunc(all, l.reported, slices.Equal[[]mesh.Finding]) {
		return
	}
	for k, fs := range all {
		if !slices.Equal(fs, l.reported[k]) {
			for _, f := range fs {
				l.config.Log.Warn("object is not as it should be", "object", k.String(), "field", f.Field, "problem", f.Message, "fix", f.Fix)
			}
		}
	}
	l.reported = all
	l.mu.Lock()
	l.findings = all
	l.mu.Unlock()
	if l.config.Report != nil {
		l.config.Report(maps.Clone(all))
	}
}
