package cli

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// Only what the injector's absence holds up is named: it needs a nudge, all else needs a change.
func TestHeldByTheInjector(t *testing.T) {
	rs := func(have int32, reason, message string) *appsv1.ReplicaSet {
		n := int32(2)
		return &appsv1.ReplicaSet{Spec: appsv1.ReplicaSetSpec{Replicas: &n}, Status: appsv1.ReplicaSetStatus{Replicas: have,
			Conditions: []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: reason, Message: message}}}}
	}
	const away = `Internal error occurred: failed calling webhook "namespace.sidecar-injector.istio.io": failed to call webhook: Post "https://istiod.istio-system.svc:443/inject?timeout=10s": dial tcp 10.96.0.7:443: connect: connection refused`
	for _, tt := range []struct {
		rs   *appsv1.ReplicaSet
		want string
	}{
		{rs(1, "FailedCreate", away), `failed to call webhook: Post "https://istiod.istio-system.svc:443/inject?timeout=10s": dial tcp 10.96.0.7:443: connect: connection refused`},
		{rs(2, "FailedCreate", away), ""},
		{rs(1, "FailedDelete", away), ""},
		{rs(1, "FailedCreate", `admission webhook "namespace.sidecar-injector.istio.io" denied the request: sidecar injection: annotation x`), ""},
		{rs(1, "FailedCreate", `failed calling webhook "policy.example.com": connection refused`), ""},
		{rs(1, "FailedCreate", `pods "a" is forbidden: exceeded quota`), ""},
	} {
		if got := heldBy(tt.rs); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.rs.Status, got, tt.want)
		}
	}
}
