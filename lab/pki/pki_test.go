package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func make2(t *testing.T) []Files {
	t.Helper()
	all, err := Make(Cluster{Name: "c", Server: "https://10.0.0.1:6443", Names: []string{"kubernetes", "10.0.0.1"},
		Workers: []Worker{{"n0", "10.0.0.1"}, {"n1", "10.0.0.2"}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 {
		t.Fatalf("%d folders for 2 nodes", len(all))
	}
	return all
}

func TestChains(t *testing.T) {
	all := make2(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(all[0]["ca.crt"])
	front := x509.NewCertPool()
	front.AppendCertsFromPEM(all[0]["front-proxy-ca.crt"])
	for _, tc := range []struct {
		node        int
		file        string
		roots       *x509.CertPool
		user, group string
		name        string
	}{
		{0, "apiserver", roots, "kube-apiserver", "", "kubernetes"},
		{0, "apiserver", roots, "kube-apiserver", "", "10.0.0.1"},
		{0, "admin", roots, "admin", "system:masters", ""},
		{0, "kcm", roots, "system:kube-controller-manager", "", ""},
		{0, "sched", roots, "system:kube-scheduler", "", ""},
		{0, "front-proxy", front, "front-proxy-client", "", ""},
		{0, "kubelet", roots, "system:node:n0", "system:nodes", "10.0.0.1"},
		{1, "kubelet", roots, "system:node:n1", "system:nodes", "10.0.0.2"},
		{1, "proxy", roots, "system:kube-proxy", "", ""},
	} {
		pair, err := tls.X509KeyPair(all[tc.node][tc.file+".crt"], all[tc.node][tc.file+".key"])
		if err != nil {
			t.Errorf("%s of node %d: %v", tc.file, tc.node, err)
			continue
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: tc.roots, DNSName: tc.name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s: %v", tc.file, err)
		}
		if s := pair.Leaf.Subject; s.CommonName != tc.user || strings.Join(s.Organization, ",") != tc.group {
			t.Errorf("%s is %v", tc.file, s)
		}
	}
}

// A worker must not be able to act as the control plane.
func TestWorkerHasNoMore(t *testing.T) {
	worker := make2(t)[1]
	for name := range worker {
		switch name {
		case "ca.crt", "kubelet.crt", "kubelet.key", "kubelet.conf", "proxy.crt", "proxy.key", "proxy.conf":
		default:
			t.Errorf("a worker has %s", name)
		}
	}
	if len(worker) != 7 {
		t.Errorf("a worker has %d files, want 7", len(worker))
	}
}

func TestWriteIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if err := make2(t)[0].Write(dir); err != nil {
		t.Fatal(err)
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "kubelet.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`server: "https://10.0.0.1:6443"`, Dir + "/ca.crt", Dir + "/kubelet.crt", Dir + "/kubelet.key"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("kubelet.conf lacks %s:\n%s", want, b)
		}
	}
}
