package kube

import (
	rbac "k8s.io/api/rbac/v1"

	"github.com/carrick-mesh/carrick/schema"
)

// ReaderRules is what a control plane needs in the clusters of its remote secrets: ClusterRole
// istio-reader-clusterrole. No Secrets.
func ReaderRules() []rbac.PolicyRule {
	read := []string{"get", "list", "watch"}
	return []rbac.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"services", "pods", "nodes", "namespaces"}, Verbs: read},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
	}
}

// ReaderNamespaceRules is what it needs there in the control plane's namespace: Role istio-reader.
func ReaderNamespaceRules() []rbac.PolicyRule {
	return []rbac.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{RootsConfigMap}, Verbs: []string{"get"}}}
}

// ClusterRules is what the control plane needs in its own cluster beside ReaderRules: ClusterRole
// istiod-clusterrole.
func ClusterRules() []rbac.PolicyRule {
	return append(append(ReaderRules(), schema.Rules()...),
		rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list", "watch", "create"}}, // the roots into every namespace; create cannot be limited to a name
		rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{RootsConfigMap}, Verbs: []string{"update"}},
		rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
		rbac.PolicyRule{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"}, Verbs: []string{"get", "list", "watch", "patch"}},
	)
}

// NamespaceRules is what the control plane needs in its own namespace: Role istiod.
func NamespaceRules() []rbac.PolicyRule {
	return []rbac.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "list", "watch", "create"}}, // CA, remote secrets, gateways' certificates
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"get", "create", "update"}},
		{APIGroups: []string{"networking.istio.io"}, Resources: []string{"gateways"}, Verbs: []string{"create"}}, // dry runs, to see that the webhook is reached
	}
}
