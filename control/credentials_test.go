package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	authn "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/schema/access"
	"github.com/carrick-mesh/carrick/xds"
)

// account makes a service account and returns a token of it, bound to a Pod if one is named.
func account(t *testing.T, s *kubetest.Server, ns, name, audience, podName string) string {
	t.Helper()
	if _, err := s.Client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	r := &authn.TokenRequest{}
	if audience != "" {
		r.Spec.Audiences = []string{audience}
	}
	if podName != "" {
		p, err := s.Client.CoreV1().Pods(ns).Get(t.Context(), podName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		r.Spec.BoundObjectRef = &authn.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}
	}
	r, err := s.Client.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), name, r, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status.Token
}

// allow binds rules to the control plane's account: in a namespace, or everywhere if it is empty.
func allow(t *testing.T, s *kubetest.Server, ns string, rules []rbac.PolicyRule) {
	t.Helper()
	subjects := []rbac.Subject{{Kind: "ServiceAccount", Namespace: "istio-system", Name: "istiod"}}
	meta := metav1.ObjectMeta{Name: "istiod-sds"}
	var err, err2 error
	if ns == "" {
		_, err = s.Client.RbacV1().ClusterRoles().Create(t.Context(), &rbac.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
		_, err2 = s.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbac.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects,
			RoleRef: rbac.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: meta.Name}}, metav1.CreateOptions{})
	} else {
		_, err = s.Client.RbacV1().Roles(ns).Create(t.Context(), &rbac.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
		_, err2 = s.Client.RbacV1().RoleBindings(ns).Create(t.Context(), &rbac.RoleBinding{ObjectMeta: meta, Subjects: subjects,
			RoleRef: rbac.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: meta.Name}}, metav1.CreateOptions{})
	}
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
}

// held is what a client of SDS holds.
type held struct {
	mu      sync.Mutex
	secrets map[string]string // certificate chain by name
}

func (h *held) get(name string) string { h.mu.Lock(); defer h.mu.Unlock(); return h.secrets[name] }

// subscribe asks for a secret as the proxy of a Pod does, over TLS and with its token.
func subscribe(t *testing.T, port int, ns, podName, token, name string) *held {
	t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", port), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token))
	st, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := structpb.NewStruct(map[string]any{"NAMESPACE": ns, "SERVICE_ACCOUNT": "default"})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "router~10.0.0.1~" + podName + "." + ns + "~" + ns + ".svc.cluster.local", Metadata: meta},
		TypeUrl: resource.SecretType, ResourceNamesSubscribe: []string{name}}); err != nil {
		t.Fatal(err)
	}
	h := &held{secrets: map[string]string{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			r, err := st.Recv()
			if err != nil {
				return
			}
			h.mu.Lock()
			for _, n := range r.RemovedResources {
				delete(h.secrets, n)
			}
			for _, x := range r.Resources {
				var s tlsv3.Secret
				if err := x.Resource.UnmarshalTo(&s); err != nil {
					t.Error(err)
				}
				h.secrets[x.Name] = string(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
			}
			h.mu.Unlock()
			if st.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}) != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); conn.Close(); <-done })
	return h
}

// TestCredentials serves Secrets to gateways outside the control plane's namespace, with no more
// rights than the control plane is installed with.
func TestCredentials(t *testing.T) {
	s := cluster(t, "network1")
	crds(t, s)
	secret := func(ns, cert string) {
		t.Helper()
		x := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": []byte(cert), "tls.key": []byte("key")}}
		_, err := s.Client.CoreV1().Secrets(ns).Create(t.Context(), x, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = s.Client.CoreV1().Secrets(ns).Update(t.Context(), x, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, ns := range []string{"edge", "other"} {
		if _, err := s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		pod(t, s, ns, "gw-1", fmt.Sprintf("10.0.0.%d", i+1), map[string]string{"istio": "edge"})
	}
	secret("edge", "one")
	apply(t, s, "networking.istio.io", "gateways", `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web, namespace: sample}
spec: {selector: {istio: edge}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, credentialName: web}}]}
`)
	config := &rest.Config{Host: s.Config.Host, TLSClientConfig: s.Config.TLSClientConfig, BearerToken: account(t, s, "istio-system", "istiod", "", "")}
	allow(t, s, "", access.ControlPlane("", "istio-system"))
	allow(t, s, "istio-system", access.ControlPlaneNamespace(""))
	keys := newSecrets(t)
	pair, err := tls.X509KeyPair(keys.cert, keys.key)
	if err != nil {
		t.Fatal(err)
	}
	begin := func() (*Control, int) {
		c := New(Config{Mesh: mesh.Settings{Cluster: "cluster1"}, Local: kube.Local{Config: config}, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
		run(t, c.Run)
		return c, serve(t, func(g *grpc.Server) { c.Server().Register(g) }, append(xds.Options(), grpc.Creds(credentials.NewServerTLSFromCert(&pair)))...)
	}
	c, port := begin()
	eventually(t, "ready without being allowed", c.Ready)
	about := mesh.Key{Cluster: "cluster1", Kind: mesh.KindGateway, Namespace: "sample", Name: "web"}
	complaint := func(c *Control) string {
		var all []string
		for _, f := range c.Findings()[about] {
			all = append(all, f.String())
		}
		return strings.Join(all, "\n")
	}
	eventually(t, "the complaint about both namespaces", func() bool {
		got := complaint(c)
		return strings.Contains(got, "spec.servers[0].tls.credentialName") && strings.Contains(got, "may not read Secrets of namespace edge") &&
			strings.Contains(got, "may not read Secrets of namespace other") && strings.Contains(got, "kubectl -n edge create role ") &&
			strings.Contains(got, "--serviceaccount=istio-system:istiod")
	})
	for _, st := range c.Clusters().Status() {
		if st.Status != kube.Synced || st.Message != "" {
			t.Errorf("what a namespace does not allow is told of the cluster: %+v", st)
		}
	}
	edge := subscribe(t, port, "edge", "gw-1", account(t, s, "edge", "default", "istio-ca", "gw-1"), "kubernetes://web")
	other := subscribe(t, port, "other", "gw-1", account(t, s, "other", "default", "istio-ca", "gw-1"), "kubernetes://web")

	read := []rbac.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "list", "watch"}}}
	allow(t, s, "edge", read)
	eventually(t, "the certificate", func() bool { return edge.get("kubernetes://web") == "one" })
	secret("edge", "two")
	eventually(t, "the rotated certificate", func() bool { return edge.get("kubernetes://web") == "two" })
	eventually(t, "a complaint about the other namespace only", func() bool {
		got := complaint(c)
		return !strings.Contains(got, "namespace edge") && strings.Contains(got, "may not read Secrets of namespace other")
	})
	allow(t, s, "other", read)
	eventually(t, "a complaint that there is no Secret", func() bool { return strings.Contains(complaint(c), "namespace other of the gateway has no Secret web") })
	if got := other.get("kubernetes://web"); got != "" {
		t.Errorf("namespace other has %q of namespace edge", got)
	}
	secret("other", "theirs")
	eventually(t, "each its own", func() bool {
		return other.get("kubernetes://web") == "theirs" && edge.get("kubernetes://web") == "two" &&
			!strings.Contains(complaint(c), "namespace") // that the texts of this test are not certificates is another matter
	})

	// Another replica has them before it is ready: no gateway is told that its certificate is gone.
	again, _ := begin()
	eventually(t, "the other replica is ready", func() bool {
		ready := again.Ready()
		if ready && again.Snapshot().Credential("edge", "web") == nil {
			t.Fatal("ready without the gateways' Secrets")
		}
		return ready
	})
	// A namespace without a gateway is read no more.
	if err := s.Client.CoreV1().Pods("other").Delete(t.Context(), "gw-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other namespace is forgotten", func() bool {
		return c.Snapshot().Credential("other", "web") == nil && c.Snapshot().Credential("edge", "web") != nil
	})
}
