package kube

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/carrick-mesh/carrick/mesh"
)

// DecodeCluster reads what a file says of a cluster, which users' objects refer to: a Service, a Secret of TLS, a Namespace,
// a Pod, or the Pod that a workload's template makes. Nil for anything else, and for what cannot be read.
func DecodeCluster(cluster string, u *unstructured.Unstructured) mesh.Object {
	into := func(o any) bool { return runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o) == nil }
	var template *corev1.PodTemplateSpec
	switch u.GroupVersionKind().GroupKind().String() {
	case "Service":
		s := &corev1.Service{}
		if !into(s) {
			return nil
		}
		o, _ := service(cluster, s)
		return o
	case "Secret":
		s := &corev1.Secret{}
		if !into(s) {
			return nil
		}
		for k, v := range s.StringData {
			if s.Data == nil {
				s.Data = map[string][]byte{}
			}
			s.Data[k] = []byte(v)
		}
		if c := credential(cluster, s); c != nil {
			return c
		}
		return nil
	case "Namespace":
		return namespace(cluster, &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: u.GetName(), Labels: u.GetLabels()}})
	case "Pod":
		p := &corev1.Pod{}
		if !into(p) {
			return nil
		}
		template = &corev1.PodTemplateSpec{ObjectMeta: p.ObjectMeta, Spec: p.Spec}
	case "Deployment.apps":
		d := &appsv1.Deployment{}
		if !into(d) {
			return nil
		}
		template = &d.Spec.Template
	case "StatefulSet.apps":
		s := &appsv1.StatefulSet{}
		if !into(s) {
			return nil
		}
		template = &s.Spec.Template
	case "DaemonSet.apps":
		d := &appsv1.DaemonSet{}
		if !into(d) {
			return nil
		}
		template = &d.Spec.Template
	default:
		return nil
	}
	p := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	p.Name, p.Namespace = u.GetName(), u.GetNamespace()
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "192.0.2.1"} // as if it ran
	if o := pod(cluster, p); o != nil {
		return o
	}
	return nil
}
