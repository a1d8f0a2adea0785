package cli

import (
	"encoding/base64"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/carrick-mesh/carrick/install"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

func TestCompare(t *testing.T) {
	mk := func(name, id, mesh, network, root string) *member {
		cfg := &install.Config{Cluster: id, MeshID: mesh, Network: network, Namespace: "istio-system"}
		m := &member{cluster: &cluster{context: name}, cfg: cfg, root: root, watched: map[string]clusterState{}, label: network, gateways: []string{"istio-eastwestgateway"}, addresses: []string{"10.0.0." + id[1:]},
			exposed: true, reader: "uid-" + id, seen: map[string][]string{}, secrets: map[string]token{}}
		for _, c := range []string{"c1", "c2"} {
			m.watched[c] = clusterState{ID: c, SyncStatus: "synced"}
			m.secrets[c], m.seen[c] = token{secret: "istio-remote-secret-" + c, account: "uid-" + c}, []string{"10.0.0." + c[1:]}
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
		}, "b watches a, but is timeout: bad token (Secret s)"},
		{"expired", func(m *member) {
			m.secrets["c1"] = token{secret: "s", account: "uid-c1", ends: time.Unix(1, 0)}
		}, "b: the token in Secret s has ended, on 1970-01-01T00:00:01Z; make it anew: carrick create-remote-secret --context=a --name=c1 | kubectl apply --context=b -f -"},
		{"ends", func(m *member) {
			m.secrets["c1"] = token{secret: "s", account: "uid-c1", ends: time.Now().Add(time.Hour)}
		}, "b: the token in Secret s ends on"},
		{"other account", func(m *member) { m.secrets["c1"] = token{secret: "s", account: "uid-c2"} }, "b: the token in Secret s is not of a's account istio-reader-service-account"},
		{"no network", func(m *member) { m.cfg.Network, m.label = "", "" }, "b has no network; kubectl --context=b label namespace istio-system topology.istio.io/network=NAME"},
		{"no label", func(m *member) { m.label = "" }, "b: namespace istio-system has no label topology.istio.io/network, but the control plane was installed with network n2"},
		{"other label", func(m *member) { m.label = "n1" }, "b: namespace istio-system has label topology.istio.io/network=n1, but the control plane was installed with network n2; kubectl --context=b label namespace istio-system topology.istio.io/network=n2 --overwrite"},
		{"gateway", func(m *member) { m.gateways, m.addresses = nil, nil }, "b has no east-west gateway (a Service with label topology.istio.io/network); carrick eastwest --context=b --install"},
		{"address", func(m *member) { m.addresses = nil }, "b: its east-west gateway, Service istio-system/istio-eastwestgateway, has no address: is there a load balancer, and a pool with a free address? carrick lb status --context=b"},
		{"foreign gateway", func(m *member) { m.seen["c1"] = []string{"10.9.9.9"} }, "b sends to 10.9.9.9 for a, whose east-west gateway has the address 10.0.0.1"},
		{"unknown gateway", func(m *member) { m.seen["c1"] = nil }, "b knows no gateway of a, which has one at 10.0.0.1"},
		{"exposed", func(m *member) { m.exposed = false }, "b exposes no services to other networks"},
	} {
		ms := good()
		tt.edit(ms[1])
		bad := compare(ms)
		if len(bad) == 0 || !strings.Contains(strings.Join(bad, "\n"), tt.want) || len(bad) > 2 {
			t.Errorf("%s: found %q, want %q", tt.name, bad, tt.want)
		}
	}
	if err := findings(nil).print(io.Discard, good(), ""); err != nil {
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

func TestTokenOf(t *testing.T) {
	kubeconfig := func(payload string) []byte {
		cfg := clientcmdapi.NewConfig()
		cfg.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".sig"}
		b, err := clientcmd.Write(*cfg)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for payload, want := range map[string]token{
		`{"kubernetes.io/serviceaccount/service-account.uid":"u1"}`:          {secret: "s", account: "u1"},
		`{"exp":1700000000,"kubernetes.io":{"serviceaccount":{"uid":"u2"}}}`: {secret: "s", account: "u2", ends: time.Unix(1700000000, 0)},
		`no JSON`: {secret: "s"},
	} {
		if got := tokenOf("s", kubeconfig(payload)); got != want {
			t.Errorf("%s: %+v, want %+v", payload, got, want)
		}
	}
	if got := tokenOf("s", []byte("no kubeconfig")); got != (token{secret: "s"}) {
		t.Errorf("of a broken kubeconfig: %+v", got)
	}
}

func TestCountFetched(t *testing.T) {
	for out, want := range map[string]answered{
		"cluster2\ncode=200\ncluster2\ncode=200\n":            {good: 2},
		"cluster2\ncode=200\nno healthy upstream\ncode=503\n": {good: 1, reason: "status 503 no healthy upstream"},
		"cluster1\ncode=200\n":                                {reason: "status 200 cluster1"},
		"error=dial tcp: connection refused\ncode=000\n":      {reason: "dial tcp: connection refused"},
		"": {},
	} {
		if got := countFetched(out, "cluster2"); got != want {
			t.Errorf("%q: %+v, want %+v", out, got, want)
		}
	}
}

// TestPairsRemove: pods that do not come are a finding, and nothing stays.
func TestPairsRemove(t *testing.T) {
	s, kubeconfig := server(t)
	ctx := t.Context()
	if _, err := s.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	plane, err := s.Client.CoreV1().Pods("istio-system").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "istiod-1", Labels: map[string]string{"app": "istiod"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "discovery", Image: "example.com/carrick:1"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	plane.Status.Phase = corev1.PodRunning
	if _, err := s.Client.CoreV1().Pods("istio-system").UpdateStatus(ctx, plane, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	a := &app{target: targetFlags{kubeconfig: kubeconfig, istioNamespace: "istio-system"}}
	c, err := a.target.connectTo("a")
	if err != nil {
		t.Fatal(err)
	}
	p := pairs{app: a, members: []*member{{cluster: c, cfg: &install.Config{Cluster: "c1", Revision: "canary"}}}, requests: 1, timeout: 2 * time.Second}
	var out strings.Builder
	bad := p.run(ctx, &out, false)
	if len(bad) != 1 || !strings.Contains(bad[0], "context a (") || !strings.Contains(bad[0], "is not ready within 2s: it is Pending") {
		t.Errorf("findings %q", bad)
	}
	ns, err := s.Client.CoreV1().Namespaces().Get(ctx, p.namespace, metav1.GetOptions{})
	if err == nil && ns.DeletionTimestamp == nil || err != nil && !apierrors.IsNotFound(err) {
		t.Errorf("namespace %s: %v, %v", p.namespace, ns, err)
	}
	if err == nil && (ns.Labels["istio.io/rev"] != "canary" || ns.Labels["istio-injection"] != "") {
		t.Errorf("labels of a revision's namespace: %v", ns.Labels)
	}
	pod, err := s.Client.CoreV1().Pods(p.namespace).Get(ctx, "check", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ct := pod.Spec.Containers[0]; ct.Image != "example.com/carrick:1" || !*ct.SecurityContext.RunAsNonRoot || len(ct.SecurityContext.Capabilities.Drop) != 1 || *pod.Spec.AutomountServiceAccountToken {
		t.Errorf("the pod is %+v", pod.Spec)
	}
	// What a killed check has left goes with the next one, a check that runs now does not.
	if _, err := s.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "carrick-check-other", Labels: map[string]string{checkLabel: "true"}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := removeStale(ctx, c, time.Now()); err != nil {
		t.Fatal(err)
	}
	if ns, err := s.Client.CoreV1().Namespaces().Get(ctx, "carrick-check-other", metav1.GetOptions{}); err != nil || ns.DeletionTimestamp != nil {
		t.Errorf("the namespace of a check that runs was removed: %v", err)
	}
	if err := removeStale(ctx, c, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if ns, err := s.Client.CoreV1().Namespaces().Get(ctx, "carrick-check-other", metav1.GetOptions{}); err == nil && ns.DeletionTimestamp == nil {
		t.Error("an old check's namespace stays")
	}
}
