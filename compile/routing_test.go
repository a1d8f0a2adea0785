package compile

import (
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/carrick-mesh/carrick/mesh"
)

const client = `
cluster: cluster1
kind: Pod
metadata: {name: client-1, namespace: shop, labels: {app: client, security.istio.io/tlsMode: istio}}
status: {podIP: 10.0.0.1}
---
`

// compiled returns all that pod shop/client-1, which text has beside the objects given, gets.
func compiled(t *testing.T, meshConfig, objects string) *all {
	t.Helper()
	text := client + "kind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: '" + meshConfig + "'}\n---\n" + objects
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(text))...)
	for _, f := range s.Findings() {
		t.Error(f)
	}
	got := decode(t, New().Pass(s, []Proxy{ask(t, s, "sidecar cluster1/shop/client-1")})[0])
	x := &all{routes: map[string]*routev3.RouteConfiguration{}, listeners: map[string]*listenerv3.Listener{}}
	for name, m := range got["routes"] {
		x.routes[name] = m.(*routev3.RouteConfiguration)
	}
	for name, m := range got["listeners"] {
		x.listeners[name] = m.(*listenerv3.Listener)
	}
	for name := range got["clusters"] {
		x.clusters = append(x.clusters, name)
	}
	return x
}

type all struct {
	routes    map[string]*routev3.RouteConfiguration
	listeners map[string]*listenerv3.Listener
	clusters  []string
}

// host returns the virtual host of a table that has a domain, or nil.
func (a *all) host(table, domain string) *routev3.VirtualHost {
	for _, h := range a.routes[table].GetVirtualHosts() {
		if slices.Contains(h.Domains, domain) {
			return h
		}
	}
	return nil
}

// to returns the clusters that the routes of a virtual host lead to, in order, joined by spaces.
func to(h *routev3.VirtualHost) string {
	var clusters []string
	for _, r := range h.GetRoutes() {
		clusters = append(clusters, r.GetRoute().GetCluster())
	}
	return strings.Join(clusters, " ")
}

func tcpCluster(t *testing.T, c *listenerv3.FilterChain) string {
	t.Helper()
	p := &tcpv3.TcpProxy{}
	if err := c.Filters[len(c.Filters)-1].GetTypedConfig().UnmarshalTo(p); err != nil {
		t.Fatal(err)
	}
	return p.GetCluster()
}

// TestDefaultRetries: an answer of 503 is tried again, whoever gave it, as in Istio 1.15, until MeshConfig says when to
// try again.
func TestDefaultRetries(t *testing.T) {
	for config, want := range map[string][]uint32{
		"{}":                                    {503},
		"defaultHttpRetryPolicy: {attempts: 2}": {503},
		`defaultHttpRetryPolicy: {attempts: 2, retryOn: "connect-failure,refused"}`: nil,
	} {
		config = strings.ReplaceAll(config, ",refused", ",refused-stream")
		got := compiled(t, config, `
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: routed, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}
---
kind: VirtualService
metadata: {name: routed, namespace: shop}
spec: {hosts: [routed], http: [{route: [{destination: {host: web}}]}]}
`)
		for _, host := range []string{"web", "routed"} {
			p := got.host("80", host).Routes[0].GetRoute().GetRetryPolicy()
			if p.GetNumRetries().GetValue() != 2 || !slices.Equal(p.GetRetriableStatusCodes(), want) {
				t.Errorf("%q: %s is retried %v, want on statuses %v", config, host, p, want)
			}
		}
	}
}

// TestServerNames: where routes say which server names may be reached, no other one is under REGISTRY_ONLY.
func TestServerNames(t *testing.T) {
	for policy, want := range map[string]string{"ALLOW_ANY": "outbound|443||web.shop.svc.cluster.local", "REGISTRY_ONLY": "BlackHoleCluster"} {
		got := compiled(t, "outboundTrafficPolicy: {mode: "+policy+"}", `
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: tls, port: 443}, {name: tls-b, port: 444}]}
---
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], tls: [{match: [{port: 443, sniHosts: [a.example.com]}], route: [{destination: {host: web}}]}]}
`)
		if to := tcpCluster(t, got.listeners["10.96.0.1_443"].DefaultFilterChain); to != want {
			t.Errorf("%s: another name leads to %s, want %s", policy, to, want)
		}
		if to := tcpCluster(t, got.listeners["10.96.0.1_444"].FilterChains[0]); to != "outbound|444||web.shop.svc.cluster.local" {
			t.Errorf("%s: a port without routes leads to %s", policy, to)
		}
	}
}

// TestClusterDomain: Services are called as the DNS of their cluster calls them, if that is not cluster.local.
func TestClusterDomain(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1", Domain: "corp.internal"}).Apply(load(t, []byte(client+`
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: web.shop.svc.corp.internal}
---
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web.shop.svc.corp.internal], http: [{timeout: 1s, route: [{destination: {host: web}}]}]}
`))...)
	got := decode(t, New().Pass(s, []Proxy{ask(t, s, "sidecar cluster1/shop/client-1")})[0])
	const name = "outbound|80||web.shop.svc.corp.internal"
	if got["clusters"][name] == nil || got["endpoints"][name] == nil {
		t.Errorf("%s is missing", name)
	}
	a := &all{routes: map[string]*routev3.RouteConfiguration{"80": got["routes"]["80"].(*routev3.RouteConfiguration)}}
	for _, domain := range []string{"web", "web.shop.svc", "web.shop.svc.corp.internal", "alias.shop.svc.corp.internal"} {
		if h := a.host("80", domain); to(h) != name || h.Routes[0].GetRoute().GetTimeout().GetSeconds() != 1 {
			t.Errorf("%s leads to %q", domain, to(h))
		}
	}
	if f := Check(s, nil); len(f) > 0 {
		t.Error(f)
	}
}

// TestGRPCWeb: Envoy makes gRPC of gRPC-Web where a port speaks it; the built-in proxy does not know the filter.
func TestGRPCWeb(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(client+`
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: client}, ports: [{name: grpc-web, port: 80}, {name: grpc, port: 81}]}
---
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
ports: [{name: grpc-web, port: 80}]
endpoints: [{addresses: [10.0.0.1], targetRef: {name: client-1}}]
`))...)
	for _, tt := range []struct {
		dialect Dialect
		want    int
	}{{Envoy, 2}, {Carrick, 0}} {
		p := ask(t, s, "sidecar cluster1/shop/client-1")
		p.Dialect = tt.dialect
		l := decode(t, New().Pass(s, []Proxy{p})[0])["listeners"]["virtualInbound"].(*listenerv3.Listener)
		got := 0
		for _, c := range l.FilterChains {
			if strings.Contains(c.String(), "grpc_web") {
				if got++; c.FilterChainMatch.DestinationPort.GetValue() != 80 {
					t.Errorf("%v: %v", tt.dialect, c.FilterChainMatch)
				}
			}
		}
		if got != tt.want {
			t.Errorf("dialect %v: %d chains translate, want %d", tt.dialect, got, tt.want)
		}
	}
	compareFindings(t, "web", Check(s, nil), []string{"Service/shop/web@cluster1: spec.ports[0]: port 80 speaks gRPC-Web"})
}
