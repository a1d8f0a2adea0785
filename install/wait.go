package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
)

// How long to wait until looking again, at first and at last.
const (
	shortest = 50 * time.Millisecond
	longest  = 250 * time.Millisecond
)

// wait returns when all objects do what they were made for, or with the reasons why they do not.
func (c *Cluster) wait(ctx context.Context, part string, objs []*unstructured.Unstructured, timeout time.Duration, progress func(string)) error {
	pause := shortest
	var reasons []string
	for {
		var left []*unstructured.Unstructured
		var now []string
		for _, o := range objs {
			reason, err := c.unready(ctx, o)
			if err != nil && ctx.Err() == nil && !transient(err) {
				return err
			}
			if err != nil {
				reason = err.Error()
			}
			if reason != "" {
				left = append(left, o)
				now = append(now, fmt.Sprintf("%s: %s", ref(o), reason))
			}
		}
		if len(left) == 0 {
			return nil
		}
		if ctx.Err() == nil {
			objs, reasons = left, now
			names := make([]string, len(left))
			for i, o := range left {
				names[i] = ref(o).String()
			}
			progress(fmt.Sprintf("Processing resources for %s. Waiting for %s", part, strings.Join(names, ", ")))
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%s did not become ready in %v: %s", part, timeout, strings.Join(reasons, "; "))
			}
			return ctx.Err()
		case <-time.After(pause):
			pause = min(2*pause, longest)
		}
	}
}

// transient tells errors that a busy or restarting API server gives from others.
func transient(err error) bool {
	return !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err)
}

// unready says why an object is not ready yet; "" if it is.
func (c *Cluster) unready(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	ns, name := o.GetNamespace(), o.GetName()
	switch o.GetKind() {
	case "CustomResourceDefinition":
		live, err := c.get(ctx, ref(o))
		if err != nil || live == nil {
			return "not there", err
		}
		return crdUnready(live), nil
	case "MutatingWebhookConfiguration":
		w, err := c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		for _, h := range w.Webhooks {
			if len(h.ClientConfig.CABundle) == 0 {
				return "the control plane has not filled in the caBundle of webhook " + h.Name, nil
			}
		}
		return "", nil
	case "Deployment":
		d, err := c.Kube.AppsV1().Deployments(ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return c.deploymentUnready(ctx, d)
	case "DaemonSet":
		d, err := c.Kube.AppsV1().DaemonSets(ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		s := d.Status
		if s.ObservedGeneration >= d.Generation && s.UpdatedNumberScheduled == s.DesiredNumberScheduled && s.NumberAvailable == s.DesiredNumberScheduled && s.DesiredNumberScheduled > 0 {
			return "", nil
		}
		why, err := c.podsReason(ctx, ns, d.Spec.Selector)
		return fmt.Sprintf("%d of %d pods are ready%s", s.NumberAvailable, s.DesiredNumberScheduled, why), err
	}
	return "", nil
}

func crdUnready(crd *unstructured.Unstructured) string {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, x := range conditions {
		cond, _ := x.(map[string]any)
		switch {
		case cond["type"] == "Established" && cond["status"] == "True":
			return ""
		case cond["type"] == "NamesAccepted" && cond["status"] == "False":
			return fmt.Sprint("its names are not accepted: ", cond["message"])
		}
	}
	return "not established"
}

func (c *Cluster) deploymentUnready(ctx context.Context, d *appsv1.Deployment) (string, error) {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	if s.ObservedGeneration >= d.Generation && s.UpdatedReplicas >= want && s.AvailableReplicas >= want && s.Replicas == s.UpdatedReplicas {
		return "", nil
	}
	for _, cond := range s.Conditions {
		if cond.Type == appsv1.DeploymentReplicaFailure && cond.Status == corev1.ConditionTrue {
			return "its pods are refused: " + cond.Message, nil
		}
	}
	why, err := c.podsReason(ctx, d.Namespace, d.Spec.Selector)
	return fmt.Sprintf("%d of %d pods are ready%s", s.AvailableReplicas, want, why), err
}

// podsReason finds, among the pods of a selector, one that says why it is not ready.
func (c *Cluster) podsReason(ctx context.Context, namespace string, sel *metav1.LabelSelector) (string, error) {
	pods, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(sel), Limit: 100})
	if err != nil {
		return "", err
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	for i := range pods.Items {
		p := &pods.Items[i]
		if why := podReason(p); why != "" {
			if strings.HasSuffix(why, "Creating") || strings.HasSuffix(why, "Initializing") {
				if e := c.warning(ctx, p); e != "" {
					why += ": " + e
				}
			}
			return fmt.Sprintf(" (pod %s: %s)", p.Name, why), nil
		}
	}
	return "", nil
}

// podReason says why a pod is not ready; "" if it is or is going.
func podReason(p *corev1.Pod) string {
	if p.DeletionTimestamp != nil {
		return ""
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			return "not scheduled: " + cond.Message
		}
	}
	running := ""
	for _, cs := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch w := cs.State.Waiting; {
		case w != nil && w.Reason == "CrashLoopBackOff":
			why := "container " + cs.Name + " ends again and again"
			if t := cs.LastTerminationState.Terminated; t != nil {
				why += fmt.Sprintf(", exit code %d", t.ExitCode)
				if t.Message != "" {
					why += ": " + strings.TrimSpace(t.Message)
				}
			}
			return why + fmt.Sprintf("; see: kubectl -n %s logs %s -c %s", p.Namespace, p.Name, cs.Name)
		case w != nil && w.Message != "":
			return fmt.Sprintf("container %s: %s: %s", cs.Name, w.Reason, w.Message)
		case w != nil:
			return fmt.Sprintf("container %s: %s", cs.Name, w.Reason)
		case cs.State.Running != nil && !cs.Ready && running == "":
			running = fmt.Sprintf("container %s runs but is not ready; see: kubectl -n %s logs %s -c %s", cs.Name, p.Namespace, p.Name, cs.Name)
		}
	}
	return running
}

// warning returns the newest warning event of a pod.
func (c *Cluster) warning(ctx context.Context, p *corev1.Pod) string {
	sel := fields.Set{"involvedObject.name": p.Name, "involvedObject.kind": "Pod", "type": "Warning"}.AsSelector().String()
	events, err := c.Kube.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{FieldSelector: sel, Limit: 50})
	if err != nil || len(events.Items) == 0 {
		return "" // it only helps; what is waited for is said without it
	}
	last := events.Items[0]
	for _, e := range events.Items[1:] {
		if e.LastTimestamp.After(last.LastTimestamp.Time) {
			last = e
		}
	}
	return last.Message
}
