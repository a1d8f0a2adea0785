package install

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/carrick-mesh/carrick/schema/access"
)

// ReaderServiceAccount is whose token a remote secret holds.
const ReaderServiceAccount = "istio-reader-service-account"

// baseComponent is the component of what all control planes of a cluster share.
const baseComponent = "base"

// base renders what every control plane of the cluster shares.
func base(c *Config) ([]*unstructured.Unstructured, error) {
	objs, err := objects(namespace(c.Namespace, c.Network))
	if err != nil {
		return nil, err
	}
	crds, err := crdObjects(baseComponent)
	if err != nil {
		return nil, err
	}
	rest, err := objects(
		serviceAccount(c, ReaderServiceAccount, baseComponent, nil),
		clusterRole("istio-reader-clusterrole-"+c.Namespace, baseComponent, access.Reader()),
		clusterRoleBinding("istio-reader-clusterrole-"+c.Namespace, c.Namespace, ReaderServiceAccount, baseComponent),
		role("istio-reader", c.Namespace, baseComponent, access.ReaderNamespace()),
		roleBinding("istio-reader", c.Namespace, baseComponent, rbacv1.Subject{Kind: "ServiceAccount", Name: ReaderServiceAccount, Namespace: c.Namespace}),
	)
	return slices.Concat(objs, crds, rest), err
}

func namespace(name, network string) *corev1.Namespace {
	ns := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}}
	if network != "" {
		ns.Labels = map[string]string{"topology.istio.io/network": network}
	}
	return ns
}

func serviceAccount(c *Config, name, component string, labels map[string]string) *corev1.ServiceAccount {
	sa := &corev1.ServiceAccount{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: meta(name, c.Namespace, component, labels),
	}
	for _, s := range c.vals.Global.ImagePullSecrets {
		sa.ImagePullSecrets = append(sa.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
	}
	return sa
}

func meta(name, namespace, component string, labels map[string]string) metav1.ObjectMeta {
	l := map[string]string{ComponentLabel: component}
	for k, v := range labels {
		l[k] = v
	}
	return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: l}
}

const rbacGroup = "rbac.authorization.k8s.io"

func clusterRole(name, component string, rules []rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{
		TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole"},
		ObjectMeta: meta(name, "", component, nil),
		Rules:      rules,
	}
}

func clusterRoleBinding(role, namespace, account, component string) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRoleBinding"},
		ObjectMeta: meta(role, "", component, nil),
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: namespace}},
	}
}

func role(name, namespace, component string, rules []rbacv1.PolicyRule) *rbacv1.Role {
	return &rbacv1.Role{
		TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "Role"},
		ObjectMeta: meta(name, namespace, component, nil),
		Rules:      rules,
	}
}

func roleBinding(name, namespace, component string, accounts ...rbacv1.Subject) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "RoleBinding"},
		ObjectMeta: meta(name, namespace, component, nil),
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "Role", Name: name},
		Subjects:   accounts,
	}
}

// ApplyReader makes the service account that a remote secret needs, in a cluster without a
// control plane of its own.
func (c *Cluster) ApplyReader(ctx context.Context, namespace string) error {
	cfg := &Config{Namespace: namespace, vals: &values{}}
	m := &Manifest{Name: "reader", Namespace: namespace}
	objs, err := base(cfg)
	if err != nil {
		return err
	}
	m.Parts = []Part{{Name: "Reader", Objects: objs}}
	m.label()
	for _, o := range objs {
		if o.GetKind() == "CustomResourceDefinition" {
			continue
		}
		if _, err := c.apply(ctx, o, false); err != nil {
			return err
		}
	}
	return nil
}
