package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/carrick-mesh/carrick/lb/pool"
)

// Options are what the load balancer's two roles have in common.
type Options struct {
	Self      string // who this is: the pod's name for a controller, the node's for a speaker
	Namespace string // where pools, advertisements and leases are
	Class     string // of Services to serve; "" is those without a class

	Interfaces func() ([]net.Interface, error) // to answer on; announce.LANInterfaces if nil
}

// newRecorder returns a recorder of events; stop ends it.
func newRecorder(k kubernetes.Interface, component, host string) (r record.EventRecorder, stop func()) {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: k.CoreV1().Events("")})
	return b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component, Host: host}), b.Shutdown
}

// trigger remembers that there is something to do.
type trigger chan struct{}

func newTrigger() trigger { return make(trigger, 1) }

func (t trigger) pull() {
	select {
	case t <- struct{}{}:
	default:
	}
}

// on pulls the trigger at each change of what an informer watches.
func (t trigger) on(informers ...cache.SharedIndexInformer) error {
	for _, i := range informers {
		if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { t.pull() },
			UpdateFunc: func(any, any) { t.pull() },
			DeleteFunc: func(any) { t.pull() },
		}); err != nil {
			return fmt.Errorf("watching: %w", err)
		}
	}
	return nil
}

// loop calls do after each pull, but not more often than every 20 ms, and at least every
// period, until ctx ends.
func (t trigger) loop(ctx context.Context, period time.Duration, do func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-t:
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
		do()
	}
}

var errNotSynced = errors.New("ended before everything was listed")

// waitSynced waits until everything was listed once: an empty list of pools would take all
// addresses away. It logs what it waits for.
func waitSynced(ctx context.Context, log *slog.Logger, informers map[string]cache.SharedIndexInformer) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	said := time.Now()
	for {
		var missing []string
		for name, i := range informers {
			if !i.HasSynced() {
				missing = append(missing, name)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		if time.Since(said) > 10*time.Second {
			log.Warn("waiting for the API server to list objects", "objects", fmt.Sprint(missing))
			said = time.Now()
		}
		select {
		case <-ctx.Done():
			return errNotSynced
		case <-tick.C:
		}
	}
}

// poolWatch keeps the pools of the cluster. A pool edited into nonsense stays as it was.
type poolWatch struct {
	informer cache.SharedIndexInformer
	log      *slog.Logger
	good     map[string]poolEntry // by name, of the last time
	told     map[string]string    // name to the problem last logged
}

type poolEntry struct {
	pool   pool.Pool
	labels labels.Set
}

func watchPools(f dynamicinformer.DynamicSharedInformerFactory, log *slog.Logger) *poolWatch {
	return &poolWatch{informer: f.ForResource(PoolResource).Informer(), log: log, good: map[string]poolEntry{}, told: map[string]string{}}
}

// read returns the pools, oldest first, those that are refused among them, their labels by name, and what is
// wrong with objects.
func (w *poolWatch) read() (pools []pool.Pool, of map[string]labels.Set, problems map[*unstructured.Unstructured]error) {
	next := map[string]poolEntry{}
	problems = map[*unstructured.Unstructured]error{}
	objects := map[string]*unstructured.Unstructured{}
	for _, o := range w.informer.GetStore().List() {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		name := u.GetName()
		objects[name] = u
		p, l, err := readPool(u)
		if err != nil {
			problems[u] = err
			if old, ok := w.good[name]; ok {
				next[name] = old
			}
			continue
		}
		next[name] = poolEntry{p, l}
	}
	w.good = next
	of = map[string]labels.Set{}
	var all []pool.Pool
	for name, e := range next {
		all = append(all, e.pool)
		of[name] = e.labels
	}
	pools, _ = pool.Overlaps(all)
	for _, p := range pools {
		if u := objects[p.Name]; p.Refused != nil && u != nil && problems[u] == nil {
			problems[u] = p.Refused
		}
	}
	for u, err := range problems {
		w.tell(u.GetName(), err)
	}
	return pools, of, problems
}

// tell logs a problem once.
func (w *poolWatch) tell(about string, err error) {
	if w.told[about] != err.Error() {
		w.told[about] = err.Error()
		w.log.Warn("an address pool is not used as it stands", "error", err)
	}
}

func newDynamicFactory(d dynamic.Interface, namespace string) dynamicinformer.DynamicSharedInformerFactory {
	return dynamicinformer.NewFilteredDynamicSharedInformerFactory(d, 0, namespace, nil)
}

// referTo makes an object reference for events on an unstructured object.
func referTo(u *unstructured.Unstructured) *corev1.ObjectReference {
	gvk := u.GroupVersionKind()
	return &corev1.ObjectReference{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID(), ResourceVersion: u.GetResourceVersion()}
}

// slim drops what nobody here reads, for informers of many objects.
func slim(o any) (any, error) {
	if m, err := meta.Accessor(o); err == nil {
		m.SetManagedFields(nil)
	}
	switch o := o.(type) {
	case *corev1.Node:
		o.Status = corev1.NodeStatus{Conditions: o.Status.Conditions}
		o.Annotations = nil
	case *discoveryv1.EndpointSlice:
		o.Ports, o.Annotations, o.OwnerReferences = nil, nil, nil
		for i, e := range o.Endpoints {
			o.Endpoints[i] = discoveryv1.Endpoint{NodeName: e.NodeName, Conditions: e.Conditions}
		}
	}
	return o, nil
}
