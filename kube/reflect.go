package kube

import (
	"context"
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/carrick-mesh/carrick/mesh"
)

// watchful tells how the calls of a ListerWatcher end, which the reflector only logs.
type watchful struct {
	cache.ListerWatcher
	result func(watch bool, err error)
}

func (w *watchful) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	l, err := cache.ToListerWatcherWithContext(w.ListerWatcher).ListWithContext(ctx, o)
	w.result(false, err)
	return l, err
}

func (w *watchful) WatchWithContext(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
	x, err := cache.ToListerWatcherWithContext(w.ListerWatcher).WatchWithContext(ctx, o)
	w.result(true, err)
	return x, err
}

// store is the reflector's view of a feed. Only the reflector's goroutine calls it.
type store struct {
	feed *feed
	kind watched
	seen map[string]bool // by the tap
}

var errUnexpected = errors.New("an object of another kind came")

func (s *store) put(o any, gone bool) error {
	m, ok := o.(metav1.Object)
	ro, ok2 := o.(runtime.Object)
	if !ok || !ok2 {
		return errUnexpected
	}
	s.show(m.GetName(), ro, gone)
	if k := s.kind.key(m); k.Kind != "" {
		var x mesh.Object
		if !gone {
			x = s.kind.convert(s.feed, ro)
		}
		switch {
		case x != nil:
			s.feed.set([]mesh.Event{{Object: x}})
		case gone || !s.kind.sticky:
			if s.feed.resolve != nil && k.Kind == mesh.KindService {
				s.feed.resolve.forget(s.feed, k)
			}
			s.feed.found(k, nil)
			s.feed.set([]mesh.Event{mesh.Gone(k)})
		}
	}
	s.feed.listed(s.kind.name) // it works
	return nil
}

func (s *store) show(name string, o runtime.Object, gone bool) {
	switch {
	case s.kind.tap == nil:
	case gone:
		delete(s.seen, name)
		s.kind.tap(name, nil)
	default:
		if s.seen == nil {
			s.seen = map[string]bool{}
		}
		s.seen[name] = true
		s.kind.tap(name, o)
	}
}

func (s *store) Add(o any) error    { return s.put(o, false) }
func (s *store) Update(o any) error { return s.put(o, false) }
func (s *store) Delete(o any) error {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	return s.put(o, true)
}

func (s *store) Replace(os []any, _ string) error {
	var objects []mesh.Object
	there := map[mesh.Key]bool{}
	names := map[string]bool{}
	for _, o := range os {
		m, ok := o.(metav1.Object)
		ro, ok2 := o.(runtime.Object)
		if !ok || !ok2 {
			return errUnexpected
		}
		names[m.GetName()] = true
		s.show(m.GetName(), ro, false)
		k := s.kind.key(m)
		if k.Kind == "" {
			continue
		}
		there[k] = true
		if x := s.kind.convert(s.feed, ro); x != nil {
			objects = append(objects, x)
		} else if last := s.feed.object(k); s.kind.sticky && last != nil {
			objects = append(objects, last)
		}
	}
	for n := range s.seen {
		if !names[n] {
			s.show(n, nil, true)
		}
	}
	for _, k := range s.feed.badOf(s.kind.kind) {
		if !there[k] {
			s.feed.found(k, nil)
		}
	}
	s.feed.replace(s.kind.kind, s.kind.namespace, objects)
	s.feed.listed(s.kind.name)
	if s.kind.listed != nil {
		s.kind.listed()
	}
	return nil
}

func (s *store) Resync() error { return nil }
