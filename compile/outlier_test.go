package compile

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/carrick-mesh/carrick/mesh"
)

// TestOutliersOfGateways: where another network's gateway stands for pods, its failures to connect count by
// themselves, as often as answers would; elsewhere they count as before.
func TestOutliersOfGateways(t *testing.T) {
	for name, c := range map[string]struct {
		rule        string
		local, most uint32 // of the wide cluster: bound of connect failures, and its enforcement
	}{
		"answers":  {"consecutive5xxErrors: 3", 3, 100},
		"gateway":  {"consecutive5xxErrors: 0, consecutiveGatewayErrors: 2", 2, 100},
		"lower":    {"consecutive5xxErrors: 7, consecutiveGatewayErrors: 2", 2, 100},
		"defaults": {"baseEjectionTime: 60s", 5, 100},
		"off":      {"consecutive5xxErrors: 0", 5, 0},
	} {
		s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: network1}}
---
cluster: cluster2
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: network2}}
---
cluster: cluster1
kind: Pod
metadata: {name: client-1, namespace: sample, labels: {app: client, security.istio.io/tlsMode: istio}}
status: {podIP: 10.0.0.1}
---
cluster: cluster1
kind: Service
metadata: {name: near, namespace: sample}
spec: {clusterIP: 10.96.0.1, selector: {app: client}, ports: [{name: http, port: 80}]}
---
cluster: cluster1
kind: Service
metadata: {name: far, namespace: sample}
spec: {clusterIP: 10.96.0.2, selector: {app: far}, ports: [{name: http, port: 80}]}
---
cluster: cluster2
kind: Service
metadata: {name: far, namespace: sample}
spec: {clusterIP: 10.96.0.2, selector: {app: far}, ports: [{name: http, port: 80}]}
---
cluster: cluster2
kind: Pod
metadata: {name: far-1, namespace: sample, labels: {app: far, security.istio.io/tlsMode: istio}}
status: {podIP: 10.0.0.1}
---
cluster: cluster2
kind: EndpointSlice
metadata: {name: far-x, namespace: sample, labels: {kubernetes.io/service-name: far}}
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: far-1, namespace: sample}}]
---
cluster: cluster1
kind: DestinationRule
metadata: {name: far, namespace: sample}
spec: {host: far, trafficPolicy: {outlierDetection: {`+c.rule+`}}}
---
cluster: cluster1
kind: DestinationRule
metadata: {name: near, namespace: sample}
spec: {host: near, trafficPolicy: {outlierDetection: {`+c.rule+`}}}
`))...)
		got := decode(t, New().Pass(s, []Proxy{ask(t, s, "sidecar cluster1/sample/client-1")})[0])["clusters"]
		near := got["outbound|80||near.sample.svc.cluster.local"].(*clusterv3.Cluster).OutlierDetection
		far := got["outbound|80||far.sample.svc.cluster.local"].(*clusterv3.Cluster).OutlierDetection
		if near.SplitExternalLocalOriginErrors || !far.SplitExternalLocalOriginErrors {
			t.Errorf("%s: split near %v, far %v", name, near.SplitExternalLocalOriginErrors, far.SplitExternalLocalOriginErrors)
		}
		local, most := uint32(5), uint32(100) // Envoy's defaults
		if v := far.ConsecutiveLocalOriginFailure; v != nil {
			local = v.Value
		}
		if v := far.EnforcingConsecutiveLocalOriginFailure; v != nil {
			most = v.Value
		}
		if local != c.local || most != c.most {
			t.Errorf("%s: %d connect failures, enforced by %d %%, want %d and %d", name, local, most, c.local, c.most)
		}
	}
}
