package inject

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/template"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

// Templates that are built in.
const (
	templateSidecar = "sidecar"
	templateGateway = "gateway"
	templateGRPC    = "grpc-agent" // no proxy: see proxyless.go
)

var builtInTemplates = []string{templateSidecar, templateGateway, templateGRPC}

// maxRendered bounds what a template makes of a pod.
const maxRendered = 1 << 20

// Templates are what key config of ConfigMap istio-sidecar-injector says about the templates of
// annotation inject.istio.io/templates, beside those built in.
type Templates struct {
	// Custom are Go templates of Pods in YAML, by name, in Istio's form: TemplateData is
	// their argument and their functions are Istio's.
	Custom map[string]string
	// Default is for pods that name none; nil is sidecar.
	Default []string
	// Aliases stand for lists of names.
	Aliases map[string][]string
}

// TemplateData is the argument of a custom template, with Istio's names.
type TemplateData struct {
	TypeMeta       metav1.TypeMeta
	DeploymentMeta types.NamespacedName
	ObjectMeta     metav1.ObjectMeta
	Spec           corev1.PodSpec
	ProxyConfig    *meshconfig.ProxyConfig
	MeshConfig     *meshconfig.MeshConfig
	Values         map[string]any
	Revision       string
	ProxyImage     string
	ProxyUID       int64
	ProxyGID       int64
	NativeSidecars bool
}

// WithConfig returns p with what key config (YAML) of ConfigMap istio-sidecar-injector says:
// templates, defaultTemplates, aliases, policy, alwaysInjectSelector, neverInjectSelector and
// injectedAnnotations. A key that is there wins over the values'.
func (p Params) WithConfig(config []byte) (Params, error) {
	var c struct {
		Policy               string                 `json:"policy"`
		Templates            map[string]string      `json:"templates"`
		DefaultTemplates     []string               `json:"defaultTemplates"`
		Aliases              map[string][]string    `json:"aliases"`
		AlwaysInjectSelector []metav1.LabelSelector `json:"alwaysInjectSelector"`
		NeverInjectSelector  []metav1.LabelSelector `json:"neverInjectSelector"`
		InjectedAnnotations  map[string]string      `json:"injectedAnnotations"`
	}
	if err := yaml.Unmarshal(config, &c); err != nil {
		return p, fmt.Errorf("config of the sidecar injector: %w", err)
	}
	if c.Policy == "disabled" {
		p.Disabled = true
	}
	p.Templates = Templates{c.Templates, c.DefaultTemplates, c.Aliases}
	if len(c.AlwaysInjectSelector) > 0 {
		p.AlwaysSelector = c.AlwaysInjectSelector
	}
	if len(c.NeverInjectSelector) > 0 {
		p.NeverSelector = c.NeverInjectSelector
	}
	if len(c.InjectedAnnotations) > 0 {
		p.Annotations = c.InjectedAnnotations
	}
	return p, nil
}

// chosen returns the names that the annotation stands for: those built in, and custom ones.
func (t Templates) chosen(annotation string) (builtIn, custom []string, err error) {
	names := strings.Split(annotation, ",")
	if strings.TrimSpace(annotation) == "" {
		names = t.Default
	}
	if len(names) == 0 {
		names = []string{templateSidecar}
	}
	var all []string
	for _, n := range names {
		n = strings.TrimSpace(n)
		if a, ok := t.Aliases[n]; ok {
			all = append(all, a...)
		} else {
			all = append(all, n)
		}
	}
	for _, n := range all {
		_, known := t.Custom[n]
		switch is := slices.Contains(builtInTemplates, n); {
		case is && known:
			return nil, nil, fmt.Errorf("template %s is built in, but key config of ConfigMap istio-sidecar-injector has one of that name; give it another name and let pods name both: %s,NAME", n, n)
		case is:
			builtIn = append(builtIn, n)
		case known:
			custom = append(custom, n)
		default:
			return nil, nil, fmt.Errorf("no template is called %q; there are %s", n,
				strings.Join(append(slices.Clone(builtInTemplates), slices.Sorted(maps.Keys(t.Custom))...), ", "))
		}
	}
	if len(builtIn) > 1 {
		return nil, nil, fmt.Errorf("%s exclude each other", strings.Join(builtIn, " and "))
	}
	return builtIn, custom, nil
}

// render returns what a custom template makes of a pod: a patch, checked to be a part of a Pod.
func (b *builder) render(name string, pod *corev1.Pod) (map[string]any, error) {
	t, err := template.New(name).Funcs(templateFuncs).Parse(b.Templates.Custom[name])
	if err != nil {
		return nil, err
	}
	var values map[string]any
	if len(b.values) > 0 {
		if err := json.Unmarshal(b.values, &values); err != nil {
			return nil, fmt.Errorf("values of the sidecar injector: %w", err)
		}
	}
	meta := pod.ObjectMeta
	meta.Namespace = b.namespace
	out := &limited{}
	err = t.Execute(out, TemplateData{
		TypeMeta: pod.TypeMeta, ObjectMeta: meta, Spec: pod.Spec,
		DeploymentMeta: types.NamespacedName{Namespace: b.namespace, Name: b.workload.Name},
		ProxyConfig:    b.config, MeshConfig: b.mesh, Values: values, Revision: b.Revision,
		ProxyImage: b.containerImage(), ProxyUID: proxyUID, ProxyGID: proxyUID, NativeSidecars: b.native,
	})
	if err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalStrict([]byte(out.String()), &corev1.Pod{}); err != nil {
		return nil, fmt.Errorf("what it makes is no Pod: %w", err)
	}
	var over map[string]any
	if err := yaml.Unmarshal([]byte(out.String()), &over); err != nil {
		return nil, fmt.Errorf("what it makes is no Pod: %w", err)
	}
	return over, nil
}

// lay lays the custom templates over the pod, one after another, as kubectl apply would; what
// they have of the proxy's own containers is kept for these.
func (b *builder) lay(out *corev1.Pod) error {
	for _, name := range b.custom {
		over, err := b.render(name, out)
		if err != nil {
			return fmt.Errorf("template %s: %w", name, err)
		}
		if spec, ok := over["spec"].(map[string]any); ok && b.role != "" {
			for _, field := range []string{"initContainers", "containers"} {
				b.overProxy = append(b.overProxy, takePatch(spec, field, proxyContainer)...)
				b.overInit = append(b.overInit, takePatch(spec, field, initContainer)...)
			}
		}
		if err := merge(out, over, corev1.Pod{}); err != nil {
			return fmt.Errorf("template %s: %w", name, err)
		}
	}
	return nil
}

// takePatch takes the containers of a name out of a list of a patch.
func takePatch(spec map[string]any, field, name string) (taken []any) {
	list, ok := spec[field].([]any)
	if !ok {
		return nil
	}
	rest := []any{}
	for _, c := range list {
		if m, ok := c.(map[string]any); ok && m["name"] == name {
			if m["image"] == imageAuto {
				delete(m, "image")
			}
			taken = append(taken, m)
		} else {
			rest = append(rest, c)
		}
	}
	if spec[field] = rest; len(rest) == 0 {
		delete(spec, field)
	}
	return taken
}

// merge lays over onto *base by the rules of strategic merge patches. kind is an empty T.
func merge[T any](base *T, over any, kind T) error {
	old, err := json.Marshal(base)
	if err != nil {
		return fmt.Errorf("encoding: %w", err)
	}
	patch, err := json.Marshal(over)
	if err != nil {
		return fmt.Errorf("encoding: %w", err)
	}
	if old, err = untangle(old, patch); err != nil {
		return err
	}
	merged, err := strategicpatch.StrategicMergePatch(old, patch, kind)
	if err != nil {
		return err
	}
	var out T
	if err := json.Unmarshal(merged, &out); err != nil {
		return err
	}
	*base = out
	return nil
}

// limited is a buffer that refuses more than maxRendered.
type limited struct{ strings.Builder }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxRendered {
		return 0, errors.New("more than 1 MiB")
	}
	return l.Builder.Write(p)
}

// templateFuncs are the functions that Istio's templates use, and of the Sprig library those
// that work on strings, lists and defaults. Another one makes the template's pods refused.
var templateFuncs = template.FuncMap{
	"annotation": func(meta metav1.ObjectMeta, name string, fallback any) string {
		return text(meta.Annotations, name, fmt.Sprint(fallback))
	},
	"isset":          func(m map[string]string, key string) bool { _, ok := m[key]; return ok },
	"valueOrDefault": func(v, fallback any) any { return orDefault(fallback, v) },
	"default":        orDefault,
	"toYaml":         toYAML,
	"toJSON":         toJSON,
	"toJson":         toJSON,
	"fromJSON":       fromJSON,
	"fromJson":       fromJSON,
	"indent":         indent,
	"nindent":        func(n int, s string) string { return "\n" + indent(n, s) },
	"quote":          func(v any) string { return strconv.Quote(fmt.Sprint(v)) },
	"squote":         func(v any) string { return "'" + fmt.Sprint(v) + "'" },
	"upper":          strings.ToUpper,
	"lower":          strings.ToLower,
	"toLower":        strings.ToLower,
	"trim":           strings.TrimSpace,
	"trimPrefix":     func(prefix, s string) string { return strings.TrimPrefix(s, prefix) },
	"trimSuffix":     func(suffix, s string) string { return strings.TrimSuffix(s, suffix) },
	"contains":       func(sub, s string) bool { return strings.Contains(s, sub) },
	"hasPrefix":      func(prefix, s string) bool { return strings.HasPrefix(s, prefix) },
	"hasSuffix":      func(suffix, s string) bool { return strings.HasSuffix(s, suffix) },
	"replace":        func(old, new, s string) string { return strings.ReplaceAll(s, old, new) },
	"splitList":      func(sep, s string) []string { return strings.Split(s, sep) },
	"join":           func(sep string, s []string) string { return strings.Join(s, sep) },
	"toString":       func(v any) string { return fmt.Sprint(v) },
	"b64enc":         func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"ternary":        func(yes, no any, cond bool) any { return map[bool]any{true: yes, false: no}[cond] },
	"list":           func(v ...any) []any { return v },
	"hasKey":         func(m map[string]any, key string) bool { _, ok := m[key]; return ok },
	"empty":          empty,
	"applicationPorts": func(cs []corev1.Container) string {
		var ports []string
		for _, c := range cs {
			for _, p := range c.Ports {
				ports = append(ports, fmt.Sprint(p.ContainerPort))
			}
		}
		return strings.Join(ports, ",")
	},
}

func empty(v any) bool {
	truth, ok := template.IsTrue(v)
	return !ok || !truth
}

func orDefault(fallback, v any) any {
	if empty(v) {
		return fallback
	}
	return v
}

func toYAML(v any) (string, error) {
	out, err := yaml.Marshal(v)
	return strings.TrimSuffix(string(out), "\n"), err
}

func toJSON(v any) (string, error) {
	out, err := json.Marshal(v)
	return string(out), err
}

func fromJSON(s string) (v any, err error) {
	err = json.Unmarshal([]byte(s), &v)
	return v, err
}

// indent puts n blanks before each line.
func indent(n int, s string) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad)
}
