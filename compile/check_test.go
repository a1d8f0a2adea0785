package compile

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carrick-mesh/carrick/mesh"
)

func TestCheck(t *testing.T) {
	for name, want := range map[string][]string{
		"walkthrough": nil,
		"networks": {
			"Cluster/cluster3@cluster3: network cluster/cluster3 has no gateway, so other networks cannot reach 2 services in it",
			"Service/app/near@cluster2: 1 of its endpoints take no mutual TLS",
			"Service/app/plain@cluster2: 1 of its endpoints take no mutual TLS",
			"Service/app/spread@cluster2: 1 of its endpoints take no mutual TLS",
			"Service/app/web@cluster2: 1 of its endpoints take no mutual TLS",
		},
		"features": {
			"Gateway/edge/public@cluster1: spec.servers[1].tls.credentialName: Secret edge/www-cert: its certificate holds no PEM block of type CERTIFICATE",
			"Gateway/edge/public@cluster1: spec.servers[3].tls.credentialName: Secret edge/www-cert: its certificate holds no PEM block of type CERTIFICATE",
			"Gateway/edge/second@cluster1: spec.servers[1].hosts: Gateway edge/public is older and serves www.example.com on port 443",
			"Gateway/edge/second@cluster1: spec.servers[1].tls.credentialName: namespace edge of the gateway has no Secret other-cert",
		},
	} {
		s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(loadFile(t, "testdata/"+name+".in.yaml")...)
		compareFindings(t, name, Check(s, nil), want)
	}
}

func TestCheckRoutes(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
kind: VirtualService
metadata: {name: a, namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  hosts: [web]
  gateways: [mesh, nobody]
  http:
  - match: [{uri: {prefix: /1}}]
    route: [{destination: {host: web, port: {number: 81}}}]
  - match: [{uri: {prefix: /2}}]
    route: [{destination: {host: web, subset: v1}}]
  - route: [{destination: {host: wbe}}]
---
kind: VirtualService
metadata: {name: b, namespace: shop, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  hosts: [web]
  http: [{route: [{destination: {host: web}, weight: 50}, {destination: {host: two}, weight: 50}]}]
---
kind: VirtualService
metadata: {name: c, namespace: shop}
spec:
  hosts: [a.example.com, b.example.org]
  gateways: [named]
  http: [{route: [{destination: {host: web}}]}]
---
cluster: cluster1
kind: Service
metadata: {name: two, namespace: shop}
spec: {clusterIP: 10.0.0.2, ports: [{name: http, port: 80}, {name: http-b, port: 81}]}
---
kind: DestinationRule
metadata: {name: r, namespace: shop}
spec: {host: other}
---
kind: Gateway
metadata: {name: g, namespace: shop}
spec: {selector: {istio: nobody}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
kind: Gateway
metadata: {name: named, namespace: shop}
spec: {selector: {istio: nobody}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["./*.example.com", "other/b.example.org"]}]}
`))...)
	compareFindings(t, "routes", Check(s, nil), []string{
		"DestinationRule/shop/r@cluster1: spec.host: host other.shop.svc.cluster.local does not exist",
		"Gateway/shop/g@cluster1: spec.selector: no pod has the labels istio=nobody",
		"Gateway/shop/named@cluster1: spec.selector: no pod has the labels istio=nobody",
		"VirtualService/shop/a@cluster1: spec.gateways[1]: Gateway shop/nobody does not exist",
		"VirtualService/shop/a@cluster1: spec.http[0].route[0].destination.port.number: web.shop.svc.cluster.local has no port 81",
		"VirtualService/shop/a@cluster1: spec.http[1].route[0].destination.subset: no DestinationRule of web.shop.svc.cluster.local has a subset v1",
		"VirtualService/shop/a@cluster1: spec.http[2].route[0].destination.host: host wbe.shop.svc.cluster.local does not exist",
		"VirtualService/shop/b@cluster1: spec.hosts[0]: VirtualService shop/a is older and holds for web.shop.svc.cluster.local",
		"VirtualService/shop/b@cluster1: spec.http[0].route[1].destination.port: two.shop.svc.cluster.local has 2 ports, and the destination names none",
		"VirtualService/shop/c@cluster1: spec.hosts[1]: none of its Gateways serves b.example.org",
	})
}

func TestCheckMixedPort(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: Pod
metadata: {name: gw, namespace: edge, labels: {istio: eastwest}}
spec: {serviceAccountName: gw}
status: {podIP: 10.1.0.1}
---
kind: Gateway
metadata: {name: exposed, namespace: edge, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  selector: {istio: eastwest}
  servers: [{port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ["*.local"]}]
---
kind: Gateway
metadata: {name: web, namespace: shop, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  selector: {istio: eastwest}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: 15443, name: web, protocol: HTTP}, hosts: ["*"]}
`))...)
	compareFindings(t, "mixed", Check(s, nil), []string{
		"Gateway/shop/web@cluster1: spec.servers[1].port: port 15443 speaks HTTP here and TLS in Gateway edge/exposed, which is older",
	})
}

// compareFindings compares the beginnings of findings, each of which must name a way out.
func compareFindings(t *testing.T, what string, got []mesh.Finding, want []string) {
	t.Helper()
	var lines []string
	for i, f := range got {
		if f.Fix == "" {
			t.Errorf("%s: no fix: %v", what, f)
		}
		line := f.String()
		if i < len(want) && strings.HasPrefix(line, want[i]) {
			line = want[i]
		}
		lines = append(lines, line)
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// TestCheckSidecarless: what was never meant to have a sidecar is not reported, and one port number of two transports is
// two ports.
func TestCheckSidecarless(t *testing.T) {
	cluster := func(name, ip string, sidecar bool) string {
		label := ""
		if sidecar {
			label = "security.istio.io/tlsMode: istio"
		}
		return strings.NewReplacer("CLUSTER", name, "IP", ip, "LABEL", label).Replace(`
cluster: CLUSTER
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: of-CLUSTER}}
---
cluster: CLUSTER
kind: Service
metadata: {name: dns, namespace: shop}
spec: {clusterIP: IP, ports: [{name: dns, port: 53, protocol: UDP}, {name: tcp-dns, port: 53}]}
---
cluster: CLUSTER
kind: EndpointSlice
metadata: {name: dns-x, namespace: shop, labels: {kubernetes.io/service-name: dns}}
ports: [{name: tcp-dns, port: 53}]
endpoints: [{addresses: [IP], targetRef: {kind: Pod, name: dns-1, namespace: shop}}]
---
cluster: CLUSTER
kind: Pod
metadata: {name: dns-1, namespace: shop, labels: {app: dns, LABEL}}
status: {podIP: IP}
`)
	}
	for _, c := range []struct {
		name     string
		sidecars bool
		want     []string
	}{
		{"no sidecars", false, nil},
		{"sidecars in cluster1", true, []string{"Service/shop/dns@cluster2: 1 of its endpoints take no mutual TLS"}},
	} {
		objects := load(t, []byte(cluster("cluster1", "10.0.0.1", c.sidecars)+"---"+cluster("cluster2", "10.0.0.2", false)))
		s := mesh.New(mesh.Settings{Cluster: "cluster1", SystemNamespace: "istio-system"}).Apply(objects...)
		var got []mesh.Finding
		for _, f := range Check(s, nil) {
			if !strings.Contains(f.Message, "has no gateway") {
				got = append(got, f)
			}
		}
		compareFindings(t, c.name, got, c.want)
	}
}
