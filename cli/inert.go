package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apischema "k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// withoutEffect lists the objects of a cluster that were meant for the mesh and have no effect in it,
// the worst first. They are read now; a control plane need not run.
func (c *cluster) withoutEffect(ctx context.Context, namespace string) ([]message, error) {
	groups, err := c.Kube.Discovery().ServerGroups()
	if err != nil {
		return nil, fmt.Errorf("asking which kinds the API server has: %w", err)
	}
	served := map[string]bool{}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			served[v.GroupVersion] = true
		}
	}
	snap, err := c.meshSettings(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var events []mesh.Event
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, k := range schema.Kinds() {
		versions := slices.DeleteFunc(slices.Clone(k.Versions), func(v string) bool { return !served[k.Group+"/"+v] })
		if k.Implemented || len(versions) == 0 {
			continue
		}
		g.Go(func() error {
			es, err := c.listKind(ctx, k, versions)
			mu.Lock()
			defer mu.Unlock()
			events = append(events, es...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return inOrder(messages("Warning", snap.Apply(events...).WithoutEffect()), ""), nil
}

// meshSettings returns a mesh of which nothing but the settings is known, which say whose an Ingress
// is. Settings that cannot be understood are for others to complain about.
func (c *cluster) meshSettings(ctx context.Context, namespace string) (*mesh.Snapshot, error) {
	snap := mesh.New(mesh.Settings{SystemNamespace: namespace})
	cm, err := c.Kube.CoreV1().ConfigMaps(namespace).Get(ctx, "istio", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return snap, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the mesh's settings: %w", err)
	}
	m, _ := kube.DecodeMeshConfig(mesh.Key{Kind: "ConfigMap", Namespace: namespace, Name: "istio"}, cm.Data)
	snap = snap.Apply(mesh.Event{Object: m})
	return snap, nil
}

// listKind lists the objects of a kind, in the first of versions that the API server has it in.
func (c *cluster) listKind(ctx context.Context, k schema.Kind, versions []string) (es []mesh.Event, err error) {
	for _, v := range versions {
		r := c.Dynamic.Resource(apischema.GroupVersionResource{Group: k.Group, Version: v, Resource: k.Plural})
		for opts := (metav1.ListOptions{Limit: 500}); ; {
			l, err := r.List(ctx, opts)
			if apierrors.IsNotFound(err) {
				break
			}
			if apierrors.IsForbidden(err) && k.Guards == nil {
				return nil, nil // nothing stands open for what cannot be told of
			}
			if err != nil {
				return nil, fmt.Errorf("listing %s, which have no effect in this version of Carrick: %w", k.Plural, err)
			}
			for i := range l.Items {
				if o, _, _ := kube.Decode("", &l.Items[i]); o != nil {
					es = append(es, mesh.Event{Object: o})
				}
			}
			if opts.Continue = l.GetContinue(); opts.Continue == "" {
				return es, nil
			}
		}
	}
	return es, nil
}

// warningsShown bounds how many objects are named whose missing effect opens nothing.
const warningsShown = 20

// warnInert names objects without effect, one a line.
func warnInert(w io.Writer, found []message) {
	mild := 0
	for _, m := range found {
		if m.Level != "Error" {
			if mild++; mild > warningsShown {
				continue
			}
		}
		fmt.Fprintln(w, "! "+m.String())
	}
	if mild > warningsShown {
		fmt.Fprintf(w, "! %d more objects have no effect; list them: carrick analyze -A\n", mild-warningsShown)
	}
}

// acceptance is --accept-unenforced: kinds whose objects may protect nothing any more.
type acceptance []string

func (a *acceptance) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar((*[]string)(a), "accept-unenforced", nil,
		"go on though objects of these kinds, such as AuthorizationPolicy, protect something and would have no effect")
}

// check refuses names that no kind has.
func (a acceptance) check() error {
	var kinds []string
	for _, k := range schema.Kinds() {
		if k.Guards != nil {
			kinds = append(kinds, k.Name())
		}
	}
	for _, name := range a {
		if !slices.ContainsFunc(kinds, func(k string) bool { return strings.EqualFold(k, name) }) {
			return usagef("--accept-unenforced %s: is not one of %s", name, strings.Join(kinds, ", "))
		}
	}
	return nil
}

// refusal is the error that tells which protection would end; nil if none would, or that is accepted.
func (a acceptance) refusal(found []message) error {
	counts := map[string]int{}
	for _, m := range found {
		if kind, _, _ := strings.Cut(m.Origin, " "); m.Level == "Error" && !slices.ContainsFunc(a, func(k string) bool { return strings.EqualFold(k, kind) }) {
			counts[kind]++
		}
	}
	if len(counts) == 0 {
		return nil
	}
	kinds := slices.Sorted(maps.Keys(counts))
	all := make([]string, 0, len(kinds))
	for _, k := range kinds {
		all = append(all, fmt.Sprintf("%d %s", counts[k], k))
	}
	accept := slices.Concat([]string(a), kinds)
	return fmt.Errorf("the cluster has objects that protect something and would have no effect: %s; each is listed above. Nothing was changed. Enforce them by other means, or go on without: --accept-unenforced %s",
		strings.Join(all, ", "), strings.Join(accept, ","))
}

// checkProtection names the objects without effect and refuses to end a protection: where nothing of
// Carrick serves the mesh yet, or what serves it now is taken over.
func checkProtection(cmd *cobra.Command, c *cluster, namespace string, adopt bool, accept acceptance) error {
	found, err := c.withoutEffect(cmd.Context(), namespace)
	if err != nil {
		return c.wrong(err)
	}
	warnInert(cmd.ErrOrStderr(), found)
	if len(found) == 0 {
		return nil
	}
	if !adopt {
		revisions, err := c.Revisions(cmd.Context())
		if err != nil {
			return c.wrong(err)
		}
		if len(revisions) > 0 {
			return nil // it has ended already
		}
	}
	if err := accept.refusal(found); err != nil {
		return c.wrong(err)
	}
	return nil
}

// serves reports whether what is installed has anything to do with users' objects.
func serves(m *install.Manifest) bool { return m.Name != install.LBName }
