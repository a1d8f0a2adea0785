package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	admission "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/kube/kubetest"
)

func counted(t *testing.T, c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// serving returns the certificate of the control plane's Service, which is its own root.
func serving(t *testing.T) (cert tls.Certificate, root string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"istiod.istio-system.svc"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// warnings keeps what an API server warns of.
type warnings struct {
	mu  sync.Mutex
	all []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := strings.Join(w.all, "\n")
	w.all = nil
	return all
}

// installedValidators makes the webhook configurations that an installation has, but for the port.
func installedValidators(t *testing.T, s *kubetest.Server, port int) {
	t.Helper()
	b, err := os.ReadFile("../install/testdata/default.golden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, doc := range strings.Split(string(b), "\n---") {
		var c admission.ValidatingWebhookConfiguration
		if !strings.Contains(doc, "\nkind: ValidatingWebhookConfiguration") {
			continue
		}
		if err := yaml.Unmarshal([]byte(doc), &c); err != nil {
			t.Fatal(err)
		}
		for i := range c.Webhooks {
			c.Webhooks[i].ClientConfig.Service.Port = ptr.To(int32(port))
		}
		if _, err := s.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &c, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 2 {
		t.Fatalf("%d ValidatingWebhookConfigurations are installed, want 2", n)
	}
}

// An API server asks the webhook as soon as it is seen to be reached, and not before. A wrong object is refused then, one
// without effect is warned of, and without the webhook nothing passes.
func TestValidatingWebhook(t *testing.T) {
	s := cluster(t, "network1")
	crds(t, s)
	policies, err := os.ReadFile("../install/crds/authorizationpolicies.security.istio.io.yaml")
	if err != nil {
		t.Fatal(err)
	}
	apply(t, s, "apiextensions.k8s.io", "customresourcedefinitions", string(policies))
	// The API server reaches this machine by a Service of type ExternalName.
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "istiod"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}
	if _, err := s.Client.CoreV1().Services("istio-system").Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	v := NewValidator("cluster1", slog.New(slog.DiscardHandler))
	cert, root := serving(t)
	hook := httptest.NewUnstartedServer(http.HandlerFunc(v.ServeHTTP))
	hook.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	hook.StartTLS()
	defer hook.Close()
	installedValidators(t, s, hook.Listener.Addr().(*net.TCPAddr).Port)

	config := rest.CopyConfig(s.Config)
	told := &warnings{}
	config.WarningHandler = told
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	create := func(group, plural, name, spec string) (*unstructured.Unstructured, error) {
		u := &unstructured.Unstructured{}
		kind := map[string]string{"virtualservices": "VirtualService", "authorizationpolicies": "AuthorizationPolicy"}[plural]
		if err := yaml.Unmarshal([]byte("{apiVersion: "+group+"/v1, kind: "+kind+", metadata: {name: "+name+"}, spec: "+spec+"}"), &u.Object); err != nil {
			t.Fatal(err)
		}
		return d.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: plural}).Namespace("sample").Create(t.Context(), u, metav1.CreateOptions{})
	}
	const networking, security, vs = "networking.istio.io", "security.istio.io", "virtualservices"
	const good = "{hosts: [web], http: [{route: [{destination: {host: web}}]}]}"
	const unused = "{hosts: [web], tcp: [{match: [{sourceSubnet: 10.0.0.0/8}], route: [{destination: {host: web}}]}]}"
	const bad = "{hosts: [web], http: [{match: [{uri: {regex: '*'}}], route: [{destination: {host: web}}]}]}"
	var before *unstructured.Unstructured
	eventually(t, "while the webhook is not reached, objects pass", func() bool {
		before, err = create(networking, vs, "before", bad)
		return err == nil
	})

	client, err := kube.Connect(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	w := kube.NewWriter(client, "cluster1", "istio-system", "istiod-1", "", slog.New(slog.DiscardHandler))
	run(t, w.Run)
	w.SetRoots(kube.Trust{Roots: root})
	eventually(t, "the failure policy", func() bool {
		for _, name := range []string{"istio-validator-istio-system", "istiod-default-validator"} {
			c, err := s.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil || *c.Webhooks[0].FailurePolicy != admission.Fail || string(c.Webhooks[0].ClientConfig.CABundle) != root {
				return false
			}
		}
		return true
	})

	eventually(t, "a wrong object is refused", func() bool { // as soon as the API server has seen the configuration
		_, err = create(networking, vs, "bad", bad)
		return err != nil
	})
	if !strings.Contains(err.Error(), "denied the request") || !strings.Contains(err.Error(), "spec.http[0].match[0].uri.regex") {
		t.Errorf("refused: %v", err)
	}
	if _, err := create(networking, vs, "good", good); err != nil || told.take() != "" {
		t.Errorf("a right object: %v", err)
	}
	if _, err := create(networking, vs, "noted", unused); err != nil || !strings.Contains(told.take(), "spec.tcp[0].match[0].sourceSubnet: it has no effect: Istio has taken its effect away") {
		t.Errorf("a right object with a field without effect: %v", err)
	}
	if _, err := create(security, "authorizationpolicies", "deny", "{action: DENY, rules: [{}]}"); err != nil {
		t.Error(err)
	} else if text := told.take(); !strings.Contains(text, "NO effect") {
		t.Errorf("an object of a kind without effect: warned %q", text)
	}
	before.SetLabels(map[string]string{"team": "a"})
	api := d.Resource(schema.GroupVersionResource{Group: networking, Version: "v1", Resource: vs}).Namespace("sample")
	if _, err := api.Update(t.Context(), before, metav1.UpdateOptions{}); err != nil || !strings.Contains(told.take(), "uri.regex") {
		t.Errorf("a label of a wrong object that was there: %v", err)
	}
	if n := counted(t, v.failed.WithLabelValues(networking, "v1", vs, "invalid_resource")); n < 1 {
		t.Errorf("galley_validation_failed is %v", n)
	}
	if n := counted(t, v.passed.WithLabelValues(networking, "v1", vs)); n < 2 {
		t.Errorf("galley_validation_passed is %v", n)
	}
	hook.Close()
	if _, err := create(networking, vs, "after", good); err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
		t.Errorf("without the webhook: %v", err)
	}
}
