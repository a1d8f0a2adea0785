package install

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// rendered returns the object of a kind and name that an IstioOperator file with that spec renders.
func rendered(t *testing.T, file, kind, name string) *unstructured.Unstructured {
	t.Helper()
	docs, err := Parse("f.yaml", []byte("apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n"+file))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Resolve(docs, nil, "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range m.Objects() {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

// What values say of a gateway's Service holds with every profile: source ranges that vanish open the load
// balancer to the world.
func TestGatewayServiceValues(t *testing.T) {
	const values = `
  values:
    gateways:
      istio-ingressgateway:
        loadBalancerSourceRanges: [192.0.2.0/24]
        externalTrafficPolicy: Local
        loadBalancerIP: 192.0.2.7
        ports: [{name: web, port: 80, targetPort: 8080}]
        resources: {requests: {cpu: 3m}}
`
	for _, tt := range []struct {
		name, file string
		want       corev1.ServiceSpec
	}{
		{"default", values, corev1.ServiceSpec{Type: "LoadBalancer", ExternalTrafficPolicy: "Local"}},
		{"demo", "  profile: demo" + values, corev1.ServiceSpec{Type: "LoadBalancer", ExternalTrafficPolicy: "Local"}},
		{"k8s.service beside values", values + `
  components: {ingressGateways: [{name: istio-ingressgateway, k8s: {service: {externalTrafficPolicy: Cluster}}}]}
`, corev1.ServiceSpec{Type: "LoadBalancer", ExternalTrafficPolicy: "Cluster"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var svc corev1.Service
			o := rendered(t, tt.file, "Service", "istio-ingressgateway")
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &svc); err != nil {
				t.Fatal(err)
			}
			got := corev1.ServiceSpec{Type: svc.Spec.Type, ExternalTrafficPolicy: svc.Spec.ExternalTrafficPolicy}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff([]string{"192.0.2.0/24"}, svc.Spec.LoadBalancerSourceRanges); d != "" {
				t.Errorf("source ranges: %s", d)
			}
			if svc.Spec.LoadBalancerIP != "192.0.2.7" || len(svc.Spec.Ports) != 1 || svc.Spec.Ports[0].Name != "web" {
				t.Errorf("%+v", svc.Spec)
			}
			containers, _, _ := unstructured.NestedSlice(rendered(t, tt.file, "Deployment", "istio-ingressgateway").Object,
				"spec", "template", "spec", "containers")
			cpu, _, _ := unstructured.NestedString(containers[0].(map[string]any), "resources", "requests", "cpu")
			if cpu != "3m" {
				t.Errorf("the pod asks for %q of CPU", cpu)
			}
		})
	}
}

func TestAutoscaler(t *testing.T) {
	hpa := func(spec string) *unstructured.Unstructured {
		return rendered(t, "  components: {pilot: {k8s: {hpaSpec: "+spec+"}}}\n", "HorizontalPodAutoscaler", "istiod")
	}
	for spec, want := range map[string]string{
		"{maxReplicas: 7}": "autoscaling/v1",
		"{metrics: [{type: Resource, resource: {name: cpu, targetAverageUtilization: 60}}]}":                           "autoscaling/v1",
		"{metrics: [{type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 70}}}]}": "autoscaling/v2",
		"{behavior: {scaleDown: {stabilizationWindowSeconds: 600}}}":                                                   "autoscaling/v2",
		"{metrics: [{type: Resource, resource: {name: memory, targetAverageValue: 300Mi}}]}":                           "autoscaling/v2",
	} {
		if got := hpa(spec).GetAPIVersion(); got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
	metrics, _, _ := unstructured.NestedSlice(hpa("{metrics: [{type: Resource, resource: {name: memory, targetAverageValue: 300Mi}}]}").Object, "spec", "metrics")
	want := []any{map[string]any{"type": "Resource", "resource": map[string]any{"name": "memory", "target": map[string]any{"type": "AverageValue", "averageValue": "300Mi"}}}}
	if d := cmp.Diff(want, metrics); d != "" {
		t.Error(d)
	}
	window, _, _ := unstructured.NestedInt64(hpa("{behavior: {scaleDown: {stabilizationWindowSeconds: 600}}}").Object, "spec", "behavior", "scaleDown", "stabilizationWindowSeconds")
	if window != 600 {
		t.Errorf("the stabilization window is %d", window)
	}
}

// In a list of scalars an overlay's path selects an item by a regular expression, as in Istio.
func TestOverlayOfLeaf(t *testing.T) {
	tree := map[string]any{"args": []any{"discovery", "--domain=cluster.local", "--v=2"}}
	got, err := setPath(tree, "args.[:--domain]", "--domain=corp.internal")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]any{"args": []any{"discovery", "--domain=corp.internal", "--v=2"}}, got); d != "" {
		t.Error(d)
	}
	if got, err = setPath(tree, "args.[:--v]", nil); err != nil || len(got.(map[string]any)["args"].([]any)) != 2 {
		t.Errorf("removal: %v, %v", got, err)
	}
	for path, want := range map[string]string{"args.[:--none]": "args has no item that matches --none", "args.[:(]": "is not a regular expression"} {
		if _, err := setPath(tree, path, "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// What a file sets and nothing reads is told by path, with what holds instead; a typo is refused, and so is
// nothing that Istio has.
func TestUnused(t *testing.T) {
	const file = `
  meshConfig: {enableTracing: true, accessLogFile: /dev/stdout}
  components: {pilot: {k8s: {env: [{name: PILOT_ENABLE_X, value: "1"}, {name: PILOT_HTTP10, value: "1"}]}}}
  values:
    global: {jwtPolicy: third-party-jwt, platform: gke, proxy: {tracer: zipkin, lifecycle: {preStop: {exec: {command: [a]}}}}}
    pilot: {env: {PILOT_ENABLE_Y: "1"}, traceSampling: 1, volumes: []}
    gateways: {istio-ingressgateway: {topologySpreadConstraints: [], loadBalancerSourceRanges: [192.0.2.0/24]}}
    sidecarInjectorWebhook: {templates: {a: "b"}, defaultTemplates: [sidecar]}
`
	docs, err := Parse("f.yaml", []byte("apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n"+file))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Resolve(docs, nil, "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range c.Ignored {
		got = append(got, u.String())
	}
	want := []string{
		"values.gateways.istio-ingressgateway.topologySpreadConstraints has no effect: nothing here reads it",
		"values.global.jwtPolicy has no effect: nothing here reads it",
		"values.global.platform has no effect: nothing here reads it",
		"values.global.proxy.tracer has no effect: nothing here reads it",
		"values.pilot.traceSampling has no effect: nothing here reads it",
		"values.pilot.volumes has no effect: nothing here reads it",
		"meshConfig.enableTracing has no effect: no spans are made",
		"values.pilot.env.PILOT_ENABLE_Y has no effect: the control plane does not read this variable",
		"components.pilot.k8s.env.PILOT_ENABLE_X has no effect: the control plane does not read this variable",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := Resolve(nil, []string{"values.global.proxy.logLevl=debug"}, "1.0.0"); err == nil || !strings.Contains(err.Error(), "spec.values.global.proxy.logLevl: no such field") {
		t.Errorf("a typo below global.proxy: %v", err)
	}
	for _, profile := range []string{"default", "demo", "minimal", "empty"} {
		c, err := Resolve(nil, []string{"profile=" + profile}, "1.0.0")
		if err != nil || len(c.Ignored) > 0 {
			t.Errorf("profile %s: %v %v", profile, err, c.Ignored)
		}
	}
}

// Every value of Istio's charts is read, or told to have no effect; none is called misspelt.
func TestValuesOfIstio(t *testing.T) {
	b, err := os.ReadFile("testdata/values-1.31.txt")
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.Lines(string(b)) {
		path = strings.TrimSpace(path)
		if path == "" || path[0] == '#' {
			continue
		}
		if _, err := Resolve(nil, []string{"values." + path + "={}"}, "1.0.0"); err != nil && strings.Contains(err.Error(), "no such field") {
			t.Errorf("%v", err)
		}
	}
}
