package agent

import (
	"encoding/json"
	"errors"
	"fmt"
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

	"github.com/carrick-mesh/carrick/resource"
)

// dump is where the proxy's tests keep what genuine istiod sent to a sidecar.
const dump = "../proxy/config/testdata/istiod/sidecar-sleep.json"

// load publishes the resources of a dump of istiod's.
func (cp *controlPlane) load(path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		cp.t.Skip(err)
	}
	var all map[string][]json.RawMessage
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
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r, m); err != nil {
				cp.t.Logf("left out: %v", err)
				continue
			}
			cp.set(typ, name(), "1", m)
		}
	}
}

// An idle sidecar, the real program with the configuration of the walkthrough's end, stays small:
// its memory is multiplied by every pod.
func TestIdleMemory(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("builds the program and needs root for a mount namespace")
	}
	dir, rootFile, tokenFile := folder(t)
	bin := filepath.Join(dir, "carrick-proxy")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "../cmd/carrick-proxy").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	root := newRoot(t, "Root")
	cp := newControlPlane(t, root)
	cp.load(dump)
	write(t, rootFile, string(encodePEM(root.cert)))
	ps := freePorts(t, 4)
	cmd := exec.Command("sh", "-c", `mount -t tmpfs none /run && mkdir -p /run/secrets/istio /run/secrets/tokens && cp $0 /run/secrets/istio/ && cp $1 /run/secrets/tokens/ &&
		{ [ -e /var/run/secrets ] || mount --bind /run /var/run; } && exec $2 proxy sidecar`, rootFile, tokenFile, bin)
	cmd.Env = []string{"POD_NAME=sleep-1", "POD_NAMESPACE=sample", "SERVICE_ACCOUNT=sleep", "INSTANCE_IP=10.0.1.7", "ISTIO_META_CLUSTER_ID=cluster1",
		fmt.Sprintf("ENVOY_STATUS_PORT=%d", ps[0]), fmt.Sprintf("ENVOY_PROMETHEUS_PORT=%d", ps[1]), "CARRICK_PROXY_ENGINE=carrick", "PATH=" + os.Getenv("PATH"),
		fmt.Sprintf(`PROXY_CONFIG={"discoveryAddress":%q,"statusPort":%d,"proxyAdminPort":%d,"configPath":%q}`, cp.address, ps[2], ps[3], dir)}
	cmd.Stdout, cmd.Stderr = testWriter{t}, testWriter{t}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait() // killed
	}()
	p := &meshPod{t: t, health: ps[0]}
	p.waitReady()
	memory := func() map[string]int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
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
	eventually(t, "little memory", func() error {
		m := memory()
		if m["RssAnon"] > 12<<10 || m["VmRSS"] > 35<<10 {
			return fmt.Errorf("anonymous %d kB, resident %d kB", m["RssAnon"], m["VmRSS"])
		}
		if m["RssAnon"] == 0 {
			return errors.New("the process has gone")
		}
		return nil
	})
	m := memory()
	t.Logf("anonymous %d kB, resident %d kB", m["RssAnon"], m["VmRSS"])
}
