package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/identity"
	"github.com/carrick-mesh/carrick/proxy"
	"github.com/carrick-mesh/carrick/proxy/admin"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/stats"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/xdsclient"
)

// builtin runs the built-in proxy in this process. It starts with the bootstrap that Envoy would
// get, so both have the same listeners, ports and dumps, and is its own xDS client.
type builtin struct {
	proxy   *proxy.Proxy
	stats   *stats.Store
	boot    *config.Bootstrap
	certs   *Certificates
	files   *files
	address string // of the control plane
	loops   int
	started time.Time
	log     *slog.Logger
	drained func(func(context.Context)) // starts what waits for the end of a drain

	compiler config.Compiler // of the client's goroutine

	mu         sync.Mutex
	draining   bool
	configured bool             // the control plane's first complete set has come
	refused    error            // why the last set is not in force, or not in full
	missing    []xdsclient.Name // every version of them was refused
	why        map[xdsclient.Name]error
	served     bool // it was ready once
}

// startBuiltin runs the built-in proxy, in g.
func startBuiltin(life context.Context, g *errgroup.Group, o Options, certs *Certificates, quit func()) (dataPlane, error) {
	p := ports{o.HealthPort, o.PrometheusPort}
	n := node(o.Router, o.Pod, o.Meta, o.Config, p)
	n.Metadata["CARRICK_VERSION"] = o.Version
	b, err := bootstrap(n, o.Config, p, Builtin, firstIP(o.Pod).Is6())
	if err != nil {
		return nil, err
	}
	boot, err := config.ParseBootstrap(b)
	if err != nil {
		return nil, err
	}
	loops := o.Concurrency
	if loops <= 0 {
		loops = runtime.NumCPU()
	}
	runtime.GOMAXPROCS(loops + 1) // a loop holds on to its processor while it is busy
	store := stats.NewStore(loops, stats.Local(localWorkload(o.Pod, n.Metadata)))
	files := newFiles(o.Logger)
	px, err := proxy.New(proxy.Options{Concurrency: loops, Memory: o.Memory, Secrets: &workloadSecrets{certs: certs, files: files}, Stats: store, Logger: o.Logger,
		DrainTime: time.Duration(o.Config.TerminationDrainDuration)})
	if err != nil {
		return nil, fmt.Errorf("the proxy: %w", err)
	}
	e := &builtin{proxy: px, stats: store, boot: boot, certs: certs, files: files, address: o.Config.DiscoveryAddress, loops: loops, started: time.Now(), log: o.Logger,
		drained: func(f func(context.Context)) { g.Go(func() error { f(life); return nil }) }}
	if err := e.apply(boot.Static); err != nil { // readiness and metrics are there from the beginning
		return nil, err
	}
	up := o.endpoint(o.Config.DiscoveryAddress, certs.Roots)
	client := xdsclient.New(xdsclient.Options{
		Dial: up.dial, Authorize: up.authorize, Node: boot.Node, Decode: e.decode, Publish: e.publish, Refused: e.lacks,
		Also: []xdsclient.Name{{Type: resource.SecretType, Name: rootsName}}, Logger: o.Logger,
	})
	l, err := net.Listen("tcp", boot.Admin.String())
	if err != nil {
		return nil, fmt.Errorf("the admin port: %w", err)
	}
	g.Go(func() error {
		h := admin.New(admin.Options{
			Version: o.Version, Started: e.started, Node: boot.Node, Bootstrap: boot.Proto, Concurrency: loops, ConfigPath: o.Config.ConfigPath,
			State: e.state, Config: px.Config, Listeners: e.listeners, Hosts: e.hosts, Secrets: e.secrets, Stats: store, Level: o.Level,
			Drain: func(bool, bool) { e.Drain(life) }, Quit: quit,
		})
		return serveHTTP(life, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			e.measure()
			h.ServeHTTP(w, r)
		}), o.Logger)
	})
	g.Go(func() error { return px.Run(life) })
	g.Go(func() error { return files.Run(life) })
	g.Go(func() error { return client.Run(life) })
	return e, nil
}

// decode takes one resource from the control plane: the mesh's roots for the agent, all else for
// the proxy.
func (e *builtin) decode(typeURL string, r *resource.Resource) ([]xdsclient.Name, error) {
	if typeURL == resource.SecretType && r.Name == rootsName {
		s := &tlspb.Secret{}
		if err := proto.Unmarshal(r.Bytes(), s); err != nil {
			return nil, fmt.Errorf("secret %s: %w", rootsName, err)
		}
		return nil, e.certs.setRootsSecret(s)
	}
	needs, err := e.compiler.Decode(typeURL, r)
	e.judged(xdsclient.Name{Type: typeURL, Name: r.Name}, err)
	if err != nil {
		return nil, err
	}
	names := make([]xdsclient.Name, len(needs))
	for i, n := range needs {
		names[i] = xdsclient.Name(n)
	}
	return names, nil
}

// judged keeps why a resource was refused, until a version of it is taken.
func (e *builtin) judged(n xdsclient.Name, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		delete(e.why, n)
		return
	}
	if e.why == nil {
		e.why = map[xdsclient.Name]error{}
	}
	e.why[n] = err
}

// lacks is told which resources the next set goes without.
func (e *builtin) lacks(missing []xdsclient.Name) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.missing = missing
}

// publish puts a complete set of resources in force.
func (e *builtin) publish(set []xdsclient.Resource) {
	sources := slices.Clone(e.boot.Static)
	for _, r := range set {
		sources = append(sources, config.Source{Type: r.Type, Resource: r.Resource, Version: r.Version, Updated: r.Updated})
	}
	err := e.apply(sources)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Process.CDSUpdates.Add(1)
	e.stats.Process.LDSUpdates.Add(1)
	if !e.configured {
		e.log.Info("configuration received", "from", e.address, "resources", len(set))
	}
	e.configured, e.refused = true, err
	if err != nil {
		e.log.Warn("not all of the configuration is in force", "error", err)
	}
}

func (e *builtin) apply(sources []config.Source) error {
	cfg, err := e.compiler.Compile(sources)
	if err != nil {
		return err
	}
	for _, name := range fileNames(cfg) { // there is no time to read them during a handshake
		e.files.Watch(name)
	}
	return e.proxy.Apply(cfg)
}

// fileNames returns the secrets of a configuration that are files of the pod.
func fileNames(cfg *config.Config) (names []string) {
	add := func(t *config.TLS) {
		for _, c := range t.Certificates {
			if isFile(c.SDS.Name) {
				names = append(names, c.SDS.Name)
			}
		}
		if v := t.Validation; v != nil && isFile(v.SDS.Name) {
			names = append(names, v.SDS.Name)
		}
	}
	for _, l := range cfg.Listeners {
		for _, c := range append(slices.Clip(l.Chains), l.Default) {
			if c != nil && c.TLS != nil {
				add(&c.TLS.TLS)
			}
		}
	}
	for _, c := range cfg.Clusters {
		if c.TLS != nil {
			add(&c.TLS.TLS)
		}
		for _, m := range c.SocketMatches {
			if m.TLS != nil {
				add(&m.TLS.TLS)
			}
		}
	}
	return names
}

// Ready wants one complete configuration, of which nothing was refused, and every listener of the last one bound.
func (e *builtin) Ready(context.Context) error {
	e.mu.Lock()
	configured, refused, served := e.configured, e.refused, e.served
	var first error // of the first configuration
	if len(e.missing) > 0 {
		first = fmt.Errorf("%d resources of the first configuration were refused: %w", len(e.missing), cmp.Or(e.why[e.missing[0]], errors.New(e.missing[0].Name)))
	}
	e.mu.Unlock()
	if !configured {
		return fmt.Errorf("no configuration from the control plane at %s yet", e.address)
	}
	for _, l := range e.proxy.Listeners() {
		if !l.Bound {
			return fmt.Errorf("listener %s does not listen: %w", l.Listener.Name, cmp.Or(refused, errors.New("not bound")))
		}
	}
	if !served && first != nil {
		return first
	}
	e.mu.Lock()
	e.served = true // what is refused later leaves in force what served before
	e.mu.Unlock()
	return nil
}

func (e *builtin) Drain(context.Context) error {
	e.mu.Lock()
	e.draining = true
	e.mu.Unlock()
	e.drained(e.proxy.Drain)
	return nil
}

func (e *builtin) Connections(context.Context) (int, error) { return int(e.proxy.Connections()), nil }

func (e *builtin) Metrics(_ context.Context, w io.Writer) error {
	e.measure()
	return e.stats.WritePrometheus(w, stats.Query{})
}

// measure brings the gauges up to date that are of the whole process.
func (e *builtin) measure() {
	p, memory := e.stats.Process, admin.Memory()
	p.State.Set(int64(e.state()))
	p.Live.Set(1)
	p.Uptime.Set(int64(time.Since(e.started).Seconds()))
	p.Concurrency.Set(int64(e.loops))
	p.WorkersStarted.Set(1)
	p.Memory.Set(int64(memory.Allocated))
	p.Heap.Set(int64(memory.HeapSize))
	p.Physical.Set(int64(memory.TotalPhysicalBytes))
	p.Connections.Set(e.proxy.Connections())
	cfg := e.proxy.Config()
	p.ListenersActive.Set(int64(len(cfg.Listeners)))
	p.ClustersActive.Set(int64(len(cfg.Clusters)))
	if cr, _ := e.certs.Current(); cr != nil {
		p.CertDays.Set(int64(time.Until(cr.Certificate.Leaf.NotAfter).Hours() / 24))
	}
}

// state is the proxy's, as Envoy's admin interface names it.
func (e *builtin) state() admin.State {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.draining:
		return admin.Draining
	case !e.configured:
		return admin.Initializing
	}
	return admin.Live
}

func (e *builtin) listeners() (ls []admin.Listener) {
	for _, l := range e.proxy.Listeners() {
		if l.Bound && l.Listener.Bind {
			ls = append(ls, admin.Listener{Name: l.Listener.Name, Addresses: l.Listener.Addresses})
		}
	}
	return ls
}

func (e *builtin) hosts(cluster string) (hs []admin.Host) {
	for _, h := range e.proxy.Hosts(cluster) {
		addr, _ := netip.ParseAddrPort(h.Addr) // not valid: the endpoint's own, a unix socket
		hs = append(hs, admin.Host{
			Endpoint: h.Endpoint, Address: addr, Locality: h.Locality, Priority: h.Priority, FailedOutlier: h.Ejected,
			CxActive: uint64(h.CxActive), CxTotal: h.CxTotal, CxConnectFail: h.CxConnectFail,
			RqActive: uint64(h.RqActive), RqTotal: h.RqTotal, RqSuccess: h.RqSuccess, RqError: h.RqError, RqTimeout: h.RqTimeout,
		})
	}
	return hs
}

// secrets are what the agent gives the proxy beside its configuration.
func (e *builtin) secrets() []admin.Secret {
	cr, _ := e.certs.Current()
	if cr == nil {
		return nil
	}
	at := cr.Certificate.Leaf.NotBefore
	return []admin.Secret{
		{Name: certificateName, Chain: cr.Chain, Version: cr.version(), Updated: at},
		{Name: rootsName, Roots: cr.RootsPEM, Version: cr.version(), Updated: at},
	}
}

// localWorkload is how Istio's metrics name the pod.
func localWorkload(pod Pod, meta map[string]any) stats.Workload {
	text := func(key string) string { s, _ := meta[key].(string); return s }
	name := pod.Labels["service.istio.io/canonical-name"]
	return stats.Workload{
		Workload: text("WORKLOAD_NAME"), Namespace: pod.Namespace, App: cmp.Or(pod.Labels["app"], name),
		Version: pod.Labels["version"], CanonicalService: cmp.Or(name, text("WORKLOAD_NAME")),
		CanonicalRevision: cmp.Or(pod.Labels["service.istio.io/canonical-revision"], "latest"), Cluster: text("CLUSTER_ID"),
		Principal: identity.Identity{TrustDomain: pod.TrustDomain, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount}.String(),
	}
}

// workloadSecrets are the agent's certificate and roots, under the names of SDS.
type workloadSecrets struct {
	certs *Certificates
	files *files

	mu    sync.Mutex
	from  *Credentials // what roots was made of
	roots *proxy.Roots
}

// KeyPair returns the workload's certificate.
func (s *workloadSecrets) KeyPair(name string) *tls.Certificate {
	if isFile(name) {
		if f, _ := s.files.Current(name); f != nil {
			return f.pair
		}
		return nil
	}
	cr, _ := s.certs.Current()
	if cr == nil || name != certificateName {
		return nil
	}
	return &cr.Certificate
}

// Roots returns the mesh's roots, the same pointer as long as they are the same.
func (s *workloadSecrets) Roots(name string) *proxy.Roots {
	if isFile(name) {
		if f, _ := s.files.Current(name); f != nil {
			return f.roots
		}
		return nil
	}
	cr, _ := s.certs.Current()
	if cr == nil || name != rootsName {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from != cr && (s.from == nil || s.from.trustedPEM() != cr.trustedPEM()) {
		s.roots = &proxy.Roots{Pool: cr.RootPool, Certificates: cr.Roots, Revoked: cr.Revoked}
	}
	s.from = cr
	return s.roots
}
