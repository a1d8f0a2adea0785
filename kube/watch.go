package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apischema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

// Sink takes what is seen. Its functions are called from many goroutines, in order for each object.
type Sink struct {
	Events   func([]mesh.Event)
	Findings func(about mesh.Key, now []mesh.Finding) // all there is to say about an object; none if it is well
}

// watched is one kind of object, watched and converted.
type watched struct {
	name     string // plural, for messages
	sample   runtime.Object
	lw       func(*Client) cache.ListerWatcher
	resource *schema.Kind // users write, whose CRD may be absent
	kind     string       // of the mesh
	// namespace is the one that is watched, empty for all.
	namespace string
	// run, if set, does the work in its own way; nothing else is set then beside name.
	run func(ctx context.Context, f *feed, c *Client)
	// listed and watching, if set, are told of what works.
	listed, watching func()
	// convert returns the mesh's form, nil if the object does not count (any more) or, if sticky,
	// cannot be read: then the last good one stays.
	convert func(f *feed, o runtime.Object) mesh.Object
	sticky  bool
	key     func(o metav1.Object) mesh.Key      // of what convert would return; none for an object that is not of the mesh
	tap     func(name string, o runtime.Object) // if set, is shown every object, nil when it is gone
}

// feed is what one set of watches has seen. It says nothing until it has seen everything once and
// is told to go live; so another feed, of other credentials, can take its place without a gap.
type feed struct {
	cluster string
	sink    Sink
	resolve *resolver

	mu      sync.Mutex
	live    bool
	over    bool // another has taken its place
	objects map[mesh.Key]mesh.Object
	waiting map[string]bool   // kinds that have not been listed yet
	errors  map[string]error  // what keeps a kind from being listed or watched
	synced  chan struct{}     // closed when nothing is waiting
	broken  chan struct{}     // gets a value when errors change
	bad     map[mesh.Key]bool // that findings were told of
	grace   grace
}

func newFeed(cluster string, sink Sink, r *resolver) *feed {
	return &feed{cluster: cluster, sink: sink, resolve: r,
		objects: map[mesh.Key]mesh.Object{}, waiting: map[string]bool{}, errors: map[string]error{},
		synced: make(chan struct{}), broken: make(chan struct{}, 1), bad: map[mesh.Key]bool{}}
}

// set notes objects, and those that are gone.
func (f *feed) set(events []mesh.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setLocked(events)
}

func (f *feed) setLocked(events []mesh.Event) {
	if f.over || len(events) == 0 {
		return
	}
	events = slices.DeleteFunc(events, func(e mesh.Event) bool { return e.Object == nil && f.objects[e.Key] == nil })
	if len(events) == 0 {
		return
	}
	for i, e := range events {
		if e.Object != nil && f.resolve != nil {
			events[i].Object = f.resolve.addressed(f, e.Object)
			e = events[i]
		}
		if s, ok := e.Object.(*mesh.EndpointSlice); ok && f.grace.holds(time.Now()) {
			events[i].Object = hold(f.objects[s.Key()], s)
			e = events[i]
		}
		if e.Object == nil {
			delete(f.objects, e.Key)
		} else {
			f.objects[e.Object.Key()] = e.Object
		}
	}
	if f.live {
		f.sink.Events(events)
	}
}

// again tells of an object once more, whose addresses have changed.
func (f *feed) again(k mesh.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.objects[k]; o != nil {
		f.setLocked([]mesh.Event{{Object: o}})
	}
}

// replace notes all objects of a kind in a namespace, or in all of them.
func (f *feed) replace(kind, namespace string, objects []mesh.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := make(map[mesh.Key]bool, len(objects))
	events := make([]mesh.Event, 0, len(objects))
	for _, o := range objects {
		now[o.Key()] = true
		events = append(events, mesh.Event{Object: o})
	}
	for k := range f.objects {
		if k.Kind == kind && (namespace == "" || k.Namespace == namespace) && !now[k] {
			events = append(events, mesh.Gone(k))
		}
	}
	f.setLocked(events)
}

// goLive tells all that was seen, and that what old had told beside it is gone. From then on f
// tells what it sees, and old nothing.
func (f *feed) goLive(old *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old != nil {
		old.mu.Lock()
		defer old.mu.Unlock()
		old.over = true
		f.inherit(old)
	}
	events := make([]mesh.Event, 0, len(f.objects)+1)
	for _, o := range f.objects {
		events = append(events, mesh.Event{Object: o})
	}
	if old != nil {
		for k := range old.objects {
			if f.objects[k] == nil {
				events = append(events, mesh.Gone(k))
			}
		}
	}
	f.live = true
	f.sink.Events(append(events, mesh.Event{Object: &mesh.Cluster{ID: f.cluster, Synced: true}}))
}

// end makes the feed silent.
func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
}

func (f *feed) object(k mesh.Key) mesh.Object {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects[k]
}

// badOf returns the objects of a kind that findings were told of.
func (f *feed) badOf(kind string) (ks []mesh.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.bad {
		if k.Kind == kind {
			ks = append(ks, k)
		}
	}
	return ks
}

// recovered notes that a kind can be listed or watched again.
func (f *feed) recovered(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.errors[name] != nil {
		delete(f.errors, name)
		f.stir()
	}
}

// listed notes that a kind has been listed.
func (f *feed) listed(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.errors[name] != nil {
		delete(f.errors, name)
		f.stir()
	}
	if f.waiting[name] {
		delete(f.waiting, name)
		if len(f.waiting) == 0 {
			close(f.synced)
		}
	}
}

// failed notes why a kind cannot be listed or watched.
func (f *feed) failed(name string, err error) {
	var call *url.Error
	if errors.As(err, &call) {
		err = call.Err // without the long URL, which is another one at each try
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.errors[name] == nil || f.errors[name].Error() != err.Error() {
		f.errors[name] = err
		f.stir()
	}
}

func (f *feed) stir() {
	select {
	case f.broken <- struct{}{}:
	default:
	}
}

// err returns what is wrong with some kind.
func (f *feed) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var first string
	for name := range f.errors {
		if first == "" || name < first {
			first = name
		}
	}
	if first == "" {
		return nil
	}
	return fmt.Errorf("watching %s: %w", first, f.errors[first])
}

// found tells findings about an object, or that there are none any more.
func (f *feed) found(k mesh.Key, now []mesh.Finding) {
	f.mu.Lock()
	was := f.bad[k]
	if len(now) > 0 {
		f.bad[k] = true
	} else {
		delete(f.bad, k)
	}
	f.mu.Unlock()
	if was || len(now) > 0 {
		f.sink.Findings(k, now)
	}
}

// run watches all kinds until ctx ends.
func (f *feed) run(ctx context.Context, c *Client, kinds []watched) {
	f.mu.Lock()
	for _, k := range kinds {
		if k.run == nil {
			f.waiting[k.name] = true
		}
	}
	f.mu.Unlock()
	var wg sync.WaitGroup
	defined := newCRDs()
	if slices.ContainsFunc(kinds, func(k watched) bool { return k.resource != nil }) {
		wg.Go(func() { defined.run(ctx, c) })
	}
	for _, k := range kinds {
		wg.Go(func() {
			switch {
			case k.run != nil:
				k.run(ctx, f, c)
			case k.resource != nil:
				f.runOptional(ctx, c, k, defined)
			default:
				f.reflect(ctx, c, k, k.lw(c), k.sample, func(error) bool { return false })
			}
		})
	}
	wg.Wait()
}

// reflect lists and watches until ctx ends. What goes wrong is told to expected, which reports
// whether it has dealt with it, and is the feed's trouble if not.
func (f *feed) reflect(ctx context.Context, c *Client, k watched, lw cache.ListerWatcher, sample runtime.Object, expected func(error) bool) {
	quiet := logr.Discard()
	lw = &watchful{ListerWatcher: lw, result: func(watch bool, err error) {
		switch {
		case err == nil:
			f.recovered(k.name)
			if watch && k.watching != nil {
				k.watching()
			}
		case expected(err):
		case apierrors.IsResourceExpired(err), apierrors.IsGone(err), ctx.Err() != nil:
		default:
			f.failed(k.name, err)
		}
	}}
	r := cache.NewReflectorWithOptions(lw, sample, &store{feed: f, kind: k}, cache.ReflectorOptions{
		Name: f.cluster + "/" + k.name, Logger: &quiet,
		Backoff: backoff(),
	})
	r.WatchListPageSize = 500
	r.RunWithContext(klog.NewContext(ctx, quiet)) // what it would log is in the feed's status
}

// backoff is between tries to list or watch.
func backoff() *wait.Backoff {
	return &wait.Backoff{Duration: 300 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 5, Cap: 4 * time.Second}
}

// remoteKinds is what is watched of every cluster.
func remoteKinds(cluster string) []watched {
	key := func(kind string) func(metav1.Object) mesh.Key {
		return func(o metav1.Object) mesh.Key {
			return mesh.Key{Cluster: cluster, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
		}
	}
	return []watched{
		{name: "services", sample: &corev1.Service{}, kind: mesh.KindService, key: key(mesh.KindService),
			lw: func(c *Client) cache.ListerWatcher {
				return listWatch(c.kube.CoreV1().Services("").List, c.kube.CoreV1().Services("").Watch, "")
			},
			convert: func(f *feed, o runtime.Object) mesh.Object {
				s, names := service(cluster, o.(*corev1.Service))
				if f.resolve != nil && s.Labels[networkLabel] != "" {
					f.resolve.remember(f, s, names)
				}
				return s
			}},
		{name: "endpointslices", sample: &discoveryv1.EndpointSlice{}, kind: mesh.KindEndpointSlice, key: key(mesh.KindEndpointSlice),
			lw: func(c *Client) cache.ListerWatcher {
				e := c.kube.DiscoveryV1().EndpointSlices("")
				return listWatch(e.List, e.Watch, "")
			},
			convert: func(_ *feed, o runtime.Object) mesh.Object {
				if s := slice(cluster, o.(*discoveryv1.EndpointSlice)); s != nil {
					return s
				}
				return nil
			}},
		{name: "pods", sample: &corev1.Pod{}, kind: mesh.KindPod, key: key(mesh.KindPod),
			lw: func(c *Client) cache.ListerWatcher {
				return listWatch(c.kube.CoreV1().Pods("").List, c.kube.CoreV1().Pods("").Watch, "")
			},
			convert: func(_ *feed, o runtime.Object) mesh.Object {
				if p := pod(cluster, o.(*corev1.Pod)); p != nil {
					return p
				}
				return nil
			}},
		{name: "nodes", sample: &corev1.Node{}, kind: mesh.KindNode, // whole, for their addresses
			key: func(o metav1.Object) mesh.Key {
				return mesh.Key{Cluster: cluster, Kind: mesh.KindNode, Name: o.GetName()}
			},
			lw: func(c *Client) cache.ListerWatcher {
				return listWatch(c.kube.CoreV1().Nodes().List, c.kube.CoreV1().Nodes().Watch, "")
			},
			convert: func(_ *feed, o runtime.Object) mesh.Object { return node(cluster, o.(*corev1.Node)) }},
		metadataKind("namespaces", cluster, mesh.KindNamespace, func(m *metav1.PartialObjectMetadata) mesh.Object { return namespace(cluster, m) }),
	}
}

func metadataKind(plural, cluster, kind string, convert func(*metav1.PartialObjectMetadata) mesh.Object) watched {
	return watched{name: plural, sample: &metav1.PartialObjectMetadata{},
		kind: kind, key: func(o metav1.Object) mesh.Key { return mesh.Key{Cluster: cluster, Kind: kind, Name: o.GetName()} },
		lw: func(c *Client) cache.ListerWatcher {
			r := c.metadata.Resource(apischema.GroupVersionResource{Version: "v1", Resource: plural})
			return listWatch(r.List, r.Watch, "")
		},
		convert: func(_ *feed, o runtime.Object) mesh.Object { return convert(o.(*metav1.PartialObjectMetadata)) }}
}

// listWatch makes a ListerWatcher of a typed client's two methods.
func listWatch[L runtime.Object](list func(context.Context, metav1.ListOptions) (L, error), watch func(context.Context, metav1.ListOptions) (apiwatch.Interface, error), fields string) cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fields
			return list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			o.FieldSelector = fields
			return watch(ctx, o)
		},
	}
}
