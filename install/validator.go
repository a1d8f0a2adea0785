package install

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"
)

// DefaultValidator is the ValidatingWebhookConfiguration of the control plane that validates the objects of all, as
// Istio names it.
const DefaultValidator = "istiod-default-validator"

// validatorName returns the name of the ValidatingWebhookConfiguration of a revision, as Istio names it.
func validatorName(revision, namespace string) string {
	return "istio-validator" + suffix(revision) + "-" + namespace
}

func validatorRef(name string) Ref {
	return Ref{"admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "", name}
}

// validator renders the webhook of a revision that validates the objects with its label or, as DefaultValidator, all
// objects. Until the control plane has seen that it is reached, objects pass unchecked; then it fills in the caBundle
// and the failure policy.
func validator(name, revision, namespace string, m metav1.ObjectMeta) *admissionv1.ValidatingWebhookConfiguration {
	hook := admissionv1.ValidatingWebhook{
		Name: "validation.istio.io",
		ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{
			Name: "istiod" + suffix(revision), Namespace: namespace, Path: ptr.To("/validate"), Port: ptr.To[int32](443),
		}},
		Rules: []admissionv1.RuleWithOperations{{
			Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
			Rule: admissionv1.Rule{
				APIGroups:   []string{"security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"},
				APIVersions: []string{"*"}, Resources: []string{"*"},
			},
		}},
		FailurePolicy:           ptr.To(admissionv1.Ignore),
		SideEffects:             ptr.To(admissionv1.SideEffectClassNone),
		AdmissionReviewVersions: []string{"v1"},
	}
	if name != DefaultValidator {
		hook.Name = "rev." + hook.Name
		hook.ObjectSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: revLabel, Operator: metav1.LabelSelectorOpIn, Values: []string{first(revision, DefaultRevision)}},
		}}
	}
	m.Name = name
	return &admissionv1.ValidatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "ValidatingWebhookConfiguration"},
		ObjectMeta: m, Webhooks: []admissionv1.ValidatingWebhook{hook},
	}
}

// defaultValidator renders the webhook by which a revision validates all objects.
func defaultValidator(revision, namespace string) (*unstructured.Unstructured, error) {
	v := validator(DefaultValidator, revision, namespace, meta("", "", "pilot", map[string]string{
		"app": "istiod", "istio": "istiod", revLabel: first(revision, DefaultRevision)}))
	o, err := object(v)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Name: ControlPlaneName(revision), Parts: []Part{{Name: "Validator", Objects: []*unstructured.Unstructured{o}}}}
	m.label() // it goes when its revision is uninstalled
	return o, nil
}

// keepPolicy gives a validating webhook the failure policy that it has in the cluster, as far as it calls the same
// Service: the control plane has chosen it.
func (c *Cluster) keepPolicy(ctx context.Context, o *unstructured.Unstructured) error {
	if o.GetKind() != "ValidatingWebhookConfiguration" {
		return nil
	}
	live, err := c.get(ctx, ref(o))
	if err != nil || live == nil {
		return err
	}
	hooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
	there, _, _ := unstructured.NestedSlice(live.Object, "webhooks")
	for i := range hooks {
		mine, ok := hooks[i].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: webhooks[%d] is not an object", ref(o), i)
		}
		for _, h := range there {
			theirs, _ := h.(map[string]any)
			a, _, _ := unstructured.NestedString(mine, "clientConfig", "service", "name")
			b, _, _ := unstructured.NestedString(theirs, "clientConfig", "service", "name")
			if theirs["name"] == mine["name"] && a == b && theirs["failurePolicy"] != nil {
				mine["failurePolicy"] = theirs["failurePolicy"]
			}
		}
	}
	return unstructured.SetNestedSlice(o.Object, hooks, "webhooks")
}
