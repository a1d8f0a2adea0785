package compile

import (
	"testing"

	"github.com/carrick-mesh/carrick/mesh"
)

// TestCheckGateways: what a VirtualService names is compared as it is compiled, in any case; several Gateways may
// share its hosts; and what cannot match, or has no effect, is told.
func TestCheckGateways(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: Pod
metadata: {name: gw-1, namespace: shop, labels: {istio: edge}}
status: {podIP: 10.0.0.1}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
kind: Gateway
metadata: {name: a, namespace: shop}
spec: {selector: {istio: edge}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [Upper.example.com, a.example.com]}]}
---
kind: Gateway
metadata: {name: b, namespace: shop}
spec:
  selector: {istio: edge}
  servers:
  - {port: {number: 81, name: http, protocol: HTTP}, hosts: [b.example.com]}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [b.example.com], tls: {credentialName: cert}}
---
kind: VirtualService
metadata: {name: case, namespace: shop}
spec: {hosts: [upper.example.com], gateways: [a], http: [{route: [{destination: {host: web}}]}]}
---
kind: VirtualService
metadata: {name: shared, namespace: shop}
spec:
  hosts: [a.example.com, b.example.com, c.example.com, web]
  gateways: [a, b, mesh]
  http:
  - match: [{headers: {":uri": {exact: /x}, ":path": {exact: /y}}}]
    route: [{destination: {host: web}}]
  - match: [{headers: {"@request.auth.claims.group": {exact: x}}}]
    route: [{destination: {host: web}}]
---
kind: VirtualService
metadata: {name: nowhere, namespace: shop}
spec: {hosts: [c.example.com], gateways: [a, b], http: [{route: [{destination: {host: web}}]}]}
`))...)
	compareFindings(t, "gateways", Check(s, nil), []string{
		"Gateway/shop/b@cluster1: spec.servers[1].tls.credentialName: namespace shop of the gateway has no Secret cert",
		"Gateway/shop/b@cluster1: spec.servers[1].tls.mode: it is PASSTHROUGH, also where it is not set",
		"VirtualService/shop/nowhere@cluster1: spec.gateways[0]: Gateway shop/a serves none of its hosts c.example.com",
		"VirtualService/shop/nowhere@cluster1: spec.gateways[1]: Gateway shop/b serves none of its hosts c.example.com",
		"VirtualService/shop/shared@cluster1: spec.http[0].match[0].headers.:uri: it matches nothing",
		"VirtualService/shop/shared@cluster1: spec.http[1].match[0].headers.@request.auth.claims.group: JWTs are not validated",
	})
}

// TestCheckNames: routes that are left out, and names that mean something else, are told.
func TestCheckNames(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(loadFile(t, "testdata/names.in.yaml")...)
	s = s.Apply(load(t, []byte(`
cluster: cluster1
kind: VirtualService
metadata: {name: nobodys, namespace: shop}
spec: {http: [{route: [{destination: {host: web, port: {number: 80}}}]}]}
---
kind: VirtualService
metadata: {name: odd, namespace: shop}
spec: {hosts: [10.96.0.1, "*.web.shop.svc.cluster.local"], http: [{route: [{destination: {host: alias}}]}]}
---
kind: DestinationRule
metadata: {name: alias, namespace: shop}
spec: {host: alias, trafficPolicy: {tls: {mode: DISABLE}}}
`))...)
	if f := s.Findings(); len(f) > 0 {
		t.Error(f)
	}
	compareFindings(t, "names", Check(s, nil), []string{
		"DestinationRule/shop/alias@cluster1: spec.host: it has no effect: alias.shop.svc.cluster.local is another name of web.shop.svc.cluster.local",
		"VirtualService/edge/root@cluster1: spec.http[0].delegate: route 1 of VirtualService shop/part is left out: it matches what this route does not",
		"VirtualService/edge/root@cluster1: spec.http[1].delegate: the route is left out: there is no VirtualService shop/private that can be its delegate",
		"VirtualService/edge/root@cluster1: spec.http[2].delegate: the route is left out: there is no VirtualService edge/missing that can be its delegate",
		"VirtualService/shop/nobodys@cluster1: spec.hosts: it has no effect: there are no hosts, and no VirtualService delegates to it",
		"VirtualService/shop/odd@cluster1: spec.hosts[0]: sidecars do not route by address 10.96.0.1",
		"VirtualService/shop/odd@cluster1: spec.hosts[1]: it has no effect in the mesh",
		"VirtualService/shop/odd@cluster1: spec.http[0].route[0].destination.port: alias.shop.svc.cluster.local has 2 ports, and the destination names none",
		"VirtualService/shop/private@cluster1: spec.hosts: it has no effect: there are no hosts, and no VirtualService delegates to it",
	})
}
