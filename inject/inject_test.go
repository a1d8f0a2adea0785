package inject

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/wrapperspb"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const testValues = `{"global": {"hub": "docker.io/carrickmesh", "tag": "1.0", "meshID": "mesh1", "network": "network1",
 "imagePullSecrets": ["regcred"],
 "multiCluster": {"clusterName": "cluster1"},
 "proxy": {"resources": {"requests": {"cpu": "10m", "memory": "40Mi"}}}}}`

func testParams(t testing.TB) Params {
	t.Helper()
	p, err := NewParams(&meshconfig.MeshConfig{
		TrustDomain: "cluster.local",
		DefaultConfig: &meshconfig.ProxyConfig{
			DiscoveryAddress:                "istiod.istio-system.svc:15012",
			MeshId:                          "mesh1",
			ProxyMetadata:                   map[string]string{"A": "1"},
			HoldApplicationUntilProxyStarts: nil,
		},
	}, []byte(testValues), true)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGolden(t *testing.T) {
	change := map[string]func(*Params){
		"helloworld-classic": func(p *Params) { p.Native = false },
		"helloworld-envoy":   func(p *Params) { p.Engine = EngineEnvoy },
	}
	files, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, in := range files {
		name := strings.TrimSuffix(filepath.Base(in), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			p := testParams(t)
			if c := change[name]; c != nil {
				c(&p)
			}
			src, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := Manifest(bytes.NewReader(src), &got, p, func(s string) { got.WriteString("# " + s + "\n") }); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(in, ".in.yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got.String()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			// Injecting the result changes nothing but the remarks.
			var again bytes.Buffer
			if err := Manifest(bytes.NewReader(got.Bytes()), &again, p, nil); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(decode(t, got.Bytes()), decode(t, again.Bytes())); d != "" {
				t.Errorf("not idempotent:\n%s", d)
			}
		})
	}
}

func decode(t *testing.T, data []byte) []any {
	t.Helper()
	var out []any
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var v any
		if err := yaml.Unmarshal([]byte(doc), &v); err != nil {
			t.Fatal(err)
		}
		if v != nil {
			out = append(out, v)
		}
	}
	return out
}

func simplePod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"app": "a"}, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{
			Containers:     []corev1.Container{{Name: "a", Image: "a"}},
			InitContainers: []corev1.Container{{Name: "i", Image: "i"}},
			Volumes:        []corev1.Volume{{Name: "v"}},
		},
	}
}

func TestWanted(t *testing.T) {
	tests := []struct {
		name   string
		change func(*corev1.Pod, *Params)
		ns     string
		want   bool
	}{
		{"default", func(*corev1.Pod, *Params) {}, "sample", true},
		{"label false", func(p *corev1.Pod, _ *Params) { p.Labels[annInject] = "false" }, "sample", false},
		{"annotation false", func(p *corev1.Pod, _ *Params) { p.Annotations[annInject] = "false" }, "sample", false},
		{"label wins", func(p *corev1.Pod, _ *Params) { p.Labels[annInject] = "true"; p.Annotations[annInject] = "false" }, "sample", true},
		{"host network", func(p *corev1.Pod, _ *Params) { p.Spec.HostNetwork = true; p.Labels[annInject] = "true" }, "sample", false},
		{"kube-system", func(p *corev1.Pod, _ *Params) { p.Labels[annInject] = "true" }, "kube-system", false},
		{"off", func(_ *corev1.Pod, q *Params) { q.Disabled = true }, "sample", false},
		{"off but asked", func(p *corev1.Pod, q *Params) { q.Disabled = true; p.Labels[annInject] = "true" }, "sample", true},
		{"never", func(_ *corev1.Pod, q *Params) {
			q.NeverSelector = []metav1.LabelSelector{{MatchLabels: map[string]string{"app": "a"}}}
		}, "sample", false},
		{"always", func(_ *corev1.Pod, q *Params) {
			q.Disabled = true
			q.AlwaysSelector = []metav1.LabelSelector{{MatchLabels: map[string]string{"app": "a"}}}
		}, "sample", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod, p := simplePod(), testParams(t)
			tt.change(pod, &p)
			if got, why := Wanted(pod, tt.ns, p); got != tt.want {
				t.Errorf("Wanted() = %v (%s)", got, why)
			}
		})
	}
}

// Bad annotations are refused, by name, and never reach a command line.
func TestBadAnnotations(t *testing.T) {
	for name, v := range map[string]string{
		annIncludeOutIPs:   "10.0.0.0",
		annExcludeOutIPs:   "all",
		annExcludeInPorts:  "80;reboot",
		annExcludeOutPorts: "0",
		annCPU:             "much",
		annRewrite:         "maybe",
		annStatusPort:      "-1",
		annConfig:          "concurrencyy: 1",
		annTemplates:       "sidecar,custom",
		annEngine:          "nginx",
		annInterception:    "MAGIC",
		annVolume:          "[]",
		annVolumeMount:     "{",
	} {
		pod := simplePod()
		pod.Annotations[name] = v
		if _, err := Inject(pod, "sample", testParams(t)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %q: error %v does not name the annotation", name, v, err)
		}
	}
}

func names(cs []corev1.Container) (out []string) {
	for _, c := range cs {
		out = append(out, c.Name)
	}
	return out
}

func TestOrder(t *testing.T) {
	for _, tt := range []struct {
		name         string
		native, hold bool
		inits, main  []string
	}{
		{"native", true, true, []string{"istio-init", "istio-proxy", "i"}, []string{"a"}},
		{"classic, holding", false, true, []string{"i", "istio-init"}, []string{"istio-proxy", "a"}},
		{"classic", false, false, []string{"i", "istio-init"}, []string{"a", "istio-proxy"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := testParams(t)
			p.Native, p.Hold = tt.native, tt.hold
			out, err := Inject(simplePod(), "sample", p)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.inits, names(out.Spec.InitContainers)); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.main, names(out.Spec.Containers)); d != "" {
				t.Error(d)
			}
			held := slices.ContainsFunc(out.Spec.Containers, func(c corev1.Container) bool { return c.Name == proxyContainer && c.Lifecycle != nil })
			if held != (!tt.native && tt.hold) {
				t.Errorf("held = %v", held)
			}
		})
	}
}

func TestLeastPrivilege(t *testing.T) {
	out, err := Inject(simplePod(), "sample", testParams(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range out.Spec.InitContainers[:2] {
		sc := c.SecurityContext
		if *sc.AllowPrivilegeEscalation || *sc.Privileged || !*sc.ReadOnlyRootFilesystem || !slices.Contains(sc.Capabilities.Drop, "ALL") {
			t.Errorf("%s: %+v", c.Name, sc)
		}
		if c.Name == proxyContainer && (len(sc.Capabilities.Add) != 0 || *sc.RunAsUser != 1337 || !*sc.RunAsNonRoot) {
			t.Errorf("%s: %+v", c.Name, sc)
		}
	}
}

// The input is not changed, and one result does not share memory with the next.
func TestInjectIsPure(t *testing.T) {
	pod, p := simplePod(), testParams(t)
	before := pod.DeepCopy()
	a, err := Inject(pod, "sample", p)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, pod); d != "" {
		t.Errorf("the input changed: %s", d)
	}
	b, err := Inject(pod, "sample", p)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(a, b); d != "" {
		t.Errorf("two injections differ: %s", d)
	}
	c, err := Inject(a, "sample", p)
	if err != nil || c != a {
		t.Errorf("an injected pod is injected again (%v)", err)
	}
}

func TestProxyConfigOverlay(t *testing.T) {
	base := &meshconfig.ProxyConfig{HoldApplicationUntilProxyStarts: wrapperspb.Bool(true), ProxyMetadata: map[string]string{"A": "1", "B": "1"}}
	got, err := proxyConfig(base, "holdApplicationUntilProxyStarts: false\nproxyMetadata: {B: \"2\"}")
	if err != nil {
		t.Fatal(err)
	}
	if got.HoldApplicationUntilProxyStarts.Value {
		t.Error("false does not win over true")
	}
	if d := cmp.Diff(map[string]string{"A": "1", "B": "2"}, got.ProxyMetadata); d != "" {
		t.Error(d)
	}
	if base.ProxyMetadata["B"] != "1" || !base.HoldApplicationUntilProxyStarts.Value {
		t.Error("the mesh's config changed")
	}
}

func TestWorkloadOf(t *testing.T) {
	owned := func(api, kind, name string, labels map[string]string) *corev1.Pod {
		yes := true
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-", Labels: labels,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: api, Kind: kind, Name: name, Controller: &yes}}}}
	}
	for want, pod := range map[string]*corev1.Pod{
		"kubernetes://apis/apps/v1/namespaces/n/deployments/web":      owned("apps/v1", "ReplicaSet", "web-5d4f", map[string]string{"pod-template-hash": "5d4f"}),
		"kubernetes://apis/apps/v1/namespaces/n/replicasets/web":      owned("apps/v1", "ReplicaSet", "web", nil),
		"kubernetes://apis/apps/v1/namespaces/n/statefulsets/db":      owned("apps/v1", "StatefulSet", "db", nil),
		"kubernetes://apis/batch/v1/namespaces/n/cronjobs/nightly":    owned("batch/v1", "Job", "nightly-28123456", nil),
		"kubernetes://apis/batch/v1/namespaces/n/jobs/once":           owned("batch/v1", "Job", "once", nil),
		"kubernetes://apis/v1/namespaces/n/pods/bare":                 {ObjectMeta: metav1.ObjectMeta{Name: "bare"}},
		"kubernetes://apis/example.com/v1/namespaces/n/rollouts/blue": owned("example.com/v1", "Rollout", "blue", nil),
	} {
		if got := workloadOf(pod).owner("n"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// The patch leads to the injected pod, also where the API server's pod has fields that this
// build does not know.
func TestPatch(t *testing.T) {
	for _, native := range []bool{true, false} {
		p := testParams(t)
		p.Native = native
		pod := simplePod()
		pod.Annotations["prometheus.io/scrape"] = "true"
		out, err := Inject(pod, "sample", p)
		if err != nil {
			t.Fatal(err)
		}
		ops, err := jsonPatch(pod, out)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := json.Marshal(pod)
		raw = bytes.Replace(raw, []byte(`"image":"a"`), []byte(`"image":"a","fieldOfTomorrow":1`), 1)
		patch, _ := json.Marshal(ops)
		decoded, err := jsonpatch.DecodePatch(patch)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decoded.Apply(raw)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(got, []byte("fieldOfTomorrow")) {
			t.Error("an unknown field is lost")
		}
		var pod2 corev1.Pod
		if err := json.Unmarshal(got, &pod2); err != nil {
			t.Fatal(err)
		}
		want, _ := generic(out)
		have, _ := generic(&pod2)
		if d := cmp.Diff(want, have); d != "" {
			t.Errorf("native %v: -want +got:\n%s", native, d)
		}
	}
}

func FuzzManifest(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.in.yaml")
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	p := testParams(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		if err := Manifest(bytes.NewReader(data), &out, p, nil); err != nil {
			return
		}
		if err := Manifest(bytes.NewReader(out.Bytes()), &bytes.Buffer{}, p, nil); err != nil {
			t.Fatalf("the result is not accepted: %v\n%s", err, out.Bytes())
		}
	})
}

func BenchmarkInject(b *testing.B) {
	p, pod := testParams(b), simplePod()
	for b.Loop() {
		if _, err := Inject(pod, "sample", p); err != nil {
			b.Fatal(err)
		}
	}
}
