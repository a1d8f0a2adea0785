package control

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/diagnose"

	sds "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/kube/kubetest"
)

// apply creates objects from YAML. It tries again while their CRD is not served yet.
func apply(t *testing.T, s *kubetest.Server, group, plural, y string) {
	t.Helper()
	d, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(y), &u.Object); err != nil {
		t.Fatal(err)
	}
	version := u.GetAPIVersion()[strings.LastIndex(u.GetAPIVersion(), "/")+1:]
	api := d.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: plural})
	eventually(t, "taking "+plural+" "+u.GetName(), func() bool {
		var err error
		if ns := u.GetNamespace(); ns != "" {
			_, err = api.Namespace(ns).Create(t.Context(), u, metav1.CreateOptions{})
		} else {
			_, err = api.Create(t.Context(), u, metav1.CreateOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	})
}

func crds(t *testing.T, s *kubetest.Server) {
	t.Helper()
	for _, n := range []string{"gateways.networking", "virtualservices.networking", "destinationrules.networking", "peerauthentications.security"} {
		b, err := os.ReadFile("../install/crds/" + n + ".istio.io.yaml")
		if err != nil {
			t.Fatal(err)
		}
		apply(t, s, "apiextensions.k8s.io", "customresourcedefinitions", string(b))
	}
}

// gateway makes a gateway's Pod and its Service with a load balancer's address.
func gateway(t *testing.T, s *kubetest.Server, name, ip, lb, network string, ports map[string][2]int32) {
	t.Helper()
	// Envoys listen on all addresses of this machine, so another port than theirs is one that nobody
	// answers on.
	elsewhere := map[string]string{"networking.istio.io/gatewayPort": fmt.Sprint(ports["tls"][0])}
	labels := map[string]string{"istio": strings.TrimPrefix(name, "istio-"), "app": name}
	if network != "" {
		labels["topology.istio.io/network"] = network
		maps.Copy(labels, elsewhere)
	}
	pod(t, s, "istio-system", name+"-1", ip, labels)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: labels}}
	for n, p := range ports {
		x := corev1.ServicePort{Name: n, Port: p[0]}
		x.TargetPort.IntVal = p[1]
		svc.Spec.Ports = append(svc.Spec.Ports, x)
	}
	svc, err := s.Client.CoreV1().Services("istio-system").Create(t.Context(), svc, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: lb}}
	if _, err := s.Client.CoreV1().Services("istio-system").UpdateStatus(t.Context(), svc, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func remoteSecret(t *testing.T, s *kubetest.Server, name string, of *kubetest.Server, token string) {
	t.Helper()
	conf := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}],
users: [{name: c, user: {token: %s}}], contexts: [{name: c, context: {cluster: c, user: c}}]}`, of.Config.Host, base64.StdEncoding.EncodeToString(of.Config.CAData), token)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "istio-remote-secret-" + name, Labels: map[string]string{"istio/multiCluster": "true"}}, StringData: map[string]string{name: conf}}
	_, err := s.Client.CoreV1().Secrets("istio-system").Create(t.Context(), secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = s.Client.CoreV1().Secrets("istio-system").Update(t.Context(), secret, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

const passthrough = `
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: cross-network-gateway, namespace: istio-system}
spec: {selector: {istio: eastwestgateway}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ["*.local"]}]}
`

// TestTwoClusters is the walkthrough's pair, of API servers alone: a sidecar, an east-west and an
// ingress gateway, all of them genuine Envoys, take what they get.
func TestTwoClusters(t *testing.T) {
	if kubetest.Program() == "" {
		kubetest.Start(t) // skips
	}
	one, two := cluster(t, "network1"), cluster(t, "network2")
	hello := map[string]string{"app": "helloworld", "security.istio.io/tlsMode": "istio"}
	for _, s := range []*kubetest.Server{one, two} {
		crds(t, s)
		apply(t, s, "networking.istio.io", "gateways", passthrough)
		pod(t, s, "sample", "hello-1", "10.0.0.2", hello) // the pod networks are equal
		service(t, s, "sample", "helloworld", 5000, "hello-1", "10.0.0.2")
	}
	pod(t, one, "sample", "sleep-1", "10.0.0.1", map[string]string{"app": "sleep", "security.istio.io/tlsMode": "istio"})
	gateway(t, one, "istio-eastwestgateway", "10.0.0.10", "127.0.0.1", "network1", map[string][2]int32{"tls": {15443, 15443}})
	gateway(t, two, "istio-eastwestgateway", "10.0.0.10", "127.0.0.78", "network2", map[string][2]int32{"tls": {15444, 15443}})
	gateway(t, one, "istio-ingressgateway", "10.0.0.11", "127.0.0.2", "", map[string][2]int32{"http2": {80, 18080}})
	apply(t, one, "networking.istio.io", "gateways", `
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: in, namespace: sample}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
`)
	apply(t, one, "networking.istio.io", "virtualservices", `
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: in, namespace: sample}
spec: {hosts: ["*"], gateways: [in], http: [{match: [{uri: {exact: /hello}}], route: [{destination: {host: helloworld, port: {number: 5000}}}]}]}
`)
	c, port := start(t, one, "cluster1")
	keys := serve(t, func(g *grpc.Server) { sds.RegisterSecretDiscoveryServiceServer(g, newSecrets(t)) })
	meta := func(ns, more string) string {
		return fmt.Sprintf(`{NAMESPACE: %s, CLUSTER_ID: cluster1, ISTIO_VERSION: "1.15.7"%s}`, ns, more)
	}
	sidecar := envoy(t, "sidecar~10.0.0.1~sleep-1.sample~sample.svc.cluster.local", meta("sample", ""), port, keys)
	eastwest := envoy(t, "router~10.0.0.10~istio-eastwestgateway-1.istio-system~istio-system.svc.cluster.local", meta("istio-system", ", REQUESTED_NETWORK_VIEW: network1"), port, keys)
	ingress := envoy(t, "router~10.0.0.11~istio-ingressgateway-1.istio-system~istio-system.svc.cluster.local", meta("istio-system", ""), port, keys)
	endpoints := func(admin, cluster string) (list []string) {
		for line := range strings.Lines(get("http://" + admin + "/clusters")) {
			if rest, ok := strings.CutPrefix(line, cluster+"::"); ok && strings.Contains(rest, "::health_flags::") {
				list = append(list, rest[:strings.Index(rest, "::")])
			}
		}
		return list
	}
	const host = "outbound|5000||helloworld.sample.svc.cluster.local"
	local := func() bool { return strings.Join(endpoints(sidecar, host), " ") == "10.0.0.2:5000" }
	both := func() bool {
		e := strings.Join(endpoints(sidecar, host), " ")
		return strings.Contains(e, "10.0.0.2:5000") && strings.Contains(e, "127.0.0.78:15444") && len(strings.Fields(e)) == 2
	}
	eventually(t, "the own endpoint", local)

	token := two.Config.BearerToken
	remoteSecret(t, one, "cluster2", two, token)
	eventually(t, "the other cluster's gateway", both)
	eventually(t, "the ingress gateway's endpoints", func() bool { return len(endpoints(ingress, host)) == 2 })
	eventually(t, "the east-west gateway's own endpoint, and no other", func() bool {
		return strings.Join(endpoints(eastwest, "outbound_.5000_._.helloworld.sample.svc.cluster.local"), " ") == "10.0.0.2:5000"
	})
	for _, name := range []string{"sleep-1.sample", "istio-eastwestgateway-1.istio-system", "istio-ingressgateway-1.istio-system"} {
		eventually(t, name+" takes what it gets", func() bool {
			x := clientNamed(c, name)
			if x == nil {
				return false
			}
			for typ, st := range x.Status() {
				if st.Nack != "" {
					t.Fatalf("%s refuses %s: %s", name, typ, st.Nack)
				}
				if !st.Synced() && st.Sent != "" {
					return false
				}
			}
			return true
		})
	}
	for admin, want := range map[string]string{eastwest: "0.0.0.0_15443", ingress: "0.0.0.0_18080", sidecar: "0.0.0.0_5000"} {
		eventually(t, "listener "+want, func() bool {
			return strings.Contains(get("http://"+admin+"/config_dump?resource=dynamic_listeners"), want)
		})
	}

	// What was sent is what they have, so proxy-status POD finds no difference.
	debug := httptest.NewServer(c.Debug())
	defer debug.Close()
	for admin, name := range map[string]string{eastwest: "istio-eastwestgateway-1.istio-system", ingress: "istio-ingressgateway-1.istio-system", sidecar: "sleep-1.sample"} {
		var differs []string
		eventually(t, "what "+name+" was sent is what it has", func() bool {
			sent, err := diagnose.ParseDump([]byte(get(debug.URL + "/debug/config_dump?proxyID=" + name)))
			if err != nil {
				t.Fatal(err)
			}
			has, err := diagnose.ParseDump([]byte(get("http://" + admin + "/config_dump")))
			if err != nil {
				t.Fatal(err)
			}
			if len(sent.Clusters) == 0 || len(sent.Listeners) == 0 {
				t.Fatalf("%s was sent %d clusters and %d listeners", name, len(sent.Clusters), len(sent.Listeners))
			}
			differs = nil
			for _, d := range diagnose.Compare(sent, has) {
				differs = append(differs, d.Lines...)
			}
			if len(differs) > 0 {
				t.Log(name, strings.Join(differs, "\n"))
			}
			return len(differs) == 0
		})
	}
	// The gateway does not answer here: the prober says so.
	eventually(t, "the prober's finding", func() bool {
		for _, g := range c.Snapshot().Networks().Gateways {
			if g.Address == "127.0.0.78" && g.Down {
				return true
			}
		}
		return false
	})
	// A dead API server takes nothing along.
	two.Kill()
	eventually(t, "it counts as stale", func() bool {
		for _, s := range c.Clusters().Status() {
			if s.ID == "cluster2" {
				return s.Status == kube.Stale
			}
		}
		return false
	})
	eventually(t, "so it is in the mesh", func() bool { k := c.Snapshot().Cluster("cluster2"); return k != nil && k.Stale })
	if s := c.Snapshot().Service("cluster2", "sample", "helloworld"); s == nil {
		t.Error("the dead API server's Services have gone")
	}
	two.Resume()
	eventually(t, "it is synced again", func() bool { k := c.Snapshot().Cluster("cluster2"); return k != nil && !k.Stale })
	// Without its secret it is gone.
	if err := one.Client.CoreV1().Secrets("istio-system").Delete(t.Context(), "istio-remote-secret-cluster2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "only the own endpoint", local)
}
