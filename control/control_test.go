package control

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	sds "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/carrick-mesh/carrick/debug"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/test/envoytest"
	"github.com/carrick-mesh/carrick/xds"
)

const patience = 30 * time.Second

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func run(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func serve(t testing.TB, register func(*grpc.Server), options ...grpc.ServerOption) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(options...)
	register(g)
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().(*net.TCPAddr).Port
}

// secrets serves SDS secrets default and ROOTCA, as an agent does.
type secrets struct {
	sds.UnimplementedSecretDiscoveryServiceServer
	cert, key []byte
}

func newSecrets(t testing.TB) *secrets {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &secrets{cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: k})}
}

func (s *secrets) StreamSecrets(st sds.SecretDiscoveryService_StreamSecretsServer) error {
	for {
		r, err := st.Recv()
		if err != nil {
			return nil
		}
		if r.ResponseNonce != "" {
			continue
		}
		resp := &discovery.DiscoveryResponse{TypeUrl: r.TypeUrl, VersionInfo: "1", Nonce: "1"}
		inline := func(b []byte) *core.DataSource {
			return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
		}
		for _, n := range r.ResourceNames {
			x := &tlsv3.Secret{Name: n, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(s.cert), PrivateKey: inline(s.key)}}}
			if n == "ROOTCA" {
				x.Type = &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(s.cert)}}
			}
			a, err := anypb.New(x)
			if err != nil {
				return err
			}
			resp.Resources = append(resp.Resources, a)
		}
		if err := st.Send(resp); err != nil {
			return nil
		}
	}
}

// envoy starts a genuine Envoy as the proxy of a Pod and returns its admin address.
func envoy(t *testing.T, id, metadata string, xdsPort, sdsPort int) string {
	t.Helper()
	static := func(name string, port int) string {
		return fmt.Sprintf(`
  - name: %[1]s
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}`, name, port)
	}
	config := fmt.Sprintf(`
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
node: {id: %q, cluster: c, metadata: %s}
dynamic_resources:
  ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: xds-grpc}}]}
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
static_resources:
  clusters:%s%s
`, id, metadata, static("xds-grpc", xdsPort), static("sds-grpc", sdsPort))
	return envoytest.Start(t, config)
}

func get(url string) string {
	c := http.Client{Timeout: 2 * time.Second}
	r, err := c.Get(url)
	if err != nil {
		return ""
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return string(b)
}

// cluster is an API server with what the walkthrough's clusters have.
func cluster(t *testing.T, network string) *kubetest.Server {
	t.Helper()
	s := kubetest.Start(t)
	for name, labels := range map[string]map[string]string{"istio-system": {"topology.istio.io/network": network}, "sample": nil} {
		if _, err := s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// pod makes a running Pod.
func pod(t *testing.T, s *kubetest.Server, ns, name, ip string, labels map[string]string) {
	t.Helper()
	p, err := s.Client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{ServiceAccountName: "default", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	if _, err := s.Client.CoreV1().Pods(ns).UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func service(t *testing.T, s *kubetest.Server, ns, name string, port int32, podName, ip string) {
	t.Helper()
	_, err := s.Client.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Port: port}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Client.DiscoveryV1().EndpointSlices(ns).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{ip}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: podName, Namespace: ns}}},
		Ports:     []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(port)}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}

func start(t *testing.T, s *kubetest.Server, id string) (*Control, int) {
	c := New(Config{Mesh: mesh.Settings{Cluster: id}, Local: kube.Local{Config: s.Config}, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	run(t, c.Run)
	return c, serve(t, func(g *grpc.Server) { c.Server().Register(g) }, xds.Options()...)
}

func clientNamed(c *Control, name string) *xds.Client {
	for _, x := range c.Server().Clients() {
		if debug.ProxyName(x) == name {
			return x
		}
	}
	return nil
}

// allSynced reports whether a proxy has taken all types, and fails the test if it refused one.
func allSynced(t *testing.T, c *Control, name string) func() bool {
	return func() bool {
		x := clientNamed(c, name)
		if x == nil {
			return false
		}
		st := x.Status()
		for typ, s := range st {
			if s.Nack != "" {
				t.Fatalf("%s refuses %s: %s", name, typ, s.Nack)
			}
		}
		return st[resource.ClusterType].Synced() && st[resource.EndpointType].Synced() && st[resource.ListenerType].Synced() && st[resource.RouteType].Synced()
	}
}

func TestSidecarEnvoy(t *testing.T) {
	s := cluster(t, "network1")
	pod(t, s, "sample", "sleep-1", "10.0.0.1", map[string]string{"app": "sleep", "security.istio.io/tlsMode": "istio"})
	pod(t, s, "sample", "hello-1", "10.0.0.2", map[string]string{"app": "hello", "security.istio.io/tlsMode": "istio"})
	service(t, s, "sample", "hello", 5000, "hello-1", "10.0.0.2")
	c, port := start(t, s, "cluster1")
	keys := serve(t, func(g *grpc.Server) { sds.RegisterSecretDiscoveryServiceServer(g, newSecrets(t)) })
	admin := envoy(t, "sidecar~10.0.0.1~sleep-1.sample~sample.svc.cluster.local", `{NAMESPACE: sample, CLUSTER_ID: Kubernetes, ISTIO_VERSION: "1.15.7"}`, port, keys)
	eventually(t, "Envoy takes everything", allSynced(t, c, "sleep-1.sample"))
	eventually(t, "Envoy is live", func() bool { return strings.TrimSpace(get("http://"+admin+"/ready")) == "LIVE" })
	clusters := func() string { return get("http://" + admin + "/clusters") }
	eventually(t, "the endpoint is there", func() bool {
		return strings.Contains(clusters(), "outbound|5000||hello.sample.svc.cluster.local::10.0.0.2:5000::health_flags::healthy")
	})
	// A change of endpoints arrives.
	slice, err := s.Client.DiscoveryV1().EndpointSlices("sample").Get(t.Context(), "hello-x", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod(t, s, "sample", "hello-2", "10.0.0.3", map[string]string{"app": "hello", "security.istio.io/tlsMode": "istio"})
	slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.0.0.3"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "hello-2", Namespace: "sample"}})
	if _, err := s.Client.DiscoveryV1().EndpointSlices("sample").Update(t.Context(), slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second endpoint", func() bool { return strings.Contains(clusters(), "::10.0.0.3:5000::") })

	// The pages.
	page := func(name string) string {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/debug/"+name, nil)
		r.RemoteAddr = "127.0.0.1:1"
		c.Debug().ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		return w.Body.String()
	}
	for name, want := range map[string]string{
		"syncz": `"proxy": "sleep-1.sample"`, "adsz": `"pod": "sample/sleep-1"`, "connections": "sleep-1", "clusterz": `"syncStatus": "synced"`, "networkz": "[]",
		"registryz": "hello.sample.svc.cluster.local", "endpointz": "10.0.0.3", "configz": "[]", "mesh": "{", "push_status": "findings", "list": "/debug/syncz",
		"config_dump?proxyID=sleep-1.sample": "outbound|5000||hello.sample.svc.cluster.local",
	} {
		if got := page(name); !strings.Contains(got, want) {
			t.Errorf("/debug/%s: no %q in %s", name, want, got)
		}
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/debug/syncz", nil)
	c.Debug().ServeHTTP(w, r) // httptest's client is not of this machine
	if w.Code != http.StatusUnauthorized {
		t.Errorf("/debug/ for strangers: %d", w.Code)
	}
}
