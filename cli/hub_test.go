package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/inject"
	"github.com/carrick-mesh/carrick/install"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// TestOwnRegistry: hub, tag, imagePullPolicy and imagePullSecrets, from a file or from --set, reach
// every container that Carrick brings: istiod, gateways, sidecars and the load balancer.
func TestOwnRegistry(t *testing.T) {
	file := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(file, []byte(`apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  profile: demo
  hub: registry.example.com:5000/mesh
  tag: 2.0-rc1
  values:
    global:
      imagePullPolicy: Always
      imagePullSecrets: [regcred, second]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	sets := func(hub, tag string) []string {
		return []string{"--set", hub, "--set", tag, "--set", "values.global.imagePullPolicy=Always",
			"--set", "values.global.imagePullSecrets[0]=regcred", "--set", "values.global.imagePullSecrets[1]=second"}
	}
	top := sets("hub=registry.example.com:5000/mesh", "tag=2.0-rc1")
	asValues := sets("values.global.hub=registry.example.com:5000/mesh/", "values.global.tag=2.0-rc1")
	for name, args := range map[string][]string{
		"file":      {"manifest", "generate", "-f", file},
		"set":       append([]string{"manifest", "generate", "--set", "profile=demo"}, top...),
		"values":    append([]string{"manifest", "generate", "--set", "profile=demo"}, asValues...),
		"lb":        append([]string{"lb", "manifest"}, top...),
		"lb values": append([]string{"lb", "manifest"}, asValues...),
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := runCarrick(args...)
			if code != 0 {
				t.Fatal(stderr)
			}
			want := []string{"istiod", "istio-egressgateway", "istio-ingressgateway", "sidecar"}
			if args[0] == "lb" {
				want = []string{"controller", "speaker"}
			}
			var got []string
			for n, pod := range podsOf(t, stdout) {
				got = append(got, n)
				checkImages(t, n, pod)
			}
			slices.Sort(want)
			slices.Sort(got)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("workloads (-want +got):\n%s", d)
			}
		})
	}
}

func checkImages(t *testing.T, name string, pod corev1.PodSpec) {
	t.Helper()
	if want := []corev1.LocalObjectReference{{Name: "regcred"}, {Name: "second"}}; !cmp.Equal(want, pod.ImagePullSecrets) {
		t.Errorf("%s: imagePullSecrets %v, want %v", name, pod.ImagePullSecrets, want)
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		if c.Name == "app" {
			continue // the user's
		}
		if c.Image != "registry.example.com:5000/mesh/carrick:2.0-rc1" || c.ImagePullPolicy != corev1.PullAlways {
			t.Errorf("%s, container %s: image %s, policy %s", name, c.Name, c.Image, c.ImagePullPolicy)
		}
	}
}

// podsOf returns the pods that manifests make, by workload, as the injector lets them pass; with
// an injector, also a pod with a sidecar.
func podsOf(t *testing.T, manifests string) map[string]corev1.PodSpec {
	t.Helper()
	workloads := map[string]corev1.PodTemplateSpec{}
	var params *inject.Params
	for doc := range strings.SplitSeq(manifests, "\n---\n") {
		var u unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		into := func(to any) {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, to); err != nil {
				t.Fatal(err)
			}
		}
		switch {
		case u.GetKind() == "Deployment":
			var d appsv1.Deployment
			into(&d)
			workloads[d.Name] = d.Spec.Template
		case u.GetKind() == "DaemonSet":
			var d appsv1.DaemonSet
			into(&d)
			workloads[d.Name] = d.Spec.Template
		case u.GetKind() == "ConfigMap" && u.GetName() == "istio-sidecar-injector":
			var c corev1.ConfigMap
			into(&c)
			p, err := inject.NewParams(nil, []byte(c.Data["values"]), true)
			if err != nil {
				t.Fatal(err)
			}
			params = &p
		}
	}
	if params != nil {
		workloads["sidecar"] = corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "app"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
	}
	out := map[string]corev1.PodSpec{}
	for n, w := range workloads {
		pod := &corev1.Pod{ObjectMeta: w.ObjectMeta, Spec: w.Spec}
		if params != nil && n != "istiod" {
			var err error
			if pod, err = inject.Inject(pod, install.DefaultNamespace, *params); err != nil {
				t.Fatal(err)
			}
		}
		out[n] = pod.Spec
	}
	return out
}
