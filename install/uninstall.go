package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Removal says what an uninstall takes away.
type Removal struct {
	Installs []string // names; all but the load balancer if empty
	Purge    bool     // CRDs, self-signed CA and root ConfigMaps, too
}

// Left finds everything of the installs that is in the cluster: what the inventories list, what
// carries our labels, and with Purge what the control plane made by itself.
func (c *Cluster) Left(ctx context.Context, rm Removal) ([]Ref, error) {
	states, err := c.States(ctx)
	if err != nil {
		return nil, err
	}
	wanted := func(install string) bool {
		if len(rm.Installs) == 0 {
			return install != LBName
		}
		return slices.Contains(rm.Installs, install)
	}
	found := map[Ref]bool{}
	// What control planes share goes with the last of them.
	last := len(rm.Installs) == 0 || slices.ContainsFunc(rm.Installs, IsControlPlane)
	for _, s := range states {
		if !wanted(s.Name) {
			last = last && !IsControlPlane(s.Name)
			continue
		}
		for _, r := range s.Inventory {
			live, err := c.get(ctx, r)
			if err != nil {
				return nil, err
			}
			if live != nil && r.Kind != "CustomResourceDefinition" && r.Kind != "Namespace" && live.GetLabels()[InstallLabel] == s.Name {
				found[r] = true
			}
		}
	}
	crd := ""
	if last {
		crd = baseComponent
	}
	if slices.Contains(rm.Installs, LBName) {
		crd = "lb"
	}
	for _, k := range kinds {
		if k.kind == "Namespace" {
			continue
		}
		gv, err := schema.ParseGroupVersion(k.apiVersion)
		if err != nil {
			return nil, err
		}
		l, err := c.Dynamic.Resource(gv.WithResource(k.resource)).List(ctx, metav1.ListOptions{LabelSelector: ManagedBy + "=carrick"})
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", k.resource, err)
		}
		for i := range l.Items {
			o := &l.Items[i]
			r := Ref{k.apiVersion, k.kind, o.GetNamespace(), o.GetName()}
			if k.kind == "CustomResourceDefinition" {
				if rm.Purge && o.GetLabels()[ComponentLabel] == crd {
					found[r] = true
				}
			} else if install := o.GetLabels()[InstallLabel]; install != "" && wanted(install) ||
				install == "" && last && o.GetLabels()[ComponentLabel] == baseComponent {
				found[r] = true
			}
		}
	}
	var refs []Ref
	for r := range found {
		refs = append(refs, r)
	}
	if rm.Purge && last {
		own, err := c.ownMade(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range own {
			if !found[r] {
				refs = append(refs, r)
			}
		}
	}
	slices.SortFunc(refs, func(a, b Ref) int {
		return first(kindIndex(a.APIVersion, a.Kind)-kindIndex(b.APIVersion, b.Kind), strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name))
	})
	return refs, nil
}

// ownMade finds what a control plane makes by itself: the root certificate and the revocation
// lists in every namespace, and its self-signed CA.
func (c *Cluster) ownMade(ctx context.Context) (refs []Ref, err error) {
	for _, name := range []string{"istio-ca-root-cert", "istio-ca-crl"} {
		cms, err := c.Kube.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			return nil, fmt.Errorf("listing ConfigMaps %s: %w", name, err)
		}
		for _, cm := range cms.Items {
			refs = append(refs, Ref{"v1", "ConfigMap", cm.Namespace, cm.Name})
		}
	}
	secrets, err := c.Kube.CoreV1().Secrets("").List(ctx, metav1.ListOptions{FieldSelector: "type=istio.io/ca-root"})
	if err != nil {
		return nil, fmt.Errorf("listing Secrets of type istio.io/ca-root: %w", err)
	}
	for _, s := range secrets.Items {
		refs = append(refs, Ref{"v1", "Secret", s.Namespace, s.Name})
	}
	return refs, nil
}

// Uninstall removes what Left found, in an order in which nothing comes back, and waits until the
// programs have ended.
func (c *Cluster) Uninstall(ctx context.Context, refs []Ref, timeout time.Duration, rep Reporter) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	refs = slices.Clone(refs)
	byRemovalOrder(refs)
	var errs []error
	waited := false
	programs := refsOf(refs, "Deployment", "DaemonSet")
	for _, r := range refs {
		// The root ConfigMaps come back as long as a control plane runs.
		if !waited && kindIndex(r.APIVersion, r.Kind) > kindIndex("apps/v1", "DaemonSet") {
			waited = true
			if err := c.waitGone(ctx, programs, rep.Progress); err != nil {
				errs = append(errs, err)
			}
		}
		if err := c.delete(ctx, r); err != nil {
			errs = append(errs, err)
			continue
		}
		rep.Progress("Removed " + r.String() + ".")
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := c.waitGone(ctx, refs, rep.Progress); err != nil {
		return err
	}
	if slices.ContainsFunc(refs, func(r Ref) bool { return r.Name == tagWebhookName(DefaultRevision) }) {
		if err := c.reactivate(ctx); err != nil {
			return err
		}
	}
	rep.Done("Uninstall complete")
	return nil
}

func refsOf(refs []Ref, kinds ...string) (out []Ref) {
	for _, r := range refs {
		if slices.Contains(kinds, r.Kind) {
			out = append(out, r)
		}
	}
	return out
}

func (c *Cluster) delete(ctx context.Context, r Ref) error {
	ri, err := c.resource(r)
	if err != nil {
		return err
	}
	policy := metav1.DeletePropagationBackground
	if r.Kind == "Deployment" || r.Kind == "DaemonSet" {
		policy = metav1.DeletePropagationForeground // gone means that its pods are
	}
	err = ri.Delete(ctx, r.Name, metav1.DeleteOptions{PropagationPolicy: &policy})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting %s: %w", r, explain(err))
	}
	return nil
}

// waitGone waits until objects, which are deleted after what they own, are no more.
func (c *Cluster) waitGone(ctx context.Context, refs []Ref, progress func(string)) error {
	pause := shortest
	for {
		var left []string
		for _, r := range refs {
			o, err := c.get(ctx, r)
			if err != nil && ctx.Err() == nil {
				return err
			}
			if o != nil {
				left = append(left, r.String())
			}
		}
		if len(left) == 0 {
			return nil
		}
		progress("Waiting for the end of " + strings.Join(left, ", ") + ".")
		select {
		case <-ctx.Done():
			return fmt.Errorf("still ending: %s", strings.Join(left, ", "))
		case <-time.After(pause):
			pause = min(2*pause, longest)
		}
	}
}
