package kube

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authn "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbac "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/mesh"
	rights "github.com/carrick-mesh/carrick/schema/access"
)

const patience = 30 * time.Second

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// seen is a sink that keeps what it is told.
type seen struct {
	mu       sync.Mutex
	objects  map[mesh.Key]mesh.Object
	gone     []mesh.Key // in order
	findings map[mesh.Key][]mesh.Finding
}

func newSeen() *seen {
	return &seen{objects: map[mesh.Key]mesh.Object{}, findings: map[mesh.Key][]mesh.Finding{}}
}

func (s *seen) sink() Sink {
	return Sink{
		Events: func(es []mesh.Event) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, e := range es {
				k := e.About()
				if e.Object != nil {
					s.objects[k] = e.Object
					continue
				}
				s.gone = append(s.gone, k)
				delete(s.objects, k)
				if k.Kind == mesh.KindCluster {
					for o := range s.objects {
						if o.Cluster == k.Cluster {
							delete(s.objects, o)
						}
					}
				}
			}
		},
		Findings: func(k mesh.Key, fs []mesh.Finding) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.findings[k] = fs; len(fs) == 0 {
				delete(s.findings, k)
			}
		},
	}
}

func (s *seen) get(k mesh.Key) mesh.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[k]
}

func (s *seen) has(k mesh.Key) func() bool { return func() bool { return s.get(k) != nil } }

func (s *seen) found(k mesh.Key) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, f := range s.findings[k] {
		all = append(all, f.String())
	}
	return strings.Join(all, "\n")
}

func run(t *testing.T, f func(context.Context) error) {
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

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func createNamespace(t testing.TB, s *kubetest.Server, name string, labels map[string]string) {
	t.Helper()
	_, err := s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// workloadOf makes a Service, a Pod and an EndpointSlice as the controllers would.
func workloadOf(t testing.TB, s *kubetest.Server, ns, name, ip string) {
	t.Helper()
	ctx := t.Context()
	must(s.Client.CoreV1().Services(ns).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Port: 5000}}}}, metav1.CreateOptions{}))(t)
	p := must(s.Client.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name + "-1", Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{ServiceAccountName: name, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{}))(t)
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	must(s.Client.CoreV1().Pods(ns).UpdateStatus(ctx, p, metav1.UpdateOptions{}))(t)
	must(s.Client.DiscoveryV1().EndpointSlices(ns).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{ip}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: name + "-1", Namespace: ns}}},
		Ports:     []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](5000)}}}, metav1.CreateOptions{}))(t)
}

// reader makes the account that a remote secret is for and returns a token of it.
func reader(t testing.TB, s *kubetest.Server) string {
	t.Helper()
	ctx := t.Context()
	const ns, name = "istio-system", "istio-reader-service-account"
	if _, err := s.Client.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	role := &rbac.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "istio-reader-clusterrole"}, Rules: rights.Reader()}
	if _, err := s.Client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	bind := &rbac.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "istio-reader-clusterrole"},
		RoleRef:  rbac.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: role.Name},
		Subjects: []rbac.Subject{{Kind: "ServiceAccount", Namespace: ns, Name: name}}}
	if _, err := s.Client.RbacV1().ClusterRoleBindings().Create(ctx, bind, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	r := must(s.Client.CoreV1().ServiceAccounts(ns).CreateToken(ctx, name, &authn.TokenRequest{Spec: authn.TokenRequestSpec{}}, metav1.CreateOptions{}))(t)
	return r.Status.Token
}

func kubeconfig(name, server, ca, token string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster: {server: %[2]q, certificate-authority-data: %[3]s}
users:
- name: %[1]s
  user: {token: %[4]s}
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[1]s}
current-context: %[1]s
`, name, server, base64.StdEncoding.EncodeToString([]byte(ca)), token)
}

func remoteSecret(t testing.TB, s *kubetest.Server, name string, data map[string]string) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"istio/multiCluster": "true"}}, StringData: data}
	_, err := s.Client.CoreV1().Secrets("istio-system").Create(t.Context(), secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = s.Client.CoreV1().Secrets("istio-system").Update(t.Context(), secret, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func statusOf(c *Clusters, id string) ClusterStatus {
	for _, s := range c.Status() {
		if s.ID == id {
			return s
		}
	}
	return ClusterStatus{}
}

func TestClusters(t *testing.T) {
	if kubetest.Program() == "" {
		kubetest.Start(t) // skips
	}
	one, two := kubetest.Start(t), kubetest.Start(t)
	for _, s := range []*kubetest.Server{one, two} {
		createNamespace(t, s, "istio-system", map[string]string{"topology.istio.io/network": "net"})
		createNamespace(t, s, "sample", nil)
	}
	workloadOf(t, one, "sample", "hello", "10.0.0.1")
	workloadOf(t, two, "sample", "hello", "10.0.0.2")
	s := newSeen()
	c := NewClusters(Local{ID: "cluster1", Config: one.Config, Namespace: "istio-system"}, s.sink(), slog.New(slog.DiscardHandler))
	run(t, c.Run)

	endpoint := func(cluster string) mesh.Key {
		return mesh.Key{Cluster: cluster, Kind: mesh.KindEndpointSlice, Namespace: "sample", Name: "hello-x"}
	}
	eventually(t, "own endpoints", s.has(endpoint("cluster1")))
	if got := s.get(endpoint("cluster1")).(*mesh.EndpointSlice); got.Endpoints[0].Pod != "hello-1" || !got.Endpoints[0].Ready || got.Ports[0].Number != 5000 {
		t.Errorf("slice %+v", got)
	}
	if p, _ := s.get(mesh.Key{Cluster: "cluster1", Kind: mesh.KindPod, Namespace: "sample", Name: "hello-1"}).(*mesh.Pod); p == nil || !p.Ready || p.ServiceAccount != "hello" {
		t.Errorf("pod %+v", p)
	}
	if n, _ := s.get(mesh.Key{Cluster: "cluster1", Kind: mesh.KindNamespace, Name: "istio-system"}).(*mesh.Namespace); n == nil || n.Labels["topology.istio.io/network"] != "net" {
		t.Errorf("namespace %+v", n)
	}

	// Wrong ones, of each kind, while the rest goes on.
	ca := string(two.Config.CAData)
	token := reader(t, two)
	secret := mesh.Key{Cluster: "cluster1", Kind: "Secret", Namespace: "istio-system", Name: "istio-remote-secret-cluster2"}
	for _, bad := range []struct{ what, config, want string }{
		{"token", kubeconfig("cluster2", two.Config.Host, ca, "nonsense"), "Unauthorized"},
		{"CA", kubeconfig("cluster2", two.Config.Host, string(one.Config.CAData), token), "x509"},
		{"server", kubeconfig("cluster2", "https://127.0.0.1:1", ca, token), "is a loopback address"},
		{"program", strings.Replace(kubeconfig("cluster2", two.Config.Host, ca, token), "user: {", "user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true, interactiveMode: Never}, ", 1), "exec"},
		{"syntax", "{", "reading the kubeconfig"},
	} {
		remoteSecret(t, one, secret.Name, map[string]string{"cluster2": bad.config})
		eventually(t, "status of wrong "+bad.what, func() bool {
			st := statusOf(c, "cluster2")
			return st.Status == Failed && strings.Contains(st.Message, bad.want) && strings.Contains(s.found(secret), bad.want)
		})
	}
	if !c.Settled() {
		t.Error("a wrong remote secret keeps the rest from being settled")
	}
	// The right one.
	remoteSecret(t, one, secret.Name, map[string]string{"cluster2": kubeconfig("cluster2", two.Config.Host, ca, token)})
	eventually(t, "endpoints of cluster2", s.has(endpoint("cluster2")))
	eventually(t, "synced", func() bool { return statusOf(c, "cluster2").Status == Synced && s.found(secret) == "" })

	// Rotated: nothing is lost. Rotated to nonsense: the old one stays, and it says so.
	s.mu.Lock()
	s.gone = nil
	s.mu.Unlock()
	for range 3 {
		remoteSecret(t, one, secret.Name, map[string]string{"cluster2": kubeconfig("cluster2", two.Config.Host, ca, reader(t, two))})
	}
	remoteSecret(t, one, secret.Name, map[string]string{"cluster2": kubeconfig("cluster2", two.Config.Host, ca, "wrong")})
	eventually(t, "complaint about the new credentials", func() bool {
		return strings.Contains(statusOf(c, "cluster2").Message, "old ones stay in use")
	})
	workloadOf(t, two, "sample", "later", "10.0.0.3")
	eventually(t, "the old credentials at work", s.has(mesh.Key{Cluster: "cluster2", Kind: mesh.KindPod, Namespace: "sample", Name: "later-1"}))
	remoteSecret(t, one, secret.Name, map[string]string{"cluster2": kubeconfig("cluster2", two.Config.Host, ca, token)})
	eventually(t, "synced again", func() bool { return statusOf(c, "cluster2").Status == Synced })
	s.mu.Lock()
	if len(s.gone) > 0 {
		t.Errorf("rotation lost %v", s.gone)
	}
	s.mu.Unlock()

	// Dead: its rows stay, marked. Alive again: what changed meanwhile is seen.
	two.Kill()
	eventually(t, "stale", func() bool {
		k, _ := s.get(mesh.Key{Cluster: "cluster2", Kind: mesh.KindCluster, Name: "cluster2"}).(*mesh.Cluster)
		return k != nil && k.Stale && statusOf(c, "cluster2").Status == Stale
	})
	if s.get(endpoint("cluster2")) == nil || !c.Settled() {
		t.Error("a dead API server takes its endpoints along, or holds the rest up")
	}
	two.Resume()
	must(two.Client.DiscoveryV1().EndpointSlices("sample").Get(t.Context(), "later-x", metav1.GetOptions{}))(t)
	if err := two.Client.DiscoveryV1().EndpointSlices("sample").Delete(t.Context(), "later-x", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "deletion seen after the restart", func() bool {
		return s.get(mesh.Key{Cluster: "cluster2", Kind: mesh.KindEndpointSlice, Namespace: "sample", Name: "later-x"}) == nil && statusOf(c, "cluster2").Status == Synced
	})

	// Tokens are looked at by the API server that they are from.
	pod := must(two.Client.CoreV1().Pods("sample").Get(t.Context(), "hello-1", metav1.GetOptions{}))(t)
	must(two.Client.CoreV1().ServiceAccounts("sample").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "hello"}}, metav1.CreateOptions{}))(t)
	bound := must(two.Client.CoreV1().ServiceAccounts("sample").CreateToken(t.Context(), "hello", &authn.TokenRequest{Spec: authn.TokenRequestSpec{
		Audiences: []string{"istio-ca"}, BoundObjectRef: &authn.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}}}, metav1.CreateOptions{}))(t).Status.Token
	who, err := c.Review(t.Context(), "cluster2", bound, "istio-ca")
	if err != nil || who != (Caller{"cluster2", "sample", "hello", "hello-1"}) {
		t.Errorf("review: %+v, %v", who, err)
	}
	for _, k := range []string{"cluster1", "Kubernetes", ""} {
		if _, err := c.Review(t.Context(), k, bound, "istio-ca"); err == nil {
			t.Errorf("cluster %q accepts a token of cluster2", k)
		}
	}
	if _, err := c.Review(t.Context(), "cluster2", bound, "another"); err == nil {
		t.Error("the audience does not count")
	}

	// Two secrets for one cluster, and one for ourselves.
	remoteSecret(t, one, "zz-second", map[string]string{"cluster2": "x", "cluster1": "y"})
	second := secret
	second.Name = "zz-second"
	eventually(t, "clashes", func() bool {
		f := s.found(second)
		return strings.Contains(f, "named by secret istio-remote-secret-cluster2 already") && strings.Contains(f, "own name")
	})
	if err := one.Client.CoreV1().Secrets("istio-system").Delete(t.Context(), "zz-second", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := one.Client.CoreV1().Secrets("istio-system").Delete(t.Context(), secret.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "cluster2 gone", func() bool {
		return s.get(endpoint("cluster2")) == nil && len(c.Status()) == 1 && s.found(second) == ""
	})
	if s.get(endpoint("cluster1")) == nil {
		t.Error("cluster1 went along")
	}
}

func applyCRDs(t testing.TB, s *kubetest.Server) {
	t.Helper()
	files := must(filepath.Glob("../install/crds/*.yaml"))(t)
	d := must(dynamic.NewForConfig(s.Config))(t)
	n := 0
	for _, f := range files {
		for _, doc := range strings.Split(string(must(os.ReadFile(f))(t)), "\n---") {
			var u unstructured.Unstructured
			if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
				t.Fatal(err)
			}
			if u.GetKind() != "CustomResourceDefinition" || !slices.Contains([]string{"Gateway", "VirtualService", "DestinationRule", "PeerAuthentication"}, kindIn(u)) {
				continue
			}
			n++
			must(d.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}).Create(t.Context(), &u, metav1.CreateOptions{}))(t)
		}
	}
	if n != 4 {
		t.Fatalf("%d CRDs in %v, want 4", n, files)
	}
}

func kindIn(u unstructured.Unstructured) string {
	k, _, _ := unstructured.NestedString(u.Object, "spec", "names", "kind")
	return k
}

func TestConfigThatComesLater(t *testing.T) {
	one := kubetest.Start(t)
	createNamespace(t, one, "istio-system", nil)
	s := newSeen()
	var maps sync.Map
	c := NewClusters(Local{ID: "cluster1", Config: one.Config, Namespace: "istio-system",
		ConfigMap: func(n string, d map[string]string) { maps.Store(n, d["key"]) }}, s.sink(), slog.New(slog.DiscardHandler))
	run(t, c.Run)
	eventually(t, "settled without CRDs", c.Settled)
	applyCRDs(t, one)
	d := must(dynamic.NewForConfig(one.Config))(t)
	vs := d.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1alpha3", Resource: "virtualservices"}).Namespace("default")
	object := func(y string) *unstructured.Unstructured {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(y), &u.Object); err != nil {
			t.Fatal(err)
		}
		return u
	}
	create := func(y string) func() bool {
		return func() bool {
			_, err := vs.Create(t.Context(), object(y), metav1.CreateOptions{})
			return err == nil || apierrors.IsAlreadyExists(err)
		}
	}
	eventually(t, "a VirtualService is taken", create(`
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: good}
spec: {hosts: [a], http: [{route: [{destination: {host: a}}], timeout: 3s}]}
`))
	key := mesh.Key{Cluster: "cluster1", Kind: mesh.KindVirtualService, Namespace: "default", Name: "good"}
	eventually(t, "it is seen", s.has(key))
	if got := s.get(key).(*mesh.VirtualService); got.Spec.Http[0].Timeout.AsDuration() != 3*time.Second {
		t.Errorf("spec %v", got.Spec)
	}
	// ConfigMap istio: read, wrong, read again.
	cm := func(mesh string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"}, Data: map[string]string{"mesh": mesh, "meshNetworks": "networks: {}", "key": "v"}}
	}
	must(one.Client.CoreV1().ConfigMaps("istio-system").Create(t.Context(), cm("accessLogFile: /dev/stdout"), metav1.CreateOptions{}))(t)
	conf := func(want string) func() bool {
		return func() bool {
			m, _ := s.get(mesh.Key{Cluster: "cluster1", Kind: mesh.KindMeshConfig}).(*mesh.MeshConfig)
			return m != nil && m.Spec.AccessLogFile == want
		}
	}
	eventually(t, "the access log", conf("/dev/stdout"))
	about := mesh.Key{Cluster: "cluster1", Kind: "ConfigMap", Namespace: "istio-system", Name: "istio"}
	must(one.Client.CoreV1().ConfigMaps("istio-system").Update(t.Context(), cm("accessLogFile: [1]"), metav1.UpdateOptions{}))(t)
	eventually(t, "the complaint", func() bool { return strings.Contains(s.found(about), "accessLogFile") })
	eventually(t, "the field that is unread", func() bool {
		m, _ := s.get(mesh.Key{Cluster: "cluster1", Kind: mesh.KindMeshConfig}).(*mesh.MeshConfig)
		return m != nil && slices.Equal(m.Unread, []string{"accessLogFile"})
	})
	must(one.Client.CoreV1().ConfigMaps("istio-system").Update(t.Context(), cm("accessLogFile: /tmp/x"), metav1.UpdateOptions{}))(t)
	eventually(t, "the new settings", conf("/tmp/x"))
	eventually(t, "no complaint", func() bool { return s.found(about) == "" })
	if v, _ := maps.Load("istio"); v != "v" {
		t.Errorf("ConfigMap was not shown: %v", v)
	}
	if err := vs.Delete(t.Context(), "good", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its deletion", func() bool { return s.get(key) == nil })
}
