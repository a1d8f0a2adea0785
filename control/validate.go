package control

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
)

// maxAdmission bounds a request, which has an object before and after a change.
const maxAdmission = 8 << 20

// Examine checks a user's object by itself, as the control plane of the cluster does when it sees it. Wrong is what
// it is refused for; notes tell of what has no effect. Objects of other kinds have neither.
func Examine(cluster string, u *unstructured.Unstructured) (wrong, notes []mesh.Finding) {
	o, found, known := kube.Decode(cluster, u)
	if !known {
		return nil, nil
	}
	if o == nil {
		return found, nil
	}
	s := mesh.New(mesh.Settings{Cluster: cluster, Check: compile.Trial}).Apply(mesh.Event{Object: o})
	wrong, notes = s.Findings(), slices.Concat(found, s.WithoutEffect(), s.UnusedFields())
	if x, ok := o.(mesh.UserObject); ok {
		if m, _ := x.Written(); len(m.Unread) > 0 {
			return append(found, wrong...), append(s.WithoutEffect(), s.UnusedFields()...)
		}
	}
	return wrong, notes
}

// Validator answers the API server's AdmissionReviews of users' objects: a wrong one is refused, a right one without
// effect is warned of. Create it with NewValidator; it may be used from any goroutine.
type Validator struct {
	cluster              string
	log                  *slog.Logger
	passed, failed, http *prometheus.CounterVec
}

// NewValidator returns the webhook of a cluster.
func NewValidator(cluster string, log *slog.Logger) *Validator {
	counter := func(name, help string, more ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, more)
	}
	return &Validator{
		cluster: cluster, log: log,
		passed: counter("galley_validation_passed", "Objects that the webhook found right.", "group", "version", "resource"),
		failed: counter("galley_validation_failed", "Objects that the webhook refused.", "group", "version", "resource", "reason"),
		http:   counter("galley_validation_http_error", "Requests that the webhook could not read.", "status"),
	}
}

// Collectors returns metrics with Istio's names.
func (v *Validator) Collectors() []prometheus.Collector {
	return []prometheus.Collector{v.passed, v.failed, v.http}
}

// ServeHTTP implements http.Handler.
func (v *Validator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, message string) {
		v.http.WithLabelValues(http.StatusText(status)).Inc()
		http.Error(w, message, status)
	}
	if r.Method != http.MethodPost {
		refuse(http.StatusMethodNotAllowed, "POST an AdmissionReview")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAdmission))
	if err != nil {
		refuse(http.StatusRequestEntityTooLarge, "reading the request: "+err.Error())
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil {
		refuse(http.StatusBadRequest, "the body is not an AdmissionReview of admission.k8s.io/v1 with a request")
		return
	}
	out, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: v.answer(review.Request)})
	if err != nil {
		refuse(http.StatusInternalServerError, "encoding the response")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(out); err != nil {
		v.log.Debug("the API server did not wait for an answer", "error", err)
	}
}

func (v *Validator) answer(req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	resp := &admissionv1.AdmissionResponse{UID: req.UID, Allowed: true}
	if req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
		return resp
	}
	deny := func(reason, message string) *admissionv1.AdmissionResponse {
		if req.DryRun == nil || !*req.DryRun {
			v.failed.WithLabelValues(req.Resource.Group, req.Resource.Version, req.Resource.Resource, reason).Inc()
		}
		resp.Allowed = false
		resp.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest, Message: message}
		return resp
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(req.Object.Raw); err != nil {
		return deny("yaml_decode_error", "the object cannot be read: "+err.Error())
	}
	if u.GetNamespace() == "" {
		u.SetNamespace(req.Namespace)
	}
	if u.GetAnnotations()[kube.AlwaysReject] == "true" {
		return deny("invalid_resource", "annotation "+kube.AlwaysReject+" asks for it")
	}
	wrong, notes := Examine(v.cluster, u)
	for _, f := range notes {
		resp.Warnings = append(resp.Warnings, brief(f))
	}
	if len(wrong) > 0 {
		if sameSpec(u, req.OldObject.Raw) { // labels and finalizers of what is there already may change
			for _, f := range wrong {
				resp.Warnings = append(resp.Warnings, brief(f))
			}
			return resp
		}
		var lines []string
		for _, f := range wrong {
			lines = append(lines, brief(f))
		}
		v.log.Info("object refused", "object", wrong[0].Object.String(), "problem", strings.Join(lines, "; "))
		return deny("invalid_resource", strings.Join(lines, "; "))
	}
	if req.DryRun == nil || !*req.DryRun {
		v.passed.WithLabelValues(req.Resource.Group, req.Resource.Version, req.Resource.Resource).Inc()
	}
	return resp
}

// brief is a finding without its object, which whoever reads it has in hand.
func brief(f mesh.Finding) string {
	f.Object = mesh.Key{}
	return strings.TrimPrefix(f.String(), mesh.Key{}.String()+": ")
}

func sameSpec(u *unstructured.Unstructured, before []byte) bool {
	old := &unstructured.Unstructured{}
	return len(before) > 0 && old.UnmarshalJSON(before) == nil && reflect.DeepEqual(old.Object["spec"], u.Object["spec"])
}
