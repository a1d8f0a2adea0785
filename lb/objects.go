package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/carrick-mesh/carrick/lb/pool"
)

var (
	// PoolResource is where IPAddressPools are.
	PoolResource = schema.GroupVersionResource{Group: "metallb.io", Version: "v1beta1", Resource: "ipaddresspools"}
	l2Resource   = schema.GroupVersionResource{Group: "metallb.io", Version: "v1beta1", Resource: "l2advertisements"}
)

// Annotations of Services; each has MetalLB's former prefix, too.
const (
	prefix    = "metallb.io/"
	oldPrefix = "metallb.universe.tf/"

	annPool        = "address-pool"
	annIPs         = "loadBalancerIPs"
	annShare       = "allow-shared-ip"
	annFrom        = "ip-allocated-from-pool" // written by the controller: the address is ours
	cloudFinalizer = "service.kubernetes.io/load-balancer-cleanup"
)

func annotation(m map[string]string, name string) string {
	if v := m[prefix+name]; v != "" {
		return v
	}
	return m[oldPrefix+name]
}

// poolObject is the part read of an IPAddressPool.
type poolObject struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Addresses         []string `json:"addresses"`
		AutoAssign        *bool    `json:"autoAssign"`
		AvoidBuggyIPs     bool     `json:"avoidBuggyIPs"`
		ServiceAllocation *struct {
			Priority           int                    `json:"priority"`
			Namespaces         []string               `json:"namespaces"`
			NamespaceSelectors []metav1.LabelSelector `json:"namespaceSelectors"`
			ServiceSelectors   []metav1.LabelSelector `json:"serviceSelectors"`
		} `json:"serviceAllocation"`
	} `json:"spec"`
}

// readPool turns an IPAddressPool into what package pool takes. Errors name object and field.
func readPool(u *unstructured.Unstructured) (pool.Pool, labels.Set, error) {
	var o poolObject
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &o); err != nil {
		return pool.Pool{}, nil, fmt.Errorf("IPAddressPool %s: %w", u.GetName(), err)
	}
	ranges, err := pool.ParseRanges(o.Spec.Addresses)
	if err != nil {
		return pool.Pool{}, nil, fmt.Errorf("IPAddressPool %s: spec.addresses: %w", o.Name, err)
	}
	p := pool.Pool{
		Name: o.Name, Created: o.CreationTimestamp.Unix(), Ranges: ranges,
		AutoAssign: o.Spec.AutoAssign == nil || *o.Spec.AutoAssign, AvoidBuggy: o.Spec.AvoidBuggyIPs,
	}
	if a := o.Spec.ServiceAllocation; a != nil {
		p.Allocation = &pool.Allocation{Priority: a.Priority, Namespaces: a.Namespaces}
		if p.Allocation.NamespaceSelectors, err = selectors(a.NamespaceSelectors); err != nil {
			return pool.Pool{}, nil, fmt.Errorf("IPAddressPool %s: spec.serviceAllocation.namespaceSelectors: %w", o.Name, err)
		}
		if p.Allocation.ServiceSelectors, err = selectors(a.ServiceSelectors); err != nil {
			return pool.Pool{}, nil, fmt.Errorf("IPAddressPool %s: spec.serviceAllocation.serviceSelectors: %w", o.Name, err)
		}
	}
	return p, o.Labels, nil
}

func selectors(from []metav1.LabelSelector) (out []labels.Selector, err error) {
	for i := range from {
		s, err := metav1.LabelSelectorAsSelector(&from[i])
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// advertisement is an L2Advertisement.
type advertisement struct {
	name          string
	pools         []string
	poolSelectors []labels.Selector
	nodes         []labels.Selector // empty: every node
	services      []labels.Selector // empty: every Service
	interfaces    []string          // empty: as announce chooses
	preferred     []preference
}

type preference struct {
	weight int32
	node   labels.Selector
}

func readAdvertisement(u *unstructured.Unstructured) (*advertisement, error) {
	var o struct {
		Spec struct {
			IPAddressPools         []string               `json:"ipAddressPools"`
			IPAddressPoolSelectors []metav1.LabelSelector `json:"ipAddressPoolSelectors"`
			NodeSelectors          []metav1.LabelSelector `json:"nodeSelectors"`
			ServiceSelectors       []metav1.LabelSelector `json:"serviceSelectors"`
			Interfaces             []string               `json:"interfaces"`
			PreferredNodeSelectors []struct {
				Weight     int32                `json:"weight"`
				Preference metav1.LabelSelector `json:"preference"`
			} `json:"preferredNodeSelectors"`
		} `json:"spec"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &o); err != nil {
		return nil, fmt.Errorf("L2Advertisement %s: %w", u.GetName(), err)
	}
	a := &advertisement{name: u.GetName(), pools: o.Spec.IPAddressPools, interfaces: o.Spec.Interfaces}
	for _, f := range []struct {
		name string
		from []metav1.LabelSelector
		to   *[]labels.Selector
	}{
		{"ipAddressPoolSelectors", o.Spec.IPAddressPoolSelectors, &a.poolSelectors},
		{"nodeSelectors", o.Spec.NodeSelectors, &a.nodes},
		{"serviceSelectors", o.Spec.ServiceSelectors, &a.services},
	} {
		var err error
		if *f.to, err = selectors(f.from); err != nil {
			return nil, fmt.Errorf("L2Advertisement %s: spec.%s: %w", a.name, f.name, err)
		}
	}
	for _, p := range o.Spec.PreferredNodeSelectors {
		s, err := metav1.LabelSelectorAsSelector(&p.Preference)
		if err != nil {
			return nil, fmt.Errorf("L2Advertisement %s: spec.preferredNodeSelectors: %w", a.name, err)
		}
		a.preferred = append(a.preferred, preference{p.Weight, s})
	}
	return a, nil
}

// covers reports whether the advertisement is for a pool and a Service.
func (a *advertisement) covers(poolName string, poolLabels, service labels.Set) bool {
	if len(a.pools)+len(a.poolSelectors) > 0 && !slices.Contains(a.pools, poolName) && !matchesAny(a.poolSelectors, poolLabels) {
		return false
	}
	return len(a.services) == 0 || matchesAny(a.services, service)
}

func matchesAny(sel []labels.Selector, of labels.Set) bool {
	return slices.ContainsFunc(sel, func(s labels.Selector) bool { return s.Matches(of) })
}

// weight is how much an advertisement prefers a node.
func (a *advertisement) weight(node labels.Set) (w int32) {
	for _, p := range a.preferred {
		if p.node.Matches(node) {
			w += p.weight
		}
	}
	return w
}

// ingress returns the addresses in a Service's status; ok is false where there is something
// else than addresses, which another load balancer has written.
func ingress(s *corev1.Service) (addrs []netip.Addr, ok bool) {
	for _, i := range s.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(i.IP)
		if err != nil {
			return nil, false
		}
		addrs = append(addrs, a)
	}
	return addrs, true
}

// ours reports whether a Service is for us to serve: of our class, and not served already by
// a cloud's controller or anybody else.
func ours(s *corev1.Service, class string, pools []pool.Pool) bool {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || slices.Contains(s.Finalizers, cloudFinalizer) {
		return false
	}
	if c := s.Spec.LoadBalancerClass; c != nil && *c != class || c == nil && class != "" {
		return false
	}
	addrs, ok := ingress(s)
	if !ok {
		return false
	}
	if annotation(s.Annotations, annFrom) != "" {
		return true
	}
	for _, a := range addrs {
		if !slices.ContainsFunc(pools, func(p pool.Pool) bool { return p.Contains(a) }) {
			return false
		}
	}
	return true
}

// readService turns a Service of ours into what package pool takes.
func readService(s *corev1.Service, namespace map[string]string) (pool.Service, error) {
	out := pool.Service{
		Namespace: s.Namespace, Name: s.Name, Labels: s.Labels, NamespaceLabels: namespace, Created: s.CreationTimestamp.Unix(),
		Pool: annotation(s.Annotations, annPool), ShareKey: annotation(s.Annotations, annShare), From: annotation(s.Annotations, annFrom),
	}
	out.Current, _ = ingress(s)
	for _, f := range s.Spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			out.Families = append(out.Families, pool.IPv6)
		} else {
			out.Families = append(out.Families, pool.IPv4)
		}
	}
	if len(out.Families) == 0 {
		out.Families = []pool.Family{pool.IPv4}
	}
	out.AllFamilies = s.Spec.IPFamilyPolicy == nil || *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicyPreferDualStack
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, pool.Port{Protocol: string(p.Protocol), Number: p.Port})
	}
	if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		out.Backend = "local:" + labels.FormatLabels(s.Spec.Selector)
	}
	field, asked := "annotation "+prefix+annIPs, annotation(s.Annotations, annIPs)
	if asked == "" {
		field, asked = "spec.loadBalancerIP", s.Spec.LoadBalancerIP
	}
	if asked != "" {
		for v := range strings.SplitSeq(asked, ",") {
			a, err := netip.ParseAddr(strings.TrimSpace(v))
			if err != nil {
				return out, fmt.Errorf("%s: %q is no IP address", field, v)
			}
			out.Addresses = append(out.Addresses, a)
		}
		if s.Spec.LoadBalancerIP != "" && field != "spec.loadBalancerIP" {
			return out, errors.New("both annotation " + prefix + annIPs + " and spec.loadBalancerIP ask for an address; keep one")
		}
	}
	return out, nil
}

// poolOf returns the pool of an address that a Service has: the one that its annotation names if that has
// it, else the first that does; nil if none does.
func poolOf(pools []pool.Pool, s *corev1.Service, a netip.Addr) (found *pool.Pool) {
	from := annotation(s.Annotations, annFrom)
	for i := range pools {
		p := &pools[i]
		if p.Contains(a) && (found == nil || p.Name == from) {
			found = p
		}
	}
	return found
}

// Problems returns what is wrong with IPAddressPools, by name: what cannot be read, and what overlaps an
// older one. Pools that are right are not in it.
func Problems(pools []unstructured.Unstructured) map[string]error {
	problems := map[string]error{}
	var good []pool.Pool
	for i := range pools {
		p, _, err := readPool(&pools[i])
		if err != nil {
			problems[pools[i].GetName()] = err
			continue
		}
		good = append(good, p)
	}
	all, _ := pool.Overlaps(good)
	for _, p := range all {
		if p.Refused != nil {
			problems[p.Name] = p.Refused
		}
	}
	return problems
}
