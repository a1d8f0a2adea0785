package inject

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestNotes(t *testing.T) {
	asUser := func(c *corev1.Container, uid int64) {
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr.To(uid)}
	}
	for _, tt := range []struct {
		name   string
		change func(*corev1.Pod)
		want   string // a part of the only note, empty for none
	}{
		{"nothing", func(*corev1.Pod) {}, ""},
		{"the proxy's user", func(p *corev1.Pod) { asUser(&p.Spec.Containers[0], 1337) }, "runs as the proxy's user"},
		{"the proxy's user for the pod", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](1337)}
		}, "runs as the proxy's user"},
		{"the proxy's group", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](5), RunAsGroup: ptr.To[int64](1337)}
		}, "runs as the proxy's user or group"},
		{"the user that the proxy was given", func(p *corev1.Pod) {
			asUser(&p.Spec.Containers[0], 99)
			proxy := corev1.Container{Name: proxyContainer, Image: imageAuto}
			asUser(&proxy, 99)
			p.Spec.Containers = append(p.Spec.Containers, proxy)
		}, "runs as the proxy's user"},
		{"a container that is another user", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](1337)}
			asUser(&p.Spec.Containers[0], 5)
		}, ""},
		{"Windows, without asking", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"kubernetes.io/os": "windows"} }, ""},
		{"Windows", func(p *corev1.Pod) {
			p.Labels[annInject], p.Spec.OS = "true", &corev1.PodOS{Name: corev1.Windows}
		}, "not injected though it asks for it: it runs on Windows"},
		{"the host's network", func(p *corev1.Pod) { p.Labels[annInject], p.Spec.HostNetwork = "true", true }, "not injected though it asks for it: it uses the host's network"},
		{"without effect", func(p *corev1.Pod) { p.Annotations["sidecar.istio.io/bootstrapOverride"] = "x" }, "annotation sidecar.istio.io/bootstrapOverride has no effect"},
		{"without effect here", func(p *corev1.Pod) { p.Annotations[annExtraStatTags] = "x" }, "has no effect: the built-in proxy"},
		{"with effect in Envoy", func(p *corev1.Pod) { p.Annotations[annExtraStatTags], p.Annotations[annEngine] = "x", EngineEnvoy }, ""},
		{"a typo", func(p *corev1.Pod) { p.Annotations["traffic.sidecar.istio.io/excludeInboundPort"] = "80" }, "traffic.sidecar.istio.io/excludeInboundPort is unknown"},
		{"somebody else's", func(p *corev1.Pod) { p.Annotations["example.com/excludeInboundPort"] = "80" }, ""},
	} {
		pod := simplePod()
		if pod.Labels == nil {
			pod.Labels = map[string]string{}
		}
		tt.change(pod)
		h := Handler(func() Params { return testParams(t) }, slog.New(slog.DiscardHandler), nil)
		resp, _ := post(t, h, "/inject", pod)
		if got := strings.Join(resp.Warnings, "\n"); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) || len(resp.Warnings) > 1 {
			t.Errorf("%s: warnings %q, want %q", tt.name, resp.Warnings, tt.want)
		}
	}
}

// kube-inject says the same as the webhook.
func TestManifestNotes(t *testing.T) {
	var notes []string
	in := "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {template: {spec: {securityContext: {runAsUser: 1337}, containers: [{name: app, image: i}]}}}\n"
	if err := Manifest(strings.NewReader(in), &bytes.Buffer{}, testParams(t), func(n string) { notes = append(notes, n) }); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(notes, func(n string) bool {
		return strings.HasPrefix(n, "Deployment a: container app runs as the proxy's user")
	}) {
		t.Errorf("%q", notes)
	}
}
