package lb

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/carrick-mesh/carrick/lb/announce"
)

// excludeNode is the label of nodes that take no traffic from load balancers.
const excludeNode = "node.kubernetes.io/exclude-from-external-load-balancers"

// speaker decides which addresses this node answers for.
type speaker struct {
	node      string
	options   *Options
	kube      kubernetes.Interface
	log       *slog.Logger
	events    record.EventRecorder
	members   *membership
	responder *announce.Responder
	changes   trigger

	services, slices, nodes, adverts cache.SharedIndexInformer
	pools                            *poolWatch

	aside  string
	looked time.Time
	told   map[string]string // advertisement to the problem last logged

	mu     sync.Mutex
	behind map[netip.Addr][]*corev1.Service // the Services of each address we answer for
}

// RunSpeaker answers for this node's addresses until ctx ends.
func RunSpeaker(ctx context.Context, k kubernetes.Interface, d dynamic.Interface, o *Options, log *slog.Logger) error {
	node := o.Self
	recorder, stop := newRecorder(k, "metallb-speaker", node)
	defer stop()
	typed := informers.NewSharedInformerFactoryWithOptions(k, 0, informers.WithTransform(slim))
	own := informers.NewSharedInformerFactoryWithOptions(k, 0, informers.WithNamespace(o.Namespace))
	custom := newDynamicFactory(d, o.Namespace)
	leases := own.Coordination().V1().Leases().Informer()
	s := &speaker{
		node: node, options: o, kube: k, log: log, events: recorder, changes: newTrigger(),
		services: typed.Core().V1().Services().Informer(), slices: typed.Discovery().V1().EndpointSlices().Informer(),
		nodes: typed.Core().V1().Nodes().Informer(), adverts: custom.ForResource(l2Resource).Informer(),
		pools: watchPools(custom, log), told: map[string]string{}, behind: map[netip.Addr][]*corev1.Service{},
	}
	interfaces := o.Interfaces
	if interfaces == nil {
		interfaces = announce.LANInterfaces
	}
	hardware := func() (out []net.HardwareAddr) {
		list, err := interfaces()
		if err != nil {
			return nil
		}
		for _, i := range list {
			out = append(out, i.HardwareAddr)
		}
		return out
	}
	s.members = newMembership(node, o.Namespace, k, leases, hardware, log)
	s.responder = announce.New(announce.Config{
		Log: log, Interfaces: interfaces, Peer: s.members.peer, Sure: s.members.sure,
		Claimed: func(a netip.Addr) {
			s.about(a, corev1.EventTypeNormal, "nodeAssigned", fmt.Sprintf("announcing %s from node %q with protocol \"layer2\"", a, node))
		},
		Conflict: func(a netip.Addr, hw net.HardwareAddr) {
			s.about(a, corev1.EventTypeWarning, "AddressConflict", fmt.Sprintf("%s is in use by another host (%s) on the network of node %s; free it, or take it out of the IPAddressPool", a, hw, node))
		},
	})
	if err := s.changes.on(s.services, s.slices, s.nodes, s.adverts, s.pools.informer); err != nil {
		return err
	}
	// Renewals, one a second from each speaker, change nothing; who comes or goes does.
	if _, err := leases.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { s.changes.pull() },
		DeleteFunc: func(any) { s.changes.pull() },
	}); err != nil {
		return fmt.Errorf("watching: %w", err)
	}
	typed.Start(ctx.Done())
	own.Start(ctx.Done())
	custom.Start(ctx.Done())
	defer func() { typed.Shutdown(); own.Shutdown(); custom.Shutdown() }()
	if err := waitSynced(ctx, log, map[string]cache.SharedIndexInformer{
		"services": s.services, "endpointslices": s.slices, "nodes": s.nodes, "leases": leases,
		"l2advertisements": s.adverts, "ipaddresspools": s.pools.informer,
	}); err != nil {
		return nil
	}
	var wait sync.WaitGroup
	defer wait.Wait()
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	wait.Go(func() { s.members.run(run, s.changes.pull) })
	failed := make(chan error, 1)
	wait.Go(func() {
		failed <- s.responder.Run(run)
		cancel()
	})
	log.Info("speaking for load-balancer addresses", "node", node)
	s.changes.loop(run, time.Second, func() { s.reconcile(run) })
	cancel()
	return <-failed
}

// about writes an event on the Services of an address.
func (s *speaker) about(a netip.Addr, kind, reason, message string) {
	s.mu.Lock()
	services := s.behind[a]
	s.mu.Unlock()
	for _, svc := range services {
		s.events.Event(svc, kind, reason, message)
	}
}

// reconcile tells the responder which addresses are this node's. Without a good Lease of its
// own it knows too little to change anything: cut off from the API server, it keeps on
// answering, for it may be that only the API server is down.
func (s *speaker) reconcile(ctx context.Context) {
	if !s.members.sure() {
		return
	}
	live := s.members.live()
	if !s.mayAct(ctx) {
		s.set(nil, nil)
		return
	}
	pools, poolLabels, _ := s.pools.read()
	adverts := s.advertisements()
	var out []announce.Address
	behind := map[netip.Addr][]*corev1.Service{}
	for _, o := range s.services.GetStore().List() {
		svc, ok := o.(*corev1.Service)
		if !ok || svc.DeletionTimestamp != nil || !ours(svc, s.options.Class, pools) {
			continue
		}
		addrs, _ := ingress(svc)
		for _, a := range addrs {
			p := poolOf(pools, svc, a)
			if p == nil {
				continue
			}
			interfaces, mine := s.mine(svc, a, p.Name, poolLabels[p.Name], adverts, live)
			if !mine {
				continue
			}
			if behind[a] == nil {
				out = append(out, announce.Address{IP: a, Interfaces: interfaces})
			}
			behind[a] = append(behind[a], svc)
		}
	}
	s.set(out, behind)
}

func (s *speaker) set(addresses []announce.Address, behind map[netip.Addr][]*corev1.Service) {
	s.mu.Lock()
	s.behind = behind
	s.mu.Unlock()
	s.responder.Set(addresses)
}

// mine reports whether this node answers for an address, and on which interfaces (nil: the
// responder's choice).
func (s *speaker) mine(svc *corev1.Service, a netip.Addr, poolName string, poolLabels labels.Set, adverts []*advertisement, live []string) ([]string, bool) {
	var covering []*advertisement
	for _, ad := range adverts {
		if ad.covers(poolName, poolLabels, svc.Labels) {
			covering = append(covering, ad)
		}
	}
	if len(covering) == 0 {
		return nil, false
	}
	var withPods map[string]bool
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		withPods = s.nodesOf(svc)
	}
	if owner := electNode(a, s.candidates(live), covering, withPods); owner != s.node {
		return nil, false
	}
	var interfaces []string
	labelsHere := s.nodeLabels(s.node)
	for _, ad := range covering {
		if len(ad.nodes) > 0 && !matchesAny(ad.nodes, labelsHere) {
			continue
		}
		if len(ad.interfaces) == 0 {
			return nil, true
		}
		interfaces = append(interfaces, ad.interfaces...)
	}
	return interfaces, true
}

// candidate is a node that may answer.
type candidate struct {
	name     string
	labels   labels.Set
	excluded bool
}

func (s *speaker) candidates(live []string) (out []candidate) {
	for _, name := range live {
		o, ok, err := s.nodes.GetStore().GetByKey(name)
		if err != nil || !ok {
			continue
		}
		n := o.(*corev1.Node)
		c := candidate{name: name, labels: n.Labels}
		_, c.excluded = n.Labels[excludeNode]
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeNetworkUnavailable && cond.Status == corev1.ConditionTrue {
				c.excluded = true
			}
		}
		out = append(out, c)
	}
	return out
}

// electNode returns the node that answers for an address: of the candidates that an
// advertisement allows and, if withPods is not nil, that have pods of the Service, those
// preferred most, and of these the one that announce.Owner names. Nodes excluded from load
// balancing come in only if there are no others.
func electNode(a netip.Addr, all []candidate, covering []*advertisement, withPods map[string]bool) string {
	for _, excluded := range []bool{false, true} {
		var names []string
		best := int32(-1)
		for _, c := range all {
			if c.excluded != excluded || withPods != nil && !withPods[c.name] {
				continue
			}
			weight := int32(-1)
			for _, ad := range covering {
				if len(ad.nodes) == 0 || matchesAny(ad.nodes, c.labels) {
					weight = max(weight, ad.weight(c.labels))
				}
			}
			if weight < 0 || weight < best {
				continue
			}
			if weight > best {
				best, names = weight, nil
			}
			names = append(names, c.name)
		}
		if len(names) > 0 {
			return announce.Owner(a, names)
		}
	}
	return ""
}

func (s *speaker) nodeLabels(name string) labels.Set {
	o, ok, err := s.nodes.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	return o.(*corev1.Node).Labels
}

// nodesOf returns the nodes with pods of a Service that serve.
func (s *speaker) nodesOf(svc *corev1.Service) map[string]bool {
	out := map[string]bool{}
	for _, o := range s.slices.GetStore().List() {
		es, ok := o.(*discoveryv1.EndpointSlice)
		if !ok || es.Namespace != svc.Namespace || es.Labels[discoveryv1.LabelServiceName] != svc.Name {
			continue
		}
		for _, e := range es.Endpoints {
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			if e.NodeName != nil && ready {
				out[*e.NodeName] = true
			}
		}
	}
	return out
}

func (s *speaker) advertisements() (out []*advertisement) {
	for _, o := range s.adverts.GetStore().List() {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		a, err := readAdvertisement(u)
		if err != nil {
			if s.told[u.GetName()] != err.Error() {
				s.told[u.GetName()] = err.Error()
				s.log.Warn("an advertisement is not used", "error", err)
				s.events.Event(referTo(u), corev1.EventTypeWarning, "InvalidAdvertisement", err.Error())
			}
			continue
		}
		out = append(out, a)
	}
	return out
}

// mayAct reports whether MetalLB itself is absent. Not knowing changes nothing.
func (s *speaker) mayAct(ctx context.Context) bool {
	if time.Since(s.looked) > lookAside {
		call, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		where, err := MetalLB(call, s.kube)
		if err != nil {
			s.log.Warn("cannot see whether MetalLB is installed", "error", err)
			return s.aside == "" && !s.looked.IsZero()
		}
		if where != s.aside {
			s.log.Info("MetalLB's presence has changed; while it is there, this speaker is silent", "metallb", where)
		}
		s.aside, s.looked = where, time.Now()
	}
	return s.aside == ""
}
