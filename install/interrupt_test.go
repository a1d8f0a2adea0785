package install

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// dying is the connection of a program that is killed before its n-th write arrives. (Killed when
// it has arrived and before the answer is the same for the cluster as killed before the next.)
type dying struct {
	base http.RoundTripper
	left atomic.Int64 // writes until death
}

var errKilled = errors.New("killed")

func (d *dying) RoundTrip(r *http.Request) (*http.Response, error) {
	if d.left.Load() <= 0 {
		return nil, errKilled
	}
	if r.Method == http.MethodGet || strings.Contains(r.URL.RawQuery, "dryRun=") || d.left.Add(-1) > 0 {
		return d.base.RoundTrip(r)
	}
	return nil, errKilled
}

// killed returns the cluster as a program sees it that dies at its n-th write.
func killed(t *testing.T, config *rest.Config, n int) (*Cluster, *dying) {
	t.Helper()
	d := &dying{}
	d.left.Store(int64(n))
	return wrapped(t, config, func(rt http.RoundTripper) http.RoundTripper { d.base = rt; return d }), d
}

// everything returns all that is installed or made by an installation, without what servers count.
func everything(t *testing.T, c *Cluster) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, k := range kinds {
		gv, err := schema.ParseGroupVersion(k.apiVersion)
		if err != nil {
			t.Fatal(err)
		}
		l, err := c.Dynamic.Resource(gv.WithResource(k.resource)).List(testContext(t), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range l.Items {
			if o.GetLabels()[ManagedBy] == "carrick" || o.GetName() == "istio-system" {
				all[ref(&o).String()] = settled(t, &o)
			}
		}
	}
	return all
}

func settled(t *testing.T, o *unstructured.Unstructured) map[string]any {
	t.Helper()
	m := strip(o.Object)
	// A Service keeps the address and ports that it got; they are drawn anew for a new one.
	if spec, ok := m["spec"].(map[string]any); ok && o.GetKind() == "Service" {
		delete(spec, "clusterIP")
		delete(spec, "clusterIPs")
		ports, _, _ := unstructured.NestedSlice(m, "spec", "ports")
		for _, p := range ports {
			delete(p.(map[string]any), "nodePort")
		}
		spec["ports"] = ports
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// fewCRDs leaves one CRD of a manifest's fifteen, which are all alike to an installation.
func fewCRDs(m *Manifest) *Manifest {
	for i := range m.Parts {
		m.Parts[i].Objects = slices.DeleteFunc(m.Parts[i].Objects, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == "CustomResourceDefinition" && o.GetName() != "gateways.networking.istio.io"
		})
	}
	return m
}

// attempt installs cfg; a test's own errors are fatal, those of the cluster are returned.
func attempt(t *testing.T, c *Cluster, cfg *Config) error {
	t.Helper()
	m, err := cfg.Render()
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	p, err := c.Plan(ctx, fewCRDs(m), false)
	if err != nil {
		return err
	}
	return c.Apply(ctx, p, time.Minute, Reporter{Progress: func(string) {}, Done: func(string) {}})
}

var every = flag.Int("every", 4, "TestKilled kills at each n-th write (1 takes a minute and a half)")

// TestKilled kills an installation, the change of one, and its end at each write in turn (or at
// some of them: see the flag), and repeats what was killed: it must come to what it comes to undisturbed.
func TestKilled(t *testing.T) {
	c, config := newClusterWithConfig(t)
	demo := func() *Config { return resolve(t, "", "profile=demo") }
	changed := func() *Config { return resolve(t, "cluster1.yaml", "hub=example.com/x") }
	edit := func() {
		api := c.Kube.CoreV1().ConfigMaps("istio-system")
		cm, err := api.Get(testContext(t), "istio", metav1.GetOptions{})
		if err == nil && !strings.Contains(cm.Data["mesh"], "REGISTRY_ONLY") {
			cm.Data["mesh"] += "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n"
			_, err = api.Update(testContext(t), cm, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remove := func(c *Cluster) error {
		refs, err := c.Left(testContext(t), Removal{Purge: true})
		if err != nil {
			return err
		}
		return c.Uninstall(testContext(t), refs, 3*time.Minute, Reporter{Progress: func(string) {}, Done: func(string) {}})
	}
	made := func() { // what a control plane makes by itself
		ctx := testContext(t)
		c.Kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-ca-root-cert"}}, metav1.CreateOptions{})
		c.Kube.CoreV1().Secrets("istio-system").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "istio-ca-secret"}, Type: "istio.io/ca-root"}, metav1.CreateOptions{})
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// Undisturbed.
	must("install", attempt(t, c, demo()))
	first := everything(t, c)
	edit()
	must("change", attempt(t, c, changed()))
	second := everything(t, c)
	must("uninstall", remove(c))
	third := everything(t, c)

	steps := []struct {
		name string
		do   func(*Cluster) error
		want map[string]any
	}{
		{"install", func(c *Cluster) error { return attempt(t, c, demo()) }, first},
		{"change", func(c *Cluster) error { return attempt(t, c, changed()) }, second},
		{"uninstall", remove, third},
	}
	ended := 0
	for n := 1; ended < len(steps) && n < 200; n += *every {
		ended = 0
		for _, s := range steps {
			if s.name == "change" {
				edit()
			}
			if s.name == "uninstall" {
				made()
			}
			k, d := killed(t, config, n)
			err := s.do(k)
			if d.left.Load() > 0 { // it has fewer than n writes
				must(s.name, err)
				ended++
			} else if err == nil {
				t.Fatalf("%s, killed at write %d, ends well", s.name, n)
			}
			must(fmt.Sprintf("%s again, after it was killed at write %d", s.name, n), s.do(c))
			if d := cmp.Diff(s.want, everything(t, c)); d != "" {
				t.Fatalf("%s, killed at write %d and repeated, differs from undisturbed (-undisturbed +repeated):\n%s", s.name, n, d)
			}
		}
	}
	if ended < len(steps) {
		t.Error("the installation has no end")
	}
}
