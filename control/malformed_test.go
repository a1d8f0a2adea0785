package control

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
)

// malformed is objects that are wrong, and the field that must be named: by the API server, which
// then refuses the object, or by a condition and an event of it.
var malformed = []struct{ plural, kind, spec, field string }{
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: x, protocol: NONSENSE}, hosts: ["a.example.com"]}]}`, "servers[0].port.protocol"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 70000, name: x, protocol: HTTP}, hosts: ["a.example.com"]}]}`, "servers[0].port.number"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: x, protocol: HTTP}, hosts: ["a..b"]}]}`, "servers[0].hosts[0]"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: x, protocol: HTTP}, hosts: []}]}`, "servers[0].hosts"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: []}`, "servers"},
	{"gateways", "Gateway", `{selector: {istio: nobody}, servers: [{port: {number: 80, name: x, protocol: HTTP}, hosts: ["a.example.com"]}]}`, "selector"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: x, protocol: HTTPS}, hosts: ["a.example.com"]}]}`, "servers[0].tls"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: x, protocol: HTTPS}, hosts: ["a.example.com"], tls: {mode: SIMPLE}}]}`, "servers[0].tls.credentialName"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: x, protocol: HTTPS}, hosts: ["b.example.com"], tls: {mode: SIMPLE, credentialName: none}}]}`, "servers[0].tls.credentialName"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: x, protocol: HTTPS}, hosts: ["c.example.com"], tls: {mode: WHATEVER}}]}`, "servers[0].tls.mode"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: x, protocol: HTTPS}, hosts: ["d.example.com"], tls: {mode: SIMPLE, credentialName: none, cipherSuites: [NO-SUCH-CIPHER]}}]}`, "servers[0].tls.cipherSuites[0]"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: x, protocol: HTTPS}, hosts: ["e.example.com"], tls: {mode: SIMPLE, credentialName: none, minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_2}}]}`, "servers[0].tls.minProtocolVersion"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{port: {number: eighty, name: x, protocol: HTTP}, hosts: ["a.example.com"]}]}`, "servers[0].port.number"},
	{"gateways", "Gateway", `{selector: {istio: ingressgateway}, servers: [{bind: nowhere, port: {number: 80, name: x, protocol: HTTP}, hosts: ["a.example.com"]}]}`, "servers[0].bind"},

	{"virtualservices", "VirtualService", `{hosts: [], http: [{route: [{destination: {host: hello}}]}]}`, "hosts"},
	{"virtualservices", "VirtualService", `{hosts: ["a..b"], http: [{route: [{destination: {host: hello}}]}]}`, "hosts[0]"},
	{"virtualservices", "VirtualService", `{hosts: [a.example.com]}`, "spec"},
	{"virtualservices", "VirtualService", `{hosts: [a.example.com], gateways: [nowhere], http: [{route: [{destination: {host: hello}}]}]}`, "gateways[0]"},
	{"virtualservices", "VirtualService", `{hosts: [b.example.com], http: [{route: [{destination: {host: nobody}}]}]}`, "http[0].route[0].destination.host"},
	{"virtualservices", "VirtualService", `{hosts: [c.example.com], http: [{route: [{destination: {host: hello, subset: nowhere}}]}]}`, "http[0].route[0].destination.subset"},
	{"virtualservices", "VirtualService", `{hosts: [d.example.com], http: [{route: [{destination: {host: hello, port: {number: 1}}}]}]}`, "http[0].route[0].destination.port.number"},
	{"virtualservices", "VirtualService", `{hosts: [e.example.com], http: [{route: [{destination: {host: hello}, weight: -1}]}]}`, "http[0].route[0].weight"},
	{"virtualservices", "VirtualService", `{hosts: [f.example.com], http: [{match: [{uri: {regex: "("}}], route: [{destination: {host: hello}}]}]}`, "http[0].match[0].uri.regex"},
	{"virtualservices", "VirtualService", `{hosts: [g.example.com], http: [{match: [{headers: {"a b": {exact: x}}}], route: [{destination: {host: hello}}]}]}`, "http[0].match[0].headers"},
	{"virtualservices", "VirtualService", `{hosts: [h.example.com], http: [{timeout: soon, route: [{destination: {host: hello}}]}]}`, "http[0].timeout"},
	{"virtualservices", "VirtualService", `{hosts: [i.example.com], http: [{timeout: -1s, route: [{destination: {host: hello}}]}]}`, "http[0].timeout"},
	{"virtualservices", "VirtualService", `{hosts: [j.example.com], http: [{retries: {attempts: 1, retryOn: whenever}, route: [{destination: {host: hello}}]}]}`, "http[0].retries.retryOn"},
	{"virtualservices", "VirtualService", `{hosts: [k.example.com], http: [{fault: {abort: {httpStatus: 5000, percentage: {value: 10}}}, route: [{destination: {host: hello}}]}]}`, "http[0].fault.abort.httpStatus"},
	{"virtualservices", "VirtualService", `{hosts: [l.example.com], http: [{fault: {delay: {fixedDelay: 1s, percentage: {value: 200}}}, route: [{destination: {host: hello}}]}]}`, "http[0].fault.delay.percentage"},
	{"virtualservices", "VirtualService", `{hosts: [m.example.com], http: [{route: [{destination: {host: hello}}], mirrors: [{destination: {host: nobody}}]}]}`, "http[0].mirrors[0].destination.host"},
	{"virtualservices", "VirtualService", `{hosts: [n.example.com], http: [{redirect: {redirectCode: 200}}]}`, "http[0].redirect.redirectCode"},
	{"virtualservices", "VirtualService", `{hosts: [o.example.com], http: [{redirect: {uri: /x}, route: [{destination: {host: hello}}]}]}`, "http[0]"},
	{"virtualservices", "VirtualService", `{hosts: [p.example.com], tcp: [{route: [{destination: {host: nobody}}]}]}`, "tcp[0].route[0].destination.host"},
	{"virtualservices", "VirtualService", `{hosts: [q.example.com], tcp: [{match: [{destinationSubnets: [nonsense]}], route: [{destination: {host: hello}}]}]}`, "tcp[0].match[0].destinationSubnets[0]"},
	{"virtualservices", "VirtualService", `{hosts: [r.example.com], tls: [{match: [{sniHosts: ["a..b"]}], route: [{destination: {host: hello}}]}]}`, "tls[0].match[0].sniHosts[0]"},
	{"virtualservices", "VirtualService", `{hosts: [t.example.com], tls: [{match: [{sniHosts: [t.example.com], destinationSubnets: [10.0.0.0/99]}], route: [{destination: {host: hello}}]}]}`, "tls[0].match[0].destinationSubnets[0]"},
	{"virtualservices", "VirtualService", `{hosts: [u.example.com], http: nonsense}`, "http"},
	{"virtualservices", "VirtualService", `{hosts: [v.example.com], exportTo: ["not a namespace"], http: [{route: [{destination: {host: hello}}]}]}`, "exportTo[0]"},
	{"virtualservices", "VirtualService", `{hosts: [w.example.com], http: [{match: [{port: 70000}], route: [{destination: {host: hello}}]}]}`, "http[0].match[0].port"},
	{"virtualservices", "VirtualService", `{hosts: [x.example.com], http: [{corsPolicy: {allowOrigins: [{regex: "["}]}, route: [{destination: {host: hello}}]}]}`, "http[0].corsPolicy.allowOrigins[0].regex"},
	{"virtualservices", "VirtualService", `{hosts: [y.example.com], http: [{corsPolicy: {maxAge: -5s}, route: [{destination: {host: hello}}]}]}`, "http[0].corsPolicy.maxAge"},

	{"destinationrules", "DestinationRule", `{host: "nobody"}`, "host"},
	{"destinationrules", "DestinationRule", `{host: ""}`, "host"},
	{"destinationrules", "DestinationRule", `{host: hello, subsets: [{name: v1, labels: {version: v1}}, {name: v1, labels: {version: v2}}]}`, "subsets[1].name"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {tls: {mode: MAYBE}}}`, "trafficPolicy.tls.mode"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {tls: {mode: MUTUAL}}}`, "trafficPolicy.tls"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}}`, "trafficPolicy.connectionPool.tcp.maxConnections"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 0s}}}}`, "trafficPolicy.connectionPool.tcp.connectTimeout"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {outlierDetection: {maxEjectionPercent: 200}}}`, "trafficPolicy.outlierDetection.maxEjectionPercent"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {outlierDetection: {interval: 0.1ms}}}`, "trafficPolicy.outlierDetection.interval"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {loadBalancer: {consistentHash: {}}}}`, "trafficPolicy.loadBalancer.consistentHash"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {loadBalancer: {simple: SOMEHOW}}}`, "trafficPolicy.loadBalancer.simple"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 50}}]}}}}`, "trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: {portLevelSettings: [{port: {number: 0}}]}}`, "trafficPolicy.portLevelSettings[0].port.number"},
	{"destinationrules", "DestinationRule", `{host: hello, subsets: [{name: "a b"}]}`, "subsets[0].name"},
	{"destinationrules", "DestinationRule", `{host: hello, exportTo: ["not a namespace"]}`, "exportTo[0]"},
	{"destinationrules", "DestinationRule", `{host: hello, trafficPolicy: nonsense}`, "trafficPolicy"},
}

// TestMalformed holds that of each object that is wrong, its field is named where the user looks,
// and that the right ones stay.
func TestMalformed(t *testing.T) {
	s := cluster(t, "network1")
	crds(t, s)
	pod(t, s, "istio-system", "gw-1", "10.0.0.1", map[string]string{"istio": "ingressgateway"})
	pod(t, s, "sample", "hello-1", "10.0.0.2", map[string]string{"app": "hello"})
	service(t, s, "sample", "hello", 5000, "hello-1", "10.0.0.2")
	good := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: good, namespace: sample}\nspec: {hosts: [good.example.com], http: [{timeout: 1m, route: [{destination: {host: hello}}]}]}\n"
	apply(t, s, "networking.istio.io", "virtualservices", good)
	client, err := kube.Connect(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	w := kube.NewWriter(client, "cluster1", "istio-system", "istiod-1", "", log)
	c := New(Config{Mesh: mesh.Settings{Cluster: "cluster1"}, Local: kube.Local{Config: s.Config}, Log: log, Report: w.SetFindings})
	run(t, c.Run)
	run(t, w.Run)
	eventually(t, "ready", c.Ready)
	d, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	taken := map[int]string{} // by index, the name
	for i, x := range malformed {
		u := &unstructured.Unstructured{}
		name := fmt.Sprintf("%s-%d", strings.ToLower(x.kind), i)
		if err := yaml.Unmarshal([]byte("apiVersion: networking.istio.io/v1\nkind: "+x.kind+"\nmetadata: {name: "+name+", namespace: sample}\nspec: "+x.spec), &u.Object); err != nil {
			t.Fatal(name, err)
		}
		api := d.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: x.plural}).Namespace("sample")
		_, err := api.Create(t.Context(), u, metav1.CreateOptions{FieldValidation: "Strict"})
		switch {
		case err == nil:
			taken[i] = name
		case !strings.Contains(err.Error(), x.field):
			t.Errorf("%s %s: the API server does not name %s: %v", x.kind, x.spec, x.field, err)
		}
	}
	t.Logf("%d of %d objects get past the API server", len(taken), len(malformed))
	for i, name := range taken {
		x := malformed[i]
		t.Run(name, func(t *testing.T) {
			api := d.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: x.plural}).Namespace("sample")
			last := ""
			named := func() bool {
				u, err := api.Get(t.Context(), name, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				last = ""
				cs, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
				for _, c := range cs {
					m := c.(map[string]any)
					last = fmt.Sprint(m["type"], " ", m["status"], " ", m["message"])
				}
				return strings.HasPrefix(last, "Reconciled False ") && (strings.Contains(last, "spec."+x.field) || x.field == "spec" && strings.Contains(last, "spec: "))
			}
			defer func() {
				if t.Failed() {
					t.Logf("%s: want %s named, condition is %q", x.spec, x.field, last)
				}
			}()
			eventually(t, "a condition names "+x.field, named)
			eventually(t, "an event does, too", func() bool {
				es, err := s.Client.CoreV1().Events("sample").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.kind=" + x.kind + ",involvedObject.name=" + name})
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range es.Items {
					if e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, x.field) {
						return true
					}
				}
				return false
			})
		})
	}
	if fs := c.Findings()[mesh.Key{Cluster: "cluster1", Kind: mesh.KindVirtualService, Namespace: "sample", Name: "good"}]; len(fs) > 0 || c.Snapshot().VirtualServices().Get("sample/good") == nil {
		t.Errorf("the right one is told of, or gone: %v", fs)
	}
}
