package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/kube/kubetest"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
)

// server starts an API server and writes a kubeconfig for it with the contexts a and b.
func server(t *testing.T) (*kubetest.Server, string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts an API server")
	}
	s := kubetest.Start(t)
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["c"] = &clientcmdapi.Cluster{Server: s.Config.Host, CertificateAuthorityData: s.Config.CAData}
	cfg.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: s.Config.BearerToken}
	for _, name := range []string{"a", "b"} {
		cfg.Contexts[name] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	}
	cfg.CurrentContext = "a"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*cfg, file); err != nil {
		t.Fatal(err)
	}
	return s, file
}

// carrick runs a command in this process.
func carrick(t *testing.T, kubeconfig string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return carrickIn(t.Context(), t, kubeconfig, args...)
}

func carrickIn(ctx context.Context, t *testing.T, kubeconfig string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	root := New("1.0.0")
	var out, errs bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetIn(strings.NewReader(""))
	root.SetArgs(append(args, "--kubeconfig="+kubeconfig))
	code = Execute(ctx, root)
	return out.String(), errs.String(), code
}

func TestCreateRemoteSecret(t *testing.T) {
	s, kubeconfig := server(t)
	ctx := t.Context()

	_, stderr, code := carrick(t, kubeconfig, "create-remote-secret", "--name=cluster1")
	if code != 1 || !strings.Contains(stderr, "EndpointSlice default/kubernetes has no other; give --server") {
		t.Fatalf("with a loopback server: exit code %d, %s", code, stderr)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "kubernetes", Namespace: "default", Labels: map[string]string{"kubernetes.io/service-name": "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.10.50.10"}}},
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To[int32](6443)}},
	}
	if _, err := s.Client.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// No controller manager runs here, so the Secret that it would fill is made beforehand.
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}
	if _, err := s.Client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: install.ReaderServiceAccount}}
	if _, err := s.Client.CoreV1().ServiceAccounts("istio-system").Create(ctx, sa, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "istio-reader-service-account-istio-remote-secret-token", Annotations: map[string]string{corev1.ServiceAccountNameKey: sa.Name}},
		Type:       corev1.SecretTypeServiceAccountToken,
		Data:       map[string][]byte{"token": []byte("TOKEN"), "ca.crt": []byte("CA")},
	}
	if _, err := s.Client.CoreV1().Secrets("istio-system").Create(ctx, token, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := carrick(t, kubeconfig, "create-remote-secret", "--name=cluster1")
	want, err := os.ReadFile("testdata/remote-secret.golden")
	if err != nil {
		t.Fatal(err)
	}
	if code != 0 || stdout != string(want) {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
	if !strings.Contains(stderr, "taking https://10.10.50.10:6443 from EndpointSlice default/kubernetes") {
		t.Errorf("what was taken for the server is not said: %s", stderr)
	}
	stdout, _, _ = carrick(t, kubeconfig, "x", "create-remote-secret", "--name=c", "--server=https://api.example.com:6443")
	if !strings.Contains(stdout, "server: https://api.example.com:6443") {
		t.Errorf("--server is not taken:\n%s", stdout)
	}
	if _, stderr, code := carrick(t, kubeconfig, "create-remote-secret", "--name=a/b"); code != 2 || !strings.Contains(stderr, "--name") {
		t.Errorf("a bad name: exit code %d, %s", code, stderr)
	}
}

func TestCAInstall(t *testing.T) {
	_, kubeconfig := server(t)
	dir := t.TempDir()
	for _, args := range [][]string{{"ca", "root", "--key=p256"}, {"ca", "intermediate", "c1", "--key=p256"}, {"ca", "intermediate", "c2", "--key=p256"}} {
		if _, stderr, code := carrick(t, kubeconfig, append(args, "--dir="+dir)...); code != 0 {
			t.Fatal(stderr)
		}
	}
	for _, tt := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"c1"}, "cacerts created", 0},
		{[]string{"c1"}, "cacerts unchanged", 0},
		{[]string{"c2"}, "is there with another CA; to change it, give --replace", 1},
		{[]string{"c2", "--replace"}, "cacerts replaced", 0},
		{[]string{"c3"}, "make the CA first: carrick ca intermediate c3", 1},
	} {
		stdout, stderr, code := carrick(t, kubeconfig, append([]string{"ca", "install", "--dir=" + dir}, tt.args...)...)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.want) {
			t.Errorf("ca install %v: exit code %d, %s%s", tt.args, code, stdout, stderr)
		}
	}
	stdout, stderr, code := carrick(t, kubeconfig, "ca", "show", "--context=a", "--context=b")
	if code != 0 || !strings.Contains(stdout, "✔ The clusters have the same root.") || !strings.Contains(stdout, "L=c2") {
		t.Errorf("ca show: exit code %d, %s%s", code, stdout, stderr)
	}
}

func TestDifferentRoots(t *testing.T) {
	a, err := ca.NewRoot(ca.RootOptions{Key: ca.P256})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := chainOf(&corev1.Secret{Data: map[string][]byte{"ca-cert.pem": a.CertPEM, "root-cert.pem": a.CertPEM}})
	if err != nil || len(chain) != 1 {
		t.Errorf("a self-signed CA's chain: %d certificates, %v", len(chain), err)
	}
	if _, err := chainOf(&corev1.Secret{}); err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("an empty Secret: %v", err)
	}
}

// TestWithoutControlPlane: each verb names what is missing and the fix, on one line.
func TestWithoutControlPlane(t *testing.T) {
	_, kubeconfig := server(t)
	for _, tt := range []struct {
		args string
		want string
		code int
	}{
		{"proxy-status", "no control plane (pod with label app=istiod) runs in namespace istio-system; install one: carrick install --context=a", 1},
		{"remote-clusters --all-contexts", "install one: carrick install --context=b", 1},
		{"proxy-config cluster x.sample", `pod x of namespace sample: pods "x" not found`, 1},
		{"pc c deploy/x.sample", `deploy x of namespace sample: deployments.apps "x" not found`, 1},
		{"pc c cron/x.sample", `kind "cron" is not one of`, 2},
		{"eastwest --network n1", "no control plane is installed in namespace istio-system; install it first", 1},
		{"upgrade", "nothing of Carrick is installed; install it: carrick install", 1},
		{"ca show", "has neither Secret cacerts nor istio-ca-secret", 1},
		{"install", "there is no terminal to ask on; give -y", 2},
		{"kube-inject -f testdata/remote-secret.golden", `reading the control plane's settings: configmaps "istio" not found`, 1},
		{"dashboard proxy x.sample", `pods "x" not found`, 1},
	} {
		stdout, stderr, code := carrick(t, kubeconfig, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: exit code %d, %s%s", tt.args, code, stdout, stderr)
		}
		if strings.Count(stderr, "\n") > 1 {
			t.Errorf("%s: more than one line: %s", tt.args, stderr)
		}
	}
	if stdout, _, code := carrick(t, kubeconfig, "uninstall", "-y", "--purge"); code != 0 || !strings.Contains(stdout, "Nothing of Carrick is installed there.") {
		t.Errorf("uninstall of nothing: exit code %d, %s", code, stdout)
	}
	if stdout, _, code := carrick(t, kubeconfig, "uninstall", "--verify"); code != 0 || !strings.Contains(stdout, "Nothing of Carrick is left") {
		t.Errorf("uninstall --verify: exit code %d, %s", code, stdout)
	}
}

// TestInstalledByHelm: where the installer has stored nothing, the injector's values say what the mesh is.
func TestInstalledByHelm(t *testing.T) {
	s, kubeconfig := server(t)
	ctx := t.Context()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Labels: map[string]string{"topology.istio.io/network": "n1"}}}
	if _, err := s.Client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	values := func(text string) {
		t.Helper()
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector-canary"}, Data: map[string]string{"values": text}}
		cms := s.Client.CoreV1().ConfigMaps("istio-system")
		_, err := cms.Create(ctx, cm, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = cms.Update(ctx, cm, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	values(`{"revision": "canary", "global": {"meshID": "m1", "network": "", "multiCluster": {"clusterName": "c1"}}}`)
	stdout, stderr, code := carrick(t, kubeconfig, "eastwest")
	for _, want := range []string{"meshID: m1", "clusterName: c1", "network: n1"} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, want %s in:\n%s%s", code, want, stdout, stderr)
		}
	}
	if _, stderr, code := carrick(t, kubeconfig, "eastwest", "--cluster", "c2"); code != 1 || !strings.Contains(stderr, "--cluster is c2, but the control plane was installed with values.global.multiCluster.clusterName=c1") {
		t.Errorf("another name: exit code %d, %s", code, stderr)
	}
	values(`{"global": `)
	if _, stderr, code := carrick(t, kubeconfig, "eastwest"); code != 1 || !strings.Contains(stderr, "ConfigMap istio-system/istio-sidecar-injector-canary: data.values is not JSON") {
		t.Errorf("half a file: exit code %d, %s", code, stderr)
	}
}

func TestMayUpgrade(t *testing.T) {
	for _, tt := range []struct{ from, to, want string }{
		{"0.1.0", "0.1.1", ""}, {"0.1.0", "0.2.0", ""}, {"v0.1.0", "0.1.0-rc1", ""}, {"dev", "0.2.0", ""},
		{"0.1.0", "0.3.0", "go by way of 0.2, with"}, {"0.1.0", "0.4.1", "go by way of 0.2, then 0.3, with"}, {"0.2.0", "0.1.0", "--rollback"}, {"0.9.0", "1.0.0", "major"},
	} {
		err := mayUpgrade(tt.from, tt.to)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("mayUpgrade(%s, %s) = %v, want %q", tt.from, tt.to, err, tt.want)
		}
	}
}

func TestManifestOf(t *testing.T) {
	s := &install.State{Name: install.ControlPlane, Namespace: "istio-system", Version: "0.1.0", Sets: []string{"profile=demo", "hub=example.com/x", "tag=0.1.0"}}
	m, err := manifestOf(s, "0.2.0", 0)
	if err != nil {
		t.Fatal(err)
	}
	y, err := m.YAML()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"image: example.com/x/carrick:0.2.0", "name: istio-egressgateway", "carrick.dev/version: 0.2.0"} {
		if !strings.Contains(string(y), want) {
			t.Errorf("the manifest lacks %s", want)
		}
	}
	if p := pinned(m, "0.2.0"); len(p) > 0 {
		t.Errorf("pinned: %v", p)
	}
	s.Sets = append(s.Sets, "components.pilot.tag=0.1.0")
	if m, err = manifestOf(s, "0.2.0", 0); err != nil {
		t.Fatal(err)
	}
	if p := pinned(m, "0.2.0"); len(p) != 1 || p[0] != "Deployment istiod runs example.com/x/carrick:0.1.0" {
		t.Errorf("pinned: %v", p)
	}
	if got := imageTag("registry:5000/a/b"); got != "latest" {
		t.Errorf("tag of an image without one: %q", got)
	}
}
