package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	admission "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/mesh"
)

func TestWriter(t *testing.T) {
	s := kubetest.Start(t)
	createNamespace(t, s, "istio-system", nil)
	createNamespace(t, s, "sample", nil)
	applyCRDs(t, s)
	gws := must(dynamic.NewForConfig(s.Config))(t).Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}).Namespace("sample")
	for _, n := range []string{"good", "bad", "left"} {
		u := parse(t, `{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: `+n+`}, spec: {selector: {app: x}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}}`)
		eventually(t, "Gateway "+n+" is taken", func() bool {
			_, err := gws.Create(t.Context(), u, metav1.CreateOptions{})
			return err == nil
		})
	}
	condition := func(name string) string {
		u := must(gws.Get(t.Context(), name, metav1.GetOptions{}))(t)
		cs, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		if len(cs) != 1 {
			return ""
		}
		m := cs[0].(map[string]any)
		return fmt.Sprint(m["type"], " ", m["status"], " ", m["message"])
	}
	// What a former leader left.
	u := must(gws.Get(t.Context(), "left", metav1.GetOptions{}))(t)
	must(tell(u, kindOf(mesh.KindGateway), verdict{reason: "Invalid", message: "old"}, time.Now()))(t)
	must(gws.UpdateStatus(t.Context(), u, metav1.UpdateOptions{}))(t)

	c := must(Connect(s.Config))(t)
	one := NewWriter(c, "c", "istio-system", "istiod-1", "default", slog.New(slog.DiscardHandler))
	two := NewWriter(c, "c", "istio-system", "istiod-2", "default", slog.New(slog.DiscardHandler))
	run(t, one.Run)
	run(t, two.Run)
	key := mesh.Key{Cluster: "c", Kind: mesh.KindGateway, Namespace: "sample", Name: "bad"}
	elsewhere := mesh.Key{Cluster: "other", Kind: mesh.KindGateway, Namespace: "sample", Name: "good"}
	findings := map[mesh.Key][]mesh.Finding{
		key:       {{Object: key, Field: "spec.servers[0].port.number", Message: "is taken", Fix: "choose another"}, {Object: key, Message: "and more"}},
		elsewhere: {{Object: elsewhere, Message: "is not of this cluster"}},
	}
	for _, w := range []*Writer{one, two} {
		w.SetRoots(Trust{Roots: "# signer: x\npem\n", Revoked: "lists"})
		w.SetFindings(findings)
	}
	eventually(t, "the status", func() bool {
		return condition("bad") == "Reconciled False spec.servers[0].port.number: is taken (choose another); and more"
	})
	eventually(t, "the former leader's complaint is taken back", func() bool { return strings.HasPrefix(condition("left"), "Reconciled True") })
	if condition("good") != "" {
		t.Errorf("good: %s", condition("good"))
	}
	events := func() (es []corev1.Event) {
		for _, e := range must(s.Client.CoreV1().Events("sample").List(t.Context(), metav1.ListOptions{}))(t).Items {
			if e.InvolvedObject.Kind == "Gateway" {
				es = append(es, e)
			}
		}
		return es
	}
	eventually(t, "one event", func() bool { return len(events()) == 1 })
	if e := events()[0]; e.InvolvedObject.Name != "bad" || e.InvolvedObject.UID == "" || !strings.Contains(e.Message, "spec.servers[0].port.number") {
		t.Errorf("event %+v", e)
	}
	for _, w := range []*Writer{one, two} {
		w.SetFindings(nil)
	}
	eventually(t, "the good status", func() bool { return strings.HasPrefix(condition("bad"), "Reconciled True") })
	m := must(s.Client.CoreV1().ConfigMaps("sample").Get(t.Context(), RootsConfigMap, metav1.GetOptions{}))(t)
	if m.Data[RootsKey] != "# signer: x\npem\n" {
		t.Errorf("roots %q", m.Data)
	}
	if _, err := s.Client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), RootsConfigMap, metav1.GetOptions{}); err == nil {
		t.Error("roots in kube-system")
	}
	lists := func() string {
		m, err := s.Client.CoreV1().ConfigMaps("sample").Get(t.Context(), RevokedConfigMap, metav1.GetOptions{})
		if err != nil {
			return ""
		}
		return m.Data[RevokedKey]
	}
	eventually(t, "the revocation lists", func() bool { return lists() == "lists" })
	set := func(x Trust) {
		for _, w := range []*Writer{one, two} {
			w.SetRoots(x)
		}
	}
	set(Trust{Roots: "other\n"}) // of a control plane that has no CA yet: what is revoked stays so
	eventually(t, "other roots", func() bool {
		m, err := s.Client.CoreV1().ConfigMaps("sample").Get(t.Context(), RootsConfigMap, metav1.GetOptions{})
		return err == nil && m.Data[RootsKey] == "other\n"
	})
	if lists() != "lists" {
		t.Error("the revocation lists went with the CA")
	}
	set(Trust{Roots: "other\n", Settled: true})
	eventually(t, "the revocation lists are taken back", func() bool { return lists() == "" })
	lease := must(s.Client.CoordinationV1().Leases("istio-system").Get(t.Context(), "istio-leader", metav1.GetOptions{}))(t)
	if h := *lease.Spec.HolderIdentity; !strings.HasPrefix(h, "istiod-") {
		t.Errorf("leader %q", h)
	}
}

// TestWriterRevisions: what revisions share has one writer, and each fills in its own webhooks and
// those of its tags.
func TestWriterRevisions(t *testing.T) {
	s := kubetest.Start(t)
	createNamespace(t, s, "istio-system", nil)
	hook := func(name, service, rev string) {
		none := admission.SideEffectClassNone
		must(s.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), &admission.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"istio.io/rev": rev}},
			Webhooks: []admission.MutatingWebhook{{Name: "x.sidecar-injector.istio.io", SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
				ClientConfig: admission.WebhookClientConfig{Service: &admission.ServiceReference{Name: service, Namespace: "istio-system"}}}},
		}, metav1.CreateOptions{}))(t)
	}
	hook("istio-sidecar-injector", "istiod", "default")
	hook("istio-sidecar-injector-canary", "istiod-canary", "canary")
	hook("istio-revision-tag-prod", "istiod-canary", "canary")
	c := must(Connect(s.Config))(t)
	// One bundle for each revision, to see who wrote; there is one CA in truth.
	bundles := map[string]string{"default": testBundle(t, "default"), "canary": testBundle(t, "canary")}
	for rev, pem := range bundles {
		w := NewWriter(c, "c", "istio-system", "istiod-"+rev, rev, slog.New(slog.DiscardHandler))
		run(t, w.Run)
		w.SetRoots(Trust{Roots: pem})
	}
	bundle := func(name string) string {
		h := must(s.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), name, metav1.GetOptions{}))(t)
		return string(h.Webhooks[0].ClientConfig.CABundle)
	}
	for name, rev := range map[string]string{"istio-sidecar-injector": "default", "istio-sidecar-injector-canary": "canary", "istio-revision-tag-prod": "canary"} {
		eventually(t, name+" has the bundle of revision "+rev, func() bool { return bundle(name) == bundles[rev] })
	}
	var first *corev1.ConfigMap
	eventually(t, "the roots", func() (ok bool) {
		var err error
		first, err = s.Client.CoreV1().ConfigMaps("default").Get(t.Context(), RootsConfigMap, metav1.GetOptions{})
		return err == nil
	})
	// Two writers would undo each other's work at once, again and again; one leaves it alone.
	createNamespace(t, s, "later", nil)
	eventually(t, "the roots of another namespace", func() bool {
		m, err := s.Client.CoreV1().ConfigMaps("later").Get(t.Context(), RootsConfigMap, metav1.GetOptions{})
		return err == nil && m.Data[RootsKey] == first.Data[RootsKey]
	})
	if again := must(s.Client.CoreV1().ConfigMaps("default").Get(t.Context(), RootsConfigMap, metav1.GetOptions{}))(t); again.ResourceVersion != first.ResourceVersion {
		t.Error("the roots were written twice")
	}
}

func testBundle(t *testing.T, name string) string {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))(t)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
