package cli

import (
	"slices"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// alone checks objects of files by themselves and, as far as the files have what they refer to, against each other.
func alone(objects []*unstructured.Unstructured) []message {
	const cluster = "file"
	es, out := decode(objects, cluster)
	pods := false
	for _, u := range objects {
		o := kube.DecodeCluster(cluster, u)
		if o == nil {
			continue
		}
		es = append(es, mesh.Event{Object: o})
		pods = pods || o.Key().Kind == mesh.KindPod
		if svc := (&corev1.Service{}); u.GetKind() == "Service" && runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, svc) == nil {
			for _, m := range analyzePorts(svc) {
				m.Cluster = cluster
				out = append(out, m)
			}
		}
	}
	s := mesh.New(mesh.Settings{Cluster: cluster, Check: compile.Trial}).Apply(es...)
	found := slices.DeleteFunc(compile.Check(s, nil), func(f mesh.Finding) bool {
		return !pods && f.Object.Kind == mesh.KindGateway && f.Field == "spec.selector" // the files say nothing of pods
	})
	out = append(out, messages("Error", s.Findings())...)
	return append(out, messages("Warning", slices.Concat(s.WithoutEffect(), s.UnusedFields(), found))...)
}

// mild makes warnings of what one file may not have and a cluster may: an object that is only referred to.
func mild(all []message) []message {
	for i, m := range all {
		if m.Code == "IST0101" {
			all[i].Level = "Warning"
		}
	}
	return all
}
