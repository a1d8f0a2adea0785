package inject

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

const testConfig = `
policy: enabled
defaultTemplates: [sidecar]
aliases:
  everything: [sidecar, debug, label]
templates:
  debug: |
    spec:
      {{- if isset .ObjectMeta.Annotations "debug" }}
      shareProcessNamespace: true
      {{- end }}
      containers:
      - name: istio-proxy
        image: "{{ annotation .ObjectMeta "image" .ProxyImage }}"
        env:
        - name: DEBUG
          value: {{ .Values.global.network | default "none" | quote }}
      - name: debugger
        image: debugger
        livenessProbe: {tcpSocket: {port: 7000}}
        ports: [{containerPort: 7000}]
      initContainers:
      - name: istio-init
        resources: {limits: {cpu: 7m}}
  label: |
    metadata:
      labels:
        of: "{{ .DeploymentMeta.Namespace }}-{{ .ObjectMeta.Name }}-{{ .ProxyConfig.MeshId }}-{{ .MeshConfig.TrustDomain }}"
  broken: "spec: {{ nosuch }}"
  nopod: "spec: {contaners: []}"
  endless: |
    {{ define "x" }}spec: {{ template "x" }}{{ end }}{{ template "x" }}
`

func withTemplates(t testing.TB) Params {
	t.Helper()
	p, err := testParams(t).WithConfig([]byte(testConfig))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCustomTemplates(t *testing.T) {
	p := withTemplates(t)
	pod := simplePod()
	pod.Annotations[annTemplates] = "sidecar, debug,label"
	pod.Annotations["debug"] = ""
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: proxyContainer, Image: imageAuto, TTY: true, Env: []corev1.EnvVar{{Name: "OWN", Value: "1"}}})
	out, err := Inject(pod, "sample", p)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(out.Spec.Containers); !slices.Contains(got, "debugger") || !slices.Contains(got, "a") {
		t.Errorf("containers %q", got)
	}
	proxy := *takeContainer(&out.Spec.InitContainers, proxyContainer)
	value := func(name string) string {
		for _, e := range proxy.Env {
			if e.Name == name {
				return e.Value
			}
		}
		return ""
	}
	if value("DEBUG") != "network1" || value("OWN") != "1" || !proxy.TTY || proxy.Image != "docker.io/carrickmesh/carrick:1.0" {
		t.Errorf("the proxy: DEBUG %q, OWN %q, tty %v, image %s", value("DEBUG"), value("OWN"), proxy.TTY, proxy.Image)
	}
	if v := value("ISTIO_KUBE_APP_PROBERS"); !strings.Contains(v, "/app-health/debugger/livez") {
		t.Errorf("the template's container has its probes in the open: %s", v)
	}
	if v := value("ISTIO_META_POD_PORTS"); !strings.Contains(v, "7000") {
		t.Errorf("ports %s", v)
	}
	init := *takeContainer(&out.Spec.InitContainers, initContainer)
	if init.Resources.Limits.Cpu().String() != "7m" {
		t.Errorf("istio-init: %+v", init.Resources)
	}
	if out.Labels["of"] != "sample-p-mesh1-cluster.local" || out.Labels[labelTLSMode] != "istio" {
		t.Errorf("labels %v", out.Labels)
	}
	if !*out.Spec.ShareProcessNamespace {
		t.Error("the pod's own fields are not laid over")
	}
	if s := out.Annotations[annStatus]; !strings.Contains(s, `"debugger"`) {
		t.Errorf("status %s", s)
	}
	if again, err := Inject(out, "sample", p); err != nil {
		t.Error(err)
	} else if d := cmp.Diff(out.Labels, again.Labels); d != "" {
		t.Error(d)
	}

	// A template without the proxy gives none.
	pod.Annotations[annTemplates] = "label"
	if out, err = Inject(pod, "sample", p); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"i"}, names(out.Spec.InitContainers)); d != "" || out.Labels["of"] == "" || out.Labels[labelTLSMode] != "" {
		t.Errorf("only a custom template: %s, labels %v", d, out.Labels)
	}

	// Aliases, and templates by default.
	pod.Annotations[annTemplates] = "everything"
	if out, err = Inject(pod, "sample", p); err != nil || out.Labels["of"] == "" {
		t.Errorf("alias: %v", err)
	}
	delete(pod.Annotations, annTemplates)
	if out, err = Inject(pod, "sample", p); err != nil || out.Labels["of"] != "" {
		t.Errorf("the default: %v, labels %v", err, out.Labels)
	}
	p.Templates.Default = []string{"sidecar", "label"}
	if out, err = Inject(pod, "sample", p); err != nil || out.Labels["of"] == "" {
		t.Errorf("another default: %v", err)
	}
}

func TestTemplatesRefused(t *testing.T) {
	p := withTemplates(t)
	for annotation, want := range map[string]string{
		"nosuch":          `no template is called "nosuch"; there are sidecar, gateway, grpc-agent, broken, debug, endless, label, nopod`,
		"sidecar,nosuch":  `no template is called "nosuch"`,
		"sidecar,gateway": "sidecar and gateway exclude each other",
		"sidecar,broken":  `template broken: template: broken:1: function "nosuch" not defined`,
		"sidecar,nopod":   "contaners",
		"sidecar,endless": "template endless",
	} {
		pod := simplePod()
		pod.Annotations[annTemplates] = annotation
		if _, err := Inject(pod, "sample", p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", annotation, err, want)
		}
	}
	p.Templates.Custom["sidecar"] = "spec: {}"
	if _, err := Inject(simplePod(), "sample", p); err == nil || !strings.Contains(err.Error(), "built in") {
		t.Errorf("a template in place of ours: %v", err)
	}
	if _, err := p.WithConfig([]byte("templates: [")); err == nil {
		t.Error("config that is not YAML is taken")
	}
}

func TestConfigOfInjector(t *testing.T) {
	p, err := testParams(t).WithConfig([]byte("policy: disabled\nneverInjectSelector: [{matchLabels: {app: a}}]\ninjectedAnnotations: {x: z}"))
	if err != nil {
		t.Fatal(err)
	}
	if !p.Disabled || len(p.NeverSelector) != 1 || p.Annotations["x"] != "z" {
		t.Errorf("%+v", p)
	}
}

// A sidecar that does not get all connections of its pod would let some past in plaintext, or lacks what it needs.
func TestInterceptionRefused(t *testing.T) {
	for _, mode := range []string{"TPROXY", "NONE"} {
		for name, change := range map[string]func(*corev1.Pod, *Params){
			"annotation":                    func(pod *corev1.Pod, _ *Params) { pod.Annotations[annInterception] = mode },
			"annotation of the ProxyConfig": func(pod *corev1.Pod, _ *Params) { pod.Annotations[annConfig] = "interceptionMode: " + mode },
			"MeshConfig": func(_ *corev1.Pod, p *Params) {
				n := meshconfig.ProxyConfig_InboundInterceptionMode_value[mode]
				p.ProxyConfig = &meshconfig.ProxyConfig{InterceptionMode: meshconfig.ProxyConfig_InboundInterceptionMode(n)}
			},
			"the container's environment": func(pod *corev1.Pod, _ *Params) {
				pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
					Name: proxyContainer, Image: imageAuto, Env: []corev1.EnvVar{{Name: "ISTIO_META_INTERCEPTION_MODE", Value: mode}},
				})
			},
		} {
			pod, p := simplePod(), testParams(t)
			change(pod, &p)
			if _, err := Inject(pod, "sample", p); err == nil || !strings.Contains(err.Error(), mode) || !strings.Contains(err.Error(), "use REDIRECT") {
				t.Errorf("%s: %s: %v", mode, name, err)
			}
			// A gateway redirects nothing.
			pod.Annotations[annTemplates] = "gateway"
			delete(pod.Annotations, annInterception)
			if _, err := Inject(pod, "sample", p); err != nil {
				t.Errorf("%s: %s: gateway: %v", mode, name, err)
			}
		}
	}
}
