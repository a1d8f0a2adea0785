package install

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Plan is what an install will change in a cluster.
type Plan struct {
	Manifest *Manifest
	Before   *State // nil if this install is new
	Created  []Ref
	Changed  []Change
	Kept     []Ref
	Removed  []Ref
	Notes    []string // hand edits that stay, and those that do not
	Adopted  []Ref    // of Changed: what others made
	Leftover []Ref    // what an Istio that is taken over leaves and nobody needs
	Dropped  []Change // of Adopted: fields that go, for Istio's installers set them and Carrick does not
}

// Change is an object that will differ, and where.
type Change struct {
	Ref    Ref
	Fields []string // paths, with what happens to them
}

// Plan compares a manifest with what the cluster has. It changes nothing. Objects of the same
// names that others made are an error, unless adopt is set.
func (c *Cluster) Plan(ctx context.Context, m *Manifest, adopt bool) (*Plan, error) {
	before, err := c.LoadState(ctx, m.Namespace, m.Name)
	if err != nil {
		return nil, err
	}
	p := &Plan{Manifest: m, Before: before}
	if err := c.checkNetwork(ctx, m); err != nil {
		return nil, err
	}
	if err := c.yieldToTag(ctx, p); err != nil {
		return nil, err
	}
	objs := m.Objects()
	lives := make([]*unstructured.Unstructured, len(objs))
	err = each(ctx, len(objs), func(ctx context.Context, i int) (err error) {
		lives[i], err = c.get(ctx, ref(objs[i]))
		return err
	})
	if err != nil {
		return nil, err
	}
	var foreign []Ref
	var there []int // of objs: what may change
	n := -1
	for _, part := range m.Parts {
		for i, o := range part.Objects {
			n++
			r, live := ref(o), lives[n]
			if live == nil {
				p.Created = append(p.Created, r)
				continue
			}
			if !ours(live) {
				if r.Kind == "CustomResourceDefinition" {
					p.Notes = append(p.Notes, r.String()+" was made by others and stays as it is")
					part.Objects[i] = nil
					continue
				}
				if r.Kind != "Namespace" {
					foreign = append(foreign, r)
					if !adopt {
						continue
					}
				}
			}
			if r.Kind == "Deployment" {
				if err := keepSelector(o, live); err != nil {
					return nil, err
				}
			}
			if m.Mesh != "" && r.Kind == "ConfigMap" && strings.HasPrefix(r.Name, "istio") && !strings.Contains(r.Name, "injector") {
				if err := p.keepEdits(o, live); err != nil {
					return nil, err
				}
			}
			if owner := live.GetLabels()[InstallLabel]; owner != m.Name && owner != "" && o.GetLabels()[InstallLabel] != "" {
				p.Notes = append(p.Notes, fmt.Sprintf("%s goes over from installation %s to %s", r, owner, m.Name))
			}
			there = append(there, n)
		}
	}
	changes, dropped := make([][]string, len(there)), make([][]string, len(there))
	err = each(ctx, len(there), func(ctx context.Context, i int) error {
		o, live := objs[there[i]], lives[there[i]]
		if o.GetKind() == "CustomResourceDefinition" && holds(live.Object, o.Object) {
			return nil
		}
		then, err := c.apply(ctx, o, true)
		if err != nil {
			return err
		}
		changes[i] = diff(live.Object, then.Object)
		if adopt && o.GetKind() == "Deployment" && !ours(live) { // of which Apply inherits the fields
			dropped[i], err = drops(live, then)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, n := range there {
		if r := ref(objs[n]); len(changes[i]) > 0 {
			p.Changed = append(p.Changed, Change{r, changes[i]})
		} else {
			p.Kept = append(p.Kept, r)
		}
		if len(dropped[i]) > 0 {
			p.Dropped = append(p.Dropped, Change{ref(objs[n]), dropped[i]})
		}
	}
	for i := range m.Parts {
		m.Parts[i].Objects = slices.DeleteFunc(m.Parts[i].Objects, func(o *unstructured.Unstructured) bool { return o == nil })
	}
	if len(foreign) > 0 && !adopt {
		return nil, c.refusal(ctx, m, foreign)
	}
	if adopt {
		p.Adopted = foreign
		if err := c.planAdoption(ctx, p); err != nil {
			return nil, err
		}
	}
	return p, c.planRemovals(ctx, p)
}

// LeaveOthers takes out of a manifest what another install wrote last, and returns it: an upgrade does
// not take back what went over to another revision.
func (c *Cluster) LeaveOthers(ctx context.Context, m *Manifest) (left []Ref, err error) {
	for i := range m.Parts {
		m.Parts[i].Objects = slices.DeleteFunc(m.Parts[i].Objects, func(o *unstructured.Unstructured) bool {
			if err != nil || o.GetLabels()[InstallLabel] == "" {
				return false
			}
			live, e := c.get(ctx, ref(o))
			if err = e; live == nil {
				return false
			}
			owner := live.GetLabels()[InstallLabel]
			if !ours(live) || owner == "" || owner == m.Name {
				return false
			}
			left = append(left, ref(o))
			return true
		})
	}
	return left, err
}

func ours(o *unstructured.Unstructured) bool { return o.GetLabels()[ManagedBy] == "carrick" }

// planRemovals finds what this install wrote before and does not hold any more. CRDs and
// namespaces stay: users' objects go with them.
func (c *Cluster) planRemovals(ctx context.Context, p *Plan) error {
	if p.Before == nil {
		return nil
	}
	now := map[Ref]bool{}
	for _, o := range p.Manifest.Objects() {
		now[ref(o).canonical()] = true
	}
	for _, r := range p.Before.Inventory {
		if now[r.canonical()] || r.Kind == "CustomResourceDefinition" || r.Kind == "Namespace" {
			continue
		}
		live, err := c.get(ctx, r)
		if err != nil {
			return err
		}
		if live != nil && live.GetLabels()[InstallLabel] == p.Manifest.Name {
			p.Removed = append(p.Removed, r)
		}
	}
	return nil
}

// checkNetwork refuses a network that contradicts the label of the namespace.
func (c *Cluster) checkNetwork(ctx context.Context, m *Manifest) error {
	ns, err := c.get(ctx, Ref{"v1", "Namespace", "", m.Namespace})
	if err != nil || ns == nil {
		return err
	}
	const label = "topology.istio.io/network"
	if have := ns.GetLabels()[label]; m.Network != "" && have != "" && have != m.Network {
		return fmt.Errorf("namespace %s has label %s=%s, but values.global.network is %s; set them equal: kubectl label namespace %s %s=%s --overwrite",
			m.Namespace, label, have, m.Network, m.Namespace, label, m.Network)
	}
	return nil
}

// keepEdits carries hand edits of the live MeshConfig over into the one to apply: a field that
// somebody changed since the last install stays, unless the install changes that field, too.
func (p *Plan) keepEdits(o, live *unstructured.Unstructured) error {
	text, _, _ := unstructured.NestedString(live.Object, "data", "mesh")
	base := ""
	if p.Before != nil {
		base = p.Before.Mesh
	}
	var b, theirs, ours map[string]any
	for _, x := range []struct {
		text string
		into *map[string]any
	}{{base, &b}, {p.Manifest.Mesh, &ours}} {
		if err := yaml.Unmarshal([]byte(x.text), x.into); err != nil {
			return fmt.Errorf("reading the MeshConfig of the last install: %w", err)
		}
	}
	name := "ConfigMap " + o.GetNamespace() + "/" + o.GetName()
	if err := yaml.Unmarshal([]byte(text), &theirs); err != nil {
		return fmt.Errorf("%s: data.mesh is not YAML (%w); correct it first, so that hand edits are not lost", name, err)
	}
	if p.Before == nil {
		b = ours // nothing is known of who wrote what: what is there stays
	}
	edits := &meshMerge{}
	merged := edits.merge(b, theirs, ours, "")
	edited := "was edited by hand and stays"
	if live.GetLabels()[ManagedBy] != "carrick" {
		edited = "stays as it was"
	}
	for _, f := range edits.kept {
		p.Notes = append(p.Notes, fmt.Sprintf("%s: data.mesh: %s %s", name, f, edited))
	}
	for _, f := range edits.lost {
		p.Notes = append(p.Notes, fmt.Sprintf("%s: data.mesh: the hand edit of %s gives way to the new value", name, f))
	}
	y, err := yaml.Marshal(merged)
	if err != nil {
		return err
	}
	if p.Before == nil {
		p.Notes = append(p.Notes, withoutEffect(name, merged)...)
	}
	if len(edits.kept) == 0 {
		y = []byte(p.Manifest.Mesh)
	}
	if reflect.DeepEqual(merged, theirs) {
		y = []byte(text) // the same, in the user's words
	}
	return unstructured.SetNestedField(o.Object, string(y), "data", "mesh")
}

// meshMerge is a three-way merge of YAML maps.
type meshMerge struct{ kept, lost []string }

func (mm *meshMerge) merge(base, theirs, ours map[string]any, at string) map[string]any {
	out := map[string]any{}
	keys := map[string]bool{}
	for _, m := range []map[string]any{base, theirs, ours} {
		for k := range m {
			keys[k] = true
		}
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		path := strings.TrimPrefix(at+"."+k, ".")
		b, inB := base[k]
		t, inT := theirs[k]
		o, inO := ours[k]
		tm, tMap := t.(map[string]any)
		om, oMap := o.(map[string]any)
		bm, _ := b.(map[string]any)
		switch {
		case tMap && oMap:
			out[k] = mm.merge(bm, tm, om, path)
			continue
		case inT == inO && reflect.DeepEqual(t, o): // agreed
		case inB == inT && reflect.DeepEqual(b, t): // not edited: ours
		case inB == inO && reflect.DeepEqual(b, o): // edited by hand only
			mm.kept = append(mm.kept, path)
			o, inO = t, inT
		default:
			mm.lost = append(mm.lost, path)
		}
		if inO {
			out[k] = o
		}
	}
	return out
}

// each calls f for 0 to n-1, a few at a time, until one fails: the answers of a distant API server
// take longer than its work.
func each(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error { return f(ctx, i) })
	}
	return g.Wait()
}

// holds tells whether a merge patch changes nothing. API servers take long over one of a CRD, even
// to find that.
func holds(live, patch any) bool {
	p, ok := patch.(map[string]any)
	l, ok2 := live.(map[string]any)
	if !ok || !ok2 {
		return reflect.DeepEqual(live, patch)
	}
	for k, v := range p {
		if have, there := l[k]; !there || !holds(have, v) {
			return false
		}
	}
	return true
}

// diff lists where two states of an object differ, leaving out what servers keep for themselves.
func diff(a, b map[string]any) []string {
	var d []string
	walk(strip(a), strip(b), "", &d)
	return d
}

func strip(o map[string]any) map[string]any {
	o = maps.Clone(o)
	delete(o, "status")
	if m, ok := o["metadata"].(map[string]any); ok {
		m = maps.Clone(m)
		for _, k := range []string{"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"} {
			delete(m, k)
		}
		if a, ok := m["annotations"].(map[string]any); ok && a["deprecated.daemonset.template.generation"] != nil {
			a = maps.Clone(a)
			delete(a, "deprecated.daemonset.template.generation")
			m["annotations"] = a
		}
		o["metadata"] = m
	}
	return o
}

func walk(a, b any, at string, d *[]string) {
	if reflect.DeepEqual(a, b) {
		return
	}
	am, aok := a.(map[string]any)
	bm, bok := b.(map[string]any)
	if al, ok := a.([]any); ok {
		if bl, ok := b.([]any); ok {
			am, aok = byName(al)
			bm, bok = byName(bl)
		}
	}
	if aok && bok {
		keys := maps.Clone(am)
		maps.Copy(keys, bm)
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			x, inA := am[k]
			y, inB := bm[k]
			path := strings.TrimPrefix(at+"."+k, ".")
			switch {
			case !inA:
				*d = append(*d, path+" added"+short(y))
			case !inB:
				*d = append(*d, path+" removed")
			default:
				walk(x, y, path, d)
			}
		}
		return
	}
	if strings.HasPrefix(at, "data.") { // a ConfigMap's YAML or JSON
		var x, y map[string]any
		if yaml.Unmarshal([]byte(fmt.Sprint(a)), &x) == nil && yaml.Unmarshal([]byte(fmt.Sprint(b)), &y) == nil && !reflect.DeepEqual(x, y) {
			walk(x, y, at, d)
			return
		}
	}
	if s, t := short(a), short(b); s != "" && t != "" {
		*d = append(*d, at+strings.Replace(s, ":", " from", 1)+" to"+t[1:])
		return
	}
	*d = append(*d, at+" changed")
}

// byName turns a list of named items into a map.
func byName(l []any) (map[string]any, bool) {
	m := map[string]any{}
	for _, x := range l {
		xm, ok := x.(map[string]any)
		name, ok2 := xm["name"].(string)
		if !ok || !ok2 || m[name] != nil {
			return nil, false
		}
		m[name] = xm
	}
	return m, len(l) > 0
}

// short renders a scalar that fits on a line as ": VALUE", anything else as "".
func short(v any) string {
	switch v.(type) {
	case map[string]any, []any, nil:
		return ""
	}
	s := fmt.Sprint(v)
	if len(s) > 60 || strings.Contains(s, "\n") || s == "" {
		return ""
	}
	return ": " + s
}
