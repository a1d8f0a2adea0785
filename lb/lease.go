package lb

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

// Each speaker keeps a Lease that says that it lives and which hardware addresses it has.
// All see the same Leases, so all agree who answers for an address without one write for
// each address.
const (
	leaseLabel    = "carrick.dev/speaker"
	leaseHardware = "carrick.dev/hardware-addresses"

	leaseMin    = time.Second           // between renewals
	leasePerAll = 40 * time.Millisecond // added for each speaker: at most 25 renewals a second in all
	leaseLives  = 4                     // a Lease is good for so many renewals
	forgetPeer  = 10 * time.Minute      // the hardware address of one that is gone may still answer
)

// membership is what one speaker knows of all.
type membership struct {
	node, namespace string
	kube            kubernetes.Interface
	leases          cache.SharedIndexInformer
	hardware        func() []net.HardwareAddr
	log             *slog.Logger

	mu      sync.Mutex
	renewed time.Time            // our own Lease
	seen    map[string]*sighting // by node
	peers   map[string]time.Time // hardware address to when it was last in a Lease
}

// sighting is when a Lease was last seen to be renewed, by our own clock.
type sighting struct {
	renew time.Time // as written
	at    time.Time
	good  time.Duration
}

func newMembership(node, namespace string, k kubernetes.Interface, leases cache.SharedIndexInformer, hardware func() []net.HardwareAddr, log *slog.Logger) *membership {
	return &membership{node: node, namespace: namespace, kube: k, leases: leases, hardware: hardware, log: log, seen: map[string]*sighting{}, peers: map[string]time.Time{}}
}

// sure reports whether our own Lease is good: whether the others count on us.
func (m *membership) sure() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.renewed) < m.duration()
}

// interval is the time between renewals; m.mu is held.
func (m *membership) interval() time.Duration {
	return max(leaseMin, time.Duration(len(m.seen))*leasePerAll)
}

func (m *membership) duration() time.Duration { return leaseLives * m.interval() }

// peer reports whether a hardware address is another speaker's.
func (m *membership) peer(hw net.HardwareAddr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.peers[hw.String()]
	return ok
}

// live returns the nodes whose speakers live, ours among them, sorted.
func (m *membership) live() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	present := map[string]bool{}
	for _, o := range m.leases.GetStore().List() {
		l, ok := o.(*coordinationv1.Lease)
		if !ok || l.Labels[leaseLabel] == "" || l.Spec.HolderIdentity == nil || l.Spec.RenewTime == nil {
			continue
		}
		node := *l.Spec.HolderIdentity
		if node == m.node {
			continue
		}
		present[node] = true
		for hw := range strings.SplitSeq(l.Annotations[leaseHardware], ",") {
			m.peers[hw] = now
		}
		s := m.seen[node]
		good := time.Duration(ptr.Deref(l.Spec.LeaseDurationSeconds, 4)) * time.Second
		switch {
		case s == nil:
			// A Lease long dead, unless clocks are far apart, is not good for another round.
			at := now
			if now.Sub(l.Spec.RenewTime.Time) > 5*good {
				at = now.Add(-good)
			}
			m.seen[node] = &sighting{renew: l.Spec.RenewTime.Time, at: at, good: good}
		case !s.renew.Equal(l.Spec.RenewTime.Time):
			*s = sighting{renew: l.Spec.RenewTime.Time, at: now, good: good}
		}
	}
	out := []string{m.node}
	for node, s := range m.seen {
		switch {
		case !present[node]: // it has said goodbye
			delete(m.seen, node)
		case now.Sub(s.at) < s.good:
			out = append(out, node)
		}
	}
	for hw, at := range m.peers {
		if now.Sub(at) > forgetPeer {
			delete(m.peers, hw)
		}
	}
	slices.Sort(out)
	return out
}

// run renews our Lease until ctx ends and then takes it away, so that others take over at
// once. changed is called when we have become sure.
func (m *membership) run(ctx context.Context, changed func()) {
	for {
		err := m.renew(ctx)
		m.mu.Lock()
		was := time.Since(m.renewed) < m.duration()
		if err == nil {
			if !was {
				// What we saw of others while we were cut off says nothing of them.
				for _, s := range m.seen {
					s.at = time.Now()
				}
			}
			m.renewed = time.Now()
		}
		wait := m.interval()
		m.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			m.log.Warn("this speaker's Lease was not renewed; its addresses stay as they are", "error", err)
		}
		if err == nil && !was {
			changed()
		}
		select {
		case <-ctx.Done():
			m.leave()
			return
		case <-time.After(wait):
		}
	}
}

func (m *membership) name() string { return "carrick-speaker-" + m.node }

func (m *membership) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := m.kube.CoordinationV1().Leases(m.namespace).Delete(ctx, m.name(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		m.log.Warn("this speaker's Lease was not taken away; others take over when it has run out", "error", err)
	}
}

func (m *membership) renew(ctx context.Context) error {
	m.mu.Lock()
	limit, good := m.interval(), m.duration()
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, max(limit, 2*time.Second))
	defer cancel()
	var hardware []string
	for _, hw := range m.hardware() {
		hardware = append(hardware, hw.String())
	}
	want := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: m.name(), Namespace: m.namespace,
			Labels:      map[string]string{leaseLabel: "true"},
			Annotations: map[string]string{leaseHardware: strings.Join(hardware, ",")},
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       ptr.To(m.node),
			LeaseDurationSeconds: ptr.To(int32(good / time.Second)),
			RenewTime:            ptr.To(metav1.NowMicro()),
		},
	}
	// Nobody else writes it, so there is no version to compare.
	data, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("encoding a Lease: %w", err)
	}
	leases := m.kube.CoordinationV1().Leases(m.namespace)
	_, err = leases.Patch(ctx, m.name(), types.MergePatchType, data, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, want, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("renewing Lease %s/%s: %w", m.namespace, m.name(), err)
	}
	return nil
}
