package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/install"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// webhooks are those of a tag, which the installer makes as it does those of a revision.
func webhooks(t *testing.T, tag, revision string) (m admissionv1.MutatingWebhookConfiguration) {
	t.Helper()
	o, err := install.TagWebhook(tag, revision, "istio-system")
	if err != nil {
		t.Fatal(err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestVerdicts(t *testing.T) {
	off := webhooks(t, "default", "old")
	off.Name = "istio-sidecar-injector"
	never := &metav1.LabelSelector{MatchLabels: map[string]string{"istio.io/deactivated": "never-match"}}
	for i := range off.Webhooks {
		off.Webhooks[i].NamespaceSelector, off.Webhooks[i].ObjectSelector = never, never
	}
	hooks := []admissionv1.MutatingWebhookConfiguration{webhooks(t, "default", "new"), webhooks(t, "prod", "1-2-0"), off}
	type labels = map[string]string
	const disabled = "✘ namespace label istio-injection=disabled prevents it"
	const nobody, deactivated = "✘ no label of the namespace or the pod asks for it", "✘ it is deactivated: the tag default stands for another revision"
	for name, tt := range map[string]struct {
		namespace, pod labels
		want           []string
	}{
		"no label":              {nil, nil, []string{nobody, nobody, deactivated}},
		"enabled":               {labels{"istio-injection": "enabled"}, labels{"app": "x"}, []string{"✔ namespace label istio-injection=enabled", nobody, deactivated}},
		"enabled, but not it":   {labels{"istio-injection": "enabled"}, labels{"sidecar.istio.io/inject": "false"}, []string{"✘ pod label sidecar.istio.io/inject=false prevents it", nobody, deactivated}},
		"by the pod":            {nil, labels{"sidecar.istio.io/inject": "true"}, []string{"✔ pod label sidecar.istio.io/inject=true", nobody, deactivated}},
		"by a tag":              {labels{"istio.io/rev": "prod"}, nil, []string{nobody, "✔ namespace label istio.io/rev=prod", deactivated}},
		"the pod's own tag":     {nil, labels{"istio.io/rev": "prod"}, []string{nobody, "✔ pod label istio.io/rev=prod", deactivated}},
		"disabled, asked or no": {labels{"istio-injection": "disabled"}, labels{"sidecar.istio.io/inject": "true"}, []string{disabled, disabled, disabled}},
	} {
		var got []string
		for _, v := range verdicts(hooks, tt.namespace, tt.pod) {
			mark := "✘ "
			if v.Injected {
				mark = "✔ "
			}
			got = append(got, mark+v.Reason)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestPrintInjection(t *testing.T) {
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	if err := printInjected(cmd, []injectedSpace{
		{Namespace: "old", Pods: map[string]int{"default": 1}},
		{Namespace: "sample", Revision: "default", Webhook: "istio-sidecar-injector", Pods: map[string]int{"default": 2, "": 1, "old": 1}},
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"old           -                  default: 1 NEEDS RESTART", "default: 2, no sidecar: 1 NEEDS RESTART, old: 1 NEEDS RESTART     istio-sidecar-injector"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	out.Reset()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "sample"}}
	if err := printVerdicts(cmd, []verdict{{"istio-sidecar-injector", "default", true, "namespace label istio-injection=enabled"}}, pod); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "✔") || !strings.Contains(out.String(), "kubectl -n sample delete pod x") {
		t.Errorf("%s", &out)
	}
}
