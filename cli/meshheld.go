package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// held finds ReplicaSets whose pods the injector's webhook kept from being made, as while no control plane
// answered. Kubernetes tries again, but later each time, up to a quarter of an hour. The control plane
// does not do it itself: who may change every ReplicaSet may run any pod as any account.
func (a *app) held(ctx context.Context, m *member) (bad findings) {
	l, err := m.Kube.AppsV1().ReplicaSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		bad.add("%s: listing ReplicaSets: %s", m.context, oneLine(err))
		return bad
	}
	for i := range l.Items {
		if why := heldBy(&l.Items[i]); why != "" {
			rs := &l.Items[i]
			bad.add("%s: ReplicaSet %s/%s has %d of %d pods, for the injector did not answer when Kubernetes made them (%s), and it tries again after longer and longer; to have it try now: "+
				"kubectl --context=%[1]s -n %[2]s annotate replicaset %[3]s carrick.dev/again=\"$(date +%%s)\" --overwrite",
				m.context, rs.Namespace, rs.Name, rs.Status.Replicas, wanted(rs), why)
		}
	}
	return bad
}

func wanted(rs *appsv1.ReplicaSet) int32 {
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}

// heldBy returns why the injector's webhook keeps pods from being made, "" if it does not. A pod that the
// injector itself refuses, for an annotation, is its owner's to mend.
func heldBy(rs *appsv1.ReplicaSet) string {
	if rs.Status.Replicas >= wanted(rs) {
		return ""
	}
	i := slices.IndexFunc(rs.Status.Conditions, func(c appsv1.ReplicaSetCondition) bool {
		return c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue && c.Reason == "FailedCreate"
	})
	if i < 0 {
		return ""
	}
	message := rs.Status.Conditions[i].Message
	_, rest, ok := strings.Cut(message, "failed calling webhook ")
	if !ok || !strings.Contains(rest, "sidecar-injector.istio.io") {
		return ""
	}
	if _, after, ok := strings.Cut(rest, ": "); ok {
		rest = after
	}
	return fmt.Sprintf("%.200s", strings.TrimSpace(rest))
}
