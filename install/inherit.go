package install

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/csaupgrade"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/carrick-mesh/carrick/schema"
)

// drops returns the fields that go when Carrick inherits those of Istio's installers: set by them, by
// nobody else, and not by Carrick. Then is the object as it is after Carrick's fields were applied.
func drops(live, then *unstructured.Unstructured) ([]string, error) {
	set := func(o *unstructured.Unstructured, by func(manager string) bool) (*fieldpath.Set, error) {
		all := &fieldpath.Set{}
		for _, f := range o.GetManagedFields() {
			if f.FieldsV1 == nil || f.Subresource != "" || !by(f.Manager) {
				continue
			}
			var s fieldpath.Set
			if err := s.FromJSON(bytes.NewReader(f.FieldsV1.GetRawBytes())); err != nil {
				return nil, fmt.Errorf("%s: reading who set its fields: %w", ref(o), err)
			}
			all = all.Union(&s)
		}
		return all, nil
	}
	theirs, err := set(live, installers.Has)
	if err != nil {
		return nil, err
	}
	stay, err := set(then, func(manager string) bool { return !installers.Has(manager) })
	if err != nil {
		return nil, err
	}
	spec := fieldpath.MakePathOrDie("spec")
	var gone []fieldpath.Path
	theirs.Difference(stay).Iterate(func(p fieldpath.Path) {
		// A field within one that is listed already says no more.
		within := slices.ContainsFunc(gone, func(g fieldpath.Path) bool { return len(g) < len(p) && g.Equals(p[:len(g)]) })
		if len(p) > 1 && p[:1].Equals(spec) && !within {
			gone = append(gone, p.Copy())
		}
	})
	fields := make([]string, 0, len(gone))
	for _, p := range gone {
		fields = append(fields, p.String()[1:]) // without the first dot
	}
	slices.Sort(fields)
	return fields, nil
}

// inherit makes Carrick the owner of the fields that Istio's installers set in an object, so that
// applying it drops those that Carrick does not set. What people set by other means stays.
func (c *Cluster) inherit(ctx context.Context, r Ref) error {
	// Controllers write statuses meanwhile, so that what was read may be old.
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error { return c.inheritOnce(ctx, r) })
}

func (c *Cluster) inheritOnce(ctx context.Context, r Ref) error {
	live, err := c.get(ctx, r)
	if err != nil || live == nil {
		return err
	}
	if ours(live) {
		return nil
	}
	fields := live.GetManagedFields()
	for i, f := range fields {
		if installers.Has(f.Manager) {
			fields[i].Operation = metav1.ManagedFieldsOperationUpdate // all that UpgradeManagedFields looks at
		}
	}
	live.SetManagedFields(fields)
	if err := csaupgrade.UpgradeManagedFields(live, installers, Manager); err != nil {
		return fmt.Errorf("taking over %s: %w", r, err)
	}
	return c.patchMetadata(ctx, r, map[string]any{"managedFields": live.GetManagedFields(), "resourceVersion": live.GetResourceVersion()})
}

// withoutEffect says which settings of a mesh that is taken over have no effect here.
func withoutEffect(configMap string, mesh map[string]any) (notes []string) {
	m, err := meshConfig(mesh)
	if err != nil { // it is refused elsewhere
		return nil
	}
	for _, u := range schema.WithoutEffect(m) {
		notes = append(notes, fmt.Sprintf("%s: data.mesh.%s has NO effect in this version of Carrick: %s", configMap, u.Path, u.Why))
	}
	return notes
}
