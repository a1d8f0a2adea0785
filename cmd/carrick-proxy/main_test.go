package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carrick-mesh/carrick/agent"
	"github.com/carrick-mesh/carrick/agent/redirect"
)

// The proxy's memory is multiplied by every pod: no Kubernetes client, no Kubernetes types, no cobra.
func TestLinksNoKubernetes(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if strings.HasPrefix(dep, "k8s.io/") || strings.HasPrefix(dep, "sigs.k8s.io/") || strings.HasPrefix(dep, "github.com/spf13/") {
			t.Errorf("links %s", dep)
		}
	}
}

// env is an environment with these variables.
func env(vars ...string) (environment, *bytes.Buffer, *bytes.Buffer) {
	var out, errs bytes.Buffer
	return environment{
		getenv: func(name string) string {
			for _, v := range vars {
				if val, ok := strings.CutPrefix(v, name+"="); ok {
					return val
				}
			}
			return ""
		},
		environ: func() []string { return vars }, stdout: &out, stderr: &errs,
	}, &out, &errs
}

func TestVerbs(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, exitUsage, "proxy sidecar|router"},
		{[]string{"help"}, exitOK, "proxy sidecar|router"},
		{[]string{"nonsense"}, exitUsage, `no verb "nonsense"`},
		{[]string{"version"}, exitOK, "dev\n"},
		{[]string{"proxy", "client"}, exitUsage, "sidecar or router"},
		{[]string{"proxy", "sidecar", "extra"}, exitUsage, `unexpected argument "extra"`},
		{[]string{"proxy", "--no-such-flag"}, exitUsage, "no-such-flag"},
		{[]string{"proxy", "-h"}, exitOK, "proxyLogLevel"},
		{[]string{"request", "GET"}, exitUsage, "METHOD PATH"},
		{[]string{"init", "-b", "http"}, exitFailed, `-b: "http" is not a port`},
		{[]string{"init", "-m", "TPROXY"}, exitFailed, "TPROXY"},
		{[]string{"init", "-n", "-u", "", "-g", ""}, exitFailed, "-u, -g"},
		{[]string{"init", "-n"}, exitOK, "redirect to :15001"},
	} {
		e, out, errs := env()
		if code := run(context.Background(), e, c.args); code != c.code || !strings.Contains(out.String()+errs.String(), c.says) {
			t.Errorf("carrick-proxy %v: exit %d, %q, want %d and %q", c.args, code, out.String()+errs.String(), c.code, c.says)
		}
	}
}

// The arguments are those that injection writes.
func TestRedirectOptions(t *testing.T) {
	e, _, _ := env("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE=202")
	c, o, err := redirectOptions(e, strings.Fields("-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020 "+
		"-o 3306 -q 443 -c eth1,eth2 -k tap0 --run-validation --skip-rule-apply --log_output_level=default:info -x 10.0.0.0/8"))
	if err != nil {
		t.Fatal(err)
	}
	want := redirect.Default()
	want.ExcludeInboundPorts = []uint16{15090, 15021, 15020}
	want.ExcludeOutboundPorts = []uint16{3306}
	want.OutboundPorts = []uint16{443}
	want.ExcludeInterfaces, want.VirtualInterfaces = []string{"eth1", "eth2"}, []string{"tap0"}
	want.ExcludeOutboundRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	want.ExcludeOutboundGroups = []uint32{202}
	if d := cmp.Diff(want, c, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if !o.validate || !o.skip || o.dryRun || o.cleanup {
		t.Errorf("options %+v", o)
	}
	c, _, err = redirectOptions(e, []string{"-x", "", "-i", "", "-b", "80,8080", "-u", "root", "--outbound-owner-groups", "7"})
	if err != nil || c.OutboundRanges.All || c.Inbound.All || len(c.Inbound.List) != 2 || c.UIDs[0] != 0 || c.OutboundGroups.All {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestProxyOptions(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "labels"), []byte("app=\"sleep\"\n"), 0o600)
	e, _, _ := env("POD_NAME=sleep-1", "POD_NAMESPACE=sample", "SERVICE_ACCOUNT=sleep", "TRUST_DOMAIN=td", "CA_ADDR=ca:15012",
		`PROXY_CONFIG={"discoveryAddress":"d:15012","concurrency":3}`, "ISTIO_META_CLUSTER_ID=cluster1", "ISTIO_META_MESH_ID=mesh1",
		"CARRICK_PROXY_ENGINE=envoy", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS=true", "MINIMUM_DRAIN_DURATION=3s", "ENVOY_STATUS_PORT=15022",
		"SECRET_TTL=12h", "WORKLOAD_RSA_KEY_SIZE=2048", `ISTIO_PROMETHEUS_ANNOTATIONS={"scrape":"true","port":"8080"}`,
		`ISTIO_KUBE_APP_PROBERS={"/app-health/app/readyz":{"tcpSocket":{"port":80}}}`, "HOME=/")
	o, err := proxyOptions(e, strings.Fields("sidecar --domain sample.svc.test --proxyLogLevel=debug --proxyComponentLogLevel=misc:error --log_output_level=default:warn --concurrency 4"), dir)
	if err != nil {
		t.Fatal(err)
	}
	if o.Logger.Enabled(context.Background(), slog.LevelInfo) {
		t.Error("--log_output_level has no effect")
	}
	if o.Config.DiscoveryAddress != "d:15012" || len(o.Probes) != 1 {
		t.Errorf("config %+v, probes %v", o.Config, o.Probes)
	}
	want := agent.Options{
		Engine: agent.Envoy, Version: "dev", CAAddress: "ca:15012", Concurrency: 4, ProxyLogLevel: "debug", ProxyLogParts: "misc:error",
		HealthPort: 15022, SecretTTL: 12 * 3600e9, RSABits: 2048, ExitOnZeroConnections: true, MinDrain: 3e9,
		Scrape: agent.Scrape{Path: "/metrics", Port: 8080}, Meta: map[string]string{"CLUSTER_ID": "cluster1", "MESH_ID": "mesh1"},
		Pod: agent.Pod{Name: "sleep-1", Namespace: "sample", ServiceAccount: "sleep", TrustDomain: "td", Domain: "sample.svc.test", Labels: map[string]string{"app": "sleep"}},
	}
	if d := cmp.Diff(want, o, cmpopts.IgnoreFields(agent.Options{}, "Logger", "Level", "Config", "Stdout", "Stderr", "Probes"), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for _, bad := range []string{"PROXY_CONFIG={", "ENVOY_STATUS_PORT=x", "SECRET_TTL=1", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS=maybe",
		"ISTIO_KUBE_APP_PROBERS=[", `ISTIO_PROMETHEUS_ANNOTATIONS={"scrape":"true","port":"x"}`} {
		e, _, _ := env(bad)
		name, _, _ := strings.Cut(bad, "=")
		if _, err := proxyOptions(e, nil, dir); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want an error that names it", bad, err)
		}
	}
	os.WriteFile(filepath.Join(dir, "annotations"), []byte("junk\n"), 0o600)
	if _, err := proxyOptions(e, nil, dir); err == nil || !strings.Contains(err.Error(), "annotations") {
		t.Errorf("junk annotations: %v", err)
	}
}

func TestPodIPs(t *testing.T) {
	interfaces := func() (as []net.Addr, err error) {
		for _, s := range []string{"127.0.0.1/8", "10.0.0.7/24", "fe80::1/64", "::6/128", "fd00::7/64"} {
			ip, n, _ := net.ParseCIDR(s)
			as = append(as, &net.IPNet{IP: ip, Mask: n.Mask})
		}
		return as, nil
	}
	for instance, want := range map[string]string{"10.0.0.7": "[10.0.0.7 fd00::7]", "fd00::7": "[fd00::7 10.0.0.7]", "": "[10.0.0.7 fd00::7]"} {
		got, err := podIPs(instance, interfaces)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("podIPs(%q) = %v, %v, want %s", instance, got, err, want)
		}
	}
	if _, err := podIPs("x", interfaces); err == nil || !strings.Contains(err.Error(), "INSTANCE_IP") {
		t.Errorf("podIPs(x) = %v", err)
	}
}

func TestRequestAndWait(t *testing.T) {
	calls := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/healthz/ready":
			if calls++; calls < 3 {
				http.Error(w, "not yet", http.StatusServiceUnavailable)
			}
		case "/config_dump":
			b, _ := io.ReadAll(r.Body)
			io.WriteString(w, r.Method+" "+r.URL.RawQuery+" "+string(b))
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	u, _ := url.Parse(s.URL)
	e, out, _ := env()
	if code := run(context.Background(), e, []string{"request", "POST", "config_dump?mask=x", "body", "--debug-port", u.Port()}); code != exitOK || out.String() != "POST mask=x body" {
		t.Errorf("request: exit %d, %q", code, out)
	}
	e, _, errs := env()
	if code := run(context.Background(), e, []string{"request", "--debug-port=" + u.Port(), "GET", "/none"}); code != exitFailed || !strings.Contains(errs.String(), "404") {
		t.Errorf("request of nothing: exit %d, %q", code, errs)
	}
	e, _, errs = env()
	if code := run(context.Background(), e, []string{"wait", "--url", s.URL + "/healthz/ready", "--periodMillis", "1"}); code != exitOK || calls != 3 {
		t.Errorf("wait: exit %d after %d calls, %q", code, calls, errs)
	}
	e, _, errs = env()
	if code := run(context.Background(), e, []string{"wait", "--url", s.URL + "/none", "--timeoutSeconds", "0"}); code != exitFailed || !strings.Contains(errs.String(), "not ready after 0 s") {
		t.Errorf("wait for nothing: exit %d, %q", code, errs)
	}
}
