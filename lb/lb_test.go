package lb

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/kube/kubetest"
	"github.com/carrick-mesh/carrick/lb/pool"
	"github.com/carrick-mesh/carrick/schema/access"
)

const namespace = "metallb-system"

// cluster is a real API server with the load balancer's CRDs.
type cluster struct {
	t       *testing.T
	kube    kubernetes.Interface
	dynamic dynamic.Interface

	asController, asSpeaker account
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	s := kubetest.Start(t)
	d, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, kube: s.Client, dynamic: d}
	for _, ns := range []string{namespace, "sample"} {
		if _, err := c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.asController = newAccount(t, s, "controller", access.Controller(), access.ControllerNamespace())
	c.asSpeaker = newAccount(t, s, "speaker", access.Speaker(), access.SpeakerNamespace())
	files, err := filepath.Glob("../install/crds/*.metallb.io.yaml")
	if err != nil || len(files) != 2 {
		t.Fatalf("CRDs: %v, %v", files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c.apply(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, "", string(data))
	}
	return c
}

// apply creates or changes an object from YAML; a kind not served yet is waited for.
func (c *cluster) apply(r schema.GroupVersionResource, namespace, text string) {
	c.t.Helper()
	var u unstructured.Unstructured
	data, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = json.Unmarshal(data, &u.Object)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, "applying "+u.GetName(), func() bool {
		_, err = c.dynamic.Resource(r).Namespace(namespace).Create(c.t.Context(), &u, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = c.dynamic.Resource(r).Namespace(namespace).Patch(c.t.Context(), u.GetName(), types.MergePatchType, data, metav1.PatchOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			c.t.Fatal(err)
		}
		return err == nil
	})
}

func (c *cluster) pool(name, addresses string) {
	c.t.Helper()
	c.apply(PoolResource, namespace, fmt.Sprintf("{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: %s}, spec: {addresses: [%s]}}", name, addresses))
}

func (c *cluster) service(name string, change ...func(*corev1.Service)) {
	c.t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80}}}}
	for _, f := range change {
		f(s)
	}
	if _, err := c.kube.CoreV1().Services("sample").Create(c.t.Context(), s, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) addresses(name string) string {
	s, err := c.kube.CoreV1().Services("sample").Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	addrs, _ := ingress(s)
	return strings.Join(texts(addrs), ",")
}

func (c *cluster) expect(name, want string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%s has %q", name, want), func() bool { return c.addresses(name) == want })
}

// event waits for an event on an object.
func (c *cluster) event(name, reason, part string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("event %s on %s with %q", reason, name, part), func() bool {
		list, err := c.kube.CoreV1().Events("").List(c.t.Context(), metav1.ListOptions{})
		return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Name == name && e.Reason == reason && strings.Contains(e.Message, part)
		})
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 30 s: %s", what)
}

func lbLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func background(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	var stopped bool
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("does not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

func (c *cluster) controller() (stop func()) {
	o := &Options{Self: "test", Namespace: namespace}
	return background(c.t, func(ctx context.Context) error {
		return RunController(ctx, c.asController.kube, c.asController.dynamic, o, lbLog(c.t))
	})
}

func TestLBController(t *testing.T) {
	c := newCluster(t)
	stop := c.controller()
	// Pools are accepted at once, and who waits for one gets its address.
	c.service("early")
	c.event("early", "AllocationFailed", "there are none")
	c.pool("first", "10.10.50.75-10.10.50.77")
	c.expect("early", "10.10.50.75")
	c.event("early", "IPAllocated", "10.10.50.75")
	c.service("second")
	c.expect("second", "10.10.50.76")
	c.service("wants", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.10.50.76" })
	c.event("wants", "AllocationFailed", "taken by Service sample/second")
	c.service("outside", func(s *corev1.Service) { s.Annotations["metallb.universe.tf/loadBalancerIPs"] = "192.0.2.1" })
	c.event("outside", "AllocationFailed", "first (10.10.50.75-10.10.50.77)")
	c.service("third")
	c.expect("third", "10.10.50.77")
	c.service("fourth")
	c.event("fourth", "AllocationFailed", "no IPv4 address is free in IPAddressPool first")

	// Others' Services stay untouched: another class, another's address, a cloud's finalizer.
	c.service("class", func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr.To("example.com/lb") })
	c.service("cloud", func(s *corev1.Service) { s.Finalizers = []string{cloudFinalizer} })

	// Freed addresses go to who waits, and across a restart all keep theirs.
	if err := c.kube.CoreV1().Services("sample").Delete(t.Context(), "second", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.expect("wants", "10.10.50.76")
	stop()
	stop = c.controller()
	defer func() { stop() }()
	c.pool("more", "10.10.60.0/30")
	c.expect("fourth", "10.10.60.0")
	for name, want := range map[string]string{"early": "10.10.50.75", "wants": "10.10.50.76", "third": "10.10.50.77", "class": "", "cloud": "", "outside": ""} {
		if got := c.addresses(name); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
	// A pool edited into nonsense stays as it was, and its object says what is wrong.
	c.pool("more", "10.10.60.0-nonsense")
	c.event("more", "InvalidPool", "spec.addresses")
	c.service("fifth")
	c.expect("fifth", "10.10.60.1")
	u, err := c.dynamic.Resource(PoolResource).Namespace(namespace).Get(t.Context(), "first", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n, _, _ := unstructured.NestedInt64(u.Object, "status", "assignedIPv4"); n != 3 {
		t.Errorf("status.assignedIPv4 of pool first is %d, want 3", n)
	}
	// A Service that becomes an ordinary one gives its address back.
	if _, err := c.kube.CoreV1().Services("sample").Patch(t.Context(), "early", types.MergePatchType, []byte(`{"spec":{"type":"ClusterIP"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	// Nobody else gets it within the hour, not even after a restart.
	c.service("sixth")
	c.expect("sixth", "10.10.60.2")
	c.service("seventh")
	c.expect("seventh", "10.10.60.3")
	stop()
	stop = c.controller()
	c.service("eighth")
	c.event("eighth", "AllocationFailed", "10.10.50.75 is kept for an hour")
	eventually(t, "the mark is gone", func() bool {
		s, err := c.kube.CoreV1().Services("sample").Get(t.Context(), "early", metav1.GetOptions{})
		return err == nil && s.Annotations[prefix+annFrom] == ""
	})
}

// A pool that overlaps one that serves is refused, and says so; no address moves, neither when the pool comes
// nor when it goes.
func TestOverlappingPool(t *testing.T) {
	c := newCluster(t)
	defer c.controller()()
	c.pool("pool1", "10.10.50.75-10.10.50.77")
	c.service("ingress")
	c.expect("ingress", "10.10.50.75")
	c.service("eastwest")
	c.expect("eastwest", "10.10.50.76")
	created := func(name string) time.Time {
		u, err := c.dynamic.Resource(PoolResource).Namespace(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return u.GetCreationTimestamp().Time
	}
	// Creation times have whole seconds, and "extra" comes before "pool1" by name.
	eventually(t, "the clock shows another second", func() bool { return time.Since(created("pool1")) > time.Second })
	c.pool("extra", "10.10.50.77-10.10.50.79")
	c.event("extra", "InvalidPool", "overlaps 10.10.50.75-10.10.50.77 of IPAddressPool pool1, which is older")
	c.service("third")
	c.expect("third", "10.10.50.77")
	c.service("fourth")
	c.event("fourth", "AllocationFailed", "no IPv4 address is free in IPAddressPool pool1")
	err := c.dynamic.Resource(PoolResource).Namespace(namespace).Delete(t.Context(), "extra", metav1.DeleteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.pool("later", "10.10.60.0/30")
	c.expect("fourth", "10.10.60.0")
	for name, want := range map[string]string{"ingress": "10.10.50.75", "eastwest": "10.10.50.76", "third": "10.10.50.77"} {
		if got := c.addresses(name); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
}

// Where MetalLB itself runs, nothing is assigned.
func TestLBStandsAside(t *testing.T) {
	c := newCluster(t)
	deploy := func(name, image string, command ...string) {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "metallb", "component": "controller"}}, Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "metallb"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "metallb"}},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "controller", Image: image, Command: command}}}}}}
		if _, err := c.kube.AppsV1().Deployments(namespace).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	deploy("ours", "docker.io/carrickmesh/carrick:1", "/usr/local/bin/carrick")
	if where, err := MetalLB(t.Context(), c.kube); err != nil || where != "" {
		t.Fatalf("takes itself for MetalLB: %q, %v", where, err)
	}
	deploy("controller", "quay.io/metallb/controller:v0.13.12")
	where, err := MetalLB(t.Context(), c.kube)
	if err != nil || !strings.Contains(where, "Deployment metallb-system/controller (quay.io/metallb/controller:v0.13.12)") {
		t.Fatalf("%q, %v", where, err)
	}
	lc := &controller{kube: c.kube, log: lbLog(t)}
	if lc.mayAct(t.Context()) {
		t.Error("acts beside MetalLB")
	}
}

func (c *cluster) node(name string) {
	c.t.Helper()
	if _, err := c.kube.CoreV1().Nodes().Create(c.t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// speaker runs a speaker on no interface, so that nothing is sent anywhere.
func (c *cluster) speaker(node string) (stop func()) {
	o := &Options{Self: node, Namespace: namespace, Interfaces: func() ([]net.Interface, error) { return nil, nil }}
	return background(c.t, func(ctx context.Context) error {
		return RunSpeaker(ctx, c.asSpeaker.kube, c.asSpeaker.dynamic, o, lbLog(c.t))
	})
}

// Exactly one speaker answers for an address; when it goes, another does.
func TestLBSpeakers(t *testing.T) {
	c := newCluster(t)
	defer c.controller()()
	c.pool("first", "10.10.50.75-10.10.50.90")
	c.service("web")
	c.expect("web", "10.10.50.75")
	c.service("local", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
	c.expect("local", "10.10.50.76")
	nodes := []string{"n1", "n2", "n3"}
	stops := map[string]func(){}
	for _, n := range nodes {
		c.node(n)
		stops[n] = c.speaker(n)
	}
	eventually(t, "all have their Leases", func() bool {
		l, err := c.kube.CoordinationV1().Leases(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: leaseLabel})
		return err == nil && len(l.Items) == 3
	})
	// They are renewed.
	renewed := func() (out time.Time) {
		l, err := c.kube.CoordinationV1().Leases(namespace).Get(t.Context(), "carrick-speaker-n1", metav1.GetOptions{})
		if err != nil || l.Spec.RenewTime == nil {
			return out
		}
		return l.Spec.RenewTime.Time
	}
	for range 3 {
		before := renewed()
		eventually(t, "a Lease is renewed", func() bool { return renewed().After(before) })
	}
	// Nothing is announced without an L2Advertisement.
	c.apply(l2Resource, namespace, "{apiVersion: metallb.io/v1beta1, kind: L2Advertisement, metadata: {name: all}, spec: {ipAddressPools: [first]}}")
	all := []candidate{{name: "n1"}, {name: "n2"}, {name: "n3"}}
	ads := []*advertisement{{}}
	owner := electNode(netip.MustParseAddr("10.10.50.75"), all, ads, nil)
	c.event("web", "nodeAssigned", fmt.Sprintf("from node %q", owner))

	// The owner goes: one of the others takes over.
	stops[owner]()
	next := electNode(netip.MustParseAddr("10.10.50.75"), slices.DeleteFunc(slices.Clone(all), func(x candidate) bool { return x.name == owner }), ads, nil)
	c.event("web", "nodeAssigned", fmt.Sprintf("from node %q", next))

	// With the Local policy the node that has a pod answers, whichever it is.
	third := nodes[slices.IndexFunc(nodes, func(n string) bool { return n != owner && n != next })]
	es := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "local-1", Labels: map[string]string{discoveryv1.LabelServiceName: "local"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, NodeName: &third}}}
	if _, err := c.kube.DiscoveryV1().EndpointSlices("sample").Create(t.Context(), es, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.event("local", "nodeAssigned", fmt.Sprintf("from node %q", third))
}

func TestElectNode(t *testing.T) {
	sel := func(s string) []labels.Selector {
		x, err := labels.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []labels.Selector{x}
	}
	a := netip.MustParseAddr("10.0.0.1")
	edge := candidate{name: "edge", labels: labels.Set{"role": "edge"}}
	plain := candidate{name: "plain"}
	master := candidate{name: "master", excluded: true}
	for _, tt := range []struct {
		name string
		all  []candidate
		ads  []*advertisement
		pods map[string]bool
		want string
	}{
		{"none", nil, []*advertisement{{}}, nil, ""},
		{"node selector", []candidate{edge, plain}, []*advertisement{{nodes: sel("role=edge")}}, nil, "edge"},
		{"two advertisements add up", []candidate{plain}, []*advertisement{{nodes: sel("role=edge")}, {}}, nil, "plain"},
		{"preferred", []candidate{edge, plain}, []*advertisement{{preferred: []preference{{10, sel("role=edge")[0]}}}}, nil, "edge"},
		{"preferred but gone", []candidate{plain}, []*advertisement{{preferred: []preference{{10, sel("role=edge")[0]}}}}, nil, "plain"},
		{"excluded", []candidate{master, plain}, []*advertisement{{}}, nil, "plain"},
		{"only excluded ones", []candidate{master}, []*advertisement{{}}, nil, "master"},
		{"pods elsewhere", []candidate{edge, plain}, []*advertisement{{}}, map[string]bool{"plain": true}, "plain"},
		{"no pods", []candidate{edge, plain}, []*advertisement{{}}, map[string]bool{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := electNode(a, tt.all, tt.ads, tt.pods); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestOurs(t *testing.T) {
	r, err := pool.ParseRanges([]string{"10.0.0.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	pools := []pool.Pool{{Name: "p", Ranges: r}}
	at := func(in ...corev1.LoadBalancerIngress) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = in }
	}
	for _, tt := range []struct {
		name   string
		change func(*corev1.Service)
		class  string
		want   bool
	}{
		{"new", func(*corev1.Service) {}, "", true},
		{"no load balancer", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }, "", false},
		{"another's class", func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr.To("x") }, "", false},
		{"our class", func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr.To("x") }, "x", true},
		{"no class, but we have one", func(*corev1.Service) {}, "x", false},
		{"cloud", func(s *corev1.Service) { s.Finalizers = []string{cloudFinalizer} }, "", false},
		{"a cloud's host name", at(corev1.LoadBalancerIngress{Hostname: "a.elb"}), "", false},
		{"another's address", at(corev1.LoadBalancerIngress{IP: "192.0.2.1"}), "", false},
		{"an address of a pool", at(corev1.LoadBalancerIngress{IP: "10.0.0.9"}), "", true},
		{"of a pool that is gone", func(s *corev1.Service) {
			at(corev1.LoadBalancerIngress{IP: "192.0.2.1"})(s)
			s.Annotations = map[string]string{prefix + annFrom: "gone"}
		}, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
			tt.change(s)
			if got := ours(s, tt.class, pools); got != tt.want {
				t.Errorf("ours() = %v", got)
			}
		})
	}
}
