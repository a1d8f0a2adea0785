package cli

import (
	"io"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/carrick-mesh/carrick/install"
)

func TestCompare(t *testing.T) {
	mk := func(name, id, mesh, network, root string) *member {
		cfg := &install.Config{Cluster: id, MeshID: mesh, Network: network, Namespace: "istio-system"}
		m := &member{cluster: &cluster{context: name}, cfg: cfg, root: root, watched: map[string]clusterState{}, addresses: []string{"10.0.0.1"}, exposed: true}
		for _, c := range []string{"c1", "c2"} {
			m.watched[c] = clusterState{ID: c, SyncStatus: "synced"}
		}
		return m
	}
	good := func() []*member {
		return []*member{mk("a", "c1", "m", "n1", "r"), mk("b", "c2", "m", "n2", "r")}
	}
	if bad := compare(good()); len(bad) > 0 {
		t.Errorf("a mesh that fits: %q", bad)
	}
	for _, tt := range []struct {
		name string
		edit func(m *member)
		want string
	}{
		{"root", func(m *member) { m.root = "other" }, "a has root r, b has root other; give both intermediates of one root"},
		{"mesh", func(m *member) { m.cfg.MeshID = "x" }, `values.global.meshID`},
		{"name", func(m *member) { m.cfg.Cluster = "c1" }, "a and b are both called c1"},
		{"secret", func(m *member) { delete(m.watched, "c1") }, "b does not watch a; carrick create-remote-secret --context=a --name=c1 | kubectl apply --context=b -f -"},
		{"unsynced", func(m *member) {
			m.watched["c1"] = clusterState{SyncStatus: "timeout", Message: "bad token", SecretName: "s"}
		}, "b watches a, but is timeout bad token (Secret s)"},
		{"network", func(m *member) { m.cfg.Network = "" }, "label namespace istio-system topology.istio.io/network=NAME"},
		{"gateway", func(m *member) { m.addresses = nil }, "b has no east-west gateway with an address; carrick eastwest --context=b --install"},
		{"exposed", func(m *member) { m.exposed = false }, "b exposes no services to other networks"},
	} {
		ms := good()
		tt.edit(ms[1])
		bad := compare(ms)
		if len(bad) == 0 || !strings.Contains(strings.Join(bad, "\n"), tt.want) {
			t.Errorf("%s: found %q, want %q", tt.name, bad, tt.want)
		}
	}
	if err := findings(nil).print(io.Discard, good()); err != nil {
		t.Error(err)
	}
}

func TestHealth(t *testing.T) {
	fine := syncState{Proxy: "p.x", Version: "1", ClusterSent: "n", ClusterAcked: "n"}
	if bad := checkProxies("a", []syncState{fine}, []string{"1"}); len(bad) > 0 {
		t.Errorf("a proxy that is well: %q", bad)
	}
	mute := syncState{Proxy: "q.x", Version: "0", ClusterSent: "n", ListenerSent: "n", EndpointSent: "n", RouteSent: "n"}
	got := strings.Join(checkProxies("a", []syncState{mute, fine}, []string{"1"}), "\n")
	for _, want := range []string{"proxy q.x acknowledges nothing", "its proxies are of versions 0, 1"} {
		if !strings.Contains(got, want) {
			t.Errorf("findings lack %q: %s", want, got)
		}
	}
}

func TestCountAnswers(t *testing.T) {
	lines := []*diagnose.Line{{Code: "200", UpstreamHost: "10.29.8.78:15443"}, {Code: "200", UpstreamHost: "10.39.0.4:5000"}, {Code: "503", UpstreamHost: "10.39.0.4:5000"}}
	got := countAnswers(lines, "c1", func(s string) string {
		if s == "10.29.8.78:15443" {
			return "gateway of c2, network n2"
		}
		return "pod sample/x"
	})
	if got["c1"] != 1 || got["c2"] != 1 {
		t.Errorf("counts are %v", got)
	}
}
