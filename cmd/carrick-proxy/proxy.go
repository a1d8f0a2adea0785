package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/agent"
)

// runProxy is the verb proxy: the agent and its proxy, until SIGTERM.
func runProxy(ctx context.Context, e environment, args []string) error {
	o, err := proxyOptions(e, args, podFiles)
	if err != nil {
		return err
	}
	if o.Pod.IPs, err = podIPs(e.getenv("INSTANCE_IP"), net.InterfaceAddrs); err != nil {
		return err
	}
	o.Logger.Info("carrick-proxy", "version", version, "engine", o.Engine, "pod", o.Pod.Name+"."+o.Pod.Namespace,
		"ip", o.Pod.IPs[0], "control-plane", o.Config.DiscoveryAddress)
	// The path of a request does not allocate, so a collection is rare and memory what counts.
	debug.SetGCPercent(50)
	runtime.MemProfileRate = 0 // its table is more than a megabyte; the admin path /heapprofiler switches it on
	o.Memory = half(machine)
	go giveBack(ctx)
	return agent.Run(ctx, o)
}

// podFiles is where the downward API puts the pod's labels and annotations.
const podFiles = "/etc/istio/pod"

// proxyOptions makes the agent's options of the command line, the environment that injection
// writes, and the downward API's files in dir. The pod's addresses are left out.
func proxyOptions(e environment, args []string, dir string) (agent.Options, error) {
	var o agent.Options
	f := newFlags("proxy", e)
	domain := f.text("domain", "", "", "DNS domain of the pod (default NAMESPACE.svc.cluster.local)")
	level := f.text("proxyLogLevel", "", "warning", "log level of Envoy")
	parts := f.text("proxyComponentLogLevel", "", "misc:error", "log levels of Envoy's components")
	logLevel := f.text("log_output_level", "", "default:info", "log level of the agent")
	logJSON := f.yes("log_as_json", "", "log in JSON")
	concurrency := f.Int("concurrency", 0, "worker threads (default 2 for a sidecar, the CPUs of a gateway)")
	serviceCluster := f.text("serviceCluster", "", "", "name of the workload in traces")
	trustDomain := f.text("trust-domain", "", "", "trust domain (default the variable TRUST_DOMAIN)")
	f.accept("meshConfig", "outlierLogPath", "templateFile", "stsPort", "tokenManagerPlugin", "log_target", "log_caller",
		"log_stacktrace_level", "log_rotate", "log_rotate_max_age", "log_rotate_max_backups", "log_rotate_max_size",
		"controlPlaneAuthPolicy", "drainDuration", "parentShutdownDuration", "discoveryAddress", "statsdUdpAddress", "proxyAdminPort")
	rest, err := f.parse(args, 1)
	if err != nil {
		return o, err
	}
	switch role := strings.Join(rest, ""); role {
	case "sidecar", "":
	case "router":
		o.Router = true
	default:
		fmt.Fprintf(e.stderr, "carrick-proxy proxy: the role is sidecar or router, not %q\n", role)
		return o, errUsage
	}
	if o.Logger, o.Level, err = newLogger(e.stdout, *logLevel, *logJSON); err != nil {
		return o, err
	}
	if o.Config, err = agent.ParseProxyConfig(e.getenv("PROXY_CONFIG")); err != nil {
		return o, err
	}
	if *serviceCluster != "" {
		o.Config.ServiceCluster = *serviceCluster
	}
	o.Engine = agent.Engine(e.getenv("CARRICK_PROXY_ENGINE"))
	if off, _ := strconv.ParseBool(e.getenv("DISABLE_ENVOY")); off {
		o.Engine = agent.None
		o.GRPC = agent.GRPCFiles{Bootstrap: e.getenv("GRPC_XDS_BOOTSTRAP"), Certificates: e.getenv("OUTPUT_CERTS")}
	}
	o.Output = e.getenv("OUTPUT_CERTS")
	o.Version = version
	o.CAAddress = e.getenv("CA_ADDR")
	o.Concurrency = *concurrency
	if o.Concurrency == 0 && o.Config.Concurrency == nil && o.Router {
		o.Concurrency, _ = strconv.Atoi(e.getenv("ISTIO_CPU_LIMIT")) // absent or 0: one per CPU
	}
	o.ProxyLogLevel, o.ProxyLogParts = *level, *parts
	o.Stdout, o.Stderr = e.stdout, e.stderr
	o.Pod = agent.Pod{Name: e.getenv("POD_NAME"), Namespace: e.getenv("POD_NAMESPACE"), ServiceAccount: e.getenv("SERVICE_ACCOUNT"),
		TrustDomain: e.getenv("TRUST_DOMAIN"), Domain: *domain}
	if *trustDomain != "" {
		o.Pod.TrustDomain = *trustDomain
	}
	if o.Pod.Labels, err = downwardAPI(dir + "/labels"); err != nil {
		return o, err
	}
	if o.Pod.Annotations, err = downwardAPI(dir + "/annotations"); err != nil {
		return o, err
	}
	o.Meta = map[string]string{}
	for _, kv := range e.environ() {
		k, v, _ := strings.Cut(kv, "=")
		if name, ok := strings.CutPrefix(k, "ISTIO_META_"); ok {
			o.Meta[name] = v
		}
	}
	if o.Probes, err = agent.ParseProbes(e.getenv("ISTIO_KUBE_APP_PROBERS")); err != nil {
		return o, err
	}
	if o.Scrape, err = agent.ParseScrape(e.getenv("ISTIO_PROMETHEUS_ANNOTATIONS")); err != nil {
		return o, err
	}
	return o, numbers(e, &o)
}

// numbers reads the variables that are numbers, durations and truths.
func numbers(e environment, o *agent.Options) error {
	var errs []error
	set := func(name string, parse func(string) error) {
		if v := e.getenv(name); v != "" {
			if err := parse(v); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
			}
		}
	}
	number := func(p *int) func(string) error {
		return func(s string) (err error) { *p, err = strconv.Atoi(s); return err }
	}
	length := func(p *time.Duration) func(string) error {
		return func(s string) (err error) { *p, err = time.ParseDuration(s); return err }
	}
	set("ENVOY_STATUS_PORT", number(&o.HealthPort))
	set("ENVOY_PROMETHEUS_PORT", number(&o.PrometheusPort))
	set("WORKLOAD_RSA_KEY_SIZE", number(&o.RSABits))
	set("SECRET_TTL", length(&o.SecretTTL))
	set("MINIMUM_DRAIN_DURATION", length(&o.MinDrain))
	set("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", func(s string) (err error) {
		o.ExitOnZeroConnections, err = strconv.ParseBool(s)
		return err
	})
	return errors.Join(errs...)
}

// downwardAPI reads the pod's labels or annotations; none if there is no file.
func downwardAPI(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := agent.ParseDownwardAPI(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// podIPs returns the pod's addresses: first the one that Kubernetes says, then those of the
// interfaces.
func podIPs(instance string, interfaces func() ([]net.Addr, error)) (ips []netip.Addr, err error) {
	if instance != "" {
		a, err := netip.ParseAddr(instance)
		if err != nil {
			return nil, fmt.Errorf("environment variable INSTANCE_IP: %w", err)
		}
		ips = append(ips, a.Unmap())
	}
	addrs, err := interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing the pod's addresses: %w", err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		ip := p.Addr().Unmap()
		if ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip == netip.MustParseAddr("::6") {
			continue
		}
		if len(ips) == 0 || ip != ips[0] {
			ips = append(ips, ip)
		}
	}
	if len(ips) == 0 {
		return nil, errors.New("the pod has no address; set INSTANCE_IP")
	}
	return ips, nil
}
