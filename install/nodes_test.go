package install

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// The control plane has two replicas where there are two nodes, unless a file says otherwise.
func TestReplicasByNodes(t *testing.T) {
	for _, tt := range []struct {
		sets     []string
		nodes    int
		replicas int64 // of the Deployment
		least    int64 // of the autoscaler; 0 without one
		spread   bool
	}{
		{nil, 1, 0, 1, false},
		{nil, 2, 0, 2, true},
		{nil, 5, 0, 2, true},
		{[]string{"profile=demo"}, 2, 2, 0, true},
		{[]string{"profile=demo"}, 0, 1, 0, false},
		{[]string{"profile=demo", "values.pilot.replicaCount=1"}, 2, 1, 0, true},
		{[]string{"components.pilot.k8s.hpaSpec.minReplicas=1"}, 2, 0, 1, true},
		{[]string{"values.pilot.autoscaleMin=3"}, 2, 0, 3, true},
	} {
		c := resolve(t, "", tt.sets...)
		c.OnNodes(tt.nodes)
		m, err := c.Render()
		if err != nil {
			t.Fatal(err)
		}
		var replicas, least int64
		var spread bool
		for _, o := range m.Objects() {
			if o.GetName() != "istiod" {
				continue
			}
			switch o.GetKind() {
			case "Deployment":
				replicas, _, _ = unstructured.NestedInt64(o.Object, "spec", "replicas")
				_, spread, _ = unstructured.NestedSlice(o.Object, "spec", "template", "spec", "topologySpreadConstraints")
			case "HorizontalPodAutoscaler":
				least, _, _ = unstructured.NestedInt64(o.Object, "spec", "minReplicas")
			}
		}
		if replicas != tt.replicas || least != tt.least || spread != tt.spread {
			t.Errorf("%v on %d nodes: %d replicas, at least %d, spread %v", tt.sets, tt.nodes, replicas, least, spread)
		}
	}
}

func TestNodesThatTakePods(t *testing.T) {
	for _, tt := range []struct {
		node corev1.NodeSpec
		want bool
	}{
		{corev1.NodeSpec{}, true},
		{corev1.NodeSpec{Unschedulable: true}, false},
		{corev1.NodeSpec{Taints: []corev1.Taint{{Key: "node-role.kubernetes.io/control-plane", Effect: corev1.TaintEffectNoSchedule}}}, false},
		{corev1.NodeSpec{Taints: []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectPreferNoSchedule}}}, true},
	} {
		if got := takesPods(&corev1.Node{Spec: tt.node}); got != tt.want {
			t.Errorf("%+v: %v", tt.node, got)
		}
	}
}
