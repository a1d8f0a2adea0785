package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// maxReview bounds a request; a pod cannot have more than etcd's 1.5 MB.
const maxReview = 4 << 20

// Observer is told of each request, for the metrics sidecar_injection_{requests,success,
// skip,failure}_total. result is one of success, skip, failure.
type Observer func(result string)

// Handler answers AdmissionReview v1 for pods on /inject and on /inject/cluster/C/net/N,
// with which a remote cluster says which cluster and network its pods are in. params is asked
// for each request, so that changed settings count at once. observe may be nil.
func Handler(params func() Params, log *slog.Logger, observe Observer) http.Handler {
	if observe == nil {
		observe = func(string) {}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "POST an AdmissionReview", http.StatusMethodNotAllowed)
			return
		}
		p, err := pathParams(params(), r.URL.Path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
		if err != nil {
			http.Error(w, "reading the request: "+err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &review); err != nil || review.Request == nil {
			observe("failure")
			http.Error(w, "want an AdmissionReview of admission.k8s.io/v1 with a request", http.StatusBadRequest)
			return
		}
		resp, result := answer(review.Request, p, log)
		observe(result)
		out, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: resp})
		if err != nil {
			log.Error("encoding an admission response", "error", err)
			http.Error(w, "encoding the response", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(out)
	})
}

// pathParams reads pairs of names and values behind /inject.
func pathParams(p Params, path string) (Params, error) {
	rest, ok := strings.CutPrefix(path, "/inject")
	if !ok || rest != "" && rest[0] != '/' {
		return p, errors.New("not /inject")
	}
	parts := strings.Split(strings.Trim(rest, "/"), "/")
	if parts[0] == "" {
		return p, nil
	}
	if len(parts)%2 != 0 {
		return p, fmt.Errorf("path %q: want /inject[/cluster/CLUSTER][/net/NETWORK]", path)
	}
	for i := 0; i < len(parts); i += 2 {
		switch parts[i] {
		case "cluster":
			p.ClusterID = parts[i+1]
		case "net":
			p.Network = parts[i+1]
		default:
			return p, fmt.Errorf("path %q: want /inject[/cluster/CLUSTER][/net/NETWORK]", path)
		}
	}
	return p, nil
}

func answer(req *admissionv1.AdmissionRequest, p Params, log *slog.Logger) (*admissionv1.AdmissionResponse, string) {
	resp := &admissionv1.AdmissionResponse{UID: req.UID, Allowed: true}
	ops, name, notes, err := review(req, p)
	for _, n := range notes {
		resp.Warnings = append(resp.Warnings, "sidecar injection: "+n)
	}
	switch {
	case err != nil:
		// Without its proxy the pod would be outside the mesh, in plaintext: refused.
		log.Warn("injection failed", "namespace", req.Namespace, "pod", name, "error", err)
		return &admissionv1.AdmissionResponse{UID: types.UID(req.UID), Result: &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest,
			Message: "sidecar injection: " + err.Error(),
		}}, "failure"
	case len(ops) == 0:
		return resp, "skip"
	}
	if resp.Patch, err = json.Marshal(ops); err != nil {
		log.Error("encoding a patch", "error", err)
		return &admissionv1.AdmissionResponse{UID: req.UID, Result: &metav1.Status{Message: "sidecar injection: encoding the patch"}}, "failure"
	}
	kind := admissionv1.PatchTypeJSONPatch
	resp.PatchType = &kind
	log.Debug("injected", "namespace", req.Namespace, "pod", name)
	return resp, "success"
}

func review(req *admissionv1.AdmissionRequest, p Params) (ops []operation, name string, notes []string, err error) {
	switch req.Kind.Kind {
	case "Pod", "", "AdmissionRequest": // the last is what istioctl kube-inject calls the pod
	default:
		return nil, "", nil, fmt.Errorf("kind %s, want Pod", req.Kind.Kind)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return nil, "", nil, fmt.Errorf("reading the pod: %w", err)
	}
	name = or(pod.Name, pod.GenerateName)
	out, err := Inject(&pod, req.Namespace, p)
	if err != nil {
		return nil, name, nil, err
	}
	notes = Notes(&pod, or(pod.Namespace, req.Namespace), p)
	if out == &pod {
		return nil, name, notes, nil
	}
	ops, err = jsonPatch(&pod, out)
	return ops, name, notes, err
}
