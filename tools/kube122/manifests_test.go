package kube122

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// kinds makes an empty object of each kind that may be installed.
var kinds = map[string]func() any{
	"v1 Namespace":                                                   func() any { return &corev1.Namespace{} },
	"v1 ServiceAccount":                                              func() any { return &corev1.ServiceAccount{} },
	"v1 Service":                                                     func() any { return &corev1.Service{} },
	"v1 ConfigMap":                                                   func() any { return &corev1.ConfigMap{} },
	"apps/v1 Deployment":                                             func() any { return &appsv1.Deployment{} },
	"apps/v1 DaemonSet":                                              func() any { return &appsv1.DaemonSet{} },
	"policy/v1 PodDisruptionBudget":                                  func() any { return &policyv1.PodDisruptionBudget{} },
	"autoscaling/v1 HorizontalPodAutoscaler":                         func() any { return &autoscalingv1.HorizontalPodAutoscaler{} },
	"rbac.authorization.k8s.io/v1 Role":                              func() any { return &rbacv1.Role{} },
	"rbac.authorization.k8s.io/v1 RoleBinding":                       func() any { return &rbacv1.RoleBinding{} },
	"rbac.authorization.k8s.io/v1 ClusterRole":                       func() any { return &rbacv1.ClusterRole{} },
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding":                func() any { return &rbacv1.ClusterRoleBinding{} },
	"admissionregistration.k8s.io/v1 MutatingWebhookConfiguration":   func() any { return &admissionv1.MutatingWebhookConfiguration{} },
	"admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration": func() any { return &admissionv1.ValidatingWebhookConfiguration{} },
	"apiextensions.k8s.io/v1 CustomResourceDefinition":               func() any { return &apiextensionsv1.CustomResourceDefinition{} },
}

func TestManifests(t *testing.T) {
	files, err := filepath.Glob("../../install/testdata/*.golden.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		check(t, file, nil)
	}
}

// TestCRDs lets pass what API servers before 1.25 drop from a schema without harm: rules in CEL.
func TestCRDs(t *testing.T) {
	files, err := filepath.Glob("../../install/crds/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs: %v", err)
	}
	for _, file := range files {
		check(t, file, []string{"x-kubernetes-validations"})
	}
}

func check(t *testing.T, file string, dropped []string) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range bytes.Split(b, []byte("\n---\n")) {
		var raw map[string]any
		if err := yaml.Unmarshal(doc, &raw); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if raw == nil {
			continue
		}
		what := strings.TrimSpace(raw["apiVersion"].(string) + " " + raw["kind"].(string))
		empty := kinds[what]
		if empty == nil {
			t.Errorf("%s: %s is not a kind that Kubernetes 1.22 has, or is not in the table of this test", file, what)
			continue
		}
		without(raw, dropped)
		y, err := yaml.Marshal(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(y, empty()); err != nil {
			t.Errorf("%s: %s %v: %v", file, what, raw["metadata"].(map[string]any)["name"], err)
		}
	}
}

func without(v any, keys []string) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range keys {
			delete(v, k)
		}
		for _, x := range v {
			without(x, keys)
		}
	case []any:
		for _, x := range v {
			without(x, keys)
		}
	}
}
