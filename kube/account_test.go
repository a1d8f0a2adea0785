package kube

import (
	"log/slog"
	"testing"

	admission "k8s.io/api/admissionregistration/v1"
	authn "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/carrick-mesh/carrick/kube/kubetest"
	rights "github.com/carrick-mesh/carrick/schema/access"
)

// asControlPlane returns the configuration of the account istiod with the rights that it is installed with.
func asControlPlane(t *testing.T, s *kubetest.Server) *rest.Config {
	t.Helper()
	const name = "istiod"
	must(s.Client.CoreV1().ServiceAccounts("istio-system").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(t)
	meta := metav1.ObjectMeta{Name: name}
	subjects := []rbac.Subject{{Kind: "ServiceAccount", Namespace: "istio-system", Name: name}}
	ref := func(kind string) rbac.RoleRef {
		return rbac.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: kind, Name: name}
	}
	api := s.Client.RbacV1()
	must(api.ClusterRoles().Create(t.Context(), &rbac.ClusterRole{ObjectMeta: meta, Rules: rights.ControlPlane("", "istio-system")}, metav1.CreateOptions{}))(t)
	must(api.ClusterRoleBindings().Create(t.Context(), &rbac.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref("ClusterRole"), Subjects: subjects}, metav1.CreateOptions{}))(t)
	must(api.Roles("istio-system").Create(t.Context(), &rbac.Role{ObjectMeta: meta, Rules: rights.ControlPlaneNamespace("")}, metav1.CreateOptions{}))(t)
	must(api.RoleBindings("istio-system").Create(t.Context(), &rbac.RoleBinding{ObjectMeta: meta, RoleRef: ref("Role"), Subjects: subjects}, metav1.CreateOptions{}))(t)
	token := must(s.Client.CoreV1().ServiceAccounts("istio-system").CreateToken(t.Context(), name, &authn.TokenRequest{}, metav1.CreateOptions{}))(t)
	config := rest.AnonymousClientConfig(s.Config)
	config.BearerToken = token.Status.Token
	return config
}

// TestWriterAsItsAccount: what the installer grants is enough for what the control plane writes.
func TestWriterAsItsAccount(t *testing.T) {
	s := kubetest.Start(t)
	createNamespace(t, s, "istio-system", nil)
	createNamespace(t, s, "sample", nil)
	none := admission.SideEffectClassNone
	hooks := s.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	must(hooks.Create(t.Context(), &admission.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector"},
		Webhooks: []admission.MutatingWebhook{{Name: "x.sidecar-injector.istio.io", SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admission.WebhookClientConfig{Service: &admission.ServiceReference{Name: "istiod", Namespace: "istio-system"}}}},
	}, metav1.CreateOptions{}))(t)
	pem := root(t, newKey(t), "A") // the API server checks a caBundle
	w := NewWriter(must(Connect(asControlPlane(t, s)))(t), "c", "istio-system", "istiod-1", "", slog.New(slog.DiscardHandler))
	run(t, w.Run)
	data := func(name, key string) string {
		m, err := s.Client.CoreV1().ConfigMaps("sample").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return ""
		}
		return m.Data[key]
	}
	w.SetRoots(Trust{Roots: pem, Revoked: "one", Settled: true})
	eventually(t, "roots and lists", func() bool {
		return data(RootsConfigMap, RootsKey) == pem && data(RevokedConfigMap, RevokedKey) == "one"
	})
	eventually(t, "the caBundle", func() bool {
		return len(must(hooks.Get(t.Context(), "istio-sidecar-injector", metav1.GetOptions{}))(t).Webhooks[0].ClientConfig.CABundle) > 0
	})
	w.SetRoots(Trust{Roots: pem, Revoked: "two", Settled: true})
	eventually(t, "other lists", func() bool { return data(RevokedConfigMap, RevokedKey) == "two" })
	w.SetRoots(Trust{Roots: pem, Settled: true})
	eventually(t, "no lists", func() bool { return data(RevokedConfigMap, RevokedKey) == "" })
}
