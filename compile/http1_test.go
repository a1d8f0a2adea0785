package compile

import (
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/carrick-mesh/carrick/mesh"
)

// HTTP/1.0, header case and the idle timeout are a proxy's own: its owner asks for them on the pod.
func TestHTTP1OfAProxy(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: Pod
metadata: {name: client-1, namespace: sample, labels: {app: web, security.istio.io/tlsMode: istio}}
status: {podIP: 10.0.0.1}
---
kind: Service
metadata: {name: web, namespace: sample}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: tcp, port: 3306}]}
`))...)
	plain := ask(t, s, "sidecar cluster1/sample/client-1")
	asked := plain
	asked.HTTP1 = HTTP1{Accept10: true, KeepCase: true, Idle: 7 * time.Minute}
	bundles := New().Pass(s, []Proxy{plain, asked})
	for i, want := range []bool{false, true} {
		got := decode(t, bundles[i])
		managers, tcps := 0, 0
		for name, l := range got["listeners"] {
			for _, c := range append(l.(*listenerv3.Listener).FilterChains, l.(*listenerv3.Listener).DefaultFilterChain) {
				for _, f := range c.GetFilters() {
					m, p := &hcmv3.HttpConnectionManager{}, &tcpv3.TcpProxy{}
					switch {
					case f.GetTypedConfig().UnmarshalTo(m) == nil:
						managers++
						o := m.GetHttpProtocolOptions()
						if o.GetAcceptHttp_10() != want || (o.GetHeaderKeyFormat() != nil) != want || (m.GetCommonHttpProtocolOptions().GetIdleTimeout().AsDuration() == 7*time.Minute) != want {
							t.Errorf("%s: %v, %v", name, o, m.GetCommonHttpProtocolOptions())
						}
					case f.GetTypedConfig().UnmarshalTo(p) == nil && p.GetCluster() != blackHole:
						tcps++
						if (p.GetIdleTimeout().AsDuration() == 7*time.Minute) != want {
							t.Errorf("%s: %v", name, p)
						}
					}
				}
			}
		}
		if managers == 0 || tcps == 0 {
			t.Errorf("%d connection managers, %d TCP proxies", managers, tcps)
		}
		for _, name := range []string{"outbound|80||web.sample.svc.cluster.local", "inbound|80||"} {
			o := &httpv3.HttpProtocolOptions{}
			if a := got["clusters"][name].(*clusterv3.Cluster).TypedExtensionProtocolOptions[httpOptions]; a != nil {
				if err := a.UnmarshalTo(o); err != nil {
					t.Fatal(err)
				}
			}
			if f := o.GetExplicitHttpConfig().GetHttpProtocolOptions().GetHeaderKeyFormat(); (f != nil) != want {
				t.Errorf("%s: %v", name, o)
			}
		}
	}
}
