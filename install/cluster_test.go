package install

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/kube/kubetest"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// newCluster starts an API server, with a stand-in for the controllers that make Deployments
// ready, for the garbage collector and for the control plane's caBundle.
func newCluster(t *testing.T) *Cluster {
	c, _ := newClusterWithConfig(t)
	return c
}

// newClusterWithConfig also returns the configuration for more clients of that server.
func newClusterWithConfig(t *testing.T) (*Cluster, *rest.Config) {
	if testing.Short() {
		t.Skip("starts an API server")
	}
	s := kubetest.Start(t)
	c := &Cluster{Kube: s.Client}
	var err error
	if c.Dynamic, err = dynamic.NewForConfig(s.Config); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			controllers(ctx, c.Kube)
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	return c, s.Config
}

func controllers(ctx context.Context, k kubernetes.Interface) {
	ds, err := k.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, d := range ds.Items {
		if d.DeletionTimestamp != nil {
			d.Finalizers = nil
			k.AppsV1().Deployments(d.Namespace).Update(ctx, &d, metav1.UpdateOptions{})
			continue
		}
		n := int32(1)
		if d.Spec.Replicas != nil {
			n = *d.Spec.Replicas
		}
		if d.Status.ObservedGeneration == d.Generation && d.Status.AvailableReplicas == n {
			continue
		}
		d.Status.ObservedGeneration, d.Status.Replicas, d.Status.UpdatedReplicas, d.Status.ReadyReplicas, d.Status.AvailableReplicas = d.Generation, n, n, n, n
		k.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, &d, metav1.UpdateOptions{})
	}
	dss, err := k.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, d := range dss.Items {
		if d.DeletionTimestamp != nil {
			d.Finalizers = nil
			k.AppsV1().DaemonSets(d.Namespace).Update(ctx, &d, metav1.UpdateOptions{})
			continue
		}
		if d.Status.ObservedGeneration != d.Generation {
			d.Status.ObservedGeneration, d.Status.DesiredNumberScheduled, d.Status.UpdatedNumberScheduled, d.Status.NumberAvailable = d.Generation, 1, 1, 1
			k.AppsV1().DaemonSets(d.Namespace).UpdateStatus(ctx, &d, metav1.UpdateOptions{})
		}
	}
	ws, err := k.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, w := range ws.Items {
		changed := false
		for i := range w.Webhooks {
			if len(w.Webhooks[i].ClientConfig.CABundle) == 0 {
				w.Webhooks[i].ClientConfig.CABundle = []byte(testCA)
				changed = true
			}
		}
		if changed {
			k.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(ctx, &w, metav1.UpdateOptions{})
		}
	}
}

// testCA is a certificate in form; nobody connects with it.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDEwR0ZXN0MCAX
DTcwMDEwMTAwMDAwMFoYDzIwOTkwMTAxMDAwMDAwWjAPMQ0wCwYDVQQDEwR0ZXN0
-----END CERTIFICATE-----
`

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// run installs and returns the plan and what was reported.
func run(t *testing.T, c *Cluster, cfg *Config) (*Plan, []string) {
	t.Helper()
	m, err := cfg.Render()
	if err != nil {
		t.Fatal(err)
	}
	return runManifest(t, c, m)
}

func runManifest(t *testing.T, c *Cluster, m *Manifest) (*Plan, []string) {
	t.Helper()
	p, err := c.Plan(testContext(t), m, false)
	if err != nil {
		t.Fatal(err)
	}
	var done []string
	err = c.Apply(testContext(t), p, time.Minute, Reporter{Progress: func(string) {}, Done: func(l string) { done = append(done, l) }})
	if err != nil {
		t.Fatal(err)
	}
	return p, done
}

// countCRDWrites returns a client that counts its writes of CRDs, trials too.
func countCRDWrites(t *testing.T, config *rest.Config) (*Cluster, *atomic.Int64) {
	t.Helper()
	var writes atomic.Int64
	return wrapped(t, config, func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/customresourcedefinitions") {
				writes.Add(1)
			}
			return rt.RoundTrip(r)
		})
	}), &writes
}

// wrapped returns a client whose requests go through what wrap makes.
func wrapped(t *testing.T, config *rest.Config, wrap func(http.RoundTripper) http.RoundTripper) *Cluster {
	t.Helper()
	cfg := rest.CopyConfig(config)
	cfg.Wrap(wrap)
	c := &Cluster{}
	var err error
	if c.Kube, err = kubernetes.NewForConfig(cfg); err == nil {
		c.Dynamic, err = dynamic.NewForConfig(cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestInstall(t *testing.T) {
	c, config := newClusterWithConfig(t)
	ctx := testContext(t)

	_, done := run(t, c, resolve(t, "", "profile=demo"))
	want := []string{"Istio core installed", "Istiod installed", "Egress gateways installed", "Ingress gateways installed", "Installation complete"}
	if !slices.Equal(done, want) {
		t.Errorf("reported %q, want %q", done, want)
	}

	t.Run("again changes nothing", func(t *testing.T) {
		p, _ := run(t, c, resolve(t, "", "profile=demo"))
		if len(p.Created)+len(p.Changed)+len(p.Removed)+len(p.Notes) > 0 {
			t.Errorf("created %v, changed %v, removed %v, notes %v", p.Created, p.Changed, p.Removed, p.Notes)
		}
	})

	t.Run("a CRD is written only if it differs", func(t *testing.T) {
		counted, writes := countCRDWrites(t, config)
		crd := Ref{"apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "gateways.networking.istio.io"}
		ri, err := c.resource(crd)
		if err != nil {
			t.Fatal(err)
		}
		edit := []byte(`[{"op": "replace", "path": "/spec/names/shortNames", "value": ["other"]}]`)
		if _, err := ri.Patch(ctx, crd.Name, types.JSONPatchType, edit, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		p, _ := run(t, counted, resolve(t, "", "profile=demo"))
		if len(p.Changed) != 1 || p.Changed[0].Ref != crd {
			t.Errorf("changed %v, want %v", p.Changed, crd)
		}
		if n := writes.Swap(0); n != 2 { // the trial and the write
			t.Errorf("%d writes of CRDs, want 2", n)
		}
		live, err := c.get(ctx, crd)
		if err != nil {
			t.Fatal(err)
		}
		if names, _, _ := unstructured.NestedStringSlice(live.Object, "spec", "names", "shortNames"); !slices.Equal(names, []string{"gw"}) {
			t.Errorf("short names are %q", names)
		}
		if run(t, counted, resolve(t, "", "profile=demo")); writes.Load() > 0 {
			t.Errorf("%d writes of CRDs that are as they should be", writes.Load())
		}
	})

	t.Run("a hand edit of the mesh config stays", func(t *testing.T) {
		cm, err := c.Kube.CoreV1().ConfigMaps("istio-system").Get(ctx, "istio", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cm.Data["mesh"] += "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n"
		if _, err := c.Kube.CoreV1().ConfigMaps("istio-system").Update(ctx, cm, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		p, _ := run(t, c, resolve(t, "", "profile=demo", "meshConfig.accessLogEncoding=JSON"))
		if len(p.Notes) != 1 || !strings.Contains(p.Notes[0], "outboundTrafficPolicy was edited by hand and stays") {
			t.Errorf("notes are %q", p.Notes)
		}
		cm, err = c.Kube.CoreV1().ConfigMaps("istio-system").Get(ctx, "istio", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"REGISTRY_ONLY", "accessLogEncoding: JSON", "accessLogFile"} {
			if !strings.Contains(cm.Data["mesh"], want) {
				t.Errorf("data.mesh lacks %s:\n%s", want, cm.Data["mesh"])
			}
		}
	})

	t.Run("default over demo", func(t *testing.T) {
		p, _ := run(t, c, resolve(t, "cluster1.yaml"))
		var removed, changed []string
		for _, r := range p.Removed {
			removed = append(removed, r.String())
		}
		for _, ch := range p.Changed {
			changed = append(changed, ch.Ref.String()+": "+strings.Join(ch.Fields, ", "))
		}
		for _, want := range []string{"Deployment istio-system/istio-egressgateway", "Service istio-system/istio-egressgateway"} {
			if !slices.Contains(removed, want) {
				t.Errorf("removed %q, want %s among them", removed, want)
			}
		}
		all := strings.Join(changed, "\n")
		for _, want := range []string{"data.mesh.accessLogFile removed", "spec.ports.tcp removed", "spec.ports.tls removed", "data.mesh.defaultConfig.meshId added: mesh1"} {
			if !strings.Contains(all, want) {
				t.Errorf("changes lack %q:\n%s", want, all)
			}
		}
		if _, err := c.Kube.AppsV1().Deployments("istio-system").Get(ctx, "istio-egressgateway", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the egress gateway is still there: %v", err)
		}
		svc, err := c.Kube.CoreV1().Services("istio-system").Get(ctx, "istio-ingressgateway", metav1.GetOptions{})
		if err != nil || len(svc.Spec.Ports) != 3 {
			t.Errorf("ports of the ingress gateway: %v, %v", svc.Spec.Ports, err)
		}
		ns, err := c.Kube.CoreV1().Namespaces().Get(ctx, "istio-system", metav1.GetOptions{})
		if err != nil || ns.Labels["topology.istio.io/network"] != "network1" {
			t.Errorf("labels of the namespace: %v, %v", ns.Labels, err)
		}
	})

	t.Run("an east-west gateway and the control plane leave each other alone", func(t *testing.T) {
		p, done := run(t, c, resolve(t, "eastwest-1.15.yaml"))
		if len(p.Removed) > 0 || !slices.Equal(done, []string{"Ingress gateways installed", "Installation complete"}) {
			t.Errorf("removed %v, reported %q", p.Removed, done)
		}
		p, _ = run(t, c, resolve(t, "cluster1.yaml"))
		if len(p.Removed)+len(p.Changed) > 0 {
			t.Errorf("the control plane's next installation removes %v, changes %v", p.Removed, p.Changed)
		}
	})

	t.Run("another network is refused", func(t *testing.T) {
		m, err := resolve(t, "cluster1.yaml", "values.global.network=other").Render()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Plan(ctx, m, false); err == nil || !strings.Contains(err.Error(), "kubectl label namespace istio-system topology.istio.io/network=other") {
			t.Errorf("error is %v", err)
		}
	})

	t.Run("uninstall", func(t *testing.T) { testUninstall(t, c) })
}

func testUninstall(t *testing.T, c *Cluster) {
	ctx := testContext(t)
	for _, ns := range []string{"default", "istio-system"} {
		if _, err := c.Kube.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-ca-root-cert"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Kube.CoreV1().Secrets("istio-system").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "istio-ca-secret"}, Type: "istio.io/ca-root"}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	rm := Removal{Purge: true}
	refs, err := c.Left(ctx, rm)
	if err != nil {
		t.Fatal(err)
	}
	// A busy API server tries the end of a CRD again after up to a minute and more.
	if err := c.Uninstall(ctx, refs, 3*time.Minute, Reporter{Progress: func(string) {}, Done: func(string) {}}); err != nil {
		t.Fatal(err)
	}
	left, err := c.Left(ctx, rm)
	if err != nil || len(left) > 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
}

func TestInstallRefusesOthers(t *testing.T) {
	c := newCluster(t)
	ctx := testContext(t)
	c.Kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}, metav1.CreateOptions{})
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "istiod"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "x", Port: 1}}}}
	if _, err := c.Kube.CoreV1().Services("istio-system").Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m, err := resolve(t, "").Render()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Plan(ctx, m, false); err == nil || !strings.Contains(err.Error(), "Service istio-system/istiod") {
		t.Errorf("error is %v, want one that names the Service", err)
	}
	if _, err := c.Plan(ctx, m, true); err != nil {
		t.Errorf("with adopt: %v", err)
	}
}

func TestGatewayWithoutControlPlane(t *testing.T) {
	c := newCluster(t)
	m, err := resolve(t, "eastwest-1.15.yaml").Render()
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Plan(testContext(t), m, false)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Apply(testContext(t), p, time.Minute, Reporter{Progress: func(string) {}, Done: func(string) {}})
	if err == nil || !strings.Contains(err.Error(), "install the control plane first") {
		t.Errorf("error is %v", err)
	}
}

func TestLoadBalancer(t *testing.T) {
	c := newCluster(t)
	m, err := LoadBalancer(LBConfig{Tag: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	runManifest(t, c, m)
	if m, err = LoadBalancer(LBConfig{Tag: "1.0.0"}); err != nil {
		t.Fatal(err)
	}
	if p, _ := runManifest(t, c, m); len(p.Created)+len(p.Changed)+len(p.Removed) > 0 {
		t.Errorf("again: created %v, changed %v, removed %v", p.Created, p.Changed, p.Removed)
	}
}
