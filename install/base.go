package install

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/carrick-mesh/carrick/schema"
)

// ReaderServiceAccount is whose token a remote secret holds.
const ReaderServiceAccount = "istio-reader-service-account"

// baseComponent is the component of what all control planes of a cluster share.
const baseComponent = "base"

var (
	read  = []string{"get", "list", "watch"}
	write = []string{"create", "update", "patch", "delete"}
)

// readerRules is what a control plane reads of every cluster, its own and remote ones. It holds
// no Secret.
func readerRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces", "nodes", "pods", "services"}, Verbs: read},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		// Proxies of this cluster may connect to a remote control plane.
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
	}
}

// readerNamespaceRules is what a remote control plane reads in the control plane's namespace: it
// compares roots.
func readerNamespaceRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"istio-ca-root-cert"}, Verbs: []string{"get"}}}
}

// controlPlaneRules is what a control plane does in its own cluster, beside reading. Secrets are
// not in it: see controlPlaneNamespaceRules.
func controlPlaneRules() []rbacv1.PolicyRule {
	return slices.Concat(readerRules(), schema.Rules(), []rbacv1.PolicyRule{
		// The root certificate goes to every namespace; create cannot be limited to a name.
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: append([]string{"create"}, read...)},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"istio-ca-root-cert", "istio-ca-crl"}, Verbs: []string{"update", "patch", "delete"}},
		{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch", "update"}},
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}, Verbs: append([]string{"update", "patch"}, read...)},
	})
}

// controlPlaneNamespaceRules is what a control plane does in its own namespace.
func controlPlaneNamespaceRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets", "configmaps"}, Verbs: append(slices.Clone(read), write...)},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: append(slices.Clone(read), write...)},
		{APIGroups: []string{"networking.istio.io"}, Resources: []string{"gateways"}, Verbs: []string{"create"}}, // dry runs, to see that the webhook is reached
	}
}

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
		clusterRole("istio-reader-clusterrole-"+c.Namespace, baseComponent, readerRules()),
		clusterRoleBinding("istio-reader-clusterrole-"+c.Namespace, c.Namespace, ReaderServiceAccount, baseComponent),
		role("istio-reader", c.Namespace, baseComponent, readerNamespaceRules()),
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
