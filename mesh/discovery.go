package mesh

import (
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// discovered reports whether Services of a namespace of a cluster are hosts of the mesh: MeshConfig's
// discoverySelectors select it, or there are none. The namespaces of the control plane and of rules for the whole
// mesh always are.
func (s *Snapshot) discovered(cluster, namespace string) bool {
	selectors := s.config.Spec.GetDiscoverySelectors()
	if len(selectors) == 0 || namespace == s.settings.SystemNamespace || namespace == s.config.RootNamespace {
		return true
	}
	var labels map[string]string
	if ns := s.Namespace(cluster, namespace); ns != nil {
		labels = ns.Labels
	}
	return slices.ContainsFunc(selectors, func(x *meshconfig.LabelSelector) bool { return selectedBy(x, labels) })
}

func selectedBy(s *meshconfig.LabelSelector, labels map[string]string) bool {
	if !Selects(s.GetMatchLabels(), labels) {
		return false
	}
	for _, e := range s.GetMatchExpressions() {
		v, has := labels[e.GetKey()]
		in := has && slices.Contains(e.GetValues(), v)
		switch e.GetOperator() {
		case "In":
			if !in {
				return false
			}
		case "NotIn":
			if in {
				return false
			}
		case "Exists":
			if !has {
				return false
			}
		case "DoesNotExist":
			if has {
				return false
			}
		default: // which validation has found
			return false
		}
	}
	return true
}
