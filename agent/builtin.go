package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"sync"

	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/proxy"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/xdsclient"
)

// builtin runs the built-in proxy in this process. It starts with the bootstrap that Envoy would
// get, so both have the same listeners, ports and dumps, and is its own xDS client.
type builtin struct {
	proxy   *proxy.Proxy
	boot    *config.Bootstrap
	certs   *Certificates
	address string // of the control plane
	log     *slog.Logger
	drained func(func(context.Context)) // starts what waits for the end of a drain

	compiler config.Compiler // of the client's goroutine

	mu         sync.Mutex
	configured bool  // the control plane's first complete set has come
	refused    error // why the last set is not in force, or not in full
}

// startBuiltin runs the built-in proxy, in g.
func startBuiltin(life context.Context, g *errgroup.Group, o Options, certs *Certificates) (dataPlane, error) {
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
	px, err := proxy.New(proxy.Options{Concurrency: loops, Secrets: &workloadSecrets{certs: certs}, Logger: o.Logger})
	if err != nil {
		return nil, fmt.Errorf("the proxy: %w", err)
	}
	e := &builtin{proxy: px, boot: boot, certs: certs, address: o.Config.DiscoveryAddress, log: o.Logger,
		drained: func(f func(context.Context)) { g.Go(func() error { f(life); return nil }) }}
	if err := e.apply(boot.Static); err != nil { // readiness and metrics are there from the beginning
		return nil, err
	}
	up := o.endpoint(o.Config.DiscoveryAddress)
	client := xdsclient.New(xdsclient.Options{
		Dial: up.dial, Authorize: up.authorize, Node: boot.Node, Decode: e.decode, Publish: e.publish,
		Also: []xdsclient.Name{{Type: resource.SecretType, Name: rootsName}}, Logger: o.Logger,
	})
	g.Go(func() error { return px.Run(life) })
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
	if err != nil {
		return nil, err
	}
	names := make([]xdsclient.Name, len(needs))
	for i, n := range needs {
		names[i] = xdsclient.Name(n)
	}
	return names, nil
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
	return e.proxy.Apply(cfg)
}

// Ready wants one complete configuration and every listener of the last one bound.
func (e *builtin) Ready(context.Context) error {
	e.mu.Lock()
	configured, refused := e.configured, e.refused
	e.mu.Unlock()
	if !configured {
		return fmt.Errorf("no configuration from the control plane at %s yet", e.address)
	}
	for _, l := range e.proxy.Listeners() {
		if !l.Bound {
			return fmt.Errorf("listener %s does not listen: %w", l.Listener.Name, refused)
		}
	}
	return nil
}

func (e *builtin) Drain(context.Context) error {
	e.drained(e.proxy.Drain)
	return nil
}

func (e *builtin) Connections(context.Context) (int, error) { return int(e.proxy.Connections()), nil }

func (e *builtin) Metrics(_ context.Context, w io.Writer) error {
	_, err := fmt.Fprintf(w, "# TYPE envoy_server_total_connections gauge\nenvoy_server_total_connections %d\n", e.proxy.Connections())
	return err
}

// workloadSecrets are the agent's certificate and roots, under the names of SDS.
type workloadSecrets struct {
	certs *Certificates

	mu    sync.Mutex
	from  *Credentials // what roots was made of
	roots *proxy.Roots
}

// KeyPair returns the workload's certificate.
func (s *workloadSecrets) KeyPair(name string) *tls.Certificate {
	cr, _ := s.certs.Current()
	if cr == nil || name != certificateName {
		return nil
	}
	return &cr.Certificate
}

// Roots returns the mesh's roots, the same pointer as long as they are the same.
func (s *workloadSecrets) Roots(name string) *proxy.Roots {
	cr, _ := s.certs.Current()
	if cr == nil || name != rootsName {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from != cr && (s.from == nil || string(s.from.RootsPEM) != string(cr.RootsPEM)) {
		s.roots = &proxy.Roots{Pool: cr.RootPool, Certificates: cr.Roots}
	}
	s.from = cr
	return s.roots
}
