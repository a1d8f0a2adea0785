package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	_ "github.com/cncf/xds/go/udpa/type/v1"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoints "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/carrick-mesh/carrick/resource"
)

// dump is where the proxy's tests keep what genuine istiod sent to a sidecar.
const dump = "../compile/testdata/istiod/sidecar-helloworld.json"

// opaque replaces Any values whose type has no Go code here: Istio's own filters, which the proxy does
// without.
func opaque(v any) any {
	switch x := v.(type) {
	case map[string]any:
		if url, ok := x["@type"].(string); ok {
			if _, err := protoregistry.GlobalTypes.FindMessageByURL(url); err != nil {
				return map[string]any{"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "typeUrl": url}
			}
		}
		for k := range x {
			x[k] = opaque(x[k])
		}
	case []any:
		for i := range x {
			x[i] = opaque(x[i])
		}
	}
	return v
}

// load publishes the resources of a dump of istiod's.
func (cp *controlPlane) load(path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		cp.t.Fatal(err)
	}
	var all map[string][]any
	if err := json.Unmarshal(b, &all); err != nil {
		cp.t.Fatal(err)
	}
	for kind, make := range map[string]func() (proto.Message, func() string, string){
		"clusters": func() (proto.Message, func() string, string) {
			m := &cluster.Cluster{}
			return m, m.GetName, resource.ClusterType
		},
		"endpoints": func() (proto.Message, func() string, string) {
			m := &endpoints.ClusterLoadAssignment{}
			return m, m.GetClusterName, resource.EndpointType
		},
		"listeners": func() (proto.Message, func() string, string) {
			m := &listener.Listener{}
			return m, m.GetName, resource.ListenerType
		},
		"routes": func() (proto.Message, func() string, string) {
			m := &route.RouteConfiguration{}
			return m, m.GetName, resource.RouteType
		},
	} {
		for _, r := range all[kind] {
			m, name, typ := make()
			b, err := json.Marshal(opaque(r))
			if err != nil {
				cp.t.Fatal(err)
			}
			if err := protojson.Unmarshal(b, m); err != nil {
				cp.t.Fatalf("%s: %v", path, err)
			}
			cp.set(typ, name(), "1", m)
		}
	}
}

// outbound is a listener whose requests go, with mutual TLS, to a cluster that is another network's
// gateway by its metadata: each loop keeps several connections to it and renews them.
const outbound = `{"name":"outbound","traffic_direction":"OUTBOUND",
 "address":{"socket_address":{"address":"127.0.0.1","port_value":%d}},
 "filter_chains":[{"filters":[{"name":"envoy.filters.network.http_connection_manager","typed_config":{
  "@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
  "stat_prefix":"outbound","http_filters":[{"name":"envoy.filters.http.router","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
  "access_log":[{"name":"envoy.access_loggers.file","typed_config":{"@type":"type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog","path":"/dev/stdout"}}],
  "route_config":{"virtual_hosts":[{"name":"all","domains":["*"],"routes":[{"match":{"prefix":"/"},"route":{"cluster":"far"}}]}]}}}]}]}`

const far = `{"name":"far","type":"STATIC","connect_timeout":"10s","load_assignment":{"cluster_name":"far","endpoints":[{"lb_endpoints":[
  {"load_balancing_weight":1,"metadata":{"filter_metadata":{"istio":{"workload":";;;;cluster2"}}},
   "endpoint":{"address":{"socket_address":{"address":"127.0.0.1","port_value":%d}}}}]}]},
 "transport_socket":{"name":"envoy.transport_sockets.tls","typed_config":{
  "@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","sni":"outbound_.5000_._.helloworld.sample.svc.cluster.local",
  "common_tls_context":{"alpn_protocols":["istio-peer-exchange","istio"],
   "tls_certificate_sds_secret_configs":[{"name":"default","sds_config":%[2]s}],
   "combined_validation_context":{"default_validation_context":{},"validation_context_sds_secret_config":{"name":"ROOTCA","sds_config":%[2]s}}}}}}`

// A sidecar, the real program with the configuration of the walkthrough's end, stays small: its memory
// is multiplied by every pod. It is measured when it has become ready and again when traffic has ended:
// connections of one request each, in plaintext from the application and with TLS from other pods, and
// what an operator looks at.
func TestMemory(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("builds the program and needs root for a mount namespace")
	}
	dir, rootFile, tokenFile := folder(t)
	bin := filepath.Join(dir, "carrick-proxy")
	if out, err := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", bin, "../cmd/carrick-proxy").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	root := newRoot(t, "Root")
	cp := newControlPlane(t, root)
	cp.load(dump)
	write(t, rootFile, string(encodePEM(root.cert)))
	ps := freePorts(t, 6)
	p := &meshPod{t: t, cp: cp, root: root, health: ps[0], prometheus: ps[1], status: ps[2], admin: ps[3], port: ps[4]}
	front := ps[5]
	in, out, c := &listener.Listener{}, &listener.Listener{}, &cluster.Cluster{}
	for text, m := range map[string]proto.Message{fmt.Sprintf(inbound, p.port, sdsConfig): in, fmt.Sprintf(outbound, front): out, fmt.Sprintf(far, p.port, sdsConfig): c} {
		if err := protojson.Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
	}
	in.Name = "inbound"
	cp.set(resource.ListenerType, in.Name, "1", in)
	cp.set(resource.ListenerType, out.Name, "1", out)
	cp.set(resource.ClusterType, c.Name, "1", c)
	cmd := exec.Command("sh", "-c", `mount -t tmpfs none /run && mkdir -p /run/secrets/istio /run/secrets/tokens && cp $0 /run/secrets/istio/ && cp $1 /run/secrets/tokens/ &&
		{ [ -e /var/run/secrets ] || mount --bind /run /var/run; } && exec $2 proxy sidecar`, rootFile, tokenFile, bin)
	cmd.Env = []string{"POD_NAME=sleep-1", "POD_NAMESPACE=sample", "SERVICE_ACCOUNT=sleep", "INSTANCE_IP=10.0.1.7", "ISTIO_META_CLUSTER_ID=cluster1",
		fmt.Sprintf("ENVOY_STATUS_PORT=%d", p.health), fmt.Sprintf("ENVOY_PROMETHEUS_PORT=%d", p.prometheus), "CARRICK_PROXY_ENGINE=carrick", "PATH=" + os.Getenv("PATH"),
		fmt.Sprintf(`PROXY_CONFIG={"discoveryAddress":%q,"statusPort":%d,"proxyAdminPort":%d,"configPath":%q}`, cp.address, p.status, p.admin, dir)}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait() // killed
	}()
	p.waitReady()
	small := func(when string) {
		t.Helper()
		var m map[string]int
		eventually(t, "little memory "+when, func() error {
			m = memory(t, cmd.Process.Pid)
			if m["RssAnon"] == 0 {
				return errors.New("the process has gone")
			}
			if m["RssAnon"] > 12<<10 || m["VmRSS"] > 35<<10 {
				return fmt.Errorf("anonymous %d kB, resident %d kB", m["RssAnon"], m["VmRSS"])
			}
			return nil
		})
		t.Logf("%s: anonymous %d kB, resident %d kB", when, m["RssAnon"], m["VmRSS"])
	}
	small("ready")
	other, _ := p.client(root)
	for range 400 {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/hello", front))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello" {
			t.Fatalf("%s: %q, %v", resp.Status, b, err)
		}
		resp.Body.Close()
		if err := p.hello(other); err != nil {
			t.Fatal(err)
		}
		other.CloseIdleConnections()
	}
	for _, x := range []struct {
		port int
		path string
	}{{p.admin, "/config_dump?include_eds"}, {p.admin, "/clusters?format=json"}, {p.status, "/stats/prometheus"}} {
		if code, body := p.get(x.port, x.path); code != http.StatusOK || len(body) < 1000 {
			t.Errorf("%s: %d, %d bytes", x.path, code, len(body))
		}
	}
	m := memory(t, cmd.Process.Pid)
	t.Logf("under load: anonymous %d kB, resident %d kB", m["RssAnon"], m["VmRSS"])
	small("after load")
}

// memory reads the sizes of /proc/PID/status, in kB.
func memory(t *testing.T, pid int) map[string]int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]int{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[2] == "kB" {
			m[strings.TrimSuffix(f[0], ":")], _ = strconv.Atoi(f[1])
		}
	}
	return m
}
