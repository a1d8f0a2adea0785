package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	capb "istio.io/api/security/v1alpha1"
	admissionv1 "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
	authn "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"

	"github.com/carrick-mesh/carrick/identity"
	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/resource"
)

const patience = 30 * time.Second

func within(t testing.TB, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("not within %v: %s: %v", patience, what, err)
}

// plane is a control plane that runs in this process.
type plane struct {
	t                                   *testing.T
	s                                   *kubetest.Server
	grpc, secure, https, metrics, debug string
	ctrlz                               string
	log                                 *lockedBuffer
	ended                               chan error
	stop                                context.CancelFunc
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func startPlane(t *testing.T, s *kubetest.Server) *plane {
	t.Helper()
	p := &plane{t: t, s: s, log: &lockedBuffer{}, ended: make(chan error, 1)}
	var ls []net.Listener
	for _, a := range []*string{&p.grpc, &p.secure, &p.https, &p.metrics, &p.debug, &p.ctrlz} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
		*a = l.Addr().String()
	}
	for _, l := range ls {
		l.Close()
	}
	conf := api.NewConfig()
	conf.Clusters["c"] = &api.Cluster{Server: s.Config.Host, CertificateAuthorityData: s.Config.CAData}
	conf.AuthInfos["c"] = &api.AuthInfo{Token: s.Config.BearerToken}
	conf.Contexts["c"] = &api.Context{Cluster: "c", AuthInfo: "c"}
	conf.CurrentContext = "c"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*conf, file); err != nil {
		t.Fatal(err)
	}
	cmd := discoveryCommand()
	cmd.SetErr(p.log)
	cmd.SetOut(p.log)
	cmd.SetArgs([]string{"--kubeconfig", file, "--clusterID", "cluster1", "--namespace", "istio-system", "--pod", "istiod-1", "--revision", "default",
		"--grpcAddr", p.grpc, "--secureGRPCAddr", p.secure, "--httpsAddr", p.https, "--monitoringAddr", p.metrics, "--httpAddr", p.debug,
		"--ctrlz_address", "127.0.0.1", "--ctrlz_port", p.ctrlz[strings.LastIndexByte(p.ctrlz, ':')+1:]})
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go func() { p.ended <- cmd.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-p.ended; err != nil {
			t.Errorf("the control plane ended: %v", err)
		}
		if t.Failed() {
			t.Log(p.log)
		}
	})
	within(t, "the control plane is ready", func() error { _, err := p.get(p.debug, "/ready"); return err })
	return p
}

// setLevel changes the level of a scope of the log, as istioctl admin log does.
func (p *plane) setLevel(scope, level string) {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodPut, "http://"+p.ctrlz+"/scopej/"+scope, strings.NewReader(fmt.Sprintf(`{"name":%q,"output_level":%q}`, scope, level)))
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	if r.Body.Close(); r.StatusCode != http.StatusAccepted {
		p.t.Errorf("scope %s to %s: %s", scope, level, r.Status)
	}
}

func (p *plane) get(addr, path string) (string, error) {
	c := http.Client{Timeout: 3 * time.Second}
	r, err := c.Get("http://" + addr + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if r.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}

// roots returns what ConfigMap istio-ca-root-cert of a namespace says.
func (p *plane) roots(ns string) (*x509.CertPool, string) {
	p.t.Helper()
	var m *corev1.ConfigMap
	within(p.t, "the roots in namespace "+ns, func() (err error) {
		m, err = p.s.Client.CoreV1().ConfigMaps(ns).Get(p.t.Context(), "istio-ca-root-cert", metav1.GetOptions{})
		return err
	})
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(m.Data["root-cert.pem"])) {
		p.t.Fatalf("no certificate in %q", m.Data["root-cert.pem"])
	}
	return pool, m.Data["root-cert.pem"]
}

func (p *plane) dial(pool *x509.CertPool) *grpc.ClientConn {
	p.t.Helper()
	creds := insecure.NewCredentials()
	addr := p.grpc
	if pool != nil {
		creds, addr = credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc"}), p.secure
	}
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// workload makes a Pod with its account and returns a token of it.
func (p *plane) workload(ns, name, ip string) string {
	t := p.t
	t.Helper()
	c := p.s.Client.CoreV1()
	if _, err := c.ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod, err := c.Pods(ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name + "-1", Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{ServiceAccountName: name, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	if _, err := c.Pods(ns).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r, err := c.ServiceAccounts(ns).CreateToken(t.Context(), name, &authn.TokenRequest{Spec: authn.TokenRequestSpec{Audiences: []string{"istio-ca"},
		BoundObjectRef: &authn.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status.Token
}

// ads opens a delta stream, asks for a type, and returns the first answer.
func ads(ctx context.Context, c *grpc.ClientConn, token, node, ns, typeURL string, names ...string) (*discoverypb.DeltaDiscoveryResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "clusterid", "Kubernetes")
	}
	st, err := discoverypb.NewAggregatedDiscoveryServiceClient(c).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	meta, err := structpb.NewStruct(map[string]any{"NAMESPACE": ns})
	if err != nil {
		return nil, err
	}
	if err := st.Send(&discoverypb.DeltaDiscoveryRequest{Node: &core.Node{Id: node, Metadata: meta}, TypeUrl: typeURL, ResourceNamesSubscribe: names}); err != nil {
		return nil, err
	}
	return st.Recv()
}

func TestDiscovery(t *testing.T) {
	s := kubetest.Start(t)
	for _, ns := range []string{"istio-system", "sample"} {
		if _, err := s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	hook := &registration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector"}, Webhooks: []registration.MutatingWebhook{{
		Name: "object.sidecar-injector.istio.io", SideEffects: ptr.To(registration.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		ClientConfig: registration.WebhookClientConfig{Service: &registration.ServiceReference{Name: "istiod", Namespace: "istio-system", Path: ptr.To("/inject")}},
		// It matches nothing: no Service of the name leads anywhere here.
		ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"never": "true"}},
		Rules:          []registration.RuleWithOperations{{Operations: []registration.OperationType{registration.Create}, Rule: registration.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}}}}}}}
	if _, err := s.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), hook, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := startPlane(t, s)
	pool, rootPEM := p.roots("sample")
	token := p.workload("sample", "hello", "10.0.0.1")
	const node = "sidecar~10.0.0.1~hello-1.sample~sample.svc.cluster.local"

	t.Run("certificate", func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		u, _ := url.Parse(identity.Identity{TrustDomain: "cluster.local", Namespace: "sample", ServiceAccount: "hello"}.String())
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}}, key)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(token string) (*capb.IstioCertificateResponse, error) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token, "clusterid", "cluster1")
			return capb.NewIstioCertificateServiceClient(p.dial(pool)).CreateCertificate(ctx, &capb.IstioCertificateRequest{
				Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))})
		}
		resp, err := ask(token)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode([]byte(resp.CertChain[0]))
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil || leaf.URIs[0].String() != u.String() {
			t.Errorf("leaf for %v: %v", leaf.URIs, err)
		}
		if _, err := ask("nonsense"); status.Code(err) != codes.Unauthenticated {
			t.Errorf("a wrong token: %v", err)
		}
	})

	t.Run("xds", func(t *testing.T) {
		r, err := ads(t.Context(), p.dial(pool), token, node, "sample", resource.ClusterType)
		if err != nil || len(r.Resources) == 0 {
			t.Errorf("clusters: %v, %v", r, err)
		}
		r, err = ads(t.Context(), p.dial(pool), token, node, "sample", resource.SecretType, "ROOTCA")
		if err != nil || len(r.Resources) != 1 || !strings.Contains(string(r.Resources[0].Resource.Value), strings.TrimSpace(rootPEM)) {
			t.Errorf("roots: %v, %v", r, err)
		}
		for name, x := range map[string]struct {
			token, node, ns string
			want            codes.Code
		}{
			"no token":        {"", node, "sample", codes.Unauthenticated},
			"wrong token":     {"nonsense", node, "sample", codes.Unauthenticated},
			"other namespace": {token, node, "istio-system", codes.PermissionDenied},
			"no proxy":        {token, "x", "sample", codes.InvalidArgument},
		} {
			if _, err := ads(t.Context(), p.dial(pool), x.token, x.node, x.ns, resource.ClusterType); status.Code(err) != x.want {
				t.Errorf("%s: %v, want %v", name, err, x.want)
			}
		}
		r, err = ads(t.Context(), p.dial(nil), "", node, "sample", resource.SecretType, "ROOTCA")
		if err != nil || len(r.Resources) != 0 {
			t.Errorf("secrets on the plaintext port: %v, %v", r, err)
		}
	})

	t.Run("injection", func(t *testing.T) {
		within(t, "the caBundle", func() error {
			h, err := s.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), hook.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			b := h.Webhooks[0].ClientConfig.CABundle
			if !x509.NewCertPool().AppendCertsFromPEM(b) || !strings.Contains(rootPEM, string(b)) {
				return fmt.Errorf("it is %q", b)
			}
			return nil
		})
		pod, err := json.Marshal(corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "sample", Labels: map[string]string{"sidecar.istio.io/inject": "true"}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}})
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: &admissionv1.AdmissionRequest{
			UID: "1", Namespace: "sample", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Object: runtime.RawExtension{Raw: pod}}})
		if err != nil {
			t.Fatal(err)
		}
		c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc"}}}
		post := func() {
			t.Helper()
			r, err := c.Post("https://"+p.https+"/inject", "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			var review admissionv1.AdmissionReview
			if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
				t.Fatal(err)
			}
			if !review.Response.Allowed || !strings.Contains(string(review.Response.Patch), "istio-proxy") || !strings.Contains(string(review.Response.Patch), "cluster1") {
				t.Errorf("response %s", review.Response.Patch)
			}
		}
		const line = "\tdebug\tinjected\t"
		post()
		if strings.Contains(p.log.String(), line) {
			t.Error("the log says more than info from the start")
		}
		p.setLevel("injection", "debug")
		post()
		if !strings.Contains(p.log.String(), line) {
			t.Error("scope injection does not say more at level debug")
		}
		if got, err := p.get(p.ctrlz, "/scopej"); err != nil || !strings.Contains(got, `"name":"injection","description":"the webhook that adds sidecars","output_level":"debug","stack_trace_level":"none"`) ||
			!strings.Contains(got, `"name":"ads",`) || strings.Count(got, `"output_level":"debug"`) != 1 {
			t.Errorf("scopes: %v %s", err, got)
		}
		p.setLevel("injection", "info")
		before := strings.Count(p.log.String(), line)
		if post(); strings.Count(p.log.String(), line) != before {
			t.Error("scope injection does not say less again")
		}
	})

	t.Run("pages", func(t *testing.T) {
		for path, want := range map[string]string{
			"/debug/clusterz": `"id": "cluster1"`, "/version": version, "/metrics": "pilot_xds_pushes",
		} {
			addr := p.metrics
			if got, err := p.get(addr, path); err != nil || !strings.Contains(got, want) {
				t.Errorf("%s: %v, %s", path, err, got)
			}
		}
	})

	t.Run("events", func(t *testing.T) {
		_, err := s.Client.CoreV1().Secrets("istio-system").Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "istio-remote-secret-cluster2", Labels: map[string]string{"istio/multiCluster": "true"}},
			StringData: map[string]string{"cluster2": "{"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		within(t, "an event", func() error {
			es, err := s.Client.CoreV1().Events("istio-system").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, e := range es.Items {
				if e.InvolvedObject.Kind == "Secret" && strings.Contains(e.Message, "data.cluster2: reading the kubeconfig") {
					return nil
				}
			}
			return fmt.Errorf("%d others", len(es.Items))
		})
		if got, err := p.get(p.metrics, "/debug/clusterz"); err != nil || !strings.Contains(got, `"syncStatus": "error"`) {
			t.Errorf("clusterz: %v, %s", err, got)
		}
	})

	t.Run("namespaces that come later", func(t *testing.T) {
		if _, err := s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "later"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, pem := p.roots("later"); pem != rootPEM {
			t.Error("other roots")
		}
		// A change by somebody else is put right.
		m, err := s.Client.CoreV1().ConfigMaps("later").Get(t.Context(), "istio-ca-root-cert", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m.Data["root-cert.pem"] = "x"
		if _, err := s.Client.CoreV1().ConfigMaps("later").Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		within(t, "the roots again", func() error {
			m, err := s.Client.CoreV1().ConfigMaps("later").Get(t.Context(), "istio-ca-root-cert", metav1.GetOptions{})
			if err != nil || m.Data["root-cert.pem"] != rootPEM {
				return fmt.Errorf("%v %v", m, err)
			}
			return nil
		})
	})
}
