package inject

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// containerOf finds a container of either list.
func containerOf(t *testing.T, pod *corev1.Pod, name string) *corev1.Container {
	t.Helper()
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	t.Fatalf("no container %s", name)
	return nil
}

func flagOf(c *corev1.Container, flag string) string {
	if i := slices.Index(c.Args, flag); i >= 0 {
		return c.Args[i+1]
	}
	return ""
}

// What the pod's own istio-proxy overrides reaches all that depends on it.
func TestOverridesReachWhatDependsOnThem(t *testing.T) {
	for _, tt := range []struct {
		name  string
		own   corev1.Container
		ann   map[string]string
		check func(t *testing.T, proxy, init *corev1.Container)
	}{
		{name: "user", own: corev1.Container{SecurityContext: &corev1.SecurityContext{RunAsUser: ptr.To[int64](1234)}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			if flagOf(init, "-u") != "1234" || flagOf(init, "-g") != "1337" {
				t.Errorf("redirection lets -u %s -g %s through", flagOf(init, "-u"), flagOf(init, "-g"))
			}
		}},
		{name: "user and group", own: corev1.Container{SecurityContext: &corev1.SecurityContext{RunAsUser: ptr.To[int64](1234), RunAsGroup: ptr.To[int64](1234)}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			if flagOf(init, "-u") != "1234" || flagOf(init, "-g") != "" {
				t.Errorf("redirection lets -u %s -g %s through", flagOf(init, "-u"), flagOf(init, "-g"))
			}
		}},
		{name: "root", own: corev1.Container{SecurityContext: &corev1.SecurityContext{RunAsUser: ptr.To[int64](0)}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			if ptr.Deref(proxy.SecurityContext.RunAsNonRoot, false) {
				t.Error("root must not be root")
			}
		}},
		{name: "privileged", own: corev1.Container{SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			if !*proxy.SecurityContext.AllowPrivilegeEscalation {
				t.Error("privileged, but without escalation: the API server refuses it")
			}
		}},
		{name: "a value in place of a reference", own: corev1.Container{Env: []corev1.EnvVar{{Name: "INSTANCE_IP", Value: "10.0.0.1"}, {Name: "CA_ADDR", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}}}},
			check: func(t *testing.T, proxy, init *corev1.Container) {
				for _, e := range proxy.Env {
					if e.Value != "" && e.ValueFrom != nil || e.Name == "INSTANCE_IP" && e.Value != "10.0.0.1" || e.Name == "CA_ADDR" && e.ValueFrom == nil {
						t.Errorf("%+v", e)
					}
				}
			}},
		{name: "another kind of reference", own: corev1.Container{Env: []corev1.EnvVar{{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{Key: "k"}}}}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			i := slices.IndexFunc(proxy.Env, func(e corev1.EnvVar) bool { return e.Name == "POD_NAME" })
			if f := proxy.Env[i].ValueFrom; f.FieldRef != nil || f.SecretKeyRef == nil {
				t.Errorf("%+v", f)
			}
		}},
		{name: "another kind of probe", own: corev1.Container{ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			if h := proxy.ReadinessProbe; h.HTTPGet != nil || h.Exec == nil || h.FailureThreshold == 0 {
				t.Errorf("%+v", h)
			}
		}},
		{name: "the same kind of probe", own: corev1.Container{ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(15021), Path: "/other"}}}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			if h := proxy.ReadinessProbe.HTTPGet; h == nil || h.Path != "/other" {
				t.Errorf("%+v", h)
			}
		}},
		{name: "a lower limit", own: corev1.Container{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("50m")}}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			if r := proxy.Resources.Requests["cpu"]; r.String() != "50m" {
				t.Errorf("request %s above its limit", &r)
			}
		}},
		{name: "a higher request", own: corev1.Container{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"memory": resource.MustParse("4Gi")}}}, check: func(t *testing.T, proxy, init *corev1.Container) {
			if r := proxy.Resources.Limits["memory"]; r.String() != "4Gi" {
				t.Errorf("limit %s below its request", &r)
			}
		}},
		{name: "the agent's port", ann: map[string]string{annStatusPort: "15555"}, check: func(t *testing.T, proxy, init *corev1.Container) {
			i := slices.IndexFunc(proxy.Env, func(e corev1.EnvVar) bool { return e.Name == "PROXY_CONFIG" })
			if !strings.Contains(proxy.Env[i].Value, `"statusPort":15555`) {
				t.Errorf("the agent listens elsewhere: %s", proxy.Env[i].Value)
			}
		}},
		{name: "settings by annotation", ann: map[string]string{annDiscoveryAddress: "other.svc:15012", annExtraStatTags: "a, b", annStatsPrefixes: "c"}, check: func(t *testing.T, proxy, init *corev1.Container) {
			i := slices.IndexFunc(proxy.Env, func(e corev1.EnvVar) bool { return e.Name == "PROXY_CONFIG" })
			for _, want := range []string{`"discoveryAddress":"other.svc:15012"`, `"extraStatTags":["a","b"]`, `"inclusionPrefixes":["c"]`} {
				if !strings.Contains(proxy.Env[i].Value, want) {
					t.Errorf("no %s in %s", want, proxy.Env[i].Value)
				}
			}
		}},
		{name: "a variable by metadata", ann: map[string]string{annConfig: "proxyMetadata: {TRUST_DOMAIN: other}"}, check: func(t *testing.T, proxy, init *corev1.Container) {
			var values []string
			for _, e := range proxy.Env {
				if e.Name == "TRUST_DOMAIN" {
					values = append(values, e.Value)
				}
			}
			if !slices.Equal(values, []string{"other"}) {
				t.Errorf("%v", values)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := simplePod()
			tt.own.Name, tt.own.Image = proxyContainer, imageAuto
			pod.Spec.Containers = append(pod.Spec.Containers, tt.own)
			for k, v := range tt.ann {
				pod.Annotations[k] = v
			}
			p := testParams(t)
			p.Resources = corev1.ResourceRequirements{}
			out, err := Inject(pod, "sample", p)
			if err != nil {
				t.Fatal(err)
			}
			tt.check(t, containerOf(t, out, proxyContainer), containerOf(t, out, initContainer))
		})
	}
}

// A custom template may replace the source of a volume.
func TestTemplateReplacesAVolume(t *testing.T) {
	p := withTemplates(t)
	p.Templates.Custom["disk"] = "spec: {volumes: [{name: data, hostPath: {path: /data}}]}"
	pod := simplePod()
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	pod.Annotations[annTemplates] = "sidecar,disk"
	out, err := Inject(pod, "sample", p)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range out.Spec.Volumes {
		if v.Name == "data" && (v.EmptyDir != nil || v.HostPath == nil) {
			t.Errorf("%+v", v)
		}
	}
}

// The injector refuses what the init container or the agent would refuse in the running pod.
func TestWhatInitRefusesIsRefused(t *testing.T) {
	for annotation, values := range map[string][]string{
		annExcludeInPorts:    {"*", "0", "70000", "80;81"},
		annExcludeOutPorts:   {"*", "http"},
		annIncludeOutPorts:   {"*"},
		annIncludeInPorts:    {"*,80", "-1"},
		annIncludeOutIPs:     {"10.0.0.1/33", "::ffff:10.0.0.0/104"},
		annExcludeOutIPs:     {"*", "10.0.0.1"},
		annExcludeIfs:        {"eth0; reboot", "interfacewithalongname"},
		annKubevirtIfs:       {"a/b"},
		annLogLevel:          {"verbose"},
		annComponentLogLevel: {"misc", "misc:loud"},
		annAgentLogLevel:     {"default:loud"},
		annConfig:            {"statusPort: 70000", "proxyAdminPort: -1", "concurrency: -1", "drainDuration: -5s", "proxyMetadata: {INVALID_DROP: 'true'}"},
	} {
		for _, v := range values {
			pod := simplePod()
			pod.Annotations[annotation] = v
			if _, err := Inject(pod, "sample", testParams(t)); err == nil || !strings.Contains(err.Error(), annotation) {
				t.Errorf("%s: %s: %v", annotation, v, err)
			}
		}
	}
	if _, err := NewParams(nil, []byte(`{"global":{"proxy":{"excludeInboundPorts":"*"}}}`), true); err == nil || !strings.Contains(err.Error(), "global.proxy.excludeInboundPorts") {
		t.Errorf("a value: %v", err)
	}
	pod := simplePod()
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: proxyContainer, Image: imageAuto, Env: []corev1.EnvVar{{Name: "CARRICK_PROXY_ENGINE", Value: EngineEnvoy}}})
	if _, err := Inject(pod, "sample", testParams(t)); err == nil || !strings.Contains(err.Error(), annEngine) {
		t.Errorf("another engine in our image: %v", err)
	}
}

func TestValuesOfTheProxy(t *testing.T) {
	p, err := NewParams(nil, []byte(`{"global":{"proxy":{"statusPort":15025,"startupProbe":{"enabled":false},"seccompProfile":{"type":"RuntimeDefault"},
		"lifecycle":{"preStop":{"exec":{"command":["sleep","5"]}}}}}}`), false)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Inject(simplePod(), "sample", p)
	if err != nil {
		t.Fatal(err)
	}
	c := containerOf(t, out, proxyContainer)
	if c.Lifecycle.PreStop == nil || c.Lifecycle.PostStart == nil { // the pod waits for its proxy nevertheless
		t.Errorf("lifecycle %+v", c.Lifecycle)
	}
	if c.StartupProbe != nil || c.SecurityContext.SeccompProfile == nil {
		t.Errorf("startup probe %v, seccomp %v", c.StartupProbe, c.SecurityContext.SeccompProfile)
	}
	if out.Annotations["prometheus.io/port"] != "15025" {
		t.Errorf("status port %s", out.Annotations["prometheus.io/port"])
	}
}
