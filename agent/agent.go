// Package agent is what a pod needs beside its proxy: it keeps the workload's certificate fresh,
// hands the proxy certificate and configuration, answers the kubelet and Prometheus, and drains.
// It runs the built-in proxy or Envoy, or serves an application that needs none, and knows nothing of what is in their configuration.
package agent

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/carrick-mesh/carrick/identity"
)

// Engine is a kind of proxy.
type Engine string

// The proxies that the agent can run.
const (
	Builtin Engine = "carrick"
	Envoy   Engine = "envoy"
	None    Engine = "none" // the application is gRPC's own xDS client: it gets files and a relay
)

// Options is everything that the agent is told; it reads no environment. Zero fields are the
// defaults unless it says required.
type Options struct {
	Engine  Engine
	Version string // of this program, for the node of the built-in proxy
	Router  bool   // a gateway; else a sidecar
	Pod     Pod    // required
	Meta    map[string]string
	Config  *ProxyConfig // required; of ParseProxyConfig
	GRPC    GRPCFiles    // of the engine None
	Output  string       // a folder to write the certificate, its key and the roots to; "" for none

	CAAddress string        // who signs certificates; Config.DiscoveryAddress
	CRLFile   string        // PEM of revocation lists; /var/run/secrets/istio/crl/ca-crl.pem
	RootFile  string        // PEM of the mesh's roots; /var/run/secrets/istio/root-cert.pem
	TokenFile string        // the JWT that says who this is; /var/run/secrets/tokens/istio-token
	SecretTTL time.Duration // life of a certificate to ask for; 24 h
	RSABits   int           // of the key; 0: ECDSA P-256

	Concurrency    int    // worker threads; 0: Config.Concurrency, then 2 for a sidecar and one per CPU for a gateway
	Memory         int64  // bytes that the built-in proxy may hold for connections and requests; 0: its default
	ProxyLogLevel  string // of Envoy; "warning"
	ProxyLogParts  string // levels of Envoy's components; "misc:error"
	HealthPort     int    // 15021
	PrometheusPort int    // 15090

	Probes map[string]*Probe // of ParseProbes
	Scrape Scrape            // of ParseScrape

	ExitOnZeroConnections bool          // after MinDrain, stop as soon as there are no connections
	MinDrain              time.Duration // 5 s

	Stdout, Stderr io.Writer // of the proxy; os.Stdout, os.Stderr
	Logger         *slog.Logger
	Level          *slog.LevelVar // of Logger, if the admin interface may change it
}

// ports are where the proxy's own services listen.
type ports struct{ health, prometheus int }

// dataPlane is what the agent needs of a kind of proxy.
type dataPlane interface {
	Ready(ctx context.Context) error // why it does not serve, nil if it does
	Drain(ctx context.Context) error // take no more connections and finish those there are; does not wait
	Connections(ctx context.Context) (int, error)
	Metrics(ctx context.Context, w io.Writer) error // Prometheus' text format
}

// Run runs the proxy and all that belongs to it until ctx ends; then it drains, within the time
// that the configuration allows, and returns nil. An error means that the pod cannot go on.
func Run(ctx context.Context, o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	var certs *Certificates
	roots := func() []*x509.Certificate { return certs.Roots() }
	certs = NewCertificates(CertificateOptions{
		Identity: identity.Identity{TrustDomain: o.Pod.TrustDomain, Namespace: o.Pod.Namespace, ServiceAccount: o.Pod.ServiceAccount},
		Sign:     certificateService(o.endpoint(o.CAAddress, roots)), RootFile: o.RootFile, CRLFile: o.CRLFile,
		RSABits: o.RSABits, TTL: o.SecretTTL, Logger: o.Logger,
	})

	// The servers outlive ctx, by the drain; quit ends both.
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, life := errgroup.WithContext(life)
	g.Go(func() error { return certs.Run(life) })

	if o.Output != "" && o.Engine != None { // which writes them anyway
		g.Go(func() error { return output(life, o.Output, certs, o.Logger) })
	}

	var p dataPlane
	switch o.Engine {
	case Envoy:
		p, err = startEnvoy(life, g, o, certs)
	case None:
		p, err = startProxyless(life, g, o, certs)
	default:
		p, err = startBuiltin(life, g, o, certs, quit)
	}
	if err != nil {
		end()
		return errors.Join(err, g.Wait())
	}
	var draining atomic.Bool
	status := &statusServer{
		ready: func(ctx context.Context) error {
			if draining.Load() {
				return errors.New("draining")
			}
			if cr, _ := certs.Current(); cr == nil {
				return fmt.Errorf("no workload certificate from %s yet: %w", o.CAAddress, cmp.Or(certs.Failure(), errors.New("asking")))
			}
			return p.Ready(ctx)
		},
		metrics: p.Metrics, certs: certs, quit: quit, probes: o.Probes, prober: newProber(firstIP(o.Pod)), scrape: o.Scrape, log: o.Logger,
	}
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(o.Config.StatusPort)))
	if err != nil {
		end()
		return errors.Join(fmt.Errorf("the status port: %w", err), g.Wait())
	}
	g.Go(func() error { return serveHTTP(life, l, status.handler(), o.Logger) })
	g.Go(func() error {
		defer end()
		select {
		case <-ctx.Done():
			draining.Store(true)
			drain(life, p, o)
		case <-life.Done(): // something failed
		}
		return nil
	})
	return g.Wait()
}

// drain lets the proxy finish its connections, for as long as the configuration allows.
func drain(ctx context.Context, p dataPlane, o Options) {
	wait := time.Duration(o.Config.TerminationDrainDuration)
	if o.ExitOnZeroConnections {
		wait = o.MinDrain
	}
	o.Logger.Info("draining", "for", wait, "until-no-connections", o.ExitOnZeroConnections)
	if err := p.Drain(ctx); err != nil {
		o.Logger.Warn("the proxy does not drain", "error", err)
	}
	pause(ctx, wait)
	for o.ExitOnZeroConnections && ctx.Err() == nil {
		n, err := p.Connections(ctx)
		if err != nil {
			o.Logger.Warn("the proxy does not say how many connections it has", "error", err)
			return
		}
		if n == 0 {
			return
		}
		o.Logger.Info("waiting for connections to end", "connections", n)
		pause(ctx, time.Second)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// startEnvoy serves Envoy's sockets and runs it, in g.
func startEnvoy(life context.Context, g *errgroup.Group, o Options, certs *Certificates) (dataPlane, error) {
	ipv6 := firstIP(o.Pod).Is6()
	p := ports{o.HealthPort, o.PrometheusPort}
	boot, err := bootstrap(node(o.Router, o.Pod, o.Meta, o.Config, p), o.Config, p, Envoy, ipv6)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Config.ConfigPath, 0o755); err != nil {
		return nil, fmt.Errorf("the proxy's folder: %w", err)
	}
	loopback := "127.0.0.1"
	if ipv6 {
		loopback = "::1"
	}
	e := &envoyProxy{
		cfg: o.Config, bootstrap: boot, own: p, admin: net.JoinHostPort(loopback, strconv.Itoa(o.Config.AdminPort)),
		sidecar: !o.Router, ipv6: ipv6, concurrency: o.Concurrency,
		logLevel: o.ProxyLogLevel, logParts: o.ProxyLogParts, stdout: o.Stdout, stderr: o.Stderr, log: o.Logger,
	}
	// Envoy ends before what it depends on.
	sockets, closeSockets := context.WithCancel(context.WithoutCancel(life))
	listening := make(chan struct{})
	sec := newSecrets(certs, o.Logger)
	g.Go(func() error { return sec.files.Run(life) })
	g.Go(func() error {
		r := &relay{upstream: o.endpoint(o.Config.DiscoveryAddress, certs.Roots), certs: certs, settle: sec.settle, log: o.Logger}
		return serveSockets(sockets, o.Config.ConfigPath, map[string]*grpc.Server{sdsSocket: sec.server(), xdsSocket: r.server()}, 0o600, func() { close(listening) })
	})
	g.Go(func() error {
		defer closeSockets()
		select {
		case <-listening:
			return e.Run(life)
		case <-life.Done():
			return nil
		}
	})
	return e, nil
}

func (o Options) withDefaults() (Options, error) {
	def := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	port := func(p *int, to int) {
		if *p == 0 {
			*p = to
		}
	}
	if o.Config == nil || o.Logger == nil {
		return o, errors.New("agent: no configuration or no logger")
	}
	for name, v := range map[string]string{"name": o.Pod.Name, "namespace": o.Pod.Namespace, "service account": o.Pod.ServiceAccount} {
		if v == "" {
			return o, fmt.Errorf("the pod's %s is not known", name)
		}
	}
	if len(o.Pod.IPs) == 0 {
		return o, errors.New("the pod's IP address is not known")
	}
	if o.Engine == "" {
		o.Engine = Builtin
	}
	if o.Engine != Builtin && o.Engine != Envoy && o.Engine != None {
		return o, fmt.Errorf("proxy engine %q: it is %q, %q or %q", o.Engine, Builtin, Envoy, None)
	}
	def(&o.GRPC.Bootstrap, filepath.Join(o.Config.ConfigPath, "grpc-bootstrap.json"))
	def(&o.GRPC.Certificates, "/var/lib/istio/data")
	def(&o.Pod.TrustDomain, identity.DefaultTrustDomain)
	def(&o.CAAddress, o.Config.DiscoveryAddress)
	def(&o.RootFile, "/var/run/secrets/istio/root-cert.pem")
	def(&o.CRLFile, "/var/run/secrets/istio/crl/ca-crl.pem")
	def(&o.TokenFile, "/var/run/secrets/tokens/istio-token")
	def(&o.ProxyLogLevel, "warning")
	def(&o.ProxyLogParts, "misc:error")
	port(&o.HealthPort, 15021)
	port(&o.PrometheusPort, 15090)
	if o.Concurrency == 0 && o.Config.Concurrency != nil {
		o.Concurrency = *o.Config.Concurrency
	} else if o.Concurrency == 0 && !o.Router {
		o.Concurrency = 2
	}
	if o.MinDrain == 0 {
		o.MinDrain = 5 * time.Second
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	return o, nil
}

// endpoint returns how to reach the control plane at an address. As in Istio, port 15010 or the
// policy NONE is plaintext.
func (o Options) endpoint(address string, roots func() []*x509.Certificate) endpoint {
	_, port, _ := net.SplitHostPort(address)
	cluster := o.Meta["CLUSTER_ID"]
	if cluster == "" {
		cluster = "Kubernetes"
	}
	return endpoint{
		address: address, rootFile: o.RootFile, roots: roots, tokenFile: o.TokenFile, clusterID: cluster,
		plaintext: port == "15010" || address == o.Config.DiscoveryAddress && o.Config.ControlPlaneAuthPolicy == "NONE",
	}
}

func firstIP(p Pod) netip.Addr {
	if len(p.IPs) == 0 {
		return netip.Addr{}
	}
	return p.IPs[0]
}
