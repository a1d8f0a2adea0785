package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// Each step of a compilation is a pure function of immutable values, remembered beside its argument:
//
//	chunk(leaf, lens)   the rows of some neighbouring hosts, as one kind of client sees them
//	build(row, view)    what is made from a row
//	part(chunk, view)   what is made from a chunk
//	list(scope, view)   the parts of all the chunks that a namespace sees
//
// So there is no cache key to choose and nothing to invalidate: == means unchanged, and what was made
// from an argument goes when the argument goes.

type (
	// kind is one xDS type: pure functions, and what they gave for the last snapshot. One pass at a time.
	kind[R, V comparable] struct {
		row    func(h *mesh.Host, client string) (r R, ok bool) // all that build may know of the mesh
		need   func(R) need                                     // what of the view it may look at
		narrow func(V, need) V                                  // the view without the rest
		build  func(R, V) made
		frame  func(group string, v V) frame // what an aggregate has around its fragments

		columns []*column[R, V]         // one for each leaf
		spaces  map[string]*scope[R, V] // by namespace
		scopes  map[string]*scope[R, V] // by key
		views   map[V]bool              // that something may be remembered for
		limit   int                     // of views, before they are looked through
		frames  map[framed[V]]frame
		chunks  uint64 // made so far
		key     []byte // of the scope in hand
	}
	// column is what was made of a leaf. The column of the leaf after a change takes over what that still has.
	column[R, V comparable] struct {
		leaf   *mesh.Leaf
		before *column[R, V] // nil but in the pass after the change
		cells  map[R]*cell[R, V]
		chunks map[string]*chunk[R, V] // by client namespace, "" for strangers
	}
	cell[R, V comparable] struct {
		row   R
		need  need
		built map[V]made
	}
	chunk[R, V comparable] struct {
		id    uint64
		cells []*cell[R, V]
		need  need
		parts map[V]*part
	}
	// scope is what a namespace sees. Namespaces that see the same share one.
	scope[R, V comparable] struct {
		key    string         // the ids of its chunks
		chunks []*chunk[R, V] // one for each leaf
		need   need
		lists  map[V]*list
	}
)

// need is what of a proxy a row's resources may depend on, beyond what all depend on.
type need struct {
	cluster, network, locality, node, router bool
	labels                                   string // keys, sorted, joined by commas
}

func (n need) or(o need) need {
	return need{
		n.cluster || o.cluster, n.network || o.network, n.locality || o.locality, n.node || o.node, n.router || o.router,
		union(n.labels, o.labels),
	}
}

func union(a, b string) string {
	if a == b || b == "" {
		return a
	}
	if a == "" {
		return b
	}
	return sortedSet(a + "," + b)
}

type (
	// made is what one row gives: whole resources, and fragments of resources that many rows share.
	made struct {
		resources []*resource.Resource
		fragments []fragment
		faults    faults
	}
	// fragment is one row's share of the resource called group: encoded fields, which one after another
	// are the resource's encoding. Or, if whole, it is all of that resource, and holds unless a host
	// before it has one of that name.
	fragment struct {
		group string
		bytes []byte
		whole bool
	}
	// part is what one chunk gives.
	part struct {
		resources *resource.Part
		groups    []group // in the order of name
		faults    faults
	}
	// group is the fragments of one chunk for one resource.
	group struct {
		name  string
		bytes []byte
		sum   [sha256.Size]byte
		whole bool
	}
	framed[V comparable] struct {
		group string
		view  V
	}
	// frame is what an aggregate has before and after its fragments.
	frame struct{ head, tail []byte }
	// list is what one scope gives.
	list struct {
		parts     []*part
		leaves    []*resource.Part // theirs
		aggregate *resource.Part   // the resources made of groups
		faults    faults
	}
)

// pass returns the list of each of proxies, of which clients are the namespaces and views the views.
// from says which leaf of the last snapshot a leaf of s is, or was before a change.
func (k *kind[R, V]) pass(s *mesh.Snapshot, from []int, clients []string, views []V) []*list {
	old := *k
	k.columns, k.spaces, k.scopes = nil, map[string]*scope[R, V]{}, map[string]*scope[R, V]{}
	kept := slices.Clone(from) // but -1 for a leaf that is not the same
	var moved []int            // all that are not the same in the same place
	for i, l := range s.Leaves() {
		var c *column[R, V]
		if from[i] >= 0 {
			c = old.columns[from[i]]
		}
		if c == nil || c.leaf != l {
			c, kept[i] = &column[R, V]{l, c, map[R]*cell[R, V]{}, map[string]*chunk[R, V]{}}, -1
		}
		k.columns = append(k.columns, c)
		if kept[i] != i {
			moved = append(moved, i)
		}
	}
	out := make([]*list, len(clients))
	for i, client := range clients {
		was, now := old.spaces[client], k.spaces[client]
		if now == nil {
			now = k.scope(client, was, kept, moved, old.scopes)
			k.spaces[client] = now
		}
		out[i] = k.list(now, was, kept, k.narrow(views[i], now.need))
	}
	for _, c := range k.columns {
		c.before = nil
	}
	k.forget(views)
	return out
}

// scope resolves a namespace: kept leaves as in the scope that it was, if there is one, the others anew.
func (k *kind[R, V]) scope(client string, was *scope[R, V], kept, moved []int, old map[string]*scope[R, V]) *scope[R, V] {
	chunk := func(i int) *chunk[R, V] {
		if was != nil && kept[i] >= 0 {
			return was.chunks[kept[i]]
		}
		return k.chunk(k.columns[i], client)
	}
	differs := func(i int) bool { return chunk(i) != was.chunks[i] }
	if was != nil && len(was.chunks) == len(kept) && !slices.ContainsFunc(moved, differs) {
		k.scopes[was.key] = was
		return was
	}
	k.key = k.key[:0]
	for i := range kept {
		k.key = binary.LittleEndian.AppendUint64(k.key, chunk(i).id)
	}
	sc := k.scopes[string(k.key)]
	if sc == nil {
		if sc = old[string(k.key)]; sc == nil {
			sc = &scope[R, V]{key: string(k.key), lists: map[V]*list{}}
			for i := range kept {
				ch := chunk(i)
				sc.chunks, sc.need = append(sc.chunks, ch), sc.need.or(ch.need)
			}
		}
		k.scopes[sc.key] = sc
	}
	return sc
}

// chunk resolves a leaf for a client. The same rows are the same chunk, whoever the client, before and
// after a change.
func (k *kind[R, V]) chunk(c *column[R, V], client string) *chunk[R, V] {
	if !c.leaf.Names(client) {
		client = ""
	}
	if c.chunks[client] != nil {
		return c.chunks[client]
	}
	var cells []*cell[R, V]
	for _, h := range c.leaf.Hosts {
		if r, ok := k.row(h, client); ok {
			cells = append(cells, k.cell(c, r))
		}
	}
	for x := c; x != nil; x = x.before {
		for _, ch := range x.chunks {
			if slices.Equal(ch.cells, cells) {
				c.chunks[client] = ch
				return ch
			}
		}
	}
	k.chunks++
	ch := &chunk[R, V]{id: k.chunks, cells: cells, parts: map[V]*part{}}
	for _, x := range cells {
		ch.need = ch.need.or(x.need)
	}
	c.chunks[client] = ch
	return ch
}

func (k *kind[R, V]) cell(c *column[R, V], r R) *cell[R, V] {
	if x := c.cells[r]; x != nil {
		return x
	}
	var x *cell[R, V]
	if c.before != nil {
		x = c.before.cells[r]
	}
	if x == nil {
		x = &cell[R, V]{r, k.need(r), map[V]made{}}
	}
	c.cells[r] = x
	return x
}

// list puts the parts of a scope together, and the aggregates that they are shares of.
func (k *kind[R, V]) list(sc, was *scope[R, V], kept []int, v V) *list {
	if l := sc.lists[v]; l != nil {
		return l
	}
	k.views[v] = true
	var old *list
	if was != nil {
		old = was.lists[v]
	}
	l := &list{parts: make([]*part, len(kept))}
	for i, ch := range sc.chunks {
		if j := kept[i]; old != nil && j >= 0 && was.chunks[j] == ch {
			l.parts[i] = old.parts[j]
		} else {
			l.parts[i] = k.part(ch, k.narrow(v, ch.need))
		}
		l.leaves = append(l.leaves, l.parts[i].resources)
		l.faults = append(l.faults, l.parts[i].faults...)
	}
	l.aggregate = k.aggregates(l.parts, old, v)
	sc.lists[v] = l
	return l
}

func (k *kind[R, V]) part(ch *chunk[R, V], v V) *part {
	if p := ch.parts[v]; p != nil {
		return p
	}
	k.views[v] = true
	p := &part{resources: &resource.Part{}}
	var fragments []fragment
	for _, c := range ch.cells {
		w := k.narrow(v, c.need)
		m, ok := c.built[w]
		if !ok {
			k.views[w] = true
			m = k.build(c.row, w)
			c.built[w] = m
		}
		p.resources.Resources = append(p.resources.Resources, m.resources...)
		fragments = append(fragments, m.fragments...)
		p.faults = append(p.faults, m.faults...)
	}
	slices.SortStableFunc(fragments, func(a, b fragment) int { return strings.Compare(a.group, b.group) })
	for len(fragments) > 0 {
		n := 1
		for n < len(fragments) && fragments[n].group == fragments[0].group {
			n++
		}
		g := group{name: fragments[0].group, whole: fragments[0].whole}
		for i, f := range fragments[:n] {
			if !g.whole || i == 0 {
				g.bytes = append(g.bytes, f.bytes...)
			}
		}
		g.sum = sha256.Sum256(g.bytes)
		p.groups, fragments = append(p.groups, g), fragments[n:]
	}
	ch.parts[v] = p
	return p
}

// aggregates makes a resource of each group name: its frame, and the groups of all parts between. One
// that is as before keeps its pointer, and so do all of them together.
func (k *kind[R, V]) aggregates(parts []*part, old *list, v V) *resource.Part {
	byName := map[string][]*group{}
	for _, p := range parts {
		for i := range p.groups {
			byName[p.groups[i].name] = append(byName[p.groups[i].name], &p.groups[i])
		}
	}
	if len(byName) == 0 {
		return nil
	}
	before := map[string]*resource.Resource{}
	var last []*resource.Resource
	if old != nil && old.aggregate != nil {
		last = old.aggregate.Resources
		for _, r := range last {
			before[r.Name] = r
		}
	}
	var rs []*resource.Resource
	for name, groups := range byName {
		var f frame
		if groups[0].whole {
			groups = groups[:1]
		} else {
			f = k.framed(name, v)
		}
		h := sha256.New()
		h.Write(f.head)
		h.Write(f.tail)
		body := make([][]byte, 0, len(groups)+2)
		if len(f.head) > 0 {
			body = append(body, f.head)
		}
		for _, g := range groups {
			h.Write(g.sum[:])
			if len(g.bytes) > 0 {
				body = append(body, g.bytes)
			}
		}
		if len(f.tail) > 0 {
			body = append(body, f.tail)
		}
		r := &resource.Resource{Name: name, Version: hex.EncodeToString(h.Sum(nil)[:8]), Body: body}
		if b := before[name]; b != nil && b.Version == r.Version {
			r = b
		}
		rs = append(rs, r)
	}
	slices.SortFunc(rs, func(a, b *resource.Resource) int { return strings.Compare(a.Name, b.Name) })
	if slices.Equal(rs, last) {
		return old.aggregate
	}
	return &resource.Part{Resources: rs}
}

// framed returns the frame of an aggregate, which is made once for each view.
func (k *kind[R, V]) framed(name string, v V) frame {
	key := framed[V]{name, v}
	f, ok := k.frames[key]
	if !ok {
		if k.frames == nil {
			k.frames = map[framed[V]]frame{}
		}
		f = k.frame(name, v)
		k.frames[key] = f
	}
	return f
}

// forget drops what is remembered for views that no proxy has any more, once these are many.
func (k *kind[R, V]) forget(views []V) {
	if len(k.views) <= max(k.limit, 16) {
		return
	}
	distinct, used := map[V]bool{}, map[V]bool{}
	for _, v := range views {
		distinct[v] = true
	}
	use := func(n need) {
		for v := range distinct {
			used[k.narrow(v, n)] = true
		}
	}
	needs := map[need]bool{}
	for _, sc := range k.scopes {
		needs[sc.need] = true
	}
	for _, col := range k.columns {
		for _, ch := range col.chunks {
			needs[ch.need] = true
		}
		for _, c := range col.cells {
			needs[c.need] = true
		}
	}
	for n := range needs {
		use(n)
	}
	for _, sc := range k.scopes {
		dropUnused(sc.lists, used)
	}
	for _, col := range k.columns {
		for _, ch := range col.chunks {
			dropUnused(ch.parts, used)
		}
		for _, c := range col.cells {
			dropUnused(c.built, used)
		}
	}
	k.views, k.frames = used, nil
	k.limit = 2 * len(used)
}

func dropUnused[V comparable, T any](m map[V]T, used map[V]bool) {
	for v := range m {
		if !used[v] {
			delete(m, v)
		}
	}
}
