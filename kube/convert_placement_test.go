package kube

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/carrick-mesh/carrick/mesh"
)

// TestPlacement: what a Service says of where its endpoints are preferred, and of the nodes it is reached through.
func TestPlacement(t *testing.T) {
	annotated := func(kv ...string) metav1.ObjectMeta {
		m := metav1.ObjectMeta{Annotations: map[string]string{}}
		for i := 0; i < len(kv); i += 2 {
			m.Annotations[kv[i]] = kv[i+1]
		}
		return m
	}
	for name, tt := range map[string]struct {
		in   corev1.Service
		want mesh.Service
	}{
		"nothing": {corev1.Service{}, mesh.Service{}},
		"spec":    {corev1.Service{Spec: corev1.ServiceSpec{TrafficDistribution: new("PreferClose")}}, mesh.Service{Distribution: mesh.SameZone}},
		"spec, by annotation otherwise": {corev1.Service{ObjectMeta: annotated(distributionAnnotation, "PreferClose"),
			Spec: corev1.ServiceSpec{TrafficDistribution: new("PreferSameNode")}}, mesh.Service{Distribution: mesh.SameNode}},
		"annotation": {corev1.Service{ObjectMeta: annotated(distributionAnnotation, "prefersamezone")}, mesh.Service{Distribution: mesh.SameZone}},
		"unknown":    {corev1.Service{ObjectMeta: annotated(distributionAnnotation, "Any")}, mesh.Service{}},
		"local": {corev1.Service{Spec: corev1.ServiceSpec{InternalTrafficPolicy: new(corev1.ServiceInternalTrafficPolicyLocal)}},
			mesh.Service{NodeLocal: true}},
		"all nodes":  {corev1.Service{ObjectMeta: annotated(nodeSelectorAnnotation, "{}")}, mesh.Service{NodeSelector: map[string]string{}}},
		"some nodes": {corev1.Service{ObjectMeta: annotated(nodeSelectorAnnotation, `{"a": "b"}`)}, mesh.Service{NodeSelector: map[string]string{"a": "b"}}},
		"no JSON":    {corev1.Service{ObjectMeta: annotated(nodeSelectorAnnotation, "a=b")}, mesh.Service{}},
	} {
		got, _ := service("", &tt.in)
		got.Type = ""
		if !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("%s: %+v, want %+v", name, *got, tt.want)
		}
	}
	addresses := func(all ...corev1.NodeAddress) string {
		return node("", &corev1.Node{Status: corev1.NodeStatus{Addresses: all}}).Address
	}
	inside, outside := corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "192.0.2.1"}
	name := corev1.NodeAddress{Type: corev1.NodeHostName, Address: "n1"}
	if a := addresses(name, inside); a != "10.0.0.1" {
		t.Errorf("inside only: %q", a)
	}
	if a := addresses(outside, inside, name); a != "192.0.2.1" {
		t.Errorf("both: %q", a)
	}
	if a := addresses(name); a != "" {
		t.Errorf("a name only: %q", a)
	}
	if n := namespace("", &metav1.PartialObjectMetadata{ObjectMeta: annotated(distributionAnnotation, "PreferSameZone")}); n.Distribution != mesh.SameZone {
		t.Errorf("namespace: %+v", n)
	}
}
