package kube

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
)

func parse(t testing.TB, y string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(y), &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

func kindOf(name string) schema.Kind {
	k, ok := schema.Named(name)
	if !ok {
		panic(name)
	}
	return k
}

func TestDecode(t *testing.T) {
	for name, x := range map[string]struct {
		kind, spec string
		object     bool
		finding    string // "field: message", empty for none
	}{
		"good":           {mesh.KindVirtualService, `{hosts: [a], http: [{timeout: 1.5s, route: [{destination: {host: b}, weight: 3}]}]}`, true, ""},
		"Go's durations": {mesh.KindVirtualService, `{hosts: [a], http: [{timeout: 1m30s, retries: {attempts: 1, perTryTimeout: 200ms}}]}`, true, ""},
		"no spec":        {mesh.KindVirtualService, ``, true, ""},
		"enum":           {mesh.KindDestinationRule, `{host: a, trafficPolicy: {tls: {mode: MAYBE}}}`, false, `spec.trafficPolicy.tls.mode: invalid value for enum`},
		"type":           {mesh.KindGateway, `{servers: [{port: {number: 80}}, {port: {number: x}}]}`, false, `spec.servers[1].port.number: invalid value for uint32`},
		"duration":       {mesh.KindVirtualService, `{http: [{route: []}, {timeout: soon}]}`, false, `spec.http[1].timeout: `},
		"list":           {mesh.KindVirtualService, `{hosts: a}`, false, `spec.hosts: `},
		"unknown":        {mesh.KindVirtualService, `{hosts: [a], http: [{rout: []}]}`, true, `spec.http[0].rout: unknown field, which is ignored`},
		"peers":          {mesh.KindPeerAuthentication, `{mtls: {mode: STRICT}}`, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			y := "metadata: {name: one, namespace: ns}\n"
			if x.spec != "" {
				y += "spec: " + x.spec
			}
			o, fs := decode("c", kindOf(x.kind), parse(t, y))
			if (o != nil) != x.object {
				t.Errorf("object %v", o)
			}
			if x.finding == "" && len(fs) > 0 || x.finding != "" && (len(fs) != 1 || !strings.HasPrefix(fs[0].Field+": "+fs[0].Message, x.finding)) {
				t.Errorf("findings %v, want %s", fs, x.finding)
			}
			if o != nil && o.Key() != (mesh.Key{Cluster: "c", Kind: x.kind, Namespace: "ns", Name: "one"}) {
				t.Errorf("key %v", o.Key())
			}
		})
	}
	o, _ := decode("c", kindOf(mesh.KindVirtualService), parse(t, `spec: {http: [{timeout: 1m30s}]}`))
	if d := o.(*mesh.VirtualService).Spec.Http[0].Timeout.AsDuration(); d != 90*time.Second {
		t.Errorf("1m30s is %v", d)
	}
}

func TestMeshConfig(t *testing.T) {
	good := map[string]string{"mesh": `
accessLogFile: /dev/stdout
connectTimeout: 1m
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  meshId: mesh1
  proxyMetadata: {A: b}
  tracing: {zipkin: {address: zipkin.istio-system:9411}}
enablePrometheusMerge: true
rootNamespace: istio-system
trustDomain: cluster.local
`, "meshNetworks": "networks: {}\n"}
	about := mesh.Key{Cluster: "c", Kind: "ConfigMap", Namespace: "istio-system", Name: "istio"}
	m, fs := meshConfig(about, good)
	if len(fs)+len(m.Unread) > 0 {
		t.Fatal(fs)
	}
	if m.Spec.GetAccessLogFile() != "/dev/stdout" || m.Spec.GetConnectTimeout().AsDuration() != time.Minute || m.Spec.GetDefaultConfig().GetMeshId() != "mesh1" {
		t.Errorf("spec %v", m.Spec)
	}
	// One bad field is left out, and told; all else is read.
	for data, want := range map[string][]string{ // field of the finding, path that is unread
		"accessLogFile: [1]":                                     {"data.mesh.accessLogFile", "accessLogFile"},
		"defaultConfig: {concurrency: a, meshId: mesh1}":         {"data.mesh.defaultConfig.concurrency", "defaultConfig.concurrency"},
		"outboundTrafficPolicy: {mode: MAYBE}":                   {"data.mesh.outboundTrafficPolicy.mode", "outboundTrafficPolicy.mode"},
		"trustDomainAliases: [a, {}]":                            {"data.mesh.trustDomainAliases", "trustDomainAliases"},
		"serviceSettings: [{settings: {clusterLocal: perhaps}}]": {"data.mesh.serviceSettings", "serviceSettings"},
		"enableAutoMtls: [true]":                                 {"data.mesh.enableAutoMtls", "enableAutoMtls"},
		"a: b: c":                                                {"data.mesh", ""},
		"- a":                                                    {"data.mesh", ""},
		"accessLogFil: x":                                        {"data.mesh.accessLogFil"},
		"\t":                                                     nil,
	} {
		m, fs := meshConfig(about, map[string]string{"mesh": data + "\nrootNamespace: here"})
		if strings.HasPrefix(data, "a: b") || strings.HasPrefix(data, "-") || data == "\t" {
			m, fs = meshConfig(about, map[string]string{"mesh": data})
		} else if m.Spec.GetRootNamespace() != "here" {
			t.Errorf("%q: the field beside it is lost: %v", data, m.Spec)
		}
		switch {
		case want == nil && len(fs)+len(m.Unread) > 0:
			t.Errorf("%q: %v", data, fs)
		case want != nil && (len(fs) != 1 || fs[0].Field != want[0] || fs[0].Object != about || fs[0].Fix == ""):
			t.Errorf("%q: %v, want %s", data, fs, want[0])
		case len(want) > 1 && (len(m.Unread) != 1 || m.Unread[0] != want[1]), len(want) == 1 && len(m.Unread) > 0:
			t.Errorf("%q: unread %q, want %q", data, m.Unread, want)
		}
	}
	m, fs = meshConfig(about, map[string]string{"mesh": "trustDomain: [1]\nconnectTimeout: soon\naccessLogFile: /dev/stdout", "meshNetworks": "a: b: c"})
	if len(fs) != 3 || len(m.Unread) != 2 || m.Spec.GetAccessLogFile() == "" || !m.KeepNetworks {
		t.Errorf("several bad fields: %v, unread %q, spec %v", fs, m.Unread, m.Spec)
	}
}

// Host names of gateways in MeshNetworks lead to addresses, as soon as they are known and whenever they change.
func TestMeshNetworksNames(t *testing.T) {
	answer := []string{"192.0.2.1"}
	r := newResolver()
	r.lookup = func(context.Context, string) ([]string, error) { return answer, nil }
	var told *mesh.MeshConfig
	f := newFeed("c", Sink{Events: func(es []mesh.Event) { told, _ = es[0].Object.(*mesh.MeshConfig) }, Findings: func(mesh.Key, []mesh.Finding) {}}, r)
	f.live = true
	c := &Clusters{local: Local{ID: "c", Namespace: "istio-system", MeshName: "istio"}}
	o := c.meshConfigMap().convert(f, &corev1.ConfigMap{Data: map[string]string{
		"meshNetworks": "networks: {n2: {gateways: [{address: gw.example.com, port: 15443}, {address: 192.0.2.9, port: 15443}]}}"}})
	f.set([]mesh.Event{{Object: o}})
	if told == nil || len(told.Addresses) != 0 {
		t.Fatalf("told of %v", told)
	}
	for range 2 {
		r.refresh(t.Context())
		if d := cmp.Diff(map[string][]string{"gw.example.com": answer}, told.Addresses); d != "" {
			t.Errorf("addresses (-want +got):\n%s", d)
		}
		answer = []string{"192.0.2.2", "192.0.2.3"}
	}
}

func FuzzFieldAt(f *testing.F) {
	f.Add([]byte(`{"a":[{"b":1},2],"c":"d"}`), 10)
	f.Add([]byte(`[[`), 1)
	f.Fuzz(func(t *testing.T, data []byte, at int) { fieldAt(data, at) })
}

func FuzzRemoteConfig(f *testing.F) {
	f.Add([]byte(kubeconfig("a", "https://x", "ca", "token")))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := RemoteConfig(data)
		if err == nil && (c.ExecProvider != nil || c.AuthProvider != nil || c.BearerTokenFile != "" || c.CertFile != "" || c.KeyFile != "" || c.CAFile != "") {
			t.Errorf("taken: %v", c)
		}
	})
}

func TestConvert(t *testing.T) {
	svc, names := service("c", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "gw", Namespace: "ns", Annotations: map[string]string{"networking.istio.io/exportTo": ". , b"}},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.0.0.1", ExternalIPs: []string{"1.1.1.1", "name"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30000, AppProtocol: ptr.To("grpc")}}},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "2.2.2.2"}, {Hostname: "lb.example"}}}}})
	want := &mesh.Service{Cluster: "c", Namespace: "ns", Name: "gw", ExportTo: []string{".", "b"}, Type: mesh.LoadBalancer, ClusterIPs: []string{"10.0.0.1"},
		Addresses: []string{"2.2.2.2", "1.1.1.1"}, Ports: []mesh.ServicePort{{Name: "http", Number: 80, NodePort: 30000, AppProtocol: "grpc"}}}
	if d := cmp.Diff(want, svc); d != "" || len(names) != 1 || names[0] != "lb.example" {
		t.Errorf("service (-want +got):\n%s%v", d, names)
	}
	owner := func(kind, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Labels: map[string]string{"pod-template-hash": "abc"}, OwnerReferences: []metav1.OwnerReference{{Kind: kind, Name: name, Controller: ptr.To(true)}}}
	}
	for _, x := range []struct{ kind, name, wantKind, want string }{
		{"ReplicaSet", "hello-v1-abc", "Deployment", "hello-v1"},
		{"ReplicaSet", "mine", "ReplicaSet", "mine"},
		{"StatefulSet", "db", "StatefulSet", "db"},
		{"Job", "nightly-28903680", "CronJob", "nightly"},
		{"Job", "once", "Job", "once"},
	} {
		if name, kind := workload(&corev1.Pod{ObjectMeta: owner(x.kind, x.name)}); name != x.want || kind != x.wantKind {
			t.Errorf("%s %s: %s %s", x.kind, x.name, kind, name)
		}
	}
}
