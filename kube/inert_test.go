package kube

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	authn "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apischema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
	rights "github.com/carrick-mesh/carrick/schema/access"
)

var crdResource = apischema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// definition returns the CRD that a kind's own project publishes, nil if it is not on this machine:
// Gateway API's is in the module cache where the comparison with Istio was built, MCS' where the lab was.
func definition(k schema.Kind) []byte {
	if b, err := os.ReadFile("../install/crds/" + k.Plural + "." + k.Group + ".yaml"); err == nil {
		return b
	}
	for _, x := range []struct{ module, dir, usedBy string }{
		{"sigs.k8s.io/gateway-api", "config/crd/standard", "../tools/istio"}, {"sigs.k8s.io/mcs-api", "config/crd", "../lab"},
	} {
		list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", x.module)
		list.Dir = x.usedBy
		out, _ := list.Output()
		if at := strings.TrimSpace(string(out)); at != "" {
			if b, err := os.ReadFile(filepath.Join(at, x.dir, k.Group+"_"+k.Plural+".yaml")); err == nil {
				return b
			}
		}
	}
	return nil
}

// define makes the CRD of a kind: its own, else one that takes anything.
func define(t testing.TB, d dynamic.Interface, k schema.Kind) {
	t.Helper()
	u := &unstructured.Unstructured{}
	if b := definition(k); b != nil {
		if err := yaml.Unmarshal(b, &u.Object); err != nil {
			t.Fatal(err)
		}
	} else {
		t.Logf("the CRD of %s is not on this machine; one that takes anything stands for it", k.Name())
		scope := "Namespaced"
		if k.ClusterScoped {
			scope = "Cluster"
		}
		u = parse(t, fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[2]s.%[1]s, annotations: {api-approved.kubernetes.io: "unapproved, a test"}}
spec:
  group: %[1]s
  scope: %[4]s
  names: {kind: %[3]s, plural: %[2]s, singular: %[5]s, listKind: %[3]sList}
  versions:
  - {name: %[6]s, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`, k.Group, k.Plural, k.Kind, scope, strings.ToLower(k.Kind), k.Versions[0]))
	}
	must(d.Resource(crdResource).Create(t.Context(), u, metav1.CreateOptions{}))(t)
}

// toldOf is a mesh that is told of everything, and tells it.
type toldOf struct {
	mu   sync.Mutex
	snap *mesh.Snapshot
	w    *Writer
}

func (m *toldOf) sink() Sink {
	return Sink{Findings: func(mesh.Key, []mesh.Finding) {}, Events: func(es []mesh.Event) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.snap = m.snap.Apply(es...)
		all := map[mesh.Key][]mesh.Finding{}
		for _, f := range m.snap.WithoutEffect() {
			all[f.Object] = append(all[f.Object], f)
		}
		m.w.SetFindings(all)
	}}
}

func (m *toldOf) has(kind, name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.snap.WithoutEffect() {
		if f.Object.Kind == kind && f.Object.Name == name {
			return true
		}
	}
	return false
}

// Objects of kinds without effect are seen, told on themselves and by an event, whenever their CRDs
// come, and are forgotten when they or their CRDs go.
func TestObjectsWithoutEffect(t *testing.T) {
	s := kubetest.Start(t)
	createNamespace(t, s, "istio-system", nil)
	d := must(dynamic.NewForConfig(s.Config))(t)
	client := must(Connect(s.Config))(t)
	m := &toldOf{snap: mesh.New(mesh.Settings{Cluster: "c"}), w: NewWriter(client, "c", "istio-system", "istiod-1", "", slog.New(slog.DiscardHandler))}
	run(t, m.w.Run)
	define(t, d, kindOf("RequestAuthentication"))
	c := NewClusters(Local{ID: "c", Config: s.Config, Namespace: "istio-system"}, m.sink(), slog.New(slog.DiscardHandler))
	run(t, c.Run)
	eventually(t, "settled without most CRDs", c.Settled)

	create := func(kind, y string) dynamic.ResourceInterface {
		t.Helper()
		k := kindOf(kind)
		r := d.Resource(apischema.GroupVersionResource{Group: k.Group, Version: k.Versions[0], Resource: k.Plural})
		var ri dynamic.ResourceInterface = r
		if !k.ClusterScoped {
			ri = r.Namespace("default")
		}
		u := parse(t, y)
		u.SetAPIVersion(k.APIVersion())
		u.SetKind(k.Kind)
		eventually(t, kind+" "+u.GetName()+" is taken", func() bool {
			_, err := ri.Create(t.Context(), u, metav1.CreateOptions{})
			return err == nil
		})
		return ri
	}
	events := func(kind, name string) (n int) {
		for _, e := range must(s.Client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{}))(t).Items {
			if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == "NotImplemented" && e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, "has NO effect") {
				n++
			}
		}
		return n
	}
	text := func(r dynamic.ResourceInterface, name string) string {
		u, err := r.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return ""
		}
		b := must(yaml.Marshal(u.Object["status"]))(t)
		return string(b)
	}

	// CRDs that come while the control plane runs.
	gateway := "Gateway." + schema.GatewayAPI
	for _, kind := range []string{"AuthorizationPolicy", "GatewayClass", gateway, "HTTPRoute", "ServiceExport"} {
		define(t, d, kindOf(kind))
	}
	policies := create("AuthorizationPolicy", `{metadata: {name: deny}, spec: {action: DENY, rules: [{}]}}`)
	create("RequestAuthentication", `{metadata: {name: jwt}, spec: {jwtRules: [{issuer: x}]}}`)
	create("GatewayClass", `{metadata: {name: other}, spec: {controllerName: example.com/x}}`)
	gateways := create(gateway, `{metadata: {name: web}, spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}}`)
	create(gateway, `{metadata: {name: others}, spec: {gatewayClassName: other, listeners: [{name: http, port: 80, protocol: HTTP}]}}`)
	routes := create("HTTPRoute", `{metadata: {name: r}, spec: {parentRefs: [{name: others}, {name: web}]}}`)
	exports := create("ServiceExport", `{metadata: {name: svc}}`)
	must(s.Client.NetworkingV1().Ingresses("default").Create(t.Context(), &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "old"},
		Spec: networkingv1.IngressSpec{IngressClassName: ptr.To("istio"), DefaultBackend: &networkingv1.IngressBackend{
			Service: &networkingv1.IngressServiceBackend{Name: "a", Port: networkingv1.ServiceBackendPort{Number: 80}}}}}, metav1.CreateOptions{}))(t)
	for _, x := range []struct {
		kind, name string
		r          dynamic.ResourceInterface
		want       []string
	}{
		{"AuthorizationPolicy", "deny", policies, []string{"type: Reconciled", "reason: NotImplemented", "AuthorizationPolicy has NO effect in this version of Carrick"}},
		{gateway, "web", gateways, []string{"type: Accepted", "type: Programmed", `status: "False"`}},
		{"HTTPRoute", "r", routes, []string{"controllerName: istio.io/gateway-controller", "name: web", `status: "False"`}},
		{"ServiceExport", "svc", exports, []string{"type: Valid", `status: "False"`}},
		{"RequestAuthentication", "jwt", nil, nil},
		{"Ingress", "old", nil, nil},
	} {
		eventually(t, x.kind+" is seen", func() bool { return m.has(x.kind, x.name) })
		eventually(t, x.kind+" has an event", func() bool { return events(kindOf(x.kind).Kind, x.name) == 1 })
		if x.r == nil {
			continue
		}
		var got string
		eventually(t, x.kind+" is told", func() bool {
			got = text(x.r, x.name)
			for _, w := range x.want {
				if !strings.Contains(got, w) {
					return false
				}
			}
			return true
		})
	}
	if got := text(routes, "r"); strings.Contains(got, "name: others") {
		t.Errorf("the route's parent of another controller is told, too:\n%s", got)
	}
	if m.has(gateway, "others") || strings.Contains(text(gateways, "others"), "NotImplemented") {
		t.Errorf("another controller's Gateway is told: %s", text(gateways, "others"))
	}

	if err := policies.Delete(t.Context(), "deny", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the policy is forgotten", func() bool { return !m.has("AuthorizationPolicy", "deny") })
	if err := d.Resource(crdResource).Delete(t.Context(), "serviceexports."+schema.MultiCluster, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the export is forgotten with its CRD", func() bool { return !m.has("ServiceExport", "svc") })
	if got := statusOf(c, "c"); got.Status != Synced || got.Message != "" {
		t.Errorf("cluster: %+v", got)
	}
}

// An account that may read neither CRDs nor kinds without effect, as one of an older installation,
// holds nothing up; the cluster's status says what is missing, and it is seen when it is allowed.
func TestKindsThatMayNotBeRead(t *testing.T) {
	s := kubetest.Start(t)
	createNamespace(t, s, "istio-system", nil)
	d := must(dynamic.NewForConfig(s.Config))(t)
	for _, kind := range []string{"Gateway", "AuthorizationPolicy"} {
		define(t, d, kindOf(kind))
	}
	const name = "istiod"
	must(s.Client.CoreV1().ServiceAccounts("istio-system").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(t)
	role := &rbac.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: append(append(rights.Reader(), rights.ControlPlaneNamespace("")...),
		rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list", "watch"}},
		rbac.PolicyRule{APIGroups: []string{schema.Networking}, Resources: []string{"gateways"}, Verbs: []string{"get", "list", "watch"}})}
	role = must(s.Client.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}))(t)
	must(s.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbac.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:  rbac.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: name},
		Subjects: []rbac.Subject{{Kind: "ServiceAccount", Namespace: "istio-system", Name: name}}}, metav1.CreateOptions{}))(t)
	token := must(s.Client.CoreV1().ServiceAccounts("istio-system").CreateToken(t.Context(), name, &authn.TokenRequest{}, metav1.CreateOptions{}))(t)
	config := rest.AnonymousClientConfig(s.Config)
	config.BearerToken = token.Status.Token

	m := &toldOf{snap: mesh.New(mesh.Settings{Cluster: "c"}), w: NewWriter(must(Connect(s.Config))(t), "c", "istio-system", "istiod-1", "", slog.New(slog.DiscardHandler))}
	c := NewClusters(Local{ID: "c", Config: config, Namespace: "istio-system"}, m.sink(), slog.New(slog.DiscardHandler))
	run(t, c.Run)
	eventually(t, "settled, and told what may not be read", func() bool {
		got := statusOf(c, "c")
		return c.Settled() && got.Status == Synced && strings.Contains(got.Message, "watching authorizationpolicies.security.istio.io: ") && strings.Contains(got.Message, "forbidden")
	})
	k := kindOf("AuthorizationPolicy")
	policies := d.Resource(apischema.GroupVersionResource{Group: k.Group, Version: "v1", Resource: k.Plural}).Namespace("default")
	must(policies.Create(t.Context(), parse(t, `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: deny}, spec: {}}`), metav1.CreateOptions{}))(t)
	role.Rules = append(role.Rules, rbac.PolicyRule{APIGroups: []string{k.Group}, Resources: []string{k.Plural}, Verbs: []string{"get", "list", "watch"}})
	must(s.Client.RbacV1().ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{}))(t)
	eventually(t, "the policy is seen once it may be read", func() bool {
		return m.has(k.Kind, "deny") && !strings.Contains(statusOf(c, "c").Message, "authorizationpolicies")
	})
}
