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
	})
}
