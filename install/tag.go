package install

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/carrick-mesh/carrick/schema/access"
)

// Labels of revisions, and of a tag's webhooks, as istioctl writes them.
const (
	tagLabel = "istio.io/tag"
	revLabel = "istio.io/rev"
)

// Tag is a name that stands for a revision: namespaces and pods labelled istio.io/rev=NAME are
// injected by that revision's control plane. The tag "default" also stands for
// istio-injection=enabled.
type Tag struct {
	Name       string   `json:"tag"`
	Revision   string   `json:"revision"`
	Webhook    string   `json:"webhook"`
	Namespaces []string `json:"namespaces"` // that the name is a label of, in order
}

func tagWebhookName(tag string) string { return "istio-revision-tag-" + tag }

func injectorName(revision string) string { return "istio-sidecar-injector" + suffix(revision) }

func webhookRef(name string) Ref {
	return Ref{"admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "", name}
}

// TagWebhook renders the webhooks that make a name stand for a revision whose control plane is in
// namespace.
func TagWebhook(tag, revision, namespace string) (*unstructured.Unstructured, error) {
	for field, name := range map[string]string{"the tag": tag, "the revision": revision} {
		if errs := validation.IsDNS1123Label(name); len(errs) > 0 {
			return nil, fmt.Errorf("%s: %q is not a name: %s", field, name, errs[0])
		}
	}
	w := injectorWebhook(webhookConfig{
		name: tagWebhookName(tag), service: "istiod" + suffix(revision), namespace: namespace, selects: tag,
		meta: meta("", "", "tag", map[string]string{"app": "sidecar-injector", revLabel: revision, tagLabel: tag}),
	})
	o, err := object(w)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Name: ControlPlaneName(revision), Parts: []Part{{Name: "Tag", Objects: []*unstructured.Unstructured{o}}}}
	m.label() // it goes when its revision is uninstalled
	return o, nil
}

// tagAccess renders what lets the control plane of a revision fill in the caBundle of a tag's webhooks.
func tagAccess(tag, revision, namespace string) ([]*unstructured.Unstructured, error) {
	name := tagWebhookName(tag) + "-istiod"
	objs, err := objects(
		clusterRole(name, "tag", access.TagWebhook(tagWebhookName(tag))),
		clusterRoleBinding(name, namespace, "istiod"+suffix(revision), "tag"),
	)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Name: ControlPlaneName(revision), Parts: []Part{{Name: "Tag", Objects: objs}}}
	m.label()
	return objs, nil
}

// TagObjects renders all that makes a tag: its webhooks, and the role by which the control plane fills them in.
func TagObjects(tag, revision, namespace string) ([]*unstructured.Unstructured, error) {
	o, err := TagWebhook(tag, revision, namespace)
	if err != nil {
		return nil, err
	}
	more, err := tagAccess(tag, revision, namespace)
	return append([]*unstructured.Unstructured{o}, more...), err
}

// Tags returns the tags of the cluster, by name.
func (c *Cluster) Tags(ctx context.Context) ([]Tag, error) {
	hooks, err := c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{LabelSelector: tagLabel})
	if err != nil {
		return nil, fmt.Errorf("listing webhooks: %w", err)
	}
	spaces, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing namespaces: %w", err)
	}
	tags := []Tag{}
	for _, h := range hooks.Items {
		t := Tag{Name: h.Labels[tagLabel], Revision: h.Labels[revLabel], Webhook: h.Name, Namespaces: []string{}}
		for _, ns := range spaces.Items {
			enabled := ns.Labels["istio-injection"]
			if enabled == "" && ns.Labels[revLabel] == t.Name || enabled == "enabled" && t.Name == DefaultRevision {
				t.Namespaces = append(t.Namespaces, ns.Name)
			}
		}
		tags = append(tags, t)
	}
	slices.SortFunc(tags, func(a, b Tag) int { return strings.Compare(a.Name, b.Name) })
	return tags, nil
}

// Revisions returns the revisions of the control planes that are installed, "default" first.
func (c *Cluster) Revisions(ctx context.Context) (revisions []string, err error) {
	states, err := c.States(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range states {
		if IsControlPlane(s.Name) {
			revisions = append(revisions, s.Revision())
		}
	}
	slices.SortFunc(revisions, func(a, b string) int { return strings.Compare(suffix(a), suffix(b)) })
	return revisions, nil
}

// Revision returns the revision of an install that is a control plane.
func (s *State) Revision() string {
	return first(strings.TrimPrefix(strings.TrimPrefix(s.Name, ControlPlane), "-"), DefaultRevision)
}

// SetTag makes a tag stand for a revision, and returns what it stood for before, "" if it is new.
// It waits until the webhooks are ready, for their pods are refused until then.
func (c *Cluster) SetTag(ctx context.Context, tag, revision, namespace string, overwrite bool) (before string, err error) {
	revisions, err := c.Revisions(ctx)
	if err != nil {
		return "", err
	}
	if !slices.Contains(revisions, revision) {
		return "", fmt.Errorf("revision %s is not installed; there are: %s; install it: carrick install --revision %[1]s", revision, strings.Join(revisions, ", "))
	}
	if tag != DefaultRevision && slices.Contains(revisions, tag) {
		return "", fmt.Errorf("%s is the name of a revision, which a tag may not have; choose another", tag)
	}
	if tag == DefaultRevision && revision == DefaultRevision {
		return "", fmt.Errorf("without a tag of that name, default is the revision default already; take the tag away: carrick tag remove default")
	}
	tags, err := c.Tags(ctx)
	if err != nil {
		return "", err
	}
	if i := slices.IndexFunc(tags, func(t Tag) bool { return t.Name == tag }); i >= 0 {
		if before = tags[i].Revision; before != revision && !overwrite {
			return before, fmt.Errorf("tag %s stands for revision %s; give --overwrite to make it stand for %s", tag, before, revision)
		}
	}
	objs, err := TagObjects(tag, revision, namespace)
	if err != nil {
		return before, err
	}
	o := objs[0]
	if err := c.copyBundle(ctx, o, injectorName(revision)); err != nil {
		return before, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, o := range append(objs[1:], o) { // the webhooks last: their caBundle is waited for
		if _, err := c.apply(ctx, o, false); err != nil {
			return before, err
		}
	}
	if err := c.wait(ctx, "Tag "+tag, []*unstructured.Unstructured{o}, time.Minute, func(string) {}); err != nil {
		return before, err
	}
	if tag != DefaultRevision {
		return before, nil
	}
	if o, err = defaultValidator(revision, namespace); err != nil {
		return before, err
	}
	if _, err := c.apply(ctx, o, false); err != nil {
		return before, err
	}
	// Two webhooks for one pod: the default revision's yields.
	own, err := c.defaultWebhooks(ctx)
	if err != nil {
		return before, err
	}
	for _, o := range own {
		if o.GetKind() == "MutatingWebhookConfiguration" {
			deactivate(o)
			if _, err := c.apply(ctx, o, false); err != nil {
				return before, err
			}
		}
	}
	return before, nil
}

// copyBundle gives webhooks the caBundle that those of a revision have, if they have one.
func (c *Cluster) copyBundle(ctx context.Context, o *unstructured.Unstructured, from string) error {
	w, err := c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, from, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && len(w.Webhooks) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading MutatingWebhookConfiguration %s: %w", from, err)
	}
	bundle := w.Webhooks[0].ClientConfig.CABundle
	hooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
	for _, h := range hooks {
		if m, ok := h.(map[string]any); ok && len(bundle) > 0 {
			if err := unstructured.SetNestedField(m, base64.StdEncoding.EncodeToString(bundle), "clientConfig", "caBundle"); err != nil {
				return err
			}
		}
	}
	o.Object["webhooks"] = hooks
	return nil
}

// RemoveTag takes a tag away. Pods that it injected run on.
func (c *Cluster) RemoveTag(ctx context.Context, tag string) error {
	name := tagWebhookName(tag) + "-istiod"
	for _, r := range []Ref{webhookRef(tagWebhookName(tag)), {rbacGroup + "/v1", "ClusterRoleBinding", "", name}, {rbacGroup + "/v1", "ClusterRole", "", name}} {
		if err := c.delete(ctx, r); err != nil {
			return err
		}
	}
	if tag != DefaultRevision {
		return nil
	}
	if err := c.delete(ctx, validatorRef(DefaultValidator)); err != nil {
		return err
	}
	return c.reactivate(ctx)
}

// reactivate gives the default revision its webhooks back, if it is installed.
func (c *Cluster) reactivate(ctx context.Context) error {
	own, err := c.defaultWebhooks(ctx)
	for _, o := range own {
		if _, err := c.apply(ctx, o, false); err != nil {
			return err
		}
	}
	return err
}

// defaultWebhooks renders what the tag default takes from the default revision: its injector's webhooks and the
// webhook that validates all objects; nil if it is not installed.
func (c *Cluster) defaultWebhooks(ctx context.Context) (own []*unstructured.Unstructured, err error) {
	states, err := c.States(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range states {
		if s.Name != ControlPlane {
			continue
		}
		cfg, err := s.Config(s.Version)
		if err != nil {
			return nil, err
		}
		m, err := cfg.Render()
		if err != nil {
			return nil, err
		}
		for _, o := range m.Objects() {
			if r := ref(o); r == webhookRef(injectorName("")) || r == validatorRef(DefaultValidator) {
				own = append(own, o)
			}
		}
	}
	return own, nil
}

// yieldToTag keeps an install of the default revision from taking back what the tag default gave
// to another.
func (c *Cluster) yieldToTag(ctx context.Context, p *Plan) error {
	for _, o := range p.Manifest.Objects() {
		if ref(o) != webhookRef(injectorName("")) {
			continue
		}
		tag, err := c.get(ctx, webhookRef(tagWebhookName(DefaultRevision)))
		if err != nil || tag == nil || tag.GetLabels()[revLabel] == DefaultRevision {
			return err
		}
		deactivate(o)
		for i := range p.Manifest.Parts {
			part := &p.Manifest.Parts[i]
			part.Objects = slices.DeleteFunc(part.Objects, func(x *unstructured.Unstructured) bool { return ref(x) == validatorRef(DefaultValidator) })
		}
		p.Notes = append(p.Notes, fmt.Sprintf("pods of istio-injection=enabled are injected by revision %s, for which the tag default stands", tag.GetLabels()[revLabel]))
	}
	return nil
}
