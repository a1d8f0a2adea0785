package install

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

// withIstio puts the objects of testdata/istio.yaml into a cluster, a CA and a peer's secret beside
// them, an address for the gateway and a pod with a sidecar.
func withIstio(ctx context.Context, t *testing.T, c *Cluster) {
	t.Helper()
	withIstioBy(ctx, t, c, func(ri dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		j, err := o.MarshalJSON()
		if err != nil {
			return err
		}
		_, err = ri.Patch(ctx, o.GetName(), types.ApplyPatchType, j, metav1.PatchOptions{FieldManager: "istio-operator"})
		return err
	})
}

// withIstioBy is withIstio by the means of an installer.
func withIstioBy(ctx context.Context, t *testing.T, c *Cluster, write func(dynamic.ResourceInterface, *unstructured.Unstructured) error) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Labels: map[string]string{"topology.istio.io/network": "network1"}}}
	_, err := c.Kube.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	must(err)
	file, err := os.ReadFile("testdata/istio.yaml")
	must(err)
	for _, doc := range bytes.Split(file, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		must(yaml.Unmarshal(doc, &o.Object))
		ri, err := c.resource(ref(o))
		must(err)
		must(write(ri, o))
	}
	for name, labels := range map[string]map[string]string{"cacerts": nil, "istio-remote-secret-cluster2": {"istio/multiCluster": "true"}} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		_, err := c.Kube.CoreV1().Secrets("istio-system").Create(ctx, s, metav1.CreateOptions{})
		must(err)
	}
	svc, err := c.Kube.CoreV1().Services("istio-system").Get(ctx, "istio-ingressgateway", metav1.GetOptions{})
	must(err)
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.9"}}
	_, err = c.Kube.CoreV1().Services("istio-system").UpdateStatus(ctx, svc, metav1.UpdateOptions{})
	must(err)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: map[string]string{"security.istio.io/tlsMode": "istio"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "x"}, {Name: "istio-proxy", Image: "docker.io/istio/proxyv2:1.31.0", Args: []string{"proxy", "sidecar"}}}},
	}
	_, err = c.Kube.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	must(err)
}

func TestAdopt(t *testing.T) {
	c := newCluster(t)
	ctx := testContext(t)
	withIstio(ctx, t, c)

	cfg := resolve(t, "")
	m, err := cfg.Render()
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Plan(ctx, m, false)
	if err == nil {
		t.Fatal("an installation over Istio is not refused")
	}
	for _, want := range []string{"Istio: Deployment istio-system/istiod, image docker.io/istio/pilot:1.31.0; 1 gateways; 1 pods with its sidecar", "ServiceAccount istio-system/istiod", "--adopt"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal does not say %q: %v", want, err)
		}
	}

	// What somebody set by hand is not the installer's, and stays.
	ds := c.Kube.AppsV1().Deployments("istio-system")
	byHand := []byte(`{"spec": {"template": {"spec": {"nodeSelector": {"disk": "fast"}}}}}`)
	if _, err := ds.Patch(ctx, "istiod", types.StrategicMergePatchType, byHand, metav1.PatchOptions{FieldManager: "kubectl-edit"}); err != nil {
		t.Fatal(err)
	}

	// Twice: a repeated adoption changes nothing.
	for range 2 {
		taken, err := c.TakenOver(ctx, "istio-system", "")
		if err != nil {
			t.Fatal(err)
		}
		if cfg, err = resolve(t, "").Over(taken); err != nil {
			t.Fatal(err)
		}
		if cfg.Cluster != "cluster1" || cfg.Network != "network1" || cfg.MeshID != "mesh1" {
			t.Errorf("cluster %q, network %q, mesh %q are not Istio's", cfg.Cluster, cfg.Network, cfg.MeshID)
		}
		if m, err = cfg.Render(); err != nil {
			t.Fatal(err)
		}
		p, err := c.Plan(ctx, m, true)
		if err != nil {
			t.Fatal(err)
		}
		if p.Before == nil {
			notes := strings.Join(p.Notes, "\n")
			for _, want := range []string{"Secret istio-system/cacerts signs as before", "istio-remote-secret-cluster2", "Service istio-system/istio-ingressgateway keeps its address 203.0.113.9", "1 pods keep Istio's sidecar", "trustDomain stays as it was",
				"data.mesh.extensionProviders has NO effect in this version of Carrick: "} {
				if !strings.Contains(notes, want) {
					t.Errorf("no note says %q:\n%s", want, notes)
				}
			}
			want := []Ref{
				{"v1", "ConfigMap", "istio-system", "values"},
				{"rbac.authorization.k8s.io/v1", "ClusterRole", "", "istiod-gateway-controller-istio-system"},
			}
			if d := cmp.Diff(want, p.Leftover); d != "" {
				t.Errorf("left over (-want +got):\n%s", d)
			}
			dropped := []Change{
				{Ref{"apps/v1", "Deployment", "istio-system", "istiod"}, []string{
					`spec.template.spec.containers[name="discovery"].env[name="KUBECONFIG"]`,
					`spec.template.spec.containers[name="discovery"].volumeMounts[mountPath="/var/run/secrets/remote"]`,
					`spec.template.spec.tolerations`, `spec.template.spec.volumes[name="istio-kubeconfig"]`}},
				{Ref{"apps/v1", "Deployment", "istio-system", "istio-ingressgateway"}, []string{
					`spec.template.spec.containers[name="istio-proxy"].args`}},
			}
			if d := cmp.Diff(dropped, p.Dropped); d != "" {
				t.Errorf("dropped (-want +got):\n%s", d)
			}
		} else if len(p.Changed)+len(p.Created)+len(p.Adopted)+len(p.Leftover)+len(p.Dropped) > 0 {
			t.Errorf("again: changed %v, created %v, adopted %v, left over %v", p.Changed, p.Created, p.Adopted, p.Leftover)
		}
		if err := c.Apply(ctx, p, time.Minute, Reporter{Progress: func(string) {}, Done: func(string) {}}); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("the control plane's pods are Carrick's alone", func(t *testing.T) {
		d, err := c.Kube.AppsV1().Deployments("istio-system").Get(ctx, "istiod", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]string{"istio": "pilot", "team": "mesh"}; !cmp.Equal(d.Spec.Selector.MatchLabels, want) {
			t.Errorf("selector %v, want the one it had, %v", d.Spec.Selector.MatchLabels, want)
		}
		if pod := d.Spec.Template.Spec; len(pod.Tolerations) > 0 || pod.NodeSelector["disk"] != "fast" {
			t.Errorf("tolerations %v, which the installer set; node selector %v, which it did not", pod.Tolerations, pod.NodeSelector)
		}
		ct := d.Spec.Template.Spec.Containers[0]
		if !slices.Equal(ct.Args, []string{"discovery", "--domain", "cluster.local"}) {
			t.Errorf("args %q", ct.Args)
		}
		for _, e := range ct.Env {
			if e.Name == "KUBECONFIG" {
				t.Error("Istio's environment is left")
			}
		}
		if n := len(d.Spec.Template.Spec.Volumes); n != 1 {
			t.Errorf("%d volumes, want cacerts alone", n)
		}
	})
	t.Run("the gateway's arguments go", func(t *testing.T) {
		d, err := c.Kube.AppsV1().Deployments("istio-system").Get(ctx, "istio-ingressgateway", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if ct := d.Spec.Template.Spec.Containers[0]; len(ct.Args) > 0 || ct.Image != "auto" {
			t.Errorf("args %q, image %s", ct.Args, ct.Image)
		}
	})
	t.Run("the gateway's address, annotations and ports stay", func(t *testing.T) {
		s, err := c.Kube.CoreV1().Services("istio-system").Get(ctx, "istio-ingressgateway", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Status.LoadBalancer.Ingress) != 1 || s.Annotations["cloud.example/address"] == "" {
			t.Errorf("addresses %v, annotations %v", s.Status.LoadBalancer.Ingress, s.Annotations)
		}
		if !slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == 3306 }) {
			t.Errorf("ports %v", s.Spec.Ports)
		}
	})
	t.Run("the mesh's configuration stays", func(t *testing.T) {
		cm, err := c.Kube.CoreV1().ConfigMaps("istio-system").Get(ctx, "istio", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"trustDomain: example.org", "accessLogFile: /dev/stdout"} {
			if !strings.Contains(cm.Data["mesh"], want) {
				t.Errorf("no %q in\n%s", want, cm.Data["mesh"])
			}
		}
		if !strings.Contains(cm.Data["meshNetworks"], "network9") {
			t.Errorf("meshNetworks: %s", cm.Data["meshNetworks"])
		}
	})
	t.Run("who is never injected stays so", func(t *testing.T) {
		cm, err := c.Kube.CoreV1().ConfigMaps("istio-system").Get(ctx, "istio-sidecar-injector", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(cm.Data["config"], "batch") {
			t.Errorf("config: %s", cm.Data["config"])
		}
	})
	t.Run("the webhook that judges users' objects is taken over", func(t *testing.T) {
		w, err := c.Kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "istio-validator-istio-system", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if w.Labels[ManagedBy] != "carrick" || len(w.Webhooks) != 1 || w.Webhooks[0].Name != "rev.validation.istio.io" {
			t.Errorf("labels %v, webhooks %v", w.Labels, w.Webhooks)
		}
	})
}

func TestAdoptRefusesForeignSelector(t *testing.T) {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	live := &unstructured.Unstructured{Object: map[string]any{}}
	for _, x := range []struct {
		o   *unstructured.Unstructured
		app string
	}{{o, "istiod"}, {live, "other"}} {
		text := "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: ns}\nspec:\n  selector: {matchLabels: {app: " + x.app + "}}\n  template: {metadata: {labels: {app: " + x.app + "}}}\n"
		if err := yaml.Unmarshal([]byte(text), &x.o.Object); err != nil {
			t.Fatal(err)
		}
	}
	if err := keepSelector(o, live); err == nil || !strings.Contains(err.Error(), "Deployment ns/d selects pods by label app=other") {
		t.Errorf("error is %v", err)
	}
}

// TestAdoptHelm: of an Istio that Helm installed nothing of Helm's is left on what is taken over, and
// the plan says which records of Helm's are to go, and how: those of the objects' releases, if there
// are any.
func TestAdoptHelm(t *testing.T) {
	c := newCluster(t)
	ctx := testContext(t)
	owner := func(o *unstructured.Unstructured) string {
		switch {
		case o.GetName() == "istio-ingressgateway":
			return "gate"
		case o.GetKind() == "ClusterRole":
			return "forgotten" // its record is not there
		}
		return "mesh"
	}
	withIstioBy(ctx, t, c, func(ri dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		l, a := o.GetLabels(), o.GetAnnotations()
		if l == nil {
			l = map[string]string{}
		}
		if a == nil {
			a = map[string]string{}
		}
		l["app.kubernetes.io/managed-by"] = "Helm"
		a["meta.helm.sh/release-name"], a["meta.helm.sh/release-namespace"] = owner(o), "istio-system"
		o.SetLabels(l)
		o.SetAnnotations(a)
		_, err := ri.Create(ctx, o, metav1.CreateOptions{FieldManager: "helm"})
		return err
	})
	for _, name := range []string{"mesh", "gate", "istiod", "other"} {
		s := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "sh.helm.release.v1." + name + ".v1", Labels: map[string]string{"owner": "helm", "name": name, "status": "deployed", "version": "1"}},
			Type:       "helm.sh/release.v1",
		}
		if _, err := c.Kube.CoreV1().Secrets("istio-system").Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	adopt := func() *Plan {
		t.Helper()
		taken, err := c.TakenOver(ctx, "istio-system", "")
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := resolve(t, "").Over(taken)
		if err != nil {
			t.Fatal(err)
		}
		m, err := cfg.Render()
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.Plan(ctx, m, true)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := adopt()
	var about []string
	for _, n := range p.Notes {
		if strings.HasPrefix(n, "Helm keeps a record of release ") {
			name := regexp.MustCompile(`^[a-z]+`).FindString(strings.TrimPrefix(n, "Helm keeps a record of release "))
			about = append(about, name)
			if !strings.HasSuffix(n, "kubectl -n istio-system delete secret -l owner=helm,name="+name) || name != "istiod" && !regexp.MustCompile(` with [1-9]\d* of these objects; `).MatchString(n) {
				t.Errorf("of release %s is said: %s", name, n)
			}
		}
	}
	if d := cmp.Diff([]string{"gate", "istiod", "mesh"}, about); d != "" {
		t.Errorf("releases that are named (-want +got):\n%s", d)
	}
	taken := slices.Clone(p.Adopted)
	if err := c.Apply(ctx, p, time.Minute, Reporter{Progress: func(string) {}, Done: func(string) {}}); err != nil {
		t.Fatal(err)
	}
	if len(taken) < 5 {
		t.Fatalf("only %v were taken over", taken)
	}
	for _, r := range taken {
		o, err := c.get(ctx, r)
		if err != nil || o == nil {
			t.Fatalf("%s: %v", r, err)
		}
		if got := o.GetLabels()["app.kubernetes.io/managed-by"]; got != "carrick" {
			t.Errorf("%s is managed by %s", r, got)
		}
		for k := range o.GetAnnotations() {
			if strings.HasPrefix(k, "meta.helm.sh/") {
				t.Errorf("%s keeps annotation %s", r, k)
			}
		}
	}
	if p := adopt(); len(p.Changed)+len(p.Created)+len(p.Adopted)+len(p.Leftover) > 0 {
		t.Errorf("again: changed %v, created %v, adopted %v, left over %v", p.Changed, p.Created, p.Adopted, p.Leftover)
	}
	records, err := c.Kube.CoreV1().Secrets("istio-system").List(ctx, metav1.ListOptions{LabelSelector: "owner=helm"})
	if err != nil || len(records.Items) != 4 {
		t.Errorf("Helm's records are the user's to remove, but %d are left of 4 (%v)", len(records.Items), err)
	}
}
