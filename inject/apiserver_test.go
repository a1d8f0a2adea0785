package inject

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/carrick-mesh/carrick/kube/kubetest"
)

// A real API server accepts the pods of every golden.
func TestAPIServerAccepts(t *testing.T) {
	s := kubetest.Start(t)
	for _, ns := range []string{"sample"} {
		if _, err := s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob("testdata/*.out.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range decode(t, data) {
			for _, pod := range podsIn(t, doc) {
				pod.Namespace, pod.Name, pod.GenerateName = "sample", "", "golden-"
				pod.Spec.ServiceAccountName = "default" // as admission would set it
				if pod.Spec.HostNetwork {
					continue // not injected
				}
				if strings.Contains(f, "kinds") {
					pod.Spec.RestartPolicy = corev1.RestartPolicyNever
				}
				if _, err := s.Client.CoreV1().Pods("sample").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: "Strict"}); err != nil {
					t.Errorf("%s: %v", f, err)
				}
			}
		}
	}
}

// podsIn finds the pod templates of a document, a List's too.
func podsIn(t *testing.T, v any) (pods []*corev1.Pod) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		if spec, ok := v["spec"].(map[string]any); ok && spec["containers"] != nil {
			data, err := json.Marshal(map[string]any{"metadata": v["metadata"], "spec": spec})
			if err != nil {
				t.Fatal(err)
			}
			var pod corev1.Pod
			d := json.NewDecoder(bytes.NewReader(data))
			d.DisallowUnknownFields()
			if err := d.Decode(&pod); err != nil {
				t.Fatal(err)
			}
			return []*corev1.Pod{&pod}
		}
		for _, e := range v {
			pods = append(pods, podsIn(t, e)...)
		}
	case []any:
		for _, e := range v {
			pods = append(pods, podsIn(t, e)...)
		}
	}
	return pods
}
