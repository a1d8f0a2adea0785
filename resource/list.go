package resource

import "iter"

// Part is a run of resources, shared by the lists of many proxies. Immutable.
type Part struct{ Resources []*Resource }

// List is all resources of one type that a proxy should hold, in parts. Immutable, and
// shared by the proxies that should hold the same. Names in a list are unique. A nil List is empty.
type List struct{ Parts []*Part }

// Of returns a list of one part.
func Of(rs ...*Resource) *List { return &List{[]*Part{{rs}}} }

// All yields the resources of the list in order.
func (l *List) All() iter.Seq[*Resource] {
	return func(yield func(*Resource) bool) {
		if l == nil {
			return
		}
		for _, p := range l.Parts {
			for _, r := range p.Resources {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// Delta is what to tell a client that holds one list and should hold another.
type Delta struct {
	Changed []*Resource
	Removed []string // names
}

// Since returns the delta from old, which may be nil, as l may. It looks only into parts that
// differ; a resource that was made again with the same content has not changed.
func (l *List) Since(old *List) (d Delta) {
	if l == old {
		return d
	}
	var a, b []*Part
	if old != nil {
		a = old.Parts
	}
	if l != nil {
		b = l.Parts
	}
	a, b = trim(a, b)
	was := map[string]*Resource{}
	var now []*Resource
	for i := range max(len(a), len(b)) {
		var x, y []*Resource
		if i < len(a) {
			x = a[i].Resources
		}
		if i < len(b) {
			y = b[i].Resources
		}
		x, y = trim(x, y)
		for _, r := range x {
			was[r.Name] = r
		}
		now = append(now, y...)
	}
	for _, r := range now {
		if o := was[r.Name]; o == nil || o.Version != r.Version {
			d.Changed = append(d.Changed, r)
		}
		delete(was, r.Name)
	}
	for name := range was {
		d.Removed = append(d.Removed, name)
	}
	return d
}

// trim drops what a and b have in common at both ends.
func trim[T comparable](a, b []T) ([]T, []T) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}
