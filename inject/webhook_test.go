package inject

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func post(t *testing.T, h http.Handler, path string, pod *corev1.Pod) (*admissionv1.AdmissionResponse, *corev1.Pod) {
	t.Helper()
	return postRequest(t, h, path, admissionv1.AdmissionRequest{UID: "u1", Namespace: "sample", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}}, pod)
}

func postRequest(t *testing.T, h http.Handler, path string, req admissionv1.AdmissionRequest, pod *corev1.Pod) (*admissionv1.AdmissionResponse, *corev1.Pod) {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	req.Object = runtime.RawExtension{Raw: raw}
	body, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: &req})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	resp, err := http.Post(srv.URL+path+"?timeout=10s", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(data, &review); err != nil || review.Response == nil {
		t.Fatalf("%s: %s (%v)", resp.Status, data, err)
	}
	if review.Response.UID != req.UID || review.APIVersion != "admission.k8s.io/v1" {
		t.Errorf("uid %q, version %q", review.Response.UID, review.APIVersion)
	}
	if review.Response.Patch == nil {
		return review.Response, pod
	}
	patch, err := jsonpatch.DecodePatch(review.Response.Patch)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = patch.Apply(raw); err != nil {
		t.Fatal(err)
	}
	var out corev1.Pod
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return review.Response, &out
}

func TestWebhook(t *testing.T) {
	results := map[string]int{}
	h := Handler(func() Params { return testParams(t) }, slog.New(slog.DiscardHandler), func(r string) { results[r]++ })

	resp, pod := post(t, h, "/inject/cluster/cluster7/net/network7", simplePod())
	if !resp.Allowed || resp.PatchType == nil || *resp.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Fatalf("%+v", resp)
	}
	env := map[string]string{}
	for _, e := range pod.Spec.InitContainers[1].Env {
		env[e.Name] = e.Value
	}
	if env["ISTIO_META_CLUSTER_ID"] != "cluster7" || env["ISTIO_META_NETWORK"] != "network7" || pod.Labels[labelNetwork] != "network7" {
		t.Errorf("cluster %q, network %q, label %q", env["ISTIO_META_CLUSTER_ID"], env["ISTIO_META_NETWORK"], pod.Labels[labelNetwork])
	}
	if !strings.Contains(env["ISTIO_META_OWNER"], "/namespaces/sample/") {
		t.Errorf("owner %s", env["ISTIO_META_OWNER"])
	}

	if resp, _ := post(t, h, "/inject", pod); !resp.Allowed || resp.Patch != nil {
		t.Error("an injected pod is patched again")
	}
	bad := simplePod()
	bad.Annotations[annExcludeInPorts] = "x"
	if resp, _ := post(t, h, "/inject", bad); resp.Allowed || !strings.Contains(resp.Result.Message, annExcludeInPorts) {
		t.Errorf("%+v", resp)
	}
	if results["success"] != 1 || results["skip"] != 1 || results["failure"] != 1 {
		t.Errorf("results %v", results)
	}
}

// TestWebhookOfIstioctl: istioctl kube-inject sends a pod template without a name, a kind or a UID, and
// calls it an AdmissionRequest.
func TestWebhookOfIstioctl(t *testing.T) {
	h := Handler(func() Params { return testParams(t) }, slog.New(slog.DiscardHandler), nil)
	template := simplePod()
	template.TypeMeta, template.Name, template.Namespace = metav1.TypeMeta{}, "", ""
	kind := metav1.GroupVersionKind{Group: "admission.k8s.io", Version: "v1", Kind: "AdmissionRequest"}
	resp, pod := postRequest(t, h, "/inject", admissionv1.AdmissionRequest{Kind: kind}, template)
	if c := pod.Spec.InitContainers; !resp.Allowed || len(c) != 3 || c[0].Name != initContainer || c[1].Name != proxyContainer {
		t.Errorf("allowed %v, %d init containers; %v", resp.Allowed, len(c), resp.Result)
	}
	kind.Kind = "Deployment"
	if resp, _ := postRequest(t, h, "/inject", admissionv1.AdmissionRequest{Kind: kind}, template); resp.Allowed {
		t.Error("a Deployment passes for a pod")
	}
}

func TestWebhookRefusesNonsense(t *testing.T) {
	h := Handler(func() Params { return Params{} }, slog.New(slog.DiscardHandler), nil)
	for _, tt := range []struct {
		method, path, body string
		code               int
	}{
		{"GET", "/inject", "", http.StatusMethodNotAllowed},
		{"POST", "/inject/cluster", "{}", http.StatusNotFound},
		{"POST", "/inject/planet/mars", "{}", http.StatusNotFound},
		{"POST", "/inject", "", http.StatusBadRequest},
		{"POST", "/inject", "{}", http.StatusBadRequest},
		{"POST", "/inject", `"` + strings.Repeat("x", maxReview) + `"`, http.StatusRequestEntityTooLarge},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		if w.Code != tt.code {
			t.Errorf("%s %s: %d, want %d", tt.method, tt.path, w.Code, tt.code)
		}
	}
}
