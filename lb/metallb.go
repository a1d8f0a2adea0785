package lb

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// MetalLB returns where MetalLB itself runs in the cluster, "" if it does not: a Deployment
// or DaemonSet labelled as MetalLB's manifests and chart label theirs, with an image of
// MetalLB's. It works on the same Services and pools as Carrick's load balancer, so one of
// the two must not.
func MetalLB(ctx context.Context, k kubernetes.Interface) (string, error) {
	for _, selector := range []string{"app=metallb", "app.kubernetes.io/name=metallb"} {
		opts := metav1.ListOptions{LabelSelector: selector, Limit: 100}
		deployments, err := k.AppsV1().Deployments("").List(ctx, opts)
		if err != nil {
			return "", fmt.Errorf("looking for MetalLB: %w", err)
		}
		for _, d := range deployments.Items {
			if image := metalLBImage(d.Spec.Template.Spec); image != "" {
				return "Deployment " + d.Namespace + "/" + d.Name + " (" + image + ")", nil
			}
		}
		daemonSets, err := k.AppsV1().DaemonSets("").List(ctx, opts)
		if err != nil {
			return "", fmt.Errorf("looking for MetalLB: %w", err)
		}
		for _, d := range daemonSets.Items {
			if image := metalLBImage(d.Spec.Template.Spec); image != "" {
				return "DaemonSet " + d.Namespace + "/" + d.Name + " (" + image + ")", nil
			}
		}
	}
	return "", nil
}

// metalLBImage returns the image of a pod's container controller or speaker that does not
// run Carrick's program.
func metalLBImage(spec corev1.PodSpec) string {
	for _, c := range spec.Containers {
		if c.Name != "controller" && c.Name != "speaker" && c.Name != "metallb-controller" && c.Name != "metallb-speaker" {
			continue
		}
		if len(c.Command) > 0 && strings.HasSuffix(c.Command[0], "/carrick") {
			continue
		}
		return c.Image
	}
	return ""
}
