package lb

import (
	"testing"

	authn "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/carrick-mesh/carrick/kube/kubetest"
)

// account is a program's clients, with the rights that it is installed with and no others.
type account struct {
	kube    kubernetes.Interface
	dynamic dynamic.Interface
}

// newAccount makes an account of the load balancer's namespace that may do what rules say, in the whole
// cluster and in that namespace.
func newAccount(t *testing.T, s *kubetest.Server, name string, everywhere, here []rbac.PolicyRule) account {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	meta := metav1.ObjectMeta{Name: name}
	subjects := []rbac.Subject{{Kind: "ServiceAccount", Namespace: namespace, Name: name}}
	ref := func(kind string) rbac.RoleRef {
		return rbac.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: kind, Name: name}
	}
	api, none := s.Client.RbacV1(), metav1.CreateOptions{}
	_, err := s.Client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: meta}, none)
	check(err)
	_, err = api.ClusterRoles().Create(t.Context(), &rbac.ClusterRole{ObjectMeta: meta, Rules: everywhere}, none)
	check(err)
	_, err = api.ClusterRoleBindings().Create(t.Context(), &rbac.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref("ClusterRole"), Subjects: subjects}, none)
	check(err)
	_, err = api.Roles(namespace).Create(t.Context(), &rbac.Role{ObjectMeta: meta, Rules: here}, none)
	check(err)
	_, err = api.RoleBindings(namespace).Create(t.Context(), &rbac.RoleBinding{ObjectMeta: meta, RoleRef: ref("Role"), Subjects: subjects}, none)
	check(err)
	token, err := s.Client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), name, &authn.TokenRequest{}, none)
	check(err)
	config := rest.AnonymousClientConfig(s.Config)
	config.BearerToken, config.QPS, config.Burst = token.Status.Token, 1000, 1000
	k, err := kubernetes.NewForConfig(config)
	check(err)
	d, err := dynamic.NewForConfig(config)
	check(err)
	return account{k, d}
}
