package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// MaxFile bounds an IstioOperator file, in bytes.
const MaxFile = 1 << 20

// Operator is an IstioOperator file (install.istio.io/v1alpha1), as users write it for Istio 1.15.
type Operator struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   Metadata `json:"metadata"`
	Spec       Spec     `json:"spec"`
}

// Metadata is the part of object metadata that an IstioOperator file may carry.
type Metadata struct {
	Name        string            `json:"name,omitempty"`      // names the install; default: the control plane's
	Namespace   string            `json:"namespace,omitempty"` // default istio-system
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Spec says what to install.
type Spec struct {
	Profile            string         `json:"profile,omitempty"` // default, demo, minimal, empty
	Hub                string         `json:"hub,omitempty"`
	Tag                any            `json:"tag,omitempty"`
	Namespace          string         `json:"namespace,omitempty"`
	Revision           string         `json:"revision,omitempty"`
	InstallPackagePath string         `json:"installPackagePath,omitempty"` // accepted, without effect: all is built in
	MeshConfig         map[string]any `json:"meshConfig,omitempty"`         // istio.mesh.v1alpha1.MeshConfig
	Components         Components     `json:"components,omitempty"`
	AddonComponents    map[string]any `json:"addonComponents,omitempty"` // accepted, without effect
	Values             map[string]any `json:"values,omitempty"`          // Istio's Helm values; see values.go
	UnvalidatedValues  map[string]any `json:"unvalidatedValues,omitempty"`
}

// Components says which parts to install.
type Components struct {
	Base            *Component `json:"base,omitempty"`
	Pilot           *Component `json:"pilot,omitempty"`
	CNI             *Component `json:"cni,omitempty"`          // not provided: redirection is the init container's
	IstiodRemote    *Component `json:"istiodRemote,omitempty"` // not provided
	IngressGateways []Gateway  `json:"ingressGateways,omitempty"`
	EgressGateways  []Gateway  `json:"egressGateways,omitempty"`
}

// Component is one part of the control plane.
type Component struct {
	Enabled   *bool  `json:"enabled,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Hub       string `json:"hub,omitempty"`
	Tag       any    `json:"tag,omitempty"`
	K8s       K8s    `json:"k8s,omitempty"`
}

// Gateway is one gateway Deployment with its Service.
type Gateway struct {
	Component `json:",inline"`
	Name      string            `json:"name"`
	Label     map[string]string `json:"label,omitempty"` // on the pods, the Service and the Deployment
}

// K8s overrides fields of a component's Kubernetes objects.
type K8s struct {
	Affinity            *corev1.Affinity                  `json:"affinity,omitempty"`
	Env                 []corev1.EnvVar                   `json:"env,omitempty"`
	HPASpec             *HPASpec                          `json:"hpaSpec,omitempty"`
	ImagePullPolicy     corev1.PullPolicy                 `json:"imagePullPolicy,omitempty"`
	NodeSelector        map[string]string                 `json:"nodeSelector,omitempty"`
	Overlays            []Overlay                         `json:"overlays,omitempty"`
	PodAnnotations      map[string]string                 `json:"podAnnotations,omitempty"`
	PodDisruptionBudget *policyv1.PodDisruptionBudgetSpec `json:"podDisruptionBudget,omitempty"`
	PriorityClassName   string                            `json:"priorityClassName,omitempty"`
	ReadinessProbe      *corev1.Probe                     `json:"readinessProbe,omitempty"`
	ReplicaCount        *int32                            `json:"replicaCount,omitempty"`
	Resources           *corev1.ResourceRequirements      `json:"resources,omitempty"`
	SecurityContext     *corev1.PodSecurityContext        `json:"securityContext,omitempty"`
	Service             *corev1.ServiceSpec               `json:"service,omitempty"`
	ServiceAnnotations  map[string]string                 `json:"serviceAnnotations,omitempty"`
	Strategy            *appsv1.DeploymentStrategy        `json:"strategy,omitempty"`
	Tolerations         []corev1.Toleration               `json:"tolerations,omitempty"`
	VolumeMounts        []corev1.VolumeMount              `json:"volumeMounts,omitempty"`
	Volumes             []corev1.Volume                   `json:"volumes,omitempty"`
}

// HPASpec is what an IstioOperator file may say of a HorizontalPodAutoscaler.
type HPASpec struct {
	MinReplicas    *int32         `json:"minReplicas,omitempty"`
	MaxReplicas    int32          `json:"maxReplicas,omitempty"`
	ScaleTargetRef map[string]any `json:"scaleTargetRef,omitempty"` // accepted, always the own Deployment
	Metrics        []any          `json:"metrics,omitempty"`        // of any autoscaling version
	Behavior       map[string]any `json:"behavior,omitempty"`
}

// Overlay patches one rendered object, as the last step.
type Overlay struct {
	APIVersion string  `json:"apiVersion,omitempty"`
	Kind       string  `json:"kind"`
	Name       string  `json:"name"`
	Patches    []Patch `json:"patches"`
}

// Patch sets the value at a path (see setPath), or removes it if value is null.
type Patch struct {
	Path  string `json:"path"`
	Value any    `json:"value"`
}

func (c *Component) enabled() bool { return c != nil && c.Enabled != nil && *c.Enabled }

// Parse reads the IstioOperator documents of one file, strictly: an unknown field is an error
// that names it. name is the file's, for errors.
func Parse(name string, b []byte) ([]map[string]any, error) {
	if len(b) > MaxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes, which no IstioOperator file is", name, MaxFile)
	}
	var docs []map[string]any
	for i, doc := range splitYAML(b) {
		where := name
		if i > 0 {
			where = fmt.Sprintf("%s, document %d", name, i+1)
		}
		raw, err := parseDoc(doc)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		if raw != nil {
			docs = append(docs, raw)
		}
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s: holds no IstioOperator", name)
	}
	return docs, nil
}

func parseDoc(doc []byte) (map[string]any, error) {
	var raw map[string]any
	if err := yaml.Unmarshal(doc, &raw); err != nil {
		return nil, fmt.Errorf("not YAML: %s", strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "))
	}
	if len(raw) == 0 {
		return nil, nil
	}
	if k, _ := raw["kind"].(string); k != "IstioOperator" {
		return nil, fmt.Errorf("kind: is %q, want IstioOperator (apiVersion: install.istio.io/v1alpha1)", k)
	}
	if v, _ := raw["apiVersion"].(string); v != "install.istio.io/v1alpha1" {
		return nil, fmt.Errorf("apiVersion: is %q, want install.istio.io/v1alpha1", v)
	}
	if m, ok := raw["metadata"].(map[string]any); ok {
		for k := range m { // what the API server adds to an object that was read back
			switch k {
			case "name", "namespace", "labels", "annotations":
			default:
				delete(m, k)
			}
		}
	}
	delete(raw, "status")
	if _, err := decode(raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// decode turns a raw file into an Operator, strictly.
func decode(raw map[string]any) (*Operator, error) {
	var op Operator
	if err := strict(raw, &op, ""); err != nil {
		return nil, err
	}
	if _, _, err := decodeValues(op.Spec.Values); err != nil {
		return nil, err
	}
	if _, err := meshConfig(op.Spec.MeshConfig); err != nil {
		return nil, fmt.Errorf("spec.meshConfig: %w", err)
	}
	for kind, gs := range map[string][]Gateway{"ingressGateways": op.Spec.Components.IngressGateways, "egressGateways": op.Spec.Components.EgressGateways} {
		for i, g := range gs {
			if g.Name == "" {
				return nil, fmt.Errorf("spec.components.%s[%d].name: is missing", kind, i)
			}
		}
	}
	return &op, nil
}

// strict decodes raw, a tree of YAML values at path at, into v. Errors name the field.
func strict(raw any, v any, at string) error {
	b, err := yaml.Marshal(raw)
	if err != nil {
		return err
	}
	if b, err = yaml.YAMLToJSON(b); err != nil {
		return err
	}
	unknown, err := kjson.UnmarshalStrict(b, v)
	if err != nil {
		var te *json.UnmarshalTypeError
		if errors.As(err, &te) && te.Field != "" {
			return fmt.Errorf("%s%s: is %s, want %s", at, te.Field, te.Value, te.Type)
		}
		return fmt.Errorf("%s%w", at, err)
	}
	if len(unknown) > 0 {
		// "unknown field \"spec.components.pilt\""
		field := strings.Trim(strings.TrimPrefix(unknown[0].Error(), "unknown field "), `"`)
		return fmt.Errorf("%s%s: no such field; check its spelling and indentation", at, field)
	}
	return nil
}

// tag reads a tag, which YAML may have made a number.
func tag(field string, v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case int64:
		return fmt.Sprint(v), nil
	case float64:
		if v == float64(int64(v)) {
			return fmt.Sprint(int64(v)), nil
		}
	}
	return "", fmt.Errorf("%s: %v is not a string; put it in quotes", field, v)
}

// splitYAML splits a stream at its document separators.
func splitYAML(b []byte) (docs [][]byte) {
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	for _, d := range bytes.Split(append([]byte("\n"), b...), []byte("\n---")) {
		if i := bytes.IndexByte(d, '\n'); i > 0 && len(bytes.TrimSpace(d[:i])) > 0 && bytes.HasPrefix(d, []byte(" #")) {
			d = d[i:] // a comment behind the separator
		}
		docs = append(docs, d)
	}
	return docs
}

// ReadAll reads r up to MaxFile.
func ReadAll(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err == nil && len(b) > MaxFile {
		err = fmt.Errorf("larger than %d bytes", MaxFile)
	}
	return b, err
}
