package cli

import (
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/certs"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestCARenew: an intermediate is made anew under the same root, the files before are kept, and
// openssl takes the new ones. What cannot be renewed says so and changes nothing.
func TestCARenew(t *testing.T) {
	s, kubeconfig := server(t)
	dir := t.TempDir()
	run := func(want int, args ...string) string {
		t.Helper()
		stdout, stderr, code := carrick(t, kubeconfig, append(args, "--dir="+dir)...)
		if code != want {
			t.Fatalf("carrick %v: exit code %d, %s%s", args, code, stdout, stderr)
		}
		return stdout + stderr
	}
	secret := func(name string) *corev1.Secret {
		t.Helper()
		got, err := s.Client.CoreV1().Secrets("istio-system").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	run(0, "ca", "root", "--key=p256")
	run(0, "ca", "intermediate", "c1", "--key=rsa2048", "--days=20")
	if got := run(1, "ca", "renew"); !strings.Contains(got, "has neither Secret cacerts nor istio-ca-secret") {
		t.Errorf("nothing to renew: %s", got)
	}
	run(0, "ca", "install", "c1")
	out, stderr, code := carrick(t, kubeconfig, "ca", "show")
	if code != 0 || !strings.Contains(out, "! a: intermediate CA of Secret cacerts (CN=Intermediate CA,O=Istio,L=c1) ends in 19 days") || !strings.Contains(out, "carrick ca renew") {
		t.Errorf("ca show of an intermediate for 20 days: exit code %d, %s%s", code, out, stderr)
	}
	before := secret("cacerts")
	out = run(0, "ca", "renew")
	after := secret("cacerts")
	old, now := parseOne(t, before.Data["ca-cert.pem"]), parseOne(t, after.Data["ca-cert.pem"])
	if now.Subject.String() != old.Subject.String() || now.NotAfter.Before(time.Now().Add(700*24*time.Hour)) || now.PublicKey.(interface{ Size() int }).Size() != 256 || string(before.Data["ca-key.pem"]) == string(after.Data["ca-key.pem"]) {
		t.Errorf("renewed %s until %s with a key of %T", now.Subject, now.NotAfter, now.PublicKey)
	}
	if string(before.Data["root-cert.pem"]) != string(after.Data["root-cert.pem"]) {
		t.Error("the root is another")
	}
	kept := filepath.Join(dir, "c1."+old.SerialNumber.Text(16))
	if !strings.Contains(out, kept) || !strings.Contains(out, "Keep "+filepath.Join(dir, "root-key.pem")+" elsewhere") {
		t.Errorf("renew says %s", out)
	}
	for _, d := range []string{kept, filepath.Join(dir, "c1")} {
		if st, err := os.Stat(filepath.Join(d, "ca-key.pem")); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("key in %s: %v, %v", d, st, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "c1", "ca-cert.pem")); err != nil || string(b) != string(after.Data["ca-cert.pem"]) {
		t.Errorf("the file is not what was installed: %v", err)
	}
	if path, err := exec.LookPath("openssl"); err == nil {
		b, err := exec.Command(path, "verify", "-CAfile", filepath.Join(dir, "root-cert.pem"), filepath.Join(dir, "c1", "ca-cert.pem")).CombinedOutput()
		if err != nil {
			t.Errorf("openssl: %s", b)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".carrick-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	// Another root's key cannot renew, a root's file of another root is named.
	other := t.TempDir()
	if _, stderr, code := carrick(t, kubeconfig, "ca", "root", "--key=p256", "--dir="+other); code != 0 {
		t.Fatal(stderr)
	}
	if got := run(1, "ca", "renew", "--root-key="+filepath.Join(other, "root-key.pem")); !strings.Contains(got, "root-key.pem is not the key of root-cert.pem") {
		t.Errorf("another root's key: %s", got)
	}
	if got := run(1, "ca", "renew", "--root-cert="+filepath.Join(other, "root-cert.pem")); !strings.Contains(got, "is another root") || !strings.Contains(got, "carrick ca install c1 --replace") {
		t.Errorf("another root: %s", got)
	}
	if got := run(1, "ca", "renew", "--root-key="+filepath.Join(dir, "none")); !strings.Contains(got, "name the key of root CN=Root CA,O=Istio with --root-key") {
		t.Errorf("no key: %s", got)
	}
	if got := secret("cacerts"); got.ResourceVersion != after.ResourceVersion {
		t.Error("a renewal that failed changed the Secret")
	}

	// The self-signed CA of the control plane.
	if err := s.Client.CoreV1().Secrets("istio-system").Delete(t.Context(), "cacerts", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	self, err := ca.NewRoot(ca.RootOptions{Organization: "example.org", Key: ca.P256, Days: 3})
	if err != nil {
		t.Fatal(err)
	}
	made := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "istio-ca-secret"}, Type: "istio.io/ca-root", Data: map[string][]byte{"ca-cert.pem": self.CertPEM, "ca-key.pem": self.KeyPEM}}
	if _, err := s.Client.CoreV1().Secrets("istio-system").Create(t.Context(), made, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := run(2, "ca", "renew", "c1"); !strings.Contains(got, "there is no Secret istio-system/cacerts") {
		t.Errorf("an intermediate of a self-signed CA: %s", got)
	}
	run(0, "ca", "renew")
	got := secret("istio-ca-secret")
	if cert := parseOne(t, got.Data["ca-cert.pem"]); cert.Subject.String() != "O=example.org" || time.Until(cert.NotAfter) < 3600*24*time.Hour || got.Type != "istio.io/ca-root" {
		t.Errorf("the new root is %s until %s, type %s", cert.Subject, cert.NotAfter, got.Type)
	}
}

func parseOne(t *testing.T, pem []byte) *x509.Certificate {
	t.Helper()
	list, err := certs.Certificates(pem)
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

func TestChainOf(t *testing.T) {
	root, err := ca.NewRoot(ca.RootOptions{Key: ca.P256})
	if err != nil {
		t.Fatal(err)
	}
	next, err := ca.NewRoot(ca.RootOptions{Key: ca.P256, CommonName: "Next Root CA"})
	if err != nil {
		t.Fatal(err)
	}
	im, err := ca.NewIntermediate(*root, ca.IntermediateOptions{Cluster: "c1", Key: ca.P256})
	if err != nil {
		t.Fatal(err)
	}
	data := im.Files()
	// While roots change, root-cert.pem may hold another one, before or after.
	data["root-cert.pem"] = append(append([]byte{}, next.CertPEM...), root.CertPEM...)
	chain, err := chainOf(&corev1.Secret{Data: data})
	if err != nil || len(chain) != 2 || chain[1].Subject.CommonName != "Root CA" {
		t.Errorf("chain %v, %v", chain, err)
	}
	data["root-cert.pem"], data["cert-chain.pem"] = next.CertPEM, im.CertPEM
	if _, err := chainOf(&corev1.Secret{Data: data}); err == nil || !strings.Contains(err.Error(), "no certificate of CN=Root CA,O=Istio is there") {
		t.Errorf("without its root: %v", err)
	}
	if v := viewCA("a", "cacerts", []*x509.Certificate{parseOne(t, im.CertPEM), parseOne(t, root.CertPEM)}, time.Now()); v.Chain[0].SHA256 != ca.Fingerprint(parseOne(t, im.CertPEM)) || v.root() != ca.Fingerprint(parseOne(t, root.CertPEM)) {
		t.Errorf("the view is %+v", v)
	}
}

// TestWarnCA: what installs something ends by saying which CA ends soon, and how it is renewed.
func TestWarnCA(t *testing.T) {
	s, kubeconfig := server(t)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}
	if _, err := s.Client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := carrick(t, kubeconfig, args...)
		if code != 0 {
			t.Fatalf("carrick %v: exit code %d, %s%s", args, code, stdout, stderr)
		}
		return stdout
	}
	installation := []string{"install", "-y", "--set=profile=empty"}
	if out := run(installation...); strings.Contains(out, "! ") {
		t.Errorf("without a CA: %s", out)
	}
	run("ca", "root", "--key=p256", "--days=2", "--dir="+dir)
	run("ca", "intermediate", "c1", "--key=p256", "--days=1", "--dir="+dir)
	run("ca", "install", "c1", "--dir="+dir)
	intermediate := `(?m)^! a: intermediate CA of Secret cacerts .* ends in 23 hours, .*: carrick ca renew --root-key PATH --context=a\n`
	root := `! a: root CA of Secret cacerts .* ends in 47 hours, .*: carrick ca root, .* carrick ca install CLUSTER --replace --context=a\n\z`
	for _, args := range [][]string{installation, {"upgrade", "-y"}, {"upgrade", "-y", "--context=a"}} {
		if out := run(args...); !regexp.MustCompile(intermediate + root).MatchString(out) {
			t.Errorf("carrick %v does not end with the CA's end:\n%s", args, out)
		}
	}
	if out := run(append(installation, "--dry-run")...); strings.Contains(out, "! ") {
		t.Errorf("a dry run: %s", out)
	}
}
