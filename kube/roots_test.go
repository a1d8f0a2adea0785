package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/mesh"
	rights "github.com/carrick-mesh/carrick/schema/access"
)

// root makes a root certificate, in PEM.
func root(t testing.TB, key *ecdsa.PrivateKey, name string) string {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))(t)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func print256(text string) string {
	b, _ := pem.Decode([]byte(text))
	return fmt.Sprintf("%x", sha256.Sum256(b.Bytes))
}

func rootsOf(text string) []*x509.Certificate {
	roots, _ := parseRoots(text)
	return roots
}

func TestMismatch(t *testing.T) {
	key := newKey(t)
	a, b, again := root(t, key, "A"), root(t, newKey(t), "B"), root(t, key, "A")
	for name, x := range map[string]struct {
		theirs, ours string
		bad          bool
	}{
		"equal":                   {a, a, false},
		"different":               {b, a, true},
		"issued again":            {again, a, false},
		"one is being replaced":   {a + b, a, false},
		"the other":               {b, "# signer: x\n" + a + b, false},
		"two of each, different":  {root(t, newKey(t), "A") + b, a, true},
		"theirs unknown":          {"", a, false},
		"ours unknown":            {a, "", false},
		"theirs is no PEM":        {"nonsense", a, false},
		"theirs holds more in it": {"-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n" + a, a, false},
	} {
		if got := mismatch(rootsOf(x.theirs), rootsOf(x.ours)); (got != "") != x.bad {
			t.Errorf("%s: %q", name, got)
		}
	}
	got := mismatch(rootsOf(b), rootsOf(a))
	for _, want := range []string{`its root is "CN=B" (SHA-256 ` + print256(b), `this cluster's root is "CN=A" (SHA-256 ` + print256(a), "carrick ca root", "carrick ca install"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

func FuzzParseRoots(f *testing.F) {
	f.Add(root(f, newKey(f), "A"))
	f.Fuzz(func(t *testing.T, text string) {
		if n := len(rootsOf(text)); n > maxRoots {
			t.Errorf("%d roots", n)
		}
	})
}

// publish writes the roots of a cluster, as its control plane does.
func publish(t testing.TB, s *kubetest.Server, text string) {
	t.Helper()
	api := s.Client.CoreV1().ConfigMaps("istio-system")
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: RootsConfigMap}, Data: map[string]string{RootsKey: text}}
	_, err := api.Create(t.Context(), m, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = api.Update(t.Context(), m, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestRootsOfClusters compares roots through a remote secret's account, which at first may not read
// them, as one that an older version made.
func TestRootsOfClusters(t *testing.T) {
	if kubetest.Program() == "" {
		kubetest.Start(t) // skips
	}
	one, two := kubetest.Start(t), kubetest.Start(t)
	for _, s := range []*kubetest.Server{one, two} {
		createNamespace(t, s, "istio-system", nil)
	}
	a, b := root(t, newKey(t), "A"), root(t, newKey(t), "B")
	publish(t, one, a)
	publish(t, two, b)
	token := reader(t, two)
	s := newSeen()
	c := NewClusters(Local{ID: "cluster1", Config: one.Config, Namespace: "istio-system"}, s.sink(), slog.New(slog.DiscardHandler))
	run(t, c.Run)
	remoteSecret(t, one, "remote", map[string]string{"cluster2": kubeconfig("cluster2", two.Config.Host, string(two.Config.CAData), token)})
	secret := mesh.Key{Cluster: "cluster1", Kind: "Secret", Namespace: "istio-system", Name: "remote"}
	eventually(t, "a note that the roots may not be read", func() bool {
		st := statusOf(c, "cluster2")
		return st.Status == Synced && st.Message == "" && strings.Contains(st.Note, "may not read ConfigMap istio-ca-root-cert")
	})
	if got := s.found(secret); got != "" {
		t.Errorf("an old account is told as an error: %s", got)
	}

	ctx := t.Context()
	must(two.Client.RbacV1().Roles("istio-system").Create(ctx, &rbac.Role{ObjectMeta: metav1.ObjectMeta{Name: "istio-reader"}, Rules: rights.ReaderNamespace()}, metav1.CreateOptions{}))(t)
	must(two.Client.RbacV1().RoleBindings("istio-system").Create(ctx, &rbac.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "istio-reader"},
		RoleRef:  rbac.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: "istio-reader"},
		Subjects: []rbac.Subject{{Kind: "ServiceAccount", Namespace: "istio-system", Name: "istio-reader-service-account"}}}, metav1.CreateOptions{}))(t)
	differ := func() bool {
		st, said := statusOf(c, "cluster2"), s.found(secret)
		return st.Status == Synced && st.Note == "" && strings.Contains(st.Message, print256(a)) && strings.Contains(said, print256(b))
	}
	well := func() bool {
		st := statusOf(c, "cluster2")
		return st.Status == Synced && st.Message == "" && st.Note == "" && s.found(secret) == ""
	}
	eventually(t, "different roots are told", differ)
	publish(t, one, a+b) // a roll has begun here
	eventually(t, "none while one is being replaced", well)
	publish(t, one, a)
	eventually(t, "different again", differ)
	publish(t, two, a)
	eventually(t, "none with the same root", well)
	if err := two.Client.CoreV1().ConfigMaps("istio-system").Delete(ctx, RootsConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a note that there are none", func() bool { return strings.Contains(statusOf(c, "cluster2").Note, "there is no ConfigMap") })
}
