package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	admission "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// AlwaysReject is the annotation of an object that Istio's validating webhooks refuse whatever it holds.
const AlwaysReject = "internal.istio.io/webhook-always-reject"

// Names of the ValidatingWebhookConfigurations: that of each revision, which validates objects with its label, and
// that of the default revision, which validates all.
const (
	validatorName    = "istio-validator"
	DefaultValidator = "istiod-default-validator"
)

// ValidatorName returns the name of the ValidatingWebhookConfiguration of a revision ("" is the default one) in the
// control plane's namespace.
func ValidatorName(revision, namespace string) string {
	if revision == "" || revision == "default" {
		return validatorName + "-" + namespace
	}
	return validatorName + "-" + revision + "-" + namespace
}

// writeValidators fills in the caBundle of this revision's validating webhooks, and makes them refuse what they cannot
// be asked about once the API server has been seen to reach them.
func (w *Writer) writeValidators(ctx context.Context, pem string, validators *followed) (failed bool) {
	bundle := plainPEM(pem)
	rev := w.revision
	if rev == "" {
		rev = "default"
	}
	for _, o := range validators.List() {
		h := o.(*admission.ValidatingWebhookConfiguration)
		if h.Name != ValidatorName(w.revision, w.namespace) && (h.Name != DefaultValidator || h.Labels["istio.io/rev"] != rev) {
			continue
		}
		bundled, open := true, false
		var patch []map[string]any
		for i, x := range h.Webhooks {
			s := x.ClientConfig.Service
			if s == nil || s.Namespace != w.namespace {
				continue
			}
			at := fmt.Sprintf("/webhooks/%d/", i)
			open = open || x.FailurePolicy != nil && *x.FailurePolicy != admission.Fail
			if string(x.ClientConfig.CABundle) != bundle {
				bundled = false
				patch = append(patch, map[string]any{"op": "test", "path": at + "name", "value": x.Name},
					map[string]any{"op": "add", "path": at + "clientConfig/caBundle", "value": []byte(bundle)})
			}
		}
		if bundled && open {
			if err := w.rejects(ctx); err != nil {
				w.log.Info("the validating webhook is not asked yet, so objects pass unchecked", "webhook", h.Name, "reason", err)
				failed = true // to look again soon
				continue
			}
			for i, x := range h.Webhooks {
				at := fmt.Sprintf("/webhooks/%d/", i)
				patch = append(patch, map[string]any{"op": "test", "path": at + "name", "value": x.Name},
					map[string]any{"op": "replace", "path": at + "failurePolicy", "value": admission.Fail})
			}
		}
		if patch == nil {
			continue
		}
		if err := w.patchValidator(ctx, h.Name, patch); err != nil && !apierrors.IsNotFound(err) {
			failed = w.failure(ctx, "validating webhook", h.Name, err)
		}
	}
	return failed
}

func (w *Writer) patchValidator(ctx context.Context, name string, patch []map[string]any) error {
	data, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = w.client.kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().Patch(ctx, name, types.JSONPatchType, data, metav1.PatchOptions{})
	return err
}

// rejects asks the API server, as a dry run, to take an object that the webhook refuses. It returns nil if the webhook
// has refused it.
func (w *Writer) rejects(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	rev := w.revision
	if rev == "" {
		rev = "default"
	}
	probe := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
		"metadata": map[string]any{"name": "carrick-validation-probe", "namespace": w.namespace,
			"labels": map[string]any{"istio.io/rev": rev}, "annotations": map[string]any{AlwaysReject: "true"}},
		"spec": map[string]any{"servers": []any{map[string]any{
			"port": map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}, "hosts": []any{"*"}}}},
	}}
	gateways := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}
	_, err := w.client.dynamic.Resource(gateways).Namespace(w.namespace).Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	switch {
	case err == nil:
		return fmt.Errorf("an object that is to be refused was accepted")
	case strings.Contains(err.Error(), "denied the request") && strings.Contains(err.Error(), AlwaysReject):
		return nil
	}
	return fmt.Errorf("a dry run failed for another reason: %w", err)
}
