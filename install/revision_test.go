package install

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func uninstall(t *testing.T, c *Cluster, rm Removal) {
	t.Helper()
	refs, err := c.Left(testContext(t), rm)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Uninstall(testContext(t), refs, 3*time.Minute, Reporter{Progress: func(string) {}, Done: func(string) {}}); err != nil {
		t.Fatal(err)
	}
}

// TestRevisions runs two control planes side by side, and takes the first away.
func TestRevisions(t *testing.T) {
	c := newCluster(t)
	ctx := testContext(t)
	run(t, c, resolve(t, ""))
	p, _ := run(t, c, resolve(t, "", "revision=canary"))
	if len(p.Removed) > 0 {
		t.Errorf("a revision removes %v", p.Removed)
	}
	if notes := strings.Join(p.Notes, "\n"); !strings.Contains(notes, "Deployment istio-system/istio-ingressgateway goes over from installation installed-state to installed-state-canary") {
		t.Errorf("notes: %s", notes)
	}
	deployments, err := c.Kube.AppsV1().Deployments("istio-system").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range deployments.Items {
		if l := d.Spec.Template.Labels; d.Name == "istio-ingressgateway" && l["istio.io/rev"] != "canary" || d.Name == "istiod-canary" && l["istio"] == "pilot" {
			t.Errorf("labels of the pods of %s: %v", d.Name, l)
		}
	}
	if rs, err := c.Revisions(ctx); err != nil || !slices.Equal(rs, []string{"default", "canary"}) {
		t.Errorf("revisions %v, %v", rs, err)
	}

	t.Run("an upgrade of the first leaves the gateway alone", func(t *testing.T) {
		m, err := resolve(t, "").Render()
		if err != nil {
			t.Fatal(err)
		}
		left, err := c.LeaveOthers(ctx, m)
		if err != nil || !slices.Contains(left, Ref{"apps/v1", "Deployment", "istio-system", "istio-ingressgateway"}) {
			t.Fatalf("left %v, %v", left, err)
		}
		if p, _ := runManifest(t, c, m); len(p.Changed)+len(p.Removed)+len(p.Notes) > 0 {
			t.Errorf("changed %v, removed %v, notes %v", p.Changed, p.Removed, p.Notes)
		}
	})

	t.Run("the first goes", func(t *testing.T) {
		uninstall(t, c, Removal{Installs: []string{ControlPlaneName(DefaultRevision)}, Purge: true})
		if _, err := c.Kube.AppsV1().Deployments("istio-system").Get(ctx, "istiod", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("istiod: %v", err)
		}
		for _, r := range []Ref{
			{"apps/v1", "Deployment", "istio-system", "istiod-canary"},
			{"apps/v1", "Deployment", "istio-system", "istio-ingressgateway"},
			{"v1", "ServiceAccount", "istio-system", ReaderServiceAccount},
			{"rbac.authorization.k8s.io/v1", "ClusterRole", "", "istio-reader-clusterrole-istio-system"},
			{"apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "gateways.networking.istio.io"},
		} {
			if o, err := c.get(ctx, r); err != nil || o == nil {
				t.Errorf("%s went with the first revision: %v", r, err)
			}
		}
	})

	t.Run("the last takes all with it", func(t *testing.T) {
		uninstall(t, c, Removal{Installs: []string{ControlPlaneName("canary")}, Purge: true})
		if left, err := c.Left(ctx, Removal{Purge: true}); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	})
}

// active reports which webhooks match pods at all.
func active(t *testing.T, c *Cluster, name string) bool {
	t.Helper()
	w, err := c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(testContext(t), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range w.Webhooks {
		if len(h.ClientConfig.CABundle) == 0 {
			t.Errorf("%s: webhook %s has no caBundle", name, h.Name)
		}
		if h.NamespaceSelector.MatchLabels["istio.io/deactivated"] == "" {
			return true
		}
	}
	return false
}

func TestTags(t *testing.T) {
	c := newCluster(t)
	ctx := testContext(t)
	run(t, c, resolve(t, "", "profile=minimal"))
	run(t, c, resolve(t, "", "profile=minimal", "revision=canary"))
	for name, labels := range map[string]map[string]string{"a": {"istio.io/rev": "prod"}, "b": {"istio-injection": "enabled"}, "c": {"istio-injection": "enabled", "istio.io/rev": "prod"}} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		if _, err := c.Kube.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	set := func(tag, revision string, overwrite bool, want string) {
		t.Helper()
		_, err := c.SetTag(ctx, tag, revision, "istio-system", overwrite)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("tag set %s %s: %v, want %q", tag, revision, err, want)
		}
	}
	set("prod", "nowhere", false, "revision nowhere is not installed; there are: default, canary")
	set("canary", "default", false, "is the name of a revision")
	set("Prod", "default", false, `"Prod" is not a name`)
	set("default", "default", false, "default already")
	set("prod", "default", false, "")
	set("prod", "default", false, "")
	set("prod", "canary", false, "stands for revision default; give --overwrite")
	set("prod", "canary", true, "")
	set("default", "canary", false, "")
	tags, err := c.Tags(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Tag{
		{"default", "canary", "istio-revision-tag-default", []string{"b", "c"}},
		{"prod", "canary", "istio-revision-tag-prod", []string{"a"}},
	}
	if d := cmp.Diff(want, tags); d != "" {
		t.Errorf("tags (-want +got):\n%s", d)
	}
	if active(t, c, "istio-sidecar-injector") || !active(t, c, "istio-revision-tag-default") {
		t.Error("the default revision's webhooks must yield to the tag default")
	}
	if p, _ := run(t, c, resolve(t, "", "profile=minimal")); len(p.Changed) > 0 || len(p.Notes) != 1 || !strings.Contains(p.Notes[0], "injected by revision canary") {
		t.Errorf("an install of the default revision: changed %v, notes %v", p.Changed, p.Notes)
	}
	if active(t, c, "istio-sidecar-injector") {
		t.Error("an install of the default revision takes back what the tag gave away")
	}
	if err := c.RemoveTag(ctx, "default"); err != nil {
		t.Fatal(err)
	}
	if !active(t, c, "istio-sidecar-injector") {
		t.Error("without the tag, the default revision's webhooks are not back")
	}
	set("default", "canary", false, "")
	uninstall(t, c, Removal{Installs: []string{ControlPlaneName("canary")}})
	if tags, err = c.Tags(ctx); err != nil || len(tags) > 0 {
		t.Errorf("tags of a revision that is gone: %v, %v", tags, err)
	}
	if !active(t, c, "istio-sidecar-injector") {
		t.Error("with the revision of the tag default gone, nobody injects")
	}
}
