package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/proxy"
	"github.com/carrick-mesh/carrick/proxy/admin"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/xdsclient"
)

// envoyOptions is the command line of the verb envoy: Envoy's own names.
type envoyOptions struct {
	path, yaml       string
	validate         bool
	concurrency      int
	logLevel         string
	node, cluster    string
	adminAddressPath string
	drainTime        int // seconds
}

func envoyFlags(e environment, args []string) (envoyOptions, error) {
	var o envoyOptions
	f := newFlags("envoy", e)
	path := f.text("config-path", "c", "", "file with the bootstrap, JSON or YAML")
	yaml := f.text("config-yaml", "", "", "the bootstrap itself")
	mode := f.text("mode", "", "serve", "serve, or validate: check the configuration and exit")
	level := f.text("log-level", "l", "info", "trace, debug, info, warning, error, critical or off")
	f.IntVar(&o.concurrency, "concurrency", 0, "event loops (default one per CPU)")
	f.StringVar(&o.node, "service-node", "", "id of the node, over the bootstrap's")
	f.StringVar(&o.cluster, "service-cluster", "", "cluster of the node, over the bootstrap's")
	f.StringVar(&o.adminAddressPath, "admin-address-path", "", "file to write the admin port's address to")
	f.IntVar(&o.drainTime, "drain-time-s", 600, "how long a connection that is to end waits for a request that may be under way")
	f.accept("service-zone", "base-id", "base-id-path", "restart-epoch", "log-format", "log-path", "component-log-level",
		"drain-strategy", "parent-shutdown-time-s", "file-flush-interval-msec", "local-address-ip-version",
		"bootstrap-version", "disable-extensions", "socket-path", "socket-mode", "stats-tag")
	for _, n := range []string{"disable-hot-restart", "use-dynamic-base-id", "cpuset-threads", "allow-unknown-static-fields", "allow-unknown-fields",
		"reject-unknown-dynamic-fields", "ignore-unknown-dynamic-fields", "skip-deprecated-logs", "enable-fine-grain-logging", "enable-mutex-tracing",
		"log-format-escaped", "enable-core-dump"} {
		f.Bool(n, false, "accepted, without effect")
	}
	if _, err := f.parse(args, 0); err != nil {
		return o, err
	}
	o.path, o.yaml, o.logLevel = *path, *yaml, *level
	switch *mode {
	case "serve":
	case "validate":
		o.validate = true
	default:
		fmt.Fprintf(e.stderr, "carrick-proxy envoy: --mode is serve or validate, not %q\n", *mode)
		return o, errUsage
	}
	if (o.path == "") == (o.yaml == "") {
		fmt.Fprintln(e.stderr, "carrick-proxy envoy: give the bootstrap with -c FILE or with --config-yaml")
		return o, errUsage
	}
	return o, nil
}

// runEnvoy is the verb envoy: the built-in proxy as a drop-in for the command of that name.
func runEnvoy(ctx context.Context, e environment, args []string) error {
	o, err := envoyFlags(e, args)
	if err != nil {
		return err
	}
	data := []byte(o.yaml)
	if o.path != "" {
		if data, err = os.ReadFile(o.path); err != nil {
			return fmt.Errorf("reading the bootstrap: %w", err)
		}
	}
	boot, err := config.ParseBootstrap(data)
	if err != nil {
		return err
	}
	if boot.Node != nil && o.node != "" {
		boot.Node.Id = o.node
	}
	if boot.Node != nil && o.cluster != "" {
		boot.Node.Cluster = o.cluster
	}
	var compiler config.Compiler
	cfg, err := compiler.Compile(boot.Static)
	if err != nil {
		return err
	}
	if o.validate {
		fmt.Fprintf(e.stdout, "configuration '%s' OK\n", o.path)
		return nil
	}
	level, ok := map[string]string{"trace": "debug", "debug": "debug", "info": "info", "warning": "warn", "warn": "warn", "error": "error", "critical": "error", "off": "none"}[o.logLevel]
	if !ok {
		fmt.Fprintf(e.stderr, "carrick-proxy envoy: no log level %q\n", o.logLevel)
		return errUsage
	}
	log, levelVar, err := newLogger(e.stderr, level, false)
	if err != nil {
		return err
	}
	if o.concurrency <= 0 {
		o.concurrency = runtime.NumCPU()
	}
	runtime.GOMAXPROCS(o.concurrency + 1) // a loop holds on to its processor while it is busy
	px, err := proxy.New(proxy.Options{Concurrency: o.concurrency, Memory: bound(boot.Overload.Heap), Connections: boot.Overload.Connections, Logger: log, DrainTime: time.Duration(o.drainTime) * time.Second})
	if err != nil {
		return fmt.Errorf("the proxy: %w", err)
	}
	if err := px.Apply(cfg); err != nil {
		return err
	}
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	go giveBack(ctx)
	g, ctx := errgroup.WithContext(ctx)
	started := time.Now()
	if boot.Admin.IsValid() {
		ln, err := net.Listen("tcp", boot.Admin.String())
		if err != nil {
			return fmt.Errorf("the admin port: %w", err)
		}
		if o.adminAddressPath != "" {
			if err := os.WriteFile(o.adminAddressPath, []byte(ln.Addr().String()), 0o644); err != nil {
				return fmt.Errorf("writing the admin address: %w", err)
			}
		}
		h := admin.New(admin.Options{
			Version: version, Started: started, Node: boot.Node, Bootstrap: boot.Proto, Concurrency: o.concurrency, ConfigPath: o.path,
			Config: px.Config, Hosts: proxyHosts(px), Listeners: proxyListeners(px), Stats: px.Stats(), Level: levelVar,
			Drain: func(bool, bool) { g.Go(func() error { px.Drain(ctx); return nil }) }, Quit: quit,
		})
		srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			measure(px, o.concurrency, started)
			h.ServeHTTP(w, r)
		})}
		g.Go(func() error {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("the admin port: %w", err)
			}
			return nil
		})
		g.Go(func() error { <-ctx.Done(); return srv.Close() })
	}
	g.Go(func() error { defer quit(); return px.Run(ctx) })
	if boot.ADS != "" {
		g.Go(func() error { return runADS(ctx, boot, cfg, &compiler, px, log) })
	}
	return g.Wait()
}

// runADS keeps the proxy configured from the bootstrap's ADS server.
func runADS(ctx context.Context, boot *config.Bootstrap, static *config.Config, compiler *config.Compiler, px *proxy.Proxy, log *slog.Logger) error {
	server := static.Clusters[boot.ADS]
	if server == nil {
		return fmt.Errorf("bootstrap: dynamic_resources.ads_config: there is no static cluster %q", boot.ADS)
	}
	client := xdsclient.New(xdsclient.Options{
		Dial:   func() (*grpc.ClientConn, error) { return dialCluster(server) },
		Node:   boot.Node,
		Decode: compiler.Decode,
		Publish: func(set []xdsclient.Resource) {
			sources := append([]config.Source(nil), boot.Static...)
			for _, r := range set {
				sources = append(sources, config.Source{Type: r.Type, Resource: r.Resource, Version: r.Version, Updated: r.Updated})
			}
			cfg, err := compiler.Compile(sources)
			if err == nil {
				err = px.Apply(cfg)
			}
			if err != nil {
				log.Error("not all of the configuration is in force", "error", err)
			}
		},
		Logger: log,
	})
	return client.Run(ctx)
}

// maxXDS bounds one xDS message.
const maxXDS = 256 << 20

// dialCluster connects to the first endpoint of a static cluster.
func dialCluster(c *config.Cluster) (*grpc.ClientConn, error) {
	target := ""
	for _, ls := range c.Assignment.Priorities {
		for _, l := range ls {
			for _, e := range l.Endpoints {
				if target == "" {
					target = "dns:///" + net.JoinHostPort(e.Host, fmt.Sprint(e.Port))
					if e.Pipe != "" {
						target = "unix:" + e.Pipe
					}
				}
			}
		}
	}
	if target == "" {
		return nil, fmt.Errorf("cluster %q has no endpoint", c.Name)
	}
	creds := insecure.NewCredentials()
	if c.TLS != nil {
		t, err := clientTLS(c.TLS)
		if err != nil {
			return nil, fmt.Errorf("cluster %q: %w", c.Name, err)
		}
		creds = credentials.NewTLS(t)
	}
	return grpc.NewClient(target, grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxXDS)))
}

// clientTLS makes what crypto/tls wants of a context whose certificates are in files or inline.
func clientTLS(u *config.UpstreamTLS) (*tls.Config, error) {
	t := &tls.Config{MinVersion: u.MinVersion, MaxVersion: u.MaxVersion, ServerName: u.SNI, CipherSuites: u.Ciphers}
	for _, c := range u.Certificates {
		if c.Pair == nil {
			return nil, fmt.Errorf("certificate %q comes by SDS, which needs this connection", c.SDS.Name)
		}
		t.Certificates = append(t.Certificates, *c.Pair)
	}
	v := u.Validation
	if v == nil {
		t.InsecureSkipVerify = true // as Envoy: no validation context, no verification
		return t, nil
	}
	if v.Anchors == nil {
		return nil, errors.New("validation context: no trusted_ca, and pins alone are not supported here")
	}
	if len(v.SPKI)+len(v.Hash) > 0 {
		return nil, errors.New("validation context: pins are not supported for the ADS server")
	}
	t.InsecureSkipVerify = true // verified below: Envoy checks names only where it is told to
	t.VerifyConnection = func(cs tls.ConnectionState) error {
		pool := x509.NewCertPool()
		for _, c := range cs.PeerCertificates[1:] {
			pool.AddCert(c)
		}
		leaf := cs.PeerCertificates[0]
		chains, err := leaf.Verify(x509.VerifyOptions{Roots: v.Anchors.Pool, Intermediates: pool})
		if err != nil {
			return err
		}
		lists := append(slices.Clip(v.Anchors.Revoked), v.Revoked...)
		if !slices.ContainsFunc(chains, func(chain []*x509.Certificate) bool {
			err = certs.Revoked(chain, lists, time.Now(), v.LeafCRLOnly)
			return err == nil
		}) {
			return err
		}
		if len(v.SANs) == 0 {
			return nil
		}
		names := leaf.DNSNames
		for _, u := range leaf.URIs {
			names = append(names, u.String())
		}
		for _, ip := range leaf.IPAddresses {
			names = append(names, ip.String())
		}
		for i := range v.SANs {
			for _, n := range names {
				if v.SANs[i].Match(n) {
					return nil
				}
			}
		}
		return fmt.Errorf("the server's certificate is for %s, none of the expected names", strings.Join(names, ", "))
	}
	return t, nil
}

// measure brings the gauges up to date that are of the whole process.
func measure(px *proxy.Proxy, loops int, started time.Time) {
	p, memory, cfg := px.Stats().Process, admin.Memory(), px.Config()
	p.Live.Set(1)
	p.Uptime.Set(int64(time.Since(started).Seconds()))
	p.Concurrency.Set(int64(loops))
	p.WorkersStarted.Set(1)
	p.Memory.Set(int64(memory.Allocated))
	p.Heap.Set(int64(memory.HeapSize))
	p.Physical.Set(int64(memory.TotalPhysicalBytes))
	p.Connections.Set(px.Connections())
	p.ListenersActive.Set(int64(len(cfg.Listeners)))
	p.ClustersActive.Set(int64(len(cfg.Clusters)))
}

func proxyListeners(px *proxy.Proxy) func() []admin.Listener {
	return func() (out []admin.Listener) {
		for _, l := range px.Listeners() {
			if l.Bound && l.Listener.Bind {
				out = append(out, admin.Listener{Name: l.Listener.Name, Addresses: l.Listener.Addresses})
			}
		}
		return out
	}
}

func proxyHosts(px *proxy.Proxy) func(string) []admin.Host {
	return func(cluster string) (out []admin.Host) {
		for _, h := range px.Hosts(cluster) {
			addr, _ := netip.ParseAddrPort(h.Addr) // not valid: the endpoint's own, a unix socket
			out = append(out, admin.Host{
				Endpoint: h.Endpoint, Address: addr, Locality: h.Locality, Priority: h.Priority, FailedOutlier: h.Ejected,
				CxActive: uint64(h.CxActive), CxTotal: h.CxTotal, CxConnectFail: h.CxConnectFail,
				RqActive: uint64(h.RqActive), RqTotal: h.RqTotal, RqSuccess: h.RqSuccess, RqError: h.RqError, RqTimeout: h.RqTimeout,
			})
		}
		return out
	}
}
