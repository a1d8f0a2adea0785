package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Reporter hears how an installation gets on. Both functions are required.
type Reporter struct {
	Progress func(line string) // what is being done or waited for; called often, maybe with the same line
	Done     func(line string) // what is finished: "Istiod installed"
}

// Apply carries a plan out: it stores the inventory first, then applies part by part, waits for
// each until timeout (gateways of both kinds start together), removes what the install does not hold
// any more and what an adopted Istio leaves, and stores the inventory again. Interrupted at any point
// and repeated, it ends in the same state.
func (c *Cluster) Apply(ctx context.Context, p *Plan, timeout time.Duration, rep Reporter) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	m := p.Manifest
	state, err := newState(p)
	if err != nil {
		return err
	}
	if err := c.applyKind(ctx, m, "Namespace"); err != nil {
		return err
	}
	if err := c.saveState(ctx, state); err != nil {
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("namespace %s does not exist; install the control plane first: carrick install", m.Namespace)
		}
		return err
	}
	type applied struct {
		name string
		wait []*unstructured.Unstructured
	}
	var pending []applied
	for i, part := range m.Parts {
		rep.Progress("Processing resources for " + part.Name + ".")
		var wait []*unstructured.Unstructured
		for _, o := range part.Objects {
			switch o.GetKind() {
			case "Namespace":
				continue
			case "CustomResourceDefinition", "Deployment", "DaemonSet", "MutatingWebhookConfiguration":
				wait = append(wait, o)
			}
			if o.GetKind() == "CustomResourceDefinition" && slices.Contains(p.Kept, ref(o)) {
				continue // it costs an API server more than all the rest
			}
			if slices.Contains(p.Adopted, ref(o)) {
				if err := c.disown(ctx, ref(o)); err != nil {
					return err
				}
				if o.GetKind() == "Deployment" {
					if err := c.inherit(ctx, ref(o)); err != nil {
						return err
					}
				}
			}
			if _, err := c.apply(ctx, o, false); err != nil {
				return err
			}
		}
		pending = append(pending, applied{part.Name, wait})
		if i+1 < len(m.Parts) && m.Parts[i+1].Together {
			continue
		}
		for _, a := range pending {
			if err := c.wait(ctx, a.name, a.wait, timeout, rep.Progress); err != nil {
				return err
			}
			rep.Done(a.name + " installed")
		}
		pending = nil
	}
	var errs []error
	if len(p.Removed)+len(p.Leftover) > 0 {
		rep.Progress("Removing what is not part of the installation any more.")
	}
	byRemovalOrder(p.Removed)
	for _, r := range p.Removed {
		if _, err := c.remove(ctx, r, m.Name); err != nil {
			errs = append(errs, err)
		}
	}
	byRemovalOrder(p.Leftover)
	for _, r := range p.Leftover {
		errs = append(errs, c.delete(ctx, r))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	state.Inventory, state.Mesh = inventory(m), m.Mesh
	if err := c.saveState(ctx, state); err != nil {
		return err
	}
	rep.Done("Installation complete")
	return nil
}

// applyKind applies the manifest's objects of one kind.
func (c *Cluster) applyKind(ctx context.Context, m *Manifest, kind string) error {
	for _, o := range m.Objects() {
		if o.GetKind() != kind {
			continue
		}
		if _, err := c.apply(ctx, o, false); err != nil {
			return err
		}
	}
	return nil
}

func newState(p *Plan) (*State, error) {
	m := p.Manifest
	s := &State{Name: m.Name, Namespace: m.Namespace, Version: m.Version, Sets: m.Sets, Mesh: m.Mesh, Inventory: inventory(m)}
	if p.Before != nil {
		// Until the new MeshConfig is in the cluster, hand edits are what differs from the old one.
		s.Mesh = first(p.Before.Mesh, m.Mesh)
		s.Previous = p.Before.Previous
		if p.Before.Version != m.Version {
			s.Previous = p.Before.Version
		}
	}
	if m.Operator != nil {
		y, err := yaml.Marshal(m.Operator)
		if err != nil {
			return nil, fmt.Errorf("encoding the IstioOperator file: %w", err)
		}
		s.Operator = string(y)
	}
	// What is to be removed stays in the inventory until it is.
	for _, r := range p.Removed {
		if !slices.Contains(s.Inventory, r) {
			s.Inventory = append(s.Inventory, r)
		}
	}
	return s, nil
}

func inventory(m *Manifest) (refs []Ref) {
	for _, o := range m.Objects() {
		refs = append(refs, ref(o))
	}
	return refs
}

func byRemovalOrder(refs []Ref) {
	slices.SortStableFunc(refs, func(a, b Ref) int {
		return kindIndex(a.APIVersion, a.Kind) - kindIndex(b.APIVersion, b.Kind)
	})
}
