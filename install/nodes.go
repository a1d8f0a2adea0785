package install

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Nodes returns how many nodes take pods that tolerate nothing, 0 if it cannot be known.
func (c *Cluster) Nodes(ctx context.Context) (n int) {
	l, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0
	}
	for i := range l.Items {
		if takesPods(&l.Items[i]) {
			n++
		}
	}
	return n
}

func takesPods(n *corev1.Node) bool {
	for _, t := range n.Spec.Taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule {
			return false
		}
	}
	return !n.Spec.Unschedulable
}
