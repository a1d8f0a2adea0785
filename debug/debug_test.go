package debug

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/carrick-mesh/carrick/mesh"
)

var update = flag.Bool("update", false, "write testdata/*.json anew")

// debugged is a mesh of two clusters with one of each kind of Service.
func debugged() *mesh.Snapshot {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	meta := func(name string) mesh.Meta {
		return mesh.Meta{Cluster: "cluster1", Namespace: "sample", Name: name, Created: created, Labels: map[string]string{"team": "a"}}
	}
	hello := func(cluster, ip string, external ...string) *mesh.Service {
		return &mesh.Service{Cluster: cluster, Namespace: "sample", Name: "hello", Created: created, Labels: map[string]string{"service": "hello"},
			Selector: map[string]string{"app": "hello"}, ClusterIPs: []string{ip}, Addresses: external,
			Ports: []mesh.ServicePort{{Name: "http", Number: 5000}, {Name: "any", Number: 5001}}}
	}
	return mesh.New(mesh.Settings{Cluster: "cluster1", SystemNamespace: "istio-system", Domain: "cluster.local"}).Apply(
		mesh.Event{Object: hello("cluster1", "10.96.0.1", "192.0.2.1")}, mesh.Event{Object: hello("cluster2", "10.112.0.1")},
		mesh.Event{Object: &mesh.Service{Cluster: "cluster1", Namespace: "sample", Name: "db", Headless: true, ExportTo: []string{"."}, Created: created,
			Selector: map[string]string{"app": "db"}, Ports: []mesh.ServicePort{{Name: "tcp", Number: 3306}}}},
		mesh.Event{Object: &mesh.Service{Cluster: "cluster1", Namespace: "sample", Name: "out", Type: mesh.ExternalName, ExternalName: "example.com", Created: created,
			Ports: []mesh.ServicePort{{Name: "https", Number: 443}}}},
		mesh.Event{Object: &mesh.VirtualService{Meta: meta("hello"), Spec: &networking.VirtualService{Hosts: []string{"hello"},
			Http: []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: "hello"}}}}}}}},
		mesh.Event{Object: &mesh.PeerAuthentication{Meta: meta("default"), Spec: &security.PeerAuthentication{
			Mtls: &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_STRICT}}}},
		mesh.Event{Object: &mesh.Inert{Meta: mesh.Meta{Cluster: "cluster1", Namespace: "sample", Name: "deny"}, Kind: "AuthorizationPolicy", Protects: true}},
		mesh.Event{Object: &mesh.Inert{Meta: mesh.Meta{Cluster: "cluster1", Namespace: "sample", Name: "route"}, Kind: "HTTPRoute", Parents: []mesh.Parent{
			{Field: "spec.parentRefs[0]", Kind: "Service", Namespace: "sample", Name: "hello"}, {Field: "spec.parentRefs[1]", Kind: "Service", Namespace: "sample", Name: "db"}}}},
	)
}

// TestDebugShapes holds what integrations read of the debug pages: the names and types are istiod's.
func TestDebugShapes(t *testing.T) {
	s := debugged()
	for file, page := range map[string]any{
		"registryz.json": registryz(s), "configz.json": configz(s),
		"syncz.json": []syncStatusRow{{ClusterID: "c", Proxy: "p.ns", ProxyType: "sidecar", ProxyVersion: "v", IstioVersion: "i", ClusterSent: "1", ClusterAcked: "1",
			ListenerSent: "2", ListenerAcked: "2", RouteSent: "3", RouteAcked: "3", EndpointSent: "4", EndpointAcked: "4", ExtensionConfigSent: "5", ExtensionConfigAcked: "5"}},
	} {
		got, err := json.MarshalIndent(page, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		if *update {
			if err := os.WriteFile("testdata/"+file, got, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s (-want +got; run with -update to accept):\n%s", file, cmp.Diff(string(want), string(got)))
		}
	}
}

// TestKialiReads: what Kiali takes registryz for (its IstioService), which it would silently read as empty.
func TestKialiReads(t *testing.T) {
	b, err := json.Marshal(registryz(debugged()))
	if err != nil {
		t.Fatal(err)
	}
	var services []struct {
		Attributes struct {
			ServiceRegistry, Name, Namespace string
			Labels, LabelSelectors           map[string]string
			ExportTo                         map[string]struct{}
		}
		Ports []struct {
			Name     string
			Port     int
			Protocol string
		} `json:"ports"`
		Hostname    string `json:"hostname"`
		ClusterVIPs struct {
			Addresses map[string][]string
		} `json:"clusterVIPs"`
	}
	if err := json.Unmarshal(b, &services); err != nil {
		t.Fatal(err)
	}
	for _, x := range services {
		if x.Hostname != "hello.sample.svc.cluster.local" {
			continue
		}
		_, all := x.Attributes.ExportTo["*"]
		if x.Attributes.Name != "hello" || x.Attributes.Namespace != "sample" || x.Attributes.ServiceRegistry != "Kubernetes" || !all ||
			x.Attributes.LabelSelectors["app"] != "hello" || len(x.Ports) != 2 || x.Ports[0].Port != 5000 || x.Ports[0].Protocol != "HTTP" ||
			x.ClusterVIPs.Addresses["cluster2"][0] != "10.112.0.1" {
			t.Errorf("%+v", x)
		}
		return
	}
	t.Errorf("no hello in %s", b)
}
