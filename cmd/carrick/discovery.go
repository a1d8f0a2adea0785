package main

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
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/control"
	"github.com/carrick-mesh/carrick/identity"
	"github.com/carrick-mesh/carrick/inject"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/log"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/xds"
)

// discoveryOptions are the flags of carrick discovery. Their names and defaults are
// pilot-discovery's.
type discoveryOptions struct {
	grpcAddr, secureAddr, httpsAddr, monitoringAddr, httpAddr string
	kubeconfig, cluster, namespace, revision, domain, pod     string
	logLevel, ctrlzAddr                                       string
	ctrlzPort                                                 int
	defaultTTL, maxTTL                                        string // of workloads' certificates, as istiod's variables have them
	http10                                                    bool   // proxies accept HTTP/1.0
}

func discoveryCommand() *cobra.Command {
	env := func(key, otherwise string) string { return cmp.Or(os.Getenv(key), otherwise) }
	var o discoveryOptions
	cmd := &cobra.Command{
		Use:   "discovery",
		Short: "Runs the control plane",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			scopes, err := newScopes(cmd.ErrOrStderr(), o.logLevel)
			if err != nil {
				return err
			}
			klog.SetSlogLogger(scopes.Logger("klog"))
			for k, v := range map[string]string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS": "10", "HTTP2_PING_TIMEOUT_SECONDS": "5"} {
				if os.Getenv(k) == "" {
					os.Setenv(k, v) // how soon client-go takes a silent API server for dead
				}
			}
			return runDiscovery(cmd.Context(), o, scopes)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.grpcAddr, "grpcAddr", ":15010", "address of plaintext xDS, without secrets")
	f.StringVar(&o.secureAddr, "secureGRPCAddr", ":15012", "address of xDS and the CA over TLS")
	f.StringVar(&o.httpsAddr, "httpsAddr", ":15017", "address of the webhooks")
	f.StringVar(&o.monitoringAddr, "monitoringAddr", ":15014", "address of metrics")
	f.StringVar(&o.httpAddr, "httpAddr", ":8080", "address of readiness and debug pages")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig of the own cluster, where the control plane runs outside of it")
	f.StringVar(&o.cluster, "clusterID", env("CLUSTER_ID", "Kubernetes"), "name of the own cluster")
	f.StringVarP(&o.namespace, "namespace", "n", env("POD_NAMESPACE", "istio-system"), "namespace of the control plane")
	f.StringVar(&o.revision, "revision", env("REVISION", "default"), "revision of the control plane")
	f.StringVar(&o.domain, "domain", "cluster.local", "DNS domain of Services")
	f.StringVar(&o.pod, "pod", env("POD_NAME", hostname()), "name of the own Pod")
	o.defaultTTL, o.maxTTL = os.Getenv("DEFAULT_WORKLOAD_CERT_TTL"), os.Getenv("MAX_WORKLOAD_CERT_TTL")
	o.http10, _ = strconv.ParseBool(os.Getenv("PILOT_HTTP10"))
	f.StringVar(&o.logLevel, "log_output_level", "default:info", "level of the log, LEVEL or SCOPE:LEVEL,…: debug, info, warn, error or none")
	f.StringVar(&o.ctrlzAddr, "ctrlz_address", "127.0.0.1", "address of ControlZ, by which istioctl admin log changes the log's levels")
	f.IntVar(&o.ctrlzPort, "ctrlz_port", 9876, "port of ControlZ; 0 is none")
	for _, name := range []string{"keepaliveMaxServerConnectionAge", "keepaliveInterval", "keepaliveTimeout", "tls-cipher-suites", "log_as_json", "log_target"} {
		f.String(name, "", "accepted for pilot-discovery's sake")
		if err := f.MarkHidden(name); err != nil {
			panic(err) // the flag was made one line above
		}
	}
	f.Lookup("log_as_json").NoOptDefVal = "true"
	return cmd
}

func hostname() string { h, _ := os.Hostname(); return h }

// requestCommand asks the control plane of the same Pod, as istioctl does by exec.
func requestCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "request METHOD PATH",
		Short:  "Makes an HTTP request to the control plane of this Pod",
		Hidden: true,
		Args:   cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			var body string
			if len(args) == 3 {
				body = args[2]
			}
			r, err := http.NewRequestWithContext(ctx, args[0], "http://127.0.0.1:8080/"+strings.TrimPrefix(args[1], "/"), strings.NewReader(body))
			if err != nil {
				return fmt.Errorf("%s %s: %w", args[0], args[1], err)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if err := copyBounded(cmd.OutOrStdout(), resp.Body); err != nil {
				return fmt.Errorf("%s %s: %w", args[0], args[1], err)
			}
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s %s: %s", args[0], args[1], resp.Status)
			}
			return nil
		},
	}
}

// discovery is the control plane with all its parts.
type discovery struct {
	options   discoveryOptions
	scopes    *log.Scopes
	log       *slog.Logger // of scope default
	control   *control.Control
	authority *ca.Authority
	writer    *kube.Writer
	native    bool // the cluster supports native sidecars

	findings findings

	values atomic.Pointer[[2]string]     // of the injector: values (JSON) and config (YAML)
	params atomic.Pointer[inject.Params] // the last good ones
}

func runDiscovery(ctx context.Context, o discoveryOptions, scopes *log.Scopes) error {
	config, err := apiConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	client, err := kube.Connect(config)
	if err != nil {
		return err
	}
	d := &discovery{options: o, scopes: scopes, log: scopes.Logger("default")}
	d.log.Info("carrick control plane " + version + ", cluster " + o.cluster + ", namespace " + o.namespace + ", revision " + o.revision)
	d.writer = kube.NewWriter(client, o.cluster, o.namespace, o.pod, o.revision, scopes.Logger("kube"))
	d.findings.write = d.writer.SetFindings
	d.control = control.New(control.Config{
		HTTP10: d.options.http10,
		Mesh:   mesh.Settings{Cluster: o.cluster, SystemNamespace: o.namespace, Domain: o.domain},
		Local:  kube.Local{Config: config, MeshName: d.named("istio"), Injector: d.named("istio-sidecar-injector"), Account: d.named("istiod"), ConfigMap: d.sawConfigMap, Secret: d.sawSecret},
		Report: d.findings.fromControl, Log: scopes.Logger("ads"),
		Instance: fmt.Sprintf(`{"Component":"istiod","ID":%q,"Info":{"version":%q}}`, o.pod, version),
	})
	if d.authority, err = d.startCA(ctx, client); err != nil {
		return err
	}
	if d.native, err = supportsNative(ctx, client); err != nil {
		return err
	}
	return d.run(ctx)
}

func apiConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("the control plane runs in a Pod, or needs --kubeconfig: %w", err)
		}
		return c, nil
	}
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", kubeconfig, err)
	}
	return c, nil
}

// supportsNative reports whether init containers with restartPolicy Always are on by default.
func supportsNative(ctx context.Context, client *kube.Client) (bool, error) {
	major, minor, err := client.Version(ctx)
	if err != nil {
		return false, err
	}
	n, _ := strconv.Atoi(strings.TrimRight(minor, "+"))
	return major == "1" && n >= 29, nil
}

// named returns the name of an object of this revision.
func (d *discovery) named(name string) string {
	if r := d.options.revision; r != "" && r != "default" {
		return name + "-" + r
	}
	return name
}

// run serves until ctx ends or something fails.
func (d *discovery) run(ctx context.Context) error {
	hosts := ca.ServiceHosts(d.named("istiod"), d.options.namespace, d.options.domain)
	if d.named("istiod") != "istiod" {
		hosts = append(hosts, ca.ServiceHosts("istiod", d.options.namespace, d.options.domain)...)
	}
	serving := d.authority.Serving(hosts...).TLSConfig()

	plain := grpc.NewServer(xds.Options()...)
	d.control.Server().Register(plain)
	secure := grpc.NewServer(append(xds.Options(), grpc.Creds(credentials.NewTLS(serving.Clone())))...)
	d.control.Server().Register(secure)
	d.authority.Register(secure, authenticator{d})

	registry := prometheus.NewRegistry()
	injections := newInjectionMetrics()
	started := time.Now()
	registry.MustRegister(d.control.Collectors()...)
	registry.MustRegister(d.authority.Collectors()...)
	registry.MustRegister(injections...)
	validator := control.NewValidator(d.options.cluster, d.scopes.Logger("validation"))
	registry.MustRegister(validator.Collectors()...)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "istio_build", Help: "Always 1.",
			ConstLabels: prometheus.Labels{"component": "pilot", "tag": version}}, func() float64 { return 1 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "istiod_uptime_seconds", Help: "Seconds since the control plane started."},
			func() float64 { return time.Since(started).Seconds() }))

	debug := http.NewServeMux()
	debug.Handle("/debug", d.control.Debug())
	debug.Handle("/debug/", d.control.Debug())
	debug.HandleFunc("/ready", d.ready)
	debug.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, version) })
	monitoring := http.NewServeMux()
	monitoring.Handle("/", debug)
	monitoring.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	webhooks := http.NewServeMux()
	injector := inject.Handler(d.injection, d.scopes.Logger("injection"), injections.observe)
	webhooks.Handle("/inject", injector)
	webhooks.Handle("/inject/", injector)
	webhooks.Handle("/validate", validator)
	webhooks.HandleFunc("/ready", d.ready)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.control.Run(ctx) })
	g.Go(func() error { return d.authority.Run(ctx) })
	g.Go(func() error { return d.writer.Run(ctx) })
	serveGRPC(ctx, g, plain, d.options.grpcAddr)
	serveGRPC(ctx, g, secure, d.options.secureAddr)
	serveHTTP(ctx, g, debug, d.options.httpAddr, nil)
	serveHTTP(ctx, g, monitoring, d.options.monitoringAddr, nil)
	serveHTTP(ctx, g, webhooks, d.options.httpsAddr, serving)
	if d.options.ctrlzPort != 0 {
		g.Go(func() error {
			l, err := net.Listen("tcp", net.JoinHostPort(d.options.ctrlzAddr, strconv.Itoa(d.options.ctrlzPort)))
			if err != nil {
				d.log.Error("ControlZ is not served, so the log's levels stay; give another --ctrlz_port", "error", err)
				return nil // all else is served
			}
			return serveOn(ctx, d.scopes.ControlZ(), l, nil)
		})
	}
	err := g.Wait()
	d.log.Info("the control plane has ended")
	return err
}

// stopping is how long open calls may take to end.
const stopping = 5 * time.Second

func serveGRPC(ctx context.Context, g *errgroup.Group, s *grpc.Server, addr string) {
	g.Go(func() error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serving on %s: %w", addr, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		hard := time.AfterFunc(stopping, s.Stop)
		defer hard.Stop()
		s.GracefulStop()
		return nil
	})
}

func serveHTTP(ctx context.Context, g *errgroup.Group, h http.Handler, addr string, config *tls.Config) {
	g.Go(func() error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		return serveOn(ctx, h, l, config)
	})
}

// serveOn serves until ctx ends, and open requests with it.
func serveOn(ctx context.Context, h http.Handler, l net.Listener, config *tls.Config) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, TLSConfig: config,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)} // probes that hang up, and the like
	ended := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(ended)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopping)
		defer cancel()
		s.Shutdown(end)
	})
	var err error
	if config != nil {
		err = s.ServeTLS(l, "", "")
	} else {
		err = s.Serve(l)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	<-ended
	return nil
}

func (d *discovery) ready(w http.ResponseWriter, _ *http.Request) {
	if !d.control.Ready() {
		http.Error(w, "the own cluster has not been seen whole yet", http.StatusServiceUnavailable)
		return
	}
	if err := d.authority.Ready(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// sawConfigMap takes in the injector's settings.
func (d *discovery) sawConfigMap(name string, data map[string]string) {
	if name == d.named("istio-sidecar-injector") && data != nil {
		d.values.Store(&[2]string{data["values"], data["config"]})
	}
}

// sawSecret makes the CA look again.
func (d *discovery) sawSecret(name string, _ *corev1.Secret) {
	if name == ca.PluggedInSecret || name == ca.SelfSignedSecret {
		d.authority.Reload()
	}
}

// injection returns what pods are injected with now. What cannot be read changes nothing.
func (d *discovery) injection() inject.Params {
	var settings [2]string
	if v := d.values.Load(); v != nil {
		settings = *v
	}
	p, err := inject.NewParams(d.control.Snapshot().Config().Spec, []byte(settings[0]), d.native)
	if err == nil {
		p, err = p.WithConfig([]byte(settings[1]))
	}
	if err != nil {
		d.log.Error("the injector's settings cannot be used; the last good ones stay", "error", err)
		if last := d.params.Load(); last != nil {
			return *last
		}
		return p
	}
	p.ClusterID = cmp.Or(p.ClusterID, d.options.cluster)
	p.Namespace = cmp.Or(p.Namespace, d.options.namespace)
	p.DNSDomain = cmp.Or(p.DNSDomain, d.options.domain)
	d.params.Store(&p)
	return p
}

// caStore is the CA's view of the cluster.
type caStore struct {
	client    *kube.Client
	namespace string
}

func (s caStore) Secret(ctx context.Context, name string) (map[string][]byte, error) {
	return s.client.SecretData(ctx, s.namespace, name)
}

func (s caStore) CreateSecret(ctx context.Context, name, typ string, data map[string][]byte) error {
	made, err := s.client.CreateSecret(ctx, s.namespace, name, typ, data)
	if err == nil && !made {
		return ca.ErrExists
	}
	return err
}

func (s caStore) PublishedRoots(ctx context.Context) ([]byte, error) {
	data, err := s.client.ConfigMapData(ctx, s.namespace, kube.RootsConfigMap)
	if data == nil || err != nil {
		return nil, err
	}
	return []byte(data[kube.RootsKey]), nil
}

// caPublisher brings the CA's roots to proxies, namespaces and webhooks.
type caPublisher struct{ *discovery }

func (p caPublisher) PublishRoots(b ca.Bundle) {
	p.control.PublishRoots(b.PEM, b.CRL)
	p.writer.SetRoots(kube.Trust{Roots: b.PEM, Revoked: b.CRL, Settled: b.SignerKeyID != ""})
}

func (p caPublisher) AwaitRoots(ctx context.Context) error { return p.control.AwaitRoots(ctx) }

// authenticator is the CA's view of who calls.
type authenticator struct{ *discovery }

func (a authenticator) Authenticate(ctx context.Context, token, cluster string) (ca.Caller, error) {
	who, err := a.control.Clusters().Review(ctx, cluster, token, "istio-ca")
	if err != nil {
		return ca.Caller{}, err
	}
	id := identity.Identity{TrustDomain: a.control.Snapshot().Config().TrustDomain, Namespace: who.Namespace, ServiceAccount: who.ServiceAccount}
	return ca.Caller{Identity: id, Cluster: who.Cluster, Pod: who.Pod}, nil
}

// injectionMetrics are the webhook's, with Istio's names.
type injectionMetrics []prometheus.Collector

func newInjectionMetrics() injectionMetrics {
	var m injectionMetrics
	for _, n := range []string{"requests", "success", "failure", "skip"} {
		m = append(m, prometheus.NewCounter(prometheus.CounterOpts{Name: "sidecar_injection_" + n + "_total",
			Help: "Sidecar injections: " + n + "."}))
	}
	return m
}

func (m injectionMetrics) observe(result string) {
	m[0].(prometheus.Counter).Inc()
	for i, r := range []string{"success", "failure", "skip"} {
		if r == result {
			m[i+1].(prometheus.Counter).Inc()
		}
	}
}

// copyBounded copies an answer of at most 512 MB.
func copyBounded(w io.Writer, r io.Reader) error {
	_, err := io.Copy(w, io.LimitReader(r, 512<<20))
	return err
}
