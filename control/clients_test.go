package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	grpcxds "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	authn "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/xds"
)

// TestProxylessGRPC is grpc-go's xDS client in the mesh.
func TestProxylessGRPC(t *testing.T) {
	s := cluster(t, "network1")
	pod(t, s, "sample", "client-1", "10.0.0.1", map[string]string{"app": "client"})
	pod(t, s, "sample", "hello-1", "10.0.0.2", map[string]string{"app": "hello"})
	service(t, s, "sample", "hello", 5000, "hello-1", "10.0.0.2")
	c, port := start(t, s, "cluster1")
	backend := serve(t, func(g *grpc.Server) { healthpb.RegisterHealthServer(g, health.NewServer()) })
	resolver, err := grpcxds.NewXDSResolverWithConfigForTesting(fmt.Appendf(nil, `{"xds_servers":[{"server_uri":"127.0.0.1:%d","channel_creds":[{"type":"insecure"}],"server_features":["xds_v3"]}],
"node":{"id":"sidecar~10.0.0.1~client-1.sample~sample.svc.cluster.local","metadata":{"GENERATOR":"grpc","NAMESPACE":"sample"}}}`, port))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///hello.sample.svc.cluster.local:5000", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(resolver),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			if addr != "10.0.0.2:5000" {
				return nil, errors.New("not an endpoint of hello: " + addr)
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", backend))
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Error(err)
	}
	for typ, st := range clientNamed(c, "client-1.sample").Status() {
		if st.Nack != "" {
			t.Errorf("gRPC refuses %s: %s", typ, st.Nack)
		}
	}
}

// TestProxylessGRPCServer is grpc-go's xDS server in the mesh: in plaintext as long as the policy allows
// it, by mutual TLS from when it does not, and not at all on a port that no Service leads to.
func TestProxylessGRPCServer(t *testing.T) {
	s := cluster(t, "network1")
	crds(t, s)
	pod(t, s, "sample", "hello-1", "10.0.0.2", map[string]string{"app": "hello"})
	listen := func() (net.Listener, int) {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		return l, l.Addr().(*net.TCPAddr).Port
	}
	known, hello := listen()
	unknown, stray := listen()
	service(t, s, "sample", "hello", int32(hello), "hello-1", "10.0.0.2")
	c, port := start(t, s, "cluster1")

	keys, dir := newSecrets(t), t.TempDir()
	for name, b := range map[string][]byte{"cert-chain.pem": keys.cert, "key.pem": keys.key, "root-cert.pem": keys.cert} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	creds, err := xdscreds.NewServerCredentials(xdscreds.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	modes := map[int]connectivity.ServingMode{}
	g, err := grpcxds.NewGRPCServer(grpc.Creds(creds),
		grpcxds.BootstrapContentsForTesting(fmt.Appendf(nil, `{"xds_servers":[{"server_uri":"127.0.0.1:%d","channel_creds":[{"type":"insecure"}],"server_features":["xds_v3"]}],
"server_listener_resource_name_template":"xds.istio.io/grpc/lds/inbound/%%s",
"certificate_providers":{"default":{"plugin_name":"file_watcher","config":{"certificate_file":"%[2]s/cert-chain.pem","private_key_file":"%[2]s/key.pem","ca_certificate_file":"%[2]s/root-cert.pem"}}},
"node":{"id":"sidecar~10.0.0.2~hello-1.sample~sample.svc.cluster.local","metadata":{"GENERATOR":"grpc","NAMESPACE":"sample"}}}`, port, dir)),
		grpcxds.ServingModeCallback(func(addr net.Addr, m grpcxds.ServingModeChangeArgs) {
			mu.Lock()
			defer mu.Unlock()
			modes[addr.(*net.TCPAddr).Port] = m.Mode
		}))
	if err != nil {
		t.Fatal(err)
	}
	mode := func(port int) connectivity.ServingMode { mu.Lock(); defer mu.Unlock(); return modes[port] }
	healthpb.RegisterHealthServer(g, health.NewServer())
	var served sync.WaitGroup
	for _, l := range []net.Listener{known, unknown} {
		served.Go(func() { g.Serve(l) })
	}
	t.Cleanup(func() { g.Stop(); served.Wait() })
	call := func(creds credentials.TransportCredentials) error {
		conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", hello), grpc.WithTransportCredentials(creds))
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	}
	pair, err := tls.X509KeyPair(keys.cert, keys.key)
	if err != nil {
		t.Fatal(err)
	}
	mutual := func(certs ...tls.Certificate) credentials.TransportCredentials {
		return credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: certs})
	}
	eventually(t, "a call in plaintext", func() bool { return call(insecure.NewCredentials()) == nil })
	if call(mutual(pair)) == nil {
		t.Error("a server of plaintext takes TLS")
	}
	apply(t, s, "security.istio.io", "peerauthentications", "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: sample}, spec: {mtls: {mode: STRICT}}}")
	eventually(t, "a call by mutual TLS", func() bool { return call(mutual(pair)) == nil })
	if call(mutual()) == nil {
		t.Error("a client without a certificate is served")
	}
	if call(insecure.NewCredentials()) == nil {
		t.Error("plaintext is served though the policy is STRICT")
	}
	if mode(hello) != connectivity.ServingModeServing || mode(stray) == connectivity.ServingModeServing {
		t.Errorf("port of the Service: %v; of none: %v", mode(hello), mode(stray))
	}
	for typ, st := range clientNamed(c, "hello-1.sample").Status() {
		if st.Nack != "" {
			t.Errorf("gRPC refuses %s: %s", typ, st.Nack)
		}
	}
}

// TestSendsSNI: which clients are told of gateways to other networks.
func TestSendsSNI(t *testing.T) {
	for _, c := range []struct {
		agent, said string
		want        bool
	}{
		{"gRPC Go 1.85.0", "true", true}, {"gRPC Go 1.82.1-dev", "true", true}, {"gRPC Go 2.0.0", "true", true},
		{"gRPC Go 1.81.0", "true", false}, {"gRPC Go 1.85.0", "false", false}, {"gRPC Go 1.85.0", "", false},
		{"gRPC Java 1.85.0", "true", false}, {"gRPC Go", "true", false}, {"", "true", false},
	} {
		meta, err := structpb.NewStruct(map[string]any{"GRPC_SNI": c.said})
		if err != nil {
			t.Fatal(err)
		}
		if got := sendsSNI(xds.Node{Agent: c.agent, Metadata: meta}); got != c.want {
			t.Errorf("%q, GRPC_SNI %q: %v", c.agent, c.said, got)
		}
	}
}

// TestRoots holds what a change of root relies on: every proxy gets the roots, and it is known when
// all have taken them.
func TestRoots(t *testing.T) {
	s := cluster(t, "network1")
	pod(t, s, "sample", "sleep-1", "10.0.0.1", map[string]string{"app": "sleep"})
	p, err := s.Client.CoreV1().Pods("sample").Get(t.Context(), "sleep-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client.CoreV1().ServiceAccounts("sample").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := s.Client.CoreV1().ServiceAccounts("sample").CreateToken(t.Context(), "default", &authn.TokenRequest{Spec: authn.TokenRequestSpec{Audiences: []string{"istio-ca"},
		BoundObjectRef: &authn.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := start(t, s, "cluster1")
	eventually(t, "tokens can be looked at", c.Ready)
	keys := newSecrets(t)
	pair, err := tls.X509KeyPair(keys.cert, keys.key)
	if err != nil {
		t.Fatal(err)
	}
	port := serve(t, func(g *grpc.Server) { c.Server().Register(g) }, append(xds.Options(), grpc.Creds(credentials.NewServerTLSFromCert(&pair)))...)
	c.PublishRoots("one", "")
	if err := c.AwaitRoots(t.Context()); err != nil {
		t.Fatalf("while nobody is connected: %v", err)
	}
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", port), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token.Status.Token), patience)
	defer cancel()
	st, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *discovery.DeltaDiscoveryRequest) {
		t.Helper()
		r.TypeUrl = resource.SecretType
		if err := st.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	meta, err := structpb.NewStruct(map[string]any{"NAMESPACE": "sample", "SERVICE_ACCOUNT": "default"})
	if err != nil {
		t.Fatal(err)
	}
	send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "sidecar~10.0.0.1~sleep-1.sample~sample.svc.cluster.local", Metadata: meta}, ResourceNamesSubscribe: []string{RootsName}})
	recv := func(want string) *discovery.DeltaDiscoveryResponse {
		t.Helper()
		r, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Resources) != 1 || string(r.Resources[0].Resource.Value) != string(rootsSecret([]byte(want), nil).Bytes()) {
			t.Fatalf("roots %v, want %s", r.Resources, want)
		}
		return r
	}
	one := recv("one")
	behind := func() error {
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		return c.AwaitRoots(short)
	}
	if behind() == nil {
		t.Error("roots count as taken that were not acknowledged")
	}
	send(&discovery.DeltaDiscoveryRequest{ResponseNonce: one.Nonce})
	if err := c.AwaitRoots(ctx); err != nil {
		t.Error(err)
	}
	c.PublishRoots("two", "")
	if behind() == nil {
		t.Error("new roots count as taken that were not acknowledged")
	}
	send(&discovery.DeltaDiscoveryRequest{ResponseNonce: recv("two").Nonce})
	if err := c.AwaitRoots(ctx); err != nil {
		t.Error(err)
	}
	c.PublishRoots("two", "") // the same is nothing new
	if err := c.AwaitRoots(ctx); err != nil {
		t.Error(err)
	}
}

// TestRootsSecret: the hand-made encoding is what Envoy's types say.
func TestRootsSecret(t *testing.T) {
	for _, crl := range []string{"", "lists"} {
		s := &tlspb.Secret{}
		if err := proto.Unmarshal(rootsSecret([]byte("roots"), []byte(crl)).Bytes(), s); err != nil {
			t.Fatal(err)
		}
		v := s.GetValidationContext()
		if s.Name != RootsName || string(v.GetTrustedCa().GetInlineBytes()) != "roots" || string(v.GetCrl().GetInlineBytes()) != crl || (v.GetCrl() != nil) != (crl != "") {
			t.Errorf("%v", s)
		}
	}
}

// TestDebugOverADS asks as istioctl does: with a token of the control plane's namespace.
func TestDebugOverADS(t *testing.T) {
	s := cluster(t, "network1")
	token := func(ns string) string {
		if _, err := s.Client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Client.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "x", &authn.TokenRequest{Spec: authn.TokenRequestSpec{Audiences: []string{"istio-ca"}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Token
	}
	ours, others := token("istio-system"), token("sample")
	c, _ := start(t, s, "cluster1")
	eventually(t, "ready", c.Ready)
	keys := newSecrets(t)
	pair, err := tls.X509KeyPair(keys.cert, keys.key)
	if err != nil {
		t.Fatal(err)
	}
	port := serve(t, func(g *grpc.Server) { c.Server().Register(g) }, append(xds.Options(), grpc.Creds(credentials.NewServerTLSFromCert(&pair)))...)
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", port), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(token, typeURL string, names ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), patience)
		defer cancel()
		st, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(&discovery.DiscoveryRequest{Node: &core.Node{Id: "debug~0.0.0.0~istioctl~cluster.local"}, TypeUrl: typeURL, ResourceNames: names}); err != nil {
			t.Fatal(err)
		}
		r, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, x := range r.Resources {
			all += string(x.Value)
		}
		return all
	}
	if got := ask(ours, "istio.io/debug", "clusterz"); !strings.Contains(got, `"syncStatus": "synced"`) {
		t.Errorf("clusterz: %s", got)
	}
	if got := ask(ours, "istio.io/debug/list"); !strings.Contains(got, "/debug/syncz") {
		t.Errorf("list: %s", got)
	}
	if got := ask(others, "istio.io/debug", "clusterz"); got != "" {
		t.Errorf("for others: %s", got)
	}
	if len(c.Server().Clients()) != 0 {
		t.Error("who asks counts as a proxy")
	}
}
