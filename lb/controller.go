package lb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"

	"github.com/carrick-mesh/carrick/lb/pool"
)

const (
	// lookAside is how often the controller and the speakers look whether MetalLB itself
	// has come or gone.
	lookAside = 15 * time.Second
	// settle is how long a write counts although the watch does not show it yet.
	settle = 10 * time.Second
	// callLimit bounds one call to the API server.
	callLimit = 10 * time.Second
)

// controller gives Services of type LoadBalancer their addresses.
type controller struct {
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	log     *slog.Logger
	events  record.EventRecorder
	options *Options

	services, namespaces cache.SharedIndexInformer
	pools                *poolWatch

	holds   pool.Holds            // who has, or last had, each address
	kept    bool                  // holds are written down
	written map[types.UID]written // what the watch may not show yet
	refused map[types.UID]string  // the refusal last told
	counts  map[string]poolCounts // as last written
	aside   string                // where MetalLB runs
	looked  time.Time
}

type written struct {
	addresses []netip.Addr
	at        time.Time
}

// RunController runs with its leader's lease until ctx ends; losing the lease is an error.
func RunController(ctx context.Context, k kubernetes.Interface, d dynamic.Interface, o *Options, log *slog.Logger) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: o.Namespace, Name: "carrick-lb-controller"},
		Client:     k.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.Self},
	}
	var failure error
	lead := func(ctx context.Context) { failure = runLeader(ctx, k, d, o, log) }
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		ReleaseOnCancel: true, Name: "carrick-lb-controller",
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: lead,
			OnStoppedLeading: func() {},
			OnNewLeader:      func(id string) { log.Info("the leader is known", "leader", id) },
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	elector.Run(ctx)
	if failure != nil {
		return failure
	}
	if ctx.Err() == nil {
		return errors.New("the leader's lease was lost")
	}
	return nil
}

// runLeader watches and writes until ctx ends.
func runLeader(ctx context.Context, k kubernetes.Interface, d dynamic.Interface, o *Options, log *slog.Logger) error {
	recorder, stop := newRecorder(k, "metallb-controller", "")
	defer stop()
	typed := informers.NewSharedInformerFactoryWithOptions(k, 0, informers.WithTransform(slim))
	custom := newDynamicFactory(d, o.Namespace)
	c := &controller{
		kube: k, dynamic: d, log: log, events: recorder, options: o,
		services: typed.Core().V1().Services().Informer(), namespaces: typed.Core().V1().Namespaces().Informer(),
		pools:   watchPools(custom, log),
		written: map[types.UID]written{}, refused: map[types.UID]string{}, counts: map[string]poolCounts{},
	}
	changes := newTrigger()
	if err := changes.on(c.services, c.namespaces, c.pools.informer); err != nil {
		return err
	}
	typed.Start(ctx.Done())
	custom.Start(ctx.Done())
	defer func() { typed.Shutdown(); custom.Shutdown() }()
	err := waitSynced(ctx, log, map[string]cache.SharedIndexInformer{
		"services": c.services, "namespaces": c.namespaces, "ipaddresspools": c.pools.informer,
	})
	if err != nil {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, callLimit)
	c.holds, err = readHolds(call, k, o.Namespace)
	cancel()
	if err != nil {
		log.Warn("who last had which address is not known; an address freed before now may go to another Service", "error", err)
	}
	log.Info("assigning addresses to Services")
	changes.pull()
	changes.loop(ctx, lookAside, func() { c.reconcile(ctx) })
	return nil
}

// reconcile compares what is with what should be and writes the difference.
func (c *controller) reconcile(ctx context.Context) {
	if !c.mayAct(ctx) {
		return
	}
	pools, _, problems := c.pools.read()
	seen := map[types.UID]bool{}
	for u, err := range problems {
		uid := u.GetUID()
		seen[uid] = true
		if c.refused[uid] != err.Error() {
			c.refused[uid] = err.Error()
			c.events.Event(referTo(u), corev1.EventTypeWarning, "InvalidPool", err.Error())
		}
	}
	var objects []*corev1.Service
	var wanted []pool.Service
	for _, o := range c.services.GetStore().List() {
		s, ok := o.(*corev1.Service)
		if !ok || s.DeletionTimestamp != nil {
			continue
		}
		seen[s.UID] = true
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer && s.Annotations[prefix+annFrom] != "" {
			c.write(ctx, s, pool.Assignment{}) // it no longer wants an address
			continue
		}
		if !ours(s, c.options.Class, pools) {
			continue
		}
		want, err := readService(s, c.namespaceLabels(s.Namespace))
		if err != nil {
			c.tell(s, err.Error())
			continue
		}
		if w, ok := c.written[s.UID]; ok {
			if slices.Equal(w.addresses, want.Current) || time.Since(w.at) > settle {
				delete(c.written, s.UID)
			} else {
				want.Current = w.addresses
			}
		}
		objects, wanted = append(objects, s), append(wanted, want)
	}
	gone := func(uid types.UID) bool { return !seen[uid] }
	maps.DeleteFunc(c.written, func(uid types.UID, _ written) bool { return gone(uid) })
	maps.DeleteFunc(c.refused, func(uid types.UID, _ string) bool { return gone(uid) })
	c.hold(ctx, wanted)
	for i, a := range pool.Assign(pools, wanted, c.holds) {
		s := objects[i]
		if a.Refusal != nil {
			c.tell(s, a.Refusal.Message)
		} else {
			delete(c.refused, s.UID)
		}
		if !slices.Equal(a.Addresses, wanted[i].Current) || a.Pool != annotation(s.Annotations, annFrom) && c.written[s.UID].at.IsZero() {
			c.write(ctx, s, a)
		}
	}
	c.count(ctx, pools)
}

// hold remembers who has which address, and writes it down where it has changed.
func (c *controller) hold(ctx context.Context, services []pool.Service) {
	next, changed := c.holds.Next(services, time.Now().Truncate(time.Second))
	c.holds, c.kept = next, c.kept && !changed
	if c.kept {
		return
	}
	call, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := writeHolds(call, c.kube, c.options.Namespace, next); err != nil {
		c.log.Warn("who has which address was not written down; trying again", "error", err)
		return
	}
	c.kept = true
}

// mayAct reports whether MetalLB itself is absent.
func (c *controller) mayAct(ctx context.Context) bool {
	if time.Since(c.looked) > lookAside/2 {
		call, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		where, err := MetalLB(call, c.kube)
		if err != nil {
			c.log.Warn("cannot see whether MetalLB is installed", "error", err)
			return c.aside == "" && !c.looked.IsZero()
		}
		if where != c.aside {
			c.log.Info("MetalLB's presence has changed; while it is there, Carrick's load balancer assigns nothing", "metallb", where)
		}
		c.aside, c.looked = where, time.Now()
	}
	return c.aside == ""
}

func (c *controller) namespaceLabels(name string) map[string]string {
	o, ok, err := c.namespaces.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	return o.(*corev1.Namespace).Labels
}

// tell writes a refusal as an event, once as long as it stays the same.
func (c *controller) tell(s *corev1.Service, message string) {
	if c.refused[s.UID] == message {
		return
	}
	c.refused[s.UID] = message
	c.log.Warn("a Service gets no address", "service", s.Namespace+"/"+s.Name, "reason", message)
	c.events.Event(s, corev1.EventTypeWarning, "AllocationFailed", message)
}

// write puts an assignment into a Service: first our mark, then the address, so that what
// has an address of ours always has the mark.
func (c *controller) write(ctx context.Context, s *corev1.Service, a pool.Assignment) {
	call, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	name := s.Namespace + "/" + s.Name
	if err := c.patch(call, s, a); err != nil {
		if !apierrors.IsNotFound(err) && ctx.Err() == nil {
			c.log.Warn("an address was not written; trying again", "service", name, "error", err)
		}
		return
	}
	had, _ := ingress(s)
	c.written[s.UID] = written{a.Addresses, time.Now()}
	switch {
	case len(a.Addresses) > 0 && !slices.Equal(had, a.Addresses):
		c.log.Info("address assigned", "service", name, "address", fmt.Sprint(a.Addresses), "pool", a.Pool)
		c.events.Eventf(s, corev1.EventTypeNormal, "IPAllocated", "Assigned IP %q from IPAddressPool %s", texts(a.Addresses), a.Pool)
	case len(a.Addresses) == 0 && len(had) > 0:
		c.log.Info("address taken back", "service", name, "address", fmt.Sprint(had))
		c.events.Eventf(s, corev1.EventTypeWarning, "ClearAssignment", "Took back IP %q", texts(had))
	}
}

// patch writes a Service's status, and the mark of who gave its addresses with it: the API server takes
// metadata by the status as well, so the controller may change nothing else of a Service.
func (c *controller) patch(ctx context.Context, s *corev1.Service, a pool.Assignment) error {
	var mark any // null removes it
	if len(a.Addresses) > 0 {
		mark = a.Pool
	}
	list := []map[string]any{}
	for _, x := range a.Addresses {
		list = append(list, map[string]any{"ip": x.String()})
	}
	change := map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": list}}}
	if annotation(s.Annotations, annFrom) != a.Pool || s.Annotations[oldPrefix+annFrom] != "" {
		change["metadata"] = map[string]any{"annotations": map[string]any{prefix + annFrom: mark, oldPrefix + annFrom: nil}}
	}
	data, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = c.kube.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, data, metav1.PatchOptions{}, "status")
	return err
}

func texts(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// poolCounts is an IPAddressPool's status.
type poolCounts struct {
	AssignedIPv4  int64 `json:"assignedIPv4"`
	AssignedIPv6  int64 `json:"assignedIPv6"`
	AvailableIPv4 int64 `json:"availableIPv4"`
	AvailableIPv6 int64 `json:"availableIPv6"`
}

// count writes the pools' statuses where they have changed.
func (c *controller) count(ctx context.Context, pools []pool.Pool) {
	used := map[netip.Addr]bool{}
	for _, o := range c.services.GetStore().List() {
		s, ok := o.(*corev1.Service)
		if !ok || !ours(s, c.options.Class, pools) {
			continue
		}
		addrs, _ := ingress(s)
		if w, ok := c.written[s.UID]; ok {
			addrs = w.addresses
		}
		for _, a := range addrs {
			used[a] = true
		}
	}
	for _, p := range pools {
		var n poolCounts
		for a := range used {
			if !p.Contains(a) {
				continue
			}
			if a.Is4() {
				n.AssignedIPv4++
			} else {
				n.AssignedIPv6++
			}
		}
		n.AvailableIPv4, n.AvailableIPv6 = p.Size(pool.IPv4)-n.AssignedIPv4, p.Size(pool.IPv6)-n.AssignedIPv6
		if old, ok := c.counts[p.Name]; ok && old == n {
			continue
		}
		data, err := json.Marshal(map[string]any{"status": n})
		if err == nil {
			call, cancel := context.WithTimeout(ctx, callLimit)
			_, err = c.dynamic.Resource(PoolResource).Namespace(c.options.Namespace).Patch(call, p.Name, types.MergePatchType, data, metav1.PatchOptions{}, "status")
			cancel()
		}
		if err != nil && !strings.Contains(err.Error(), "not find the requested resource") { // a CRD of before statuses
			c.log.Debug("a pool's status was not written", "pool", p.Name, "error", err)
		}
		c.counts[p.Name] = n
	}
}
