package install

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"
)

// webhookConfig says which pods which control plane injects.
type webhookConfig struct {
	name               string
	service, namespace string // of the control plane
	selects            string // value of label istio.io/rev: a revision or a tag
	byDefault          bool   // of DefaultRevision: namespaces without any label, too
	meta               metav1.ObjectMeta
}

// injectorWebhook renders the four webhooks of the default revision, or the two of another. The
// control plane fills in the caBundle.
func injectorWebhook(w webhookConfig) *admissionv1.MutatingWebhookConfiguration {
	const ns, obj, rev = "istio-injection", "sidecar.istio.io/inject", revLabel
	absent := func(key string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}
	}
	in := func(key string, vs ...string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: vs}
	}
	notIn := func(key string, vs ...string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: vs}
	}
	sel := func(rs ...metav1.LabelSelectorRequirement) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: rs}
	}
	hook := func(name string, nsSel, objSel *metav1.LabelSelector) admissionv1.MutatingWebhook {
		return admissionv1.MutatingWebhook{
			Name: name,
			ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{
				Name: w.service, Namespace: w.namespace, Path: ptr.To("/inject"), Port: ptr.To[int32](443),
			}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
			FailurePolicy:           ptr.To(admissionv1.Fail),
			SideEffects:             ptr.To(admissionv1.SideEffectClassNone),
			AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector:       nsSel,
			ObjectSelector:          objSel,
		}
	}
	c := &admissionv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: w.meta,
		Webhooks: []admissionv1.MutatingWebhook{
			hook("rev.namespace.sidecar-injector.istio.io",
				sel(in(rev, w.selects), absent(ns)), sel(notIn(obj, "false"))),
			hook("rev.object.sidecar-injector.istio.io",
				sel(absent(rev), absent(ns)), sel(notIn(obj, "false"), in(rev, w.selects))),
		},
	}
	c.Name = w.name
	if suffix(w.selects) != "" {
		return c
	}
	c.Webhooks = append(c.Webhooks,
		hook("namespace.sidecar-injector.istio.io",
			sel(in(ns, "enabled")), sel(notIn(obj, "false"))),
		hook("object.sidecar-injector.istio.io",
			sel(absent(ns), absent(rev)), sel(in(obj, "true"), absent(rev))))
	if w.byDefault {
		c.Webhooks = append(c.Webhooks, hook("auto.sidecar-injector.istio.io",
			sel(absent(ns), absent(rev), notIn("kubernetes.io/metadata.name", "kube-system", "kube-public", "kube-node-lease", "local-path-storage")),
			sel(absent(obj), absent(rev))))
	}
	return c
}

// deactivate makes webhooks match nothing, with the label that Istio uses for it.
func deactivate(o *unstructured.Unstructured) {
	hooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
	for _, h := range hooks {
		if m, ok := h.(map[string]any); ok {
			for _, s := range []string{"namespaceSelector", "objectSelector"} {
				m[s] = map[string]any{"matchLabels": map[string]any{"istio.io/deactivated": "never-match"}}
			}
		}
	}
	o.Object["webhooks"] = hooks
}
