package kube

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	apischema "k8s.io/apimachinery/pkg/runtime/schema"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// configKinds are the kinds that users write, with effect or without; only the local cluster's count.
func configKinds(cluster string) (ks []watched) {
	for _, k := range schema.Kinds() {
		name := k.Plural
		if !k.Implemented {
			name += "." + k.Group
		}
		ks = append(ks, watched{name: name, resource: &k, kind: k.Name(), sticky: true,
			key: func(o metav1.Object) mesh.Key { return keyOf(cluster, k, o) },
			convert: func(f *feed, o runtime.Object) mesh.Object {
				u := o.(*unstructured.Unstructured)
				x, findings := decode(cluster, k, u)
				f.found(keyOf(cluster, k, u), findings)
				return x
			}})
	}
	return ks
}

// crdPoll is how soon it is tried again whether a kind is served.
const crdPoll = 5 * time.Second

// runOptional watches a kind while the API server has it.
func (f *feed) runOptional(ctx context.Context, c *Client, k watched, defined *crds) {
	for ctx.Err() == nil {
		there, changed := defined.has(ctx, *k.resource)
		version, err := "", error(nil)
		if there {
			version, err = served(ctx, c, *k.resource)
		}
		switch {
		case err != nil:
			f.failed(k.name, err)
		case version == "":
			f.replace(k.kind, "", nil)
			f.listed(k.name)
		default:
			f.watchVersion(ctx, c, k, version)
		}
		var again <-chan time.Time
		if there { // it may be served soon, or again
			again = time.After(crdPoll)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		}
	}
}

// watchVersion watches a kind until the API server has that version of it no longer. A kind without
// effect that may not be read is told of and holds nothing up.
func (f *feed) watchVersion(ctx context.Context, c *Client, k watched, version string) {
	gvr := apischema.GroupVersionResource{Group: k.resource.Group, Version: version, Resource: k.resource.Plural}
	sample := &unstructured.Unstructured{}
	sample.SetGroupVersionKind(gvr.GroupVersion().WithKind(k.resource.Kind))
	r := c.dynamic.Resource(gvr)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return r.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			return r.Watch(ctx, o)
		},
	}
	during, stop := context.WithCancel(ctx)
	defer stop()
	f.reflect(during, c, k, lw, sample, func(err error) bool {
		switch {
		case apierrors.IsNotFound(err):
		case apierrors.IsForbidden(err) && !k.resource.Implemented:
			f.listed(k.name)
			f.failed(k.name, err)
		default:
			return false
		}
		stop()
		return true
	})
}

// served returns the best version of a kind that the API server has, "" if none.
func served(ctx context.Context, c *Client, k schema.Kind) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, v := range k.Versions {
		var list metav1.APIResourceList
		err := c.kube.Discovery().RESTClient().Get().AbsPath("/apis/"+k.Group+"/"+v).
			SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Into(&list)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("asking for API %s/%s: %w", k.Group, v, err)
		}
		for _, r := range list.APIResources {
			if r.Name == k.Plural {
				return v, nil
			}
		}
	}
	return "", nil
}

// crds follows which CRDs an API server has, so that nobody has to ask for kinds that it has not. It
// is the store of its own reflector.
type crds struct {
	mu      sync.Mutex
	names   map[string]bool // nil while nothing is known
	tried   chan struct{}   // closed when names are known, or will not be
	changed chan struct{}   // closed, and made again, when names may be others
}

func newCRDs() *crds { return &crds{tried: make(chan struct{}), changed: make(chan struct{})} }

// has reports whether the API server may serve a kind, and returns what is closed when it may have
// changed its mind.
func (s *crds) has(ctx context.Context, k schema.Kind) (bool, <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-s.tried:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names == nil || k.Group == schema.Kubernetes || s.names[k.Plural+"."+k.Group], s.changed
}

// run follows the CRDs until ctx ends.
func (s *crds) run(ctx context.Context, c *Client) {
	r := c.metadata.Resource(apischema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	quiet := logr.Discard()
	lw := &watchful{ListerWatcher: listWatch(r.List, r.Watch, ""), result: func(watch bool, err error) {
		if err != nil && !watch {
			s.change(func() { s.names = nil }) // kinds are asked for one by one, then
		}
	}}
	reflector := cache.NewReflectorWithOptions(lw, &metav1.PartialObjectMetadata{}, s, cache.ReflectorOptions{Name: "crds", Logger: &quiet, Backoff: backoff()})
	reflector.RunWithContext(klog.NewContext(ctx, quiet))
}

func (s *crds) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
	select {
	case <-s.tried:
	default:
		close(s.tried)
	}
}

func (s *crds) put(o any, there bool) error {
	m, ok := o.(metav1.Object)
	if !ok {
		return errUnexpected
	}
	s.change(func() {
		s.names = maps.Clone(s.names)
		if s.names == nil {
			s.names = map[string]bool{}
		}
		s.names[m.GetName()] = there
	})
	return nil
}

// Add, Update, Delete, Replace and Resync implement cache.ReflectorStore.
func (s *crds) Add(o any) error    { return s.put(o, true) }
func (s *crds) Update(o any) error { return s.put(o, true) }
func (s *crds) Delete(o any) error {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	return s.put(o, false)
}

func (s *crds) Replace(os []any, _ string) error {
	names := map[string]bool{}
	for _, o := range os {
		if m, ok := o.(metav1.Object); ok {
			names[m.GetName()] = true
		}
	}
	s.change(func() { s.names = names })
	return nil
}

func (s *crds) Resync() error { return nil }
