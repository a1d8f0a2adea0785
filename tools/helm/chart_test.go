package helm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const version = "1.0.0"

// load returns a chart as Helm reads it.
func load(t *testing.T, name string) *chart.Chart {
	t.Helper()
	files, err := install.Charts(version)
	if err != nil {
		t.Fatal(err)
	}
	var buffered []*loader.BufferedFile
	for path, b := range files {
		if rest, ok := strings.CutPrefix(path, name+"/"); ok {
			buffered = append(buffered, &loader.BufferedFile{Name: rest, Data: b})
		}
	}
	c, err := loader.LoadFiles(buffered)
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// template is `helm template -n istio-system RELEASE CHART -f VALUES`.
func template(t *testing.T, name, release, values string) string {
	t.Helper()
	c := load(t, name)
	v, err := chartutil.ReadValues([]byte(values))
	if err == nil {
		v, err = chartutil.ToRenderValues(c, v, chartutil.ReleaseOptions{Name: release, Namespace: "istio-system", IsInstall: true}, chartutil.DefaultCapabilities)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := engine.Engine{Strict: false}.Render(c, v)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for path, text := range out {
		if strings.HasSuffix(path, ".yaml") {
			all.WriteString("\n---\n" + text)
		}
	}
	return all.String()
}

// objects reads documents by kind and name, in a form in which what means the same is the same.
func objects(t *testing.T, text string) map[string]any {
	t.Helper()
	all := map[string]any{}
	for doc := range strings.SplitSeq("\n"+text, "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if len(o) == 0 || o["kind"] == "Namespace" { // helm install --create-namespace
			continue
		}
		key := fmt.Sprint(o["kind"], " ", o["metadata"].(map[string]any)["name"])
		if all[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		if data, ok := o["data"].(map[string]any); ok {
			for k, v := range data {
				var tree any
				if err := yaml.Unmarshal([]byte(v.(string)), &tree); err != nil {
					t.Fatalf("%s: data.%s: %v", key, k, err)
				}
				data[k] = tree
			}
		}
		all[key] = plain(o)
	}
	return all
}

// plain drops what is empty, what Helm alone reads, and the order of environment variables.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			if x = plain(x); x != nil && k != "helm.sh/resource-policy" {
				out[k] = x
			}
		}
		if env, ok := out["env"].([]any); ok {
			byName := map[string]any{}
			for _, e := range env {
				byName[e.(map[string]any)["name"].(string)] = e
			}
			out["env"] = byName
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		var out []any
		for _, x := range v {
			out = append(out, plain(x))
		}
		if out == nil {
			return nil
		}
		return out
	case string:
		if v == "" {
			return nil
		}
	}
	return v
}

// rendered is what the installer makes of an IstioOperator's spec, the parts of those names.
func rendered(t *testing.T, name string, spec map[string]any, parts ...string) map[string]any {
	t.Helper()
	file := map[string]any{"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "spec": spec}
	if name != "" {
		file["metadata"] = map[string]any{"name": name}
	}
	b, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := install.Parse("test", b)
	if err != nil {
		t.Fatal(err)
	}
	c, err := install.Resolve(docs, nil, version)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Render()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{}
	for _, p := range m.Parts {
		for _, want := range parts {
			if p.Name == want {
				one := install.Manifest{Parts: []install.Part{p}}
				y, err := one.YAML()
				if err != nil {
					t.Fatal(err)
				}
				maps.Copy(all, objects(t, string(y)))
			}
		}
	}
	return all
}

func compare(t *testing.T, installer, chart map[string]any) {
	t.Helper()
	if len(installer) == 0 {
		t.Fatal("the installer renders nothing")
	}
	for key := range installer {
		if d := cmp.Diff(installer[key], chart[key]); d != "" {
			t.Errorf("%s: the chart differs from the installer (-installer +chart):\n%s", key, d)
		}
	}
	for key := range chart {
		if installer[key] == nil {
			t.Errorf("the installer has no %s", key)
		}
	}
}

func TestBase(t *testing.T) {
	for _, values := range []string{"{}", "global: {imagePullSecrets: [a, b]}"} {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(values), &v); err != nil {
			t.Fatal(err)
		}
		compare(t, rendered(t, "", map[string]any{"profile": "minimal", "values": v}, "Istio core"), objects(t, template(t, "base", "istio-base", values)))
	}
}

func TestIstiod(t *testing.T) {
	for name, values := range map[string]string{
		"nothing":     "{}",
		"guide":       "global: {meshID: mesh1, multiCluster: {clusterName: cluster1}, network: network1}",
		"numbers":     "global: {tag: '2', meshID: '7', multiCluster: {clusterName: '1'}, network: '3'}",
		"revision":    "revision: canary\nglobal: {meshID: mesh1}\nmeshConfig: {accessLogFile: /dev/stdout}",
		"default":     "revision: default",
		"no autoscal": "pilot: {autoscaleEnabled: false, replicaCount: 3}\nglobal: {defaultPodDisruptionBudget: {enabled: false}}",
		"everything": `
global:
  hub: registry.example.com/mesh/
  tag: 2.0.0
  imagePullPolicy: Always
  imagePullSecrets: [one, two]
  meshID: mesh1
  network: network1
  trustDomain: example.com
  priorityClassName: system-cluster-critical
  multiCluster: {clusterName: cluster1}
  logging: {level: "default:debug"}
  meshNetworks: {network2: {endpoints: [{fromRegistry: cluster2}], gateways: [{address: 1.1.1.1, port: 443}]}}
  proxy: {engine: envoy, image: carrick-envoy, logLevel: info, excludeIPRanges: 10.0.0.0/8, resources: {limits: {memory: 2Gi}}}
pilot:
  autoscaleMin: 2
  autoscaleMax: 9
  traceSampling: 12.5
  env: {CLUSTER_ID: other, SOME: "1"}
  resources: {requests: {cpu: 500m}, limits: {memory: 3Gi}}
  nodeSelector: {disk: ssd}
  tolerations: [{key: a, operator: Exists, effect: NoSchedule}]
  podAnnotations: {prometheus.io/scrape: "false", more: x}
meshConfig:
  accessLogFile: /dev/stdout
  defaultConfig: {holdApplicationUntilProxyStarts: true, tracing: {zipkin: {address: "z:1"}}}
sidecarInjectorWebhook:
  enableNamespacesByDefault: true
  rewriteAppHTTPProbe: false
  neverInjectSelector: [{matchLabels: {a: b}}]
  injectedAnnotations: {x: z}
`,
	} {
		t.Run(name, func(t *testing.T) {
			var v map[string]any
			if err := yaml.Unmarshal([]byte(values), &v); err != nil {
				t.Fatal(err)
			}
			compare(t, rendered(t, "", map[string]any{"profile": "minimal", "values": v}, "Istiod"), objects(t, template(t, "istiod", "istiod", values)))
		})
	}
}

// TestGateway: the chart's values and the IstioOperator component that says the same.
func TestGateway(t *testing.T) {
	const limits = "resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {cpu: '2', memory: 1Gi}}"
	for name, tt := range map[string]struct{ release, values, component, revision string }{
		"ingress": {"istio-ingressgateway", "{}", `
name: istio-ingressgateway
label: {app: istio-ingressgateway, istio: ingressgateway}
k8s: {hpaSpec: {minReplicas: 1, maxReplicas: 5}, ` + limits + `}`, ""},
		"east-west": {"istio-eastwestgateway", "networkGateway: network1", `
name: istio-eastwestgateway
label: {app: istio-eastwestgateway, istio: eastwestgateway, topology.istio.io/network: network1}
k8s:
  hpaSpec: {minReplicas: 1, maxReplicas: 5}
  ` + limits + `
  env: [{name: ISTIO_META_REQUESTED_NETWORK_VIEW, value: network1}]
  service:
    ports:
    - {name: status-port, port: 15021, targetPort: 15021}
    - {name: tls, port: 15443, targetPort: 15443}
    - {name: tls-istiod, port: 15012, targetPort: 15012}
    - {name: tls-webhook, port: 15017, targetPort: 15017}`, ""},
		"everything": {"release", `
name: istio-gate
revision: canary
replicaCount: 2
imagePullPolicy: IfNotPresent
autoscaling: {enabled: false}
podDisruptionBudget: {minAvailable: 1}
service:
  type: NodePort
  loadBalancerIP: 10.0.0.1
  annotations: {a: b}
  loadBalancerSourceRanges: [10.0.0.0/8]
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
env: {A: "1", B: x}
podAnnotations: {c: d}
nodeSelector: {disk: ssd}
tolerations: [{key: a, operator: Exists}]
affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname}]}}
resources: {requests: {cpu: '1'}, limits: null}
`, `
name: istio-gate
label: {app: istio-gate, istio: gate}
k8s:
  replicaCount: 2
  podDisruptionBudget: {minAvailable: 1}
  serviceAnnotations: {a: b}
  service:
    type: NodePort
    loadBalancerIP: 10.0.0.1
    loadBalancerSourceRanges: [10.0.0.0/8]
    externalTrafficPolicy: Local
    ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
  env: [{name: A, value: "1"}, {name: B, value: x}]
  podAnnotations: {c: d}
  nodeSelector: {disk: ssd}
  tolerations: [{key: a, operator: Exists}]
  affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname}]}}
  resources: {requests: {cpu: 1, memory: 128Mi}}
`, "canary"},
	} {
		t.Run(name, func(t *testing.T) {
			var g map[string]any
			if err := yaml.Unmarshal([]byte(tt.component), &g); err != nil {
				t.Fatal(err)
			}
			g["enabled"] = true
			spec := map[string]any{"profile": "empty", "revision": tt.revision, "components": map[string]any{"ingressGateways": []any{g}}}
			compare(t, rendered(t, g["name"].(string), spec, "Ingress gateways"), objects(t, template(t, "gateway", tt.release, tt.values)))
		})
	}
}

// TestReproducible: two runs write the same bytes.
func TestReproducible(t *testing.T) {
	one, err := install.Charts(version)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		two, err := install.Charts(version)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(one, two); d != "" {
			t.Fatal(d)
		}
	}
}

// TestApply pipes the charts into kubectl apply, against a real API server.
func TestApply(t *testing.T) {
	s := kubetest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := s.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, s.Config.CAData, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ chart, release, values string }{
		{"base", "istio-base", "{}"},
		{"istiod", "istiod", "global: {meshID: mesh1, network: network1}"},
		{"istiod", "istiod-canary", "revision: canary"},
		{"gateway", "istio-ingressgateway", "{}"},
		{"gateway", "istio-eastwestgateway", "networkGateway: network1"},
	} {
		text := template(t, c.chart, c.release, c.values)
		// --server-side: client-side apply keeps a second copy in an annotation, for which CRDs are too large.
		cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(kubetest.Program()), "kubectl"), "--server="+s.Config.Host, "--certificate-authority="+ca, "--token="+s.Config.BearerToken,
			"apply", "--server-side", "-n", "istio-system", "-f", "-")
		cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null")
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl apply of chart %s: %v\n%s", c.chart, err, out)
		}
		if got, want := bytes.Count(out, []byte("serverside-applied")), len(objects(t, text)); got != want {
			t.Errorf("chart %s: %d objects applied, want %d:\n%s", c.chart, got, want, out)
		}
	}
	ds, err := s.Client.AppsV1().Deployments("istio-system").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range ds.Items {
		names = append(names, d.Name)
	}
	b, err := json.Marshal(names)
	if err != nil || string(b) != `["istio-eastwestgateway","istio-ingressgateway","istiod","istiod-canary"]` {
		t.Errorf("Deployments: %s, %v", b, err)
	}
}
