package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd/api"
)

var update = flag.Bool("update", false, "write golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"carrick": func() { os.Exit(Execute(context.Background(), New("1.0.0"))) },
	})
}

// TestScripts runs the verbs as users do, without a cluster.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("KUBECONFIG", "")
			return nil
		},
	})
}

func TestState(t *testing.T) {
	for _, tt := range []struct{ sent, acked, want string }{
		{"", "", "NOT SENT"}, {"1", "1", "SYNCED"}, {"1", "", "STALE (Never Acknowledged)"}, {"2", "1", "STALE"},
	} {
		if got := state(tt.sent, tt.acked); got != tt.want {
			t.Errorf("state(%q, %q) = %q, want %q", tt.sent, tt.acked, got, tt.want)
		}
	}
}

func TestSyncStates(t *testing.T) {
	b, err := json.Marshal([]syncState{{ClusterID: "b", Proxy: "a.x"}, {ClusterID: "a", Proxy: "z.x"}})
	if err != nil {
		t.Fatal(err)
	}
	all, err := syncStates([]string{"istiod-1", "istiod-2"}, [][]byte{b, []byte(`[{"cluster_id":"a","proxy":"b.x"}]`)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range all {
		got = append(got, s.ClusterID+" "+s.Proxy+" "+s.istiod)
	}
	if d := cmp.Diff([]string{"a b.x istiod-2", "a z.x istiod-1", "b a.x istiod-1"}, got); d != "" {
		t.Error(d)
	}
}

func TestClusterStates(t *testing.T) {
	// As genuine istiod says it, and with what ours says beside it.
	b := []byte(`[{"id":"other-cluster","secretName":"istio-system/s","syncStatus":"timeout","message":"bad token"},
{"id":"cluster1","secretName":"","syncStatus":"synced"},{"id":"new","secretName":"istio-system/n","syncStatus":"synced","note":"roots unknown"}]`)
	states, err := clusterStates([]string{"istiod-x", "istiod-y"}, [][]byte{b, b})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printClusters(&out, states); err != nil {
		t.Fatal(err)
	}
	want := `NAME              SECRET             STATUS      ISTIOD
cluster1          -                  synced      istiod-x
new               istio-system/n     synced      istiod-x
other-cluster     istio-system/s     timeout     istiod-x
cluster1          -                  synced      istiod-y
new               istio-system/n     synced      istiod-y
other-cluster     istio-system/s     timeout     istiod-y
new: roots unknown
other-cluster: bad token
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
	out.Reset()
	if err := printValue(&out, states[:1], "yaml"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff("- id: cluster1\n  istiod: istiod-x\n  secretName: \"\"\n  syncStatus: synced\n", out.String()); d != "" {
		t.Error(d)
	}
	if _, err := clusterStates([]string{"istiod-x"}, [][]byte{[]byte("<html>")}); err == nil || !strings.Contains(err.Error(), "istiod-x") {
		t.Errorf("an answer that is none: %v", err)
	}
	if _, stderr, code := carrick(t, "", "remote-clusters", "-o=csv"); code != 2 || !strings.Contains(stderr, "table, json or yaml") {
		t.Errorf("-o csv: exit code %d, %s", code, stderr)
	}
}

func TestRemoteSecret(t *testing.T) {
	token := &corev1.Secret{Data: map[string][]byte{"ca.crt": []byte("CA"), "token": []byte("TOKEN")}}
	got, err := encodeRemoteSecret("cluster1", "istio-system", "remote",
		&api.Cluster{Server: "https://10.10.50.10:6443", CertificateAuthorityData: token.Data["ca.crt"]}, token)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/remote-secret.golden")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error(d)
	}
}

func TestLoopback(t *testing.T) {
	for server, want := range map[string]bool{
		"https://127.0.0.1:6443": true, "https://localhost:1": true, "https://[::1]:6443": true, "https://0.0.0.0:1": true,
		"https://kubernetes.default.svc": true, "https://kubernetes.default.svc.cluster.local:443": true,
		"https://10.0.0.1:6443": false, "https://api.example.com": false, "https://[fd00::1]:6443": false,
	} {
		if got := loopback(server); got != want {
			t.Errorf("loopback(%s) = %v", server, got)
		}
	}
}
