package compile

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/carrick-mesh/carrick/mesh"
)

// TestDestinationSubnets: a match by subnets is for those addresses of a Service that are in one of them.
func TestDestinationSubnets(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: Pod
metadata: {name: client-1, namespace: sample, labels: {security.istio.io/tlsMode: istio}}
status: {podIP: "10.0.0.1,fd00::1"}
---
kind: Service
metadata: {name: db, namespace: sample}
spec: {clusterIP: "10.96.0.1,fd00:96::1", ports: [{name: tcp, port: 3306}, {name: tls, port: 443}]}
---
kind: Service
metadata: {name: other, namespace: sample}
spec: {clusterIP: 10.96.0.2, ports: [{name: tcp, port: 3306}, {name: tls, port: 443}]}
---
kind: VirtualService
metadata: {name: db, namespace: sample}
spec:
  hosts: [db]
  gateways: [mesh, edge]
  tcp:
  - match: [{port: 3306, destinationSubnets: [192.0.2.0/24]}, {port: 3306, destinationSubnets: [198.51.100.0/24, "10.96.0.0/30"]}]
    route: [{destination: {host: other, port: {number: 3306}}}]
  tls:
  - match: [{sniHosts: [a.example.com], destinationSubnets: ["fd00:96::1"]}]
    route: [{destination: {host: other, port: {number: 443}}}]
`))...)
	got := decode(t, New().Pass(s, []Proxy{ask(t, s, "sidecar cluster1/sample/client-1")})[0])
	to := func(c *listenerv3.FilterChain) string {
		t.Helper()
		p := &tcpv3.TcpProxy{}
		if err := c.Filters[len(c.Filters)-1].GetTypedConfig().UnmarshalTo(p); err != nil {
			t.Fatal(err)
		}
		return p.GetCluster()
	}
	const db, other = ".sample.svc.cluster.local", "other.sample.svc.cluster.local"
	for name, want := range map[string]string{"10.96.0.1_3306": "outbound|3306||" + other, "fd00:96::1_3306": "outbound|3306||db" + db} {
		if l := got["listeners"][name].(*listenerv3.Listener); to(l.FilterChains[0]) != want {
			t.Errorf("%s leads to %s, want %s", name, to(l.FilterChains[0]), want)
		}
	}
	if l := got["listeners"]["10.96.0.1_443"].(*listenerv3.Listener); len(l.FilterChains) != 1 || to(l.FilterChains[0]) != "outbound|443||db"+db {
		t.Errorf("TLS to the other address: %v", l)
	}
	l := got["listeners"]["fd00:96::1_443"].(*listenerv3.Listener)
	if len(l.FilterChains) != 1 || l.FilterChains[0].FilterChainMatch.ServerNames[0] != "a.example.com" || to(l.FilterChains[0]) != "outbound|443||"+other {
		t.Errorf("TLS to the address that is named: %v", l)
	}
	compareFindings(t, "subnets", Check(s, nil), []string{
		"VirtualService/sample/db@cluster1: spec.gateways[1]: Gateway sample/edge does not exist",
		"VirtualService/sample/db@cluster1: spec.tcp[0].match[0].destinationSubnets: it has no effect at gateways",
		"VirtualService/sample/db@cluster1: spec.tcp[0].match[1].destinationSubnets: it has no effect at gateways",
		"VirtualService/sample/db@cluster1: spec.tls[0].match[0].destinationSubnets: it has no effect at gateways",
	})
}

// TestRuleCredential: a rule that has clients originate TLS with a Secret is for gateways. A sidecar would
// wait for it for ever; it goes on in plaintext, and the rule says so.
func TestRuleCredential(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: Pod
metadata: {name: client-1, namespace: sample, labels: {security.istio.io/tlsMode: istio}}
status: {podIP: 10.0.0.1}
---
kind: Pod
metadata: {name: gw-1, namespace: edge, labels: {istio: egress}}
status: {podIP: 10.0.0.2}
---
kind: Service
metadata: {name: bank, namespace: sample}
spec: {clusterIP: 10.96.0.1, ports: [{name: tcp, port: 80}]}
---
kind: DestinationRule
metadata: {name: bank, namespace: sample}
spec:
  host: bank
  trafficPolicy:
    portLevelSettings:
    - port: {number: 80}
      tls: {mode: MUTUAL, credentialName: bank, sni: bank.example.com}
`))...)
	bundles := New().Pass(s, []Proxy{ask(t, s, "sidecar cluster1/sample/client-1"), ask(t, s, "router cluster1/edge/gw-1")})
	const name = "outbound|80||bank.sample.svc.cluster.local"
	if c := decode(t, bundles[0])["clusters"][name].(*clusterv3.Cluster); c.TransportSocket != nil || c.TransportSocketMatches != nil {
		t.Errorf("a sidecar gets %v", c)
	}
	tls := &tlsv3.UpstreamTlsContext{}
	if err := decode(t, bundles[1])["clusters"][name].(*clusterv3.Cluster).TransportSocket.GetTypedConfig().UnmarshalTo(tls); err != nil {
		t.Fatal(err)
	}
	if n := tls.CommonTlsContext.TlsCertificateSdsSecretConfigs[0].Name; n != "kubernetes://bank" {
		t.Errorf("a gateway gets the Secret %s", n)
	}
	compareFindings(t, "credential", Check(s, nil), []string{
		"DestinationRule/sample/bank@cluster1: spec.trafficPolicy.portLevelSettings[0].tls.credentialName: sidecars may not read Secrets, so their connections to bank.sample.svc.cluster.local are plaintext",
	})
}

// TestUpgrade: which ports get HTTP/2, whatever their clients speak.
func TestUpgrade(t *testing.T) {
	const objects = `
cluster: cluster1
kind: Pod
metadata: {name: client-1, namespace: sample}
status: {podIP: 10.0.0.1}
---
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "h2UpgradePolicy: MESH"}
---
kind: Service
metadata: {name: web, namespace: sample}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: any, port: 81}, {name: tcp, port: 82}]}
---
kind: DestinationRule
metadata: {name: web, namespace: sample}
spec:
  host: web
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: RULE}}}
`
	for _, tt := range []struct {
		mesh, rule string
		http, auto bool
	}{
		{"DO_NOT_UPGRADE", "DEFAULT", false, false},
		{"DO_NOT_UPGRADE", "UPGRADE", true, true},
		{"UPGRADE", "DEFAULT", true, false},
		{"UPGRADE", "DO_NOT_UPGRADE", false, false},
	} {
		text := strings.NewReplacer("MESH", tt.mesh, "RULE", tt.rule).Replace(objects)
		s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(text))...)
		got := decode(t, New().Pass(s, []Proxy{ask(t, s, "sidecar cluster1/sample/client-1")})[0])["clusters"]
		upgraded := func(port string) bool {
			t.Helper()
			c := got["outbound|"+port+"||web.sample.svc.cluster.local"].(*clusterv3.Cluster)
			a := c.TypedExtensionProtocolOptions[httpOptions]
			if a == nil {
				return false
			}
			o := &httpv3.HttpProtocolOptions{}
			if err := a.UnmarshalTo(o); err != nil {
				t.Fatal(err)
			}
			return o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil
		}
		if upgraded("80") != tt.http || upgraded("81") != tt.auto || upgraded("82") {
			t.Errorf("mesh %s, rule %s: port http %v, any %v, tcp %v", tt.mesh, tt.rule, upgraded("80"), upgraded("81"), upgraded("82"))
		}
	}
}

// TestWorkloadSelector: a rule with a workloadSelector holds for the workloads of its own namespace that it selects;
// for the others holds what would hold without it.
func TestWorkloadSelector(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: Pod
metadata: {name: a-1, namespace: clients, labels: {app: a, version: v1}}
status: {podIP: 10.0.0.1}
---
kind: Pod
metadata: {name: b-1, namespace: clients, labels: {app: b}}
status: {podIP: 10.0.0.2}
---
kind: Pod
metadata: {name: a-1, namespace: others, labels: {app: a}}
status: {podIP: 10.0.0.3}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v2}}
status: {podIP: 10.0.0.4}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.4], targetRef: {name: web-1}}]
---
kind: DestinationRule
metadata: {name: everyone, namespace: shop}
spec: {host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}
---
kind: DestinationRule
metadata: {name: only-a, namespace: clients}
spec:
  host: web.shop.svc.cluster.local
  workloadSelector: {matchLabels: {app: a}}
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
  subsets: [{name: v2, labels: {version: v2}}]
`))...)
	const host = "web.shop.svc.cluster.local"
	for _, tt := range []struct {
		ask, rule string
		subset    bool
		hash      int
	}{
		{"sidecar cluster1/clients/a-1", "clients/destination-rule/only-a", true, 1},
		{"sidecar cluster1/clients/b-1", "shop/destination-rule/everyone", false, 0},
		{"sidecar cluster1/others/a-1", "shop/destination-rule/everyone", false, 0},
	} {
		got := decode(t, New().Pass(s, []Proxy{ask(t, s, tt.ask)})[0])
		c := got["clusters"]["outbound|80||"+host].(*clusterv3.Cluster)
		if rule := c.Metadata.FilterMetadata["istio"].Fields["config"].GetStringValue(); !strings.HasSuffix(rule, "/namespaces/"+tt.rule) {
			t.Errorf("%s: the cluster is of %s, want %s", tt.ask, rule, tt.rule)
		}
		for _, kind := range []string{"clusters", "endpoints"} {
			if found := got[kind]["outbound|80|v2|"+host] != nil; found != tt.subset {
				t.Errorf("%s: %s of the subset: %v, want %v", tt.ask, kind, found, tt.subset)
			}
		}
		var hashes int
		for _, h := range got["routes"]["80"].(*routev3.RouteConfiguration).VirtualHosts {
			if h.Name == host+":80" {
				hashes = len(h.Routes[0].GetRoute().GetHashPolicy())
			}
		}
		if hashes != tt.hash {
			t.Errorf("%s: %d hash policies, want %d", tt.ask, hashes, tt.hash)
		}
	}
}
