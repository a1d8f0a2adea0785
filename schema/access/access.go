// Package access lists what each account asks of the API server, in one place: the programs that run as
// these accounts keep to it, the installer grants it, and nothing else.
package access

import (
	rbac "k8s.io/api/rbac/v1"

	"github.com/carrick-mesh/carrick/schema"
)

// ConfigMaps that the control plane writes to every namespace.
const (
	RootsConfigMap   = "istio-ca-root-cert"
	RevokedConfigMap = "istio-ca-crl"
)

func rule(group string, verbs []string, resources ...string) rbac.PolicyRule {
	return rbac.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
}

func named(r rbac.PolicyRule, names ...string) rbac.PolicyRule {
	r.ResourceNames = names
	return r
}

func verbs(v ...string) []string { return v }

const (
	core         = ""
	apps         = "apps"
	discovery    = "discovery.k8s.io"
	coordination = "coordination.k8s.io"
	admission    = "admissionregistration.k8s.io"
	metalLB      = "metallb.io"
)

var follow = verbs("list", "watch")

// Reader is what a control plane asks of every cluster, its own and those of its remote secrets:
// ClusterRole istio-reader-clusterrole. It holds no Secret.
func Reader() []rbac.PolicyRule {
	return []rbac.PolicyRule{
		rule(core, follow, "namespaces", "nodes", "pods", "services"),
		rule(discovery, follow, "endpointslices"),
		// Proxies of that cluster may connect to this control plane.
		rule("authentication.k8s.io", verbs("create"), "tokenreviews"),
	}
}

// ReaderNamespace is what it asks there of the control plane's namespace, to compare roots: Role
// istio-reader.
func ReaderNamespace() []rbac.PolicyRule {
	return []rbac.PolicyRule{named(rule(core, verbs("get"), "configmaps"), RootsConfigMap)}
}

// ControlPlane is what the control plane of a revision asks of its own cluster: ClusterRole
// istiod-clusterrole. Suffix is "-REVISION", or empty for the default one. What creates cannot be
// limited to a name. Tags of the revision have roles of their own: see TagWebhook.
func ControlPlane(suffix, namespace string) []rbac.PolicyRule {
	both := verbs("list", "watch", "update")
	return append(append(Reader(), schema.Rules()...),
		rule(core, verbs("create"), "configmaps"),
		named(rule(core, both, "configmaps"), RootsConfigMap, RevokedConfigMap),
		named(rule(core, verbs("delete"), "configmaps"), RevokedConfigMap),
		rule(core, verbs("create", "patch"), "events"),
		rule(admission, follow, "mutatingwebhookconfigurations", "validatingwebhookconfigurations"),
		named(rule(admission, verbs("patch"), "mutatingwebhookconfigurations"), "istio-sidecar-injector"+suffix, "istio-revision-tag-default"),
		named(rule(admission, verbs("patch"), "validatingwebhookconfigurations"), "istio-validator"+suffix+"-"+namespace, "istiod-default-validator"),
	)
}

// TagWebhook is what the control plane asks for the webhook of one of its tags: the caBundle is its own.
func TagWebhook(name string) []rbac.PolicyRule {
	return []rbac.PolicyRule{named(rule(admission, verbs("patch"), "mutatingwebhookconfigurations"), name)}
}

// ControlPlaneNamespace is what the control plane asks of its own namespace: Role istiod.
func ControlPlaneNamespace(suffix string) []rbac.PolicyRule {
	return []rbac.PolicyRule{
		// The CA, remote secrets and gateways' certificates, whose names are users'. It makes its CA once.
		rule(core, verbs("get", "list", "watch", "create"), "secrets"),
		named(rule(core, verbs("get", "list", "watch"), "configmaps"), "istio"+suffix, "istio-sidecar-injector"+suffix, RootsConfigMap),
		rule(coordination, verbs("create"), "leases"),
		named(rule(coordination, verbs("get", "update"), "leases"), "istio-namespace-controller-election", "istio-leader"+suffix),
		rule(schema.Networking, verbs("create"), "gateways"), // dry runs, to see that the validating webhook is reached
	}
}

// GatewayNamespace is what the control plane asks of another namespace with gateways, which serve with
// the certificates there: Role GATEWAY-sds. The gateway's own account may do nothing at all.
func GatewayNamespace() []rbac.PolicyRule { return []rbac.PolicyRule{rule(core, follow, "secrets")} }

// Controller is what the load balancer's controller asks of the cluster: ClusterRole
// metallb-system:controller. The mark on a Service is written with its status.
func Controller() []rbac.PolicyRule {
	return []rbac.PolicyRule{
		rule(core, follow, "services", "namespaces"),
		rule(core, verbs("patch"), "services/status"),
		rule(core, verbs("create", "patch"), "events"),
		rule(apps, verbs("list"), "deployments", "daemonsets"), // is MetalLB itself here?
	}
}

// ControllerNamespace is what the controller asks of its namespace: Role lb-controller.
func ControllerNamespace() []rbac.PolicyRule {
	return []rbac.PolicyRule{
		rule(metalLB, follow, "ipaddresspools"),
		rule(metalLB, verbs("patch"), "ipaddresspools/status"),
		rule(coordination, verbs("create"), "leases"),
		named(rule(coordination, verbs("get", "update"), "leases"), "carrick-lb-controller"),
		named(rule(coordination, verbs("get", "patch"), "leases"), "carrick-lb-addresses"),
	}
}

// Speaker is what the load balancer's speakers ask of the cluster: ClusterRole metallb-system:speaker.
func Speaker() []rbac.PolicyRule {
	return []rbac.PolicyRule{
		rule(core, follow, "services", "nodes"),
		rule(discovery, follow, "endpointslices"),
		rule(core, verbs("create", "patch"), "events"),
		rule(apps, verbs("list"), "deployments", "daemonsets"),
	}
}

// SpeakerNamespace is what the speakers ask of their namespace: Role lb-speaker. Each has a Lease of its
// node's name, which is not known when the role is made.
func SpeakerNamespace() []rbac.PolicyRule {
	return []rbac.PolicyRule{
		rule(metalLB, follow, "ipaddresspools", "l2advertisements"),
		rule(coordination, verbs("create", "delete", "list", "patch", "watch"), "leases"),
	}
}
