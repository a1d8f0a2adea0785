package proxy

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// inNamespace is set in the process that runs in a network namespace of its own.
const inNamespace = "CARRICK_TEST_NETNS"

// TestSidecar runs testSidecar in a new network namespace, where traffic can be redirected.
func TestSidecar(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		testSidecar(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	for _, tool := range []string{"ip", "nft", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSidecar$", "-test.v", "-test.timeout=50s")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	b, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(b), "PASS: TestSidecar") {
		t.Fatalf("%v\n%s", err, b)
	}
}

const clientUID = 1001

// as runs curl as the application would.
func as(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("curl", append([]string{"-sS", "-m", "5"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: clientUID, Gid: clientUID}}
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("curl %v: %v: %s", args, err, b)
	}
	return string(b)
}

func serve(t *testing.T, addr, name string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s from %s by %s", name, host, r.Context().Value(http.LocalAddrContextKey))
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

func testSidecar(t *testing.T) {
	for _, c := range []string{
		"ip link set lo up",
		"ip addr add 10.1.0.5/32 dev lo", // this pod
		"ip addr add 10.1.0.6/32 dev lo", // another pod, or the world
		"ip -6 addr add fd00::6/128 dev lo nodad",
		"ip addr add 10.96.0.7/32 dev lo", // a ClusterIP; somebody must own it, or there is no route
	} {
		f := strings.Fields(c)
		if b, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c, err, b)
		}
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(`
table ip t { chain out { type nat hook output priority -100;
  meta skuid %[1]d ip daddr 10.1.0.5 tcp dport 1-60000 redirect to :15006
  meta skuid %[1]d tcp dport 1-60000 redirect to :15001
}
}
table ip6 t { chain out { type nat hook output priority -100; meta skuid %[1]d tcp dport 1-60000 redirect to :15001
}
}
`, clientUID))
	if b, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, b)
	}
	serve(t, "10.1.0.5:5000", "app")
	serve(t, "10.1.0.5:6000", "app-unknown-port")
	serve(t, "10.1.0.6:5000", "v1")
	serve(t, "10.1.0.6:8000", "world")
	serve(t, "[fd00::6]:8000", "world6")
	logFile := filepath.Join(t.TempDir(), "log")
	plain := fmt.Sprintf(`
access_log:
- name: envoy.access_loggers.file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: %s
    log_format: {text_format_source: {inline_string: "%%UPSTREAM_HOST%% %%UPSTREAM_CLUSTER%% %%DOWNSTREAM_LOCAL_ADDRESS%% %%ROUTE_NAME%%\n"}}`, logFile)
	log := strings.ReplaceAll(plain, "\n", "\n          ")
	tcp := func(cluster string) string {
		return `
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: x
          cluster: ` + cluster + log
	}
	y := `
  - name: virtualOutbound
    address: {socket_address: {address: 0.0.0.0, port_value: 15001}}
    additional_addresses: [{address: {socket_address: {address: "::", port_value: 15001}}}]
    use_original_dst: true
    traffic_direction: OUTBOUND
    filter_chains:
    - filter_chain_match: {destination_port: 15001}
      filters:` + tcp("BlackHoleCluster") + `
    - filters:` + tcp("PassthroughCluster") + `
  - name: 10.96.0.7_443
    address: {socket_address: {address: 10.96.0.7, port_value: 443}}
    bind_to_port: false
    filter_chains:
    - filters:` + tcp("tcp") + `
  - name: virtualInbound
    address: {socket_address: {address: 0.0.0.0, port_value: 15006}}
    traffic_direction: INBOUND
    listener_filters:
    - {name: envoy.filters.listener.original_dst, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}
    filter_chains:
    - filter_chain_match: {destination_port: 5000}
      filters:` + tcp(`"inbound|5000||"`) + `
    - filters:` + tcp("InboundPassthroughCluster") + `
`
	http := strings.Replace(httpListener(5000, `
- name: allow_any
  domains: ["*"]
  routes: [{match: {prefix: /}, name: allow_any, route: {cluster: PassthroughCluster, timeout: 0s}}]
- name: helloworld
  domains: [helloworld, "helloworld:5000"]
  routes: [{match: {prefix: /}, name: default, route: {cluster: "outbound|5000||helloworld"}}]
`, plain), "address: 127.0.0.1", "address: 0.0.0.0", 1)
	http = strings.Replace(http, "    filter_chains:", `    bind_to_port: false
    traffic_direction: OUTBOUND
    listener_filters:
    - {name: envoy.filters.listener.tls_inspector, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
    - {name: envoy.filters.listener.http_inspector, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
    listener_filters_timeout: 0s
    continue_on_listener_filters_timeout: true
    default_filter_chain:
      filters:`+tcp("PassthroughCluster")+`
    filter_chains:`, 1)
	http = strings.Replace(http, "    - filters:\n      - name: envoy.filters.network.http", "    - filter_chain_match: {transport_protocol: raw_buffer, application_protocols: [http/1.1, h2c]}\n      filters:\n      - name: envoy.filters.network.http", 1)
	original := func(name, more string) string {
		return fmt.Sprintf("  - {name: %q, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 1s%s}\n", name, more)
	}
	source := ", upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}"
	start(t, bootstrap(y+http, original("PassthroughCluster", "")+original("InboundPassthroughCluster", source)+original("inbound|5000||", source)+
		"  - {name: BlackHoleCluster, type: STATIC, connect_timeout: 1s}\n"+
		clusterYAML("outbound|5000||helloworld", "", "10.1.0.6:5000")+clusterYAML("tcp", "", "10.1.0.6:8000")), nil)

	var lines []string
	for _, c := range []struct {
		args []string
		want string
		log  string
	}{
		{[]string{"-H", "Host: helloworld:5000", "http://10.96.0.7:5000/"}, "v1 from 10.1.0.6 by 10.1.0.6:5000", "10.1.0.6:5000 outbound|5000||helloworld 10.96.0.7:5000 default"},
		{[]string{"http://10.1.0.6:5000/"}, "v1 from 10.1.0.6 by 10.1.0.6:5000", "10.1.0.6:5000 PassthroughCluster 10.1.0.6:5000 allow_any"},
		{[]string{"http://10.1.0.6:8000/"}, "world from 10.1.0.6 by 10.1.0.6:8000", "10.1.0.6:8000 PassthroughCluster 10.1.0.6:8000 -"},
		{[]string{"http://[fd00::6]:8000/"}, "world6 from fd00::6 by [fd00::6]:8000", "[fd00::6]:8000 PassthroughCluster [fd00::6]:8000 -"},
		{[]string{"http://10.96.0.7:443/"}, "world from 10.1.0.6 by 10.1.0.6:8000", "10.1.0.6:8000 tcp 10.96.0.7:443 -"},
		{[]string{"http://10.1.0.5:5000/"}, "app from 127.0.0.6 by 10.1.0.5:5000", "10.1.0.5:5000 inbound|5000|| 10.1.0.5:5000 -"},
		{[]string{"http://10.1.0.5:6000/"}, "app-unknown-port from 127.0.0.6 by 10.1.0.5:6000", "10.1.0.5:6000 InboundPassthroughCluster 10.1.0.5:6000 -"},
	} {
		if got := as(t, c.args...); got != c.want {
			t.Errorf("%v: %q, want %q", c.args, got, c.want)
		}
		lines = append(lines, c.log)
	}
	eventually(t, "access log", func() bool {
		b, _ := os.ReadFile(logFile)
		missing := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.Contains(string(b), l+"\n") })
		return len(missing) == 0
	})
}
