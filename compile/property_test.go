package compile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/test/envoytest"
)

// good is what must be served whatever else there is: host good in the mesh by its VirtualService, and
// good.example.com at the ingress gateway, and good at the gateway between networks.
const good = `
cluster: cluster1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: network1}}
---
kind: Service
metadata: {name: good, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: good}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]}
---
kind: Service
metadata: {name: other, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: other}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tls-x, port: 443}, {name: x, port: 7000}, {name: grpc, port: 7070}]}
---
kind: Service
metadata: {name: pets, namespace: shop}
spec: {clusterIP: None, selector: {app: other}, ports: [{name: tcp, port: 3306}, {name: http, port: 8080}]}
---
kind: EndpointSlice
metadata: {name: pets-1, namespace: shop, labels: {kubernetes.io/service-name: pets}}
ports: [{name: tcp, port: 3306}]
endpoints: [{addresses: [10.0.0.1], targetRef: {name: client-1}}]
---
kind: Pod
metadata: {name: client-1, namespace: shop, labels: {app: other, version: v1, security.istio.io/tlsMode: istio}}
status: {podIP: 10.0.0.1}
---
kind: Pod
metadata: {name: ingress-1, namespace: istio-system, labels: {istio: ingressgateway}}
status: {podIP: 10.0.0.2}
---
kind: Pod
metadata: {name: east-1, namespace: istio-system, labels: {istio: eastwestgateway}}
status: {podIP: 10.0.0.3}
---
kind: Gateway
metadata: {name: east, namespace: istio-system, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {selector: {istio: eastwestgateway}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, hosts: ['*.local'], tls: {mode: AUTO_PASSTHROUGH}}]}
---
kind: Gateway
metadata: {name: edge, namespace: istio-system, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
---
kind: VirtualService
metadata: {name: good, namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {hosts: [good, good.example.com], gateways: [mesh, istio-system/edge], http: [{route: [{destination: {host: good, port: {number: 80}}}]}]}
`

// seeds are objects that the generator changes at random places.
const seeds = `
cluster: cluster1
kind: VirtualService
metadata: {name: seed, creationTimestamp: "2026-02-01T00:00:00Z", namespace: shop}
spec:
  hosts: [other]
  gateways: [mesh, istio-system/edge]
  http:
  - name: a
    match: [{uri: {regex: '/a(.*)'}, headers: {x-a: {exact: b}}, queryParams: {q: {regex: 'x+'}}, ignoreUriCase: true, method: {exact: GET}, authority: {prefix: o}}]
    rewrite: {uriRegexRewrite: {match: '/a(.*)', rewrite: '/b\1'}}
    retries: {attempts: 2, perTryTimeout: 2s, retryOn: '5xx,503', backoff: 1s}
    timeout: 5s
    fault: {delay: {percentage: {value: 10}, fixedDelay: 1s}, abort: {percentage: {value: 1}, httpStatus: 503}}
    corsPolicy: {allowOrigins: [{exact: 'https://a'}, {regex: 'https://.*'}], allowMethods: [GET], maxAge: 10s}
    mirrors: [{destination: {host: other, port: {number: 80}}, percentage: {value: 5}}]
    headers: {request: {set: {x-b: '%REQ(x-a)%'}, add: {x-c: d}, remove: [x-d]}, response: {set: {x-e: f}}}
    route: [{destination: {host: other, port: {number: 80}, subset: v1}, weight: 20, headers: {request: {set: {x-f: g}}}}, {destination: {host: good, port: {number: 80}}, weight: 80}]
  - match: [{uri: {prefix: /r}}]
    redirect: {uri: /s, authority: example.com, port: 443, scheme: https, redirectCode: 302}
  - match: [{uri: {exact: /d}}]
    directResponse: {status: 200, body: {string: hello}}
  - route: [{destination: {host: other, port: {number: 80}}, headers: {response: {remove: [server]}}}]
    rewrite: {uri: /z, authority: z.example.com}
  tcp:
  - match: [{port: 7000, destinationSubnets: [10.96.0.0/16]}]
    route: [{destination: {host: other, port: {number: 7000}}, weight: 50}, {destination: {host: other, port: {number: 80}}, weight: 50}]
  tls:
  - match: [{port: 443, sniHosts: [a.example.com, '*.b.example.com']}]
    route: [{destination: {host: other, port: {number: 443}}}]
---
kind: VirtualService
metadata: {name: seed, creationTimestamp: "2026-02-01T00:00:00Z", namespace: shop}
spec:
  hosts: [pets, seed.example.com]
  gateways: [istio-system/edge, istio-system/seed, mesh]
  http: [{route: [{destination: {host: other, port: {number: 80}}}]}]
  tcp: [{route: [{destination: {host: pets, port: {number: 3306}}}]}]
  tls: [{match: [{sniHosts: [seed.example.com]}], route: [{destination: {host: other, port: {number: 443}}}]}]
---
kind: DestinationRule
metadata: {name: seed, creationTimestamp: "2026-02-01T00:00:00Z", namespace: shop}
spec:
  host: other
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 10, connectTimeout: 1s, tcpKeepalive: {probes: 3, time: 10s, interval: 1s}, maxConnectionDuration: 3600s}, http: {http1MaxPendingRequests: 1, http2MaxRequests: 5, maxRequestsPerConnection: 3, maxRetries: 2, idleTimeout: 5s, h2UpgradePolicy: UPGRADE}}
    outlierDetection: {consecutive5xxErrors: 3, interval: 5s, baseEjectionTime: 10s, maxEjectionPercent: 50, minHealthPercent: 10}
    loadBalancer: {consistentHash: {httpCookie: {name: c, path: /, ttl: 5s}, ringHash: {minimumRingSize: 100}}, localityLbSetting: {distribute: [{from: r/z/*, to: {r/z/*: 100}}]}}
    portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE, sni: a.example.com, subjectAltNames: [a.example.com], caCertificates: /ca.pem}}]
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, warmupDurationSecs: 10s}}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-h, maglev: {tableSize: 101}}}, tls: {mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, caCertificates: /ca.pem, subjectAltNames: [b]}}}
---
kind: DestinationRule
metadata: {name: seed-good, creationTimestamp: "2026-02-01T00:00:00Z", namespace: shop}
spec: {host: good, subsets: [{name: v1, labels: {version: v1}}], trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}, tls: {mode: ISTIO_MUTUAL}}}
---
kind: Gateway
metadata: {name: seed, creationTimestamp: "2026-02-01T00:00:00Z", namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [seed.example.com, '*.x.example.com'], tls: {mode: SIMPLE, credentialName: c, minProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256]}}
  - {port: {number: 444, name: tls, protocol: TLS}, hosts: [seed.example.com], tls: {mode: PASSTHROUGH}}
  - {port: {number: 445, name: tls, protocol: TLS}, hosts: ['*'], tls: {mode: MUTUAL, credentialName: c, subjectAltNames: [d]}}
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['shop/*.example.com'], tls: {httpsRedirect: true}}
  - {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}
---
kind: Gateway
metadata: {name: seed-east, creationTimestamp: "2026-02-01T00:00:00Z", namespace: istio-system}
spec: {selector: {istio: eastwestgateway}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, hosts: ['shop/*.local', '*.shop.svc.cluster.local'], tls: {mode: AUTO_PASSTHROUGH}}]}
---
kind: PeerAuthentication
metadata: {name: seed, creationTimestamp: "2026-02-01T00:00:00Z", namespace: shop}
spec: {selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}
`

// mutator changes messages at random, to values that are often wrong.
type mutator struct {
	*rand.Rand
	files pemFiles
}

// pemFiles are files of a pod that objects may name: what is in them is the pod's matter.
type pemFiles struct{ cert, key string }

func writePEM(t *testing.T) pemFiles {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(crand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := pemFiles{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	for name, b := range map[string]*pem.Block{f.cert: {Type: "CERTIFICATE", Bytes: cert}, f.key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// put makes the files that a message names ones that are there.
func (f pemFiles) put(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch name := string(fd.Name()); {
		case fd.Kind() == protoreflect.StringKind && slices.Contains([]string{"server_certificate", "client_certificate", "ca_certificates"}, name):
			m.Set(fd, protoreflect.ValueOfString(f.cert))
		case fd.Kind() == protoreflect.StringKind && name == "private_key":
			m.Set(fd, protoreflect.ValueOfString(f.key))
		case fd.Message() == nil || fd.IsMap():
		case fd.IsList():
			for i := range v.List().Len() {
				f.put(v.List().Get(i).Message())
			}
		default:
			f.put(v.Message())
		}
		return true
	})
}

func pickOf[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// text returns a value for a string field of that name.
func (m mutator) text(field string) string {
	switch {
	case field == "regex" || field == "match":
		return pickOf(m.Rand, "*", "", "[", "(?!a)b", ".*", "a{1001}", `\C`, `[\pL]{1000}`, `(?P<n>a)`, `(?<n>a)`, `\p{Any}`, `\p{LC}`, `\p{Letter}`, `\p{Cn}`, `\p{greek}`, `\Q\p{x}\E`, `\\p{x}`, `(?i)x`, `(a|b`, `\8`, `x{2,1}`,
			`(((a{30}){30}){30})`, `[[:word:]]`, `\Qa.b\E`, `\z`, `(?s).`, `\pN`, `\p{Greek}`, "é+", "(.*)", strings.Repeat("a", 5000), strings.Repeat("(a|b)", 500), `\b`, `[^\n]`, `\x{10FFFF}`, `(?U)a+`)
	case field == "rewrite":
		return pickOf(m.Rand, `\1`, `\9`, `\`, `\\`, `\a`, `/x`, "", `\0`, `$1`)
	case field == "host" || field == "hosts" || field == "sni_hosts" || field == "authority":
		return pickOf(m.Rand, "good", "other", "pets", "nobody", "*.example.com", "*", "*-x.example.com", "*x.example.com", "a.*.com", "", "UP.example.com", "a b", "10.0.0.1", "::1", "a.example.com:80", "x..y", "*.", "good.shop.svc.cluster.local", "*.local", "shop/a.example.com", strings.Repeat("a", 300), "é.example.com", "other.shop")
	case field == "name" || field == "subset":
		return pickOf(m.Rand, "v1", "V1", "v2", "", "*", "a b", "a|b", "x.y", "é", strings.Repeat("n", 100))
	case field == "gateways":
		return pickOf(m.Rand, "mesh", "istio-system/edge", "istio-system/seed", "nobody", "a/b/c", "")
	case field == "protocol":
		return pickOf(m.Rand, "HTTP", "HTTPS", "TLS", "TCP", "GRPC", "HTTP2", "MONGO", "", "x", "UDP")
	}
	return pickOf(m.Rand, "", "x", "a b", "%", "%%", "%REQ(x)%", "%REQ%", "%REQ()%", "%START_TIME%", "%PROTOCOL:3%", "%PROTOCOL(x)%", "%NOPE%", "%DYNAMIC_METADATA(a:b)%", "a\nb", "a\x00b", "a\rb",
		"é", ":path", ":authority", "host", "Host", "%2F", "/a/b", "x-a", "content-length", strings.Repeat("l", 20000), "10.0.0.0/8", "10.0.0.0/99", "503", "5xx", "https", "ECDHE-RSA-AES128-GCM-SHA256", "NULL-MD5", "%DOWNSTREAM_REMOTE_ADDRESS%", "%UPSTREAM_METADATA([\"a\",\"b\"])%", "r/z/*", "*", "UNAVAILABLE", "\xff")
}

// specOf returns what of a user's object the generator changes.
func specOf(o mesh.Object) proto.Message {
	switch o := o.(type) {
	case *mesh.VirtualService:
		return o.Spec
	case *mesh.DestinationRule:
		return o.Spec
	case *mesh.Gateway:
		return o.Spec
	case *mesh.PeerAuthentication:
		return o.Spec
	}
	return nil
}

// round is one mesh of the property test: some mutants beside the good objects.
type round struct {
	seed    uint64
	mutants []mesh.Object
	all     []map[string]map[string]proto.Message // what each node gets, decoded
}

func newRound(t *testing.T, seed uint64, files pemFiles) *round {
	r := &round{seed: seed}
	m := mutator{rand.New(rand.NewPCG(seed, 1)), files}
	events := load(t, []byte(good))
	from := load(t, []byte(seeds))
	for i := range 2 + m.IntN(4) {
		o := from[m.IntN(len(from))].Object
		o = load(t, []byte(seeds))[slices.IndexFunc(from, func(e mesh.Event) bool { return e.Object == o })].Object
		for range 1 + m.IntN(3) {
			m.mutate(specOf(o).ProtoReflect())
		}
		m.files.put(specOf(o).ProtoReflect())
		switch o := o.(type) {
		case *mesh.VirtualService:
			o.Name = fmt.Sprintf("m%d", i)
		case *mesh.DestinationRule:
			o.Name = fmt.Sprintf("m%d", i)
		case *mesh.Gateway:
			o.Name = fmt.Sprintf("m%d", i)
		case *mesh.PeerAuthentication:
			o.Name = fmt.Sprintf("m%d", i)
		}
		r.mutants = append(r.mutants, o)
		events = append(events, mesh.Event{Object: o})
	}
	r.compile(t, mesh.New(mesh.Settings{Cluster: "cluster1", Check: Trial}).Apply(events...))
	return r
}

// compile fills in what the nodes get, and checks it as far as that can be done without Envoy.
func (r *round) compile(t *testing.T, s *mesh.Snapshot) *Compiler {
	t.Helper()
	var proxies []Proxy
	for _, who := range []string{"sidecar cluster1/shop/client-1", "router cluster1/istio-system/ingress-1", "router cluster1/istio-system/east-1 network1"} {
		proxies = append(proxies, ask(t, s, who))
	}
	c := New()
	for i, b := range c.Pass(s, proxies) {
		r.all = append(r.all, decode(t, b))
		if err := builtinTakes(b); err != nil {
			t.Errorf("seed %d: the built-in proxy %d refuses: %v", r.seed, i, err)
		}
	}
	r.served(t)
	return c
}

// builtinTakes gives the built-in proxy all of a bundle.
func builtinTakes(b Bundle) error {
	var sources []config.Source
	for typeURL, l := range map[string]*resource.List{resource.ClusterType: b.Clusters, resource.EndpointType: b.Endpoints, resource.ListenerType: b.Listeners, resource.RouteType: b.Routes} {
		for x := range l.All() {
			sources = append(sources, config.Source{Type: typeURL, Resource: x})
		}
	}
	var c config.Compiler
	_, err := c.Compile(sources)
	return err
}

// served checks that the good hosts are, in each kind of node.
func (r *round) served(t *testing.T) {
	t.Helper()
	const cluster = "outbound|80||good.shop.svc.cluster.local"
	for i, want := range []struct{ table, domain string }{{"80", "good"}, {"http.80", "good.example.com"}} {
		table, _ := r.all[i]["routes"][want.table].(*routev3.RouteConfiguration)
		j := slices.IndexFunc(table.GetVirtualHosts(), func(h *routev3.VirtualHost) bool { return slices.Contains(h.Domains, want.domain) })
		if j < 0 {
			t.Errorf("seed %d: host %s is not in table %s", r.seed, want.domain, want.table)
			continue
		}
		if routes := table.VirtualHosts[j].Routes; len(routes) == 0 || routes[len(routes)-1].GetRoute().GetCluster() != cluster {
			t.Errorf("seed %d: host %s leads to %v", r.seed, want.domain, routes)
		}
	}
	const sni = "outbound_.80_._.good.shop.svc.cluster.local"
	east, _ := r.all[2]["listeners"]["0.0.0.0_15443"].(*listenerv3.Listener)
	if !slices.ContainsFunc(east.GetFilterChains(), func(c *listenerv3.FilterChain) bool {
		return slices.Contains(c.GetFilterChainMatch().GetServerNames(), sni)
	}) {
		t.Errorf("seed %d: the gateway between networks has no chain for %s", r.seed, sni)
	}
	for i, names := range [][]string{{"outbound|80||good.shop.svc.cluster.local"}, {"outbound|80||good.shop.svc.cluster.local"}, {sni}} {
		for _, n := range names {
			if r.all[i]["clusters"][n] == nil {
				t.Errorf("seed %d: node %d has no cluster %s", r.seed, i, n)
			}
		}
	}
}

// oneBootstrap makes static resources of all that the nodes of several rounds get, under names and addresses of
// their own.
func oneBootstrap(t *testing.T, rounds []*round) *bootstrapv3.Bootstrap {
	var out *bootstrapv3.Bootstrap
	port := uint32(1024)
	for _, r := range rounds {
		for i, all := range r.all {
			b := bootstrap(t, all)
			if out == nil {
				out = &bootstrapv3.Bootstrap{Node: b.Node, DynamicResources: b.DynamicResources, StaticResources: &bootstrapv3.Bootstrap_StaticResources{}}
				out.StaticResources.Clusters = slices.Clone(b.StaticResources.Clusters[:2])
				out.LayeredRuntime = &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{Name: "static", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{
					StaticLayer: fields("re2.max_program_size.error_level", text("32768")), // as the agent has it
				}}}}
			}
			prefix := fmt.Sprintf("seed %d node %d: ", r.seed, i)
			for _, c := range b.StaticResources.Clusters[2:] {
				c = proto.CloneOf(c)
				if c.LoadAssignment != nil && c.GetType() == clusterv3.Cluster_STATIC {
					c.LoadAssignment.ClusterName = prefix + c.Name
				}
				c.Name = prefix + c.Name
				out.StaticResources.Clusters = append(out.StaticResources.Clusters, c)
			}
			for _, l := range b.StaticResources.Listeners {
				l = proto.CloneOf(l)
				l.Name = prefix + l.Name
				l.Address, l.AdditionalAddresses = socketAddress(fmt.Sprintf("127.0.%d.%d", port>>8&255, port&255), 20000), nil
				port++
				out.StaticResources.Listeners = append(out.StaticResources.Listeners, l)
			}
		}
	}
	return out
}

func envoyTakes(t *testing.T, envoy string, rounds []*round) error {
	j, err := protojson.Marshal(oneBootstrap(t, rounds))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, j, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(envoy, "--mode", "validate", "-c", file, "--log-level", "error").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %.3000s", err, out)
	}
	return nil
}

// TestNothingBreaksWhatIsShared: whatever users write, right and wrong, genuine Envoy and the built-in proxy take all
// that comes of it, and the hosts of right objects are served. Each round is made again by its seed.
func TestNothingBreaksWhatIsShared(t *testing.T) {
	const first, n = 1, 60
	files := writePEM(t)
	var rounds []*round
	for seed := uint64(first); seed < first+n; seed++ {
		rounds = append(rounds, newRound(t, seed, files))
	}
	accepted, refused := 0, 0
	for _, r := range rounds {
		for _, o := range r.mutants {
			if s := mesh.New(mesh.Settings{Cluster: "cluster1", Check: Trial}).Apply(mesh.Event{Object: o}); len(s.Findings()) > 0 {
				refused++
			} else {
				accepted++
			}
		}
	}
	t.Logf("of the mutants %d are right by themselves, %d are not", accepted, refused)
	if accepted < n/3 || refused < n/3 {
		t.Error("the generator makes too many of one kind to say anything")
	}
	envoy := envoytest.Program(t)
	if err := envoyTakes(t, envoy, rounds); err != nil {
		for _, r := range rounds {
			if err := envoyTakes(t, envoy, []*round{r}); err != nil {
				t.Errorf("seed %d: %v\n%v", r.seed, err, r.mutants)
				return
			}
		}
		t.Error(err)
	}
}

// TestRegexStar: "*" is a glob that people write for a regular expression. Where it cannot mean "anything" it is refused by
// its field, and whatever else shares the port is served.
func TestRegexStar(t *testing.T) {
	var rounds []*round
	for field, spec := range map[string]string{
		"spec.http[0].match[0].uri.regex": "{hosts: [other], http: [{match: [{uri: {regex: '*'}}], route: [{destination: {host: other, port: {number: 80}}}]}]}",
		"":                                "{hosts: [other], http: [{corsPolicy: {allowOrigins: [{regex: '*'}]}, route: [{destination: {host: other, port: {number: 80}}}]}]}", // any origin
		"spec.http[0].rewrite.uriRegexRewrite.match":     "{hosts: [other], http: [{rewrite: {uriRegexRewrite: {match: '*', rewrite: /}}, route: [{destination: {host: other, port: {number: 80}}}]}]}",
		"spec.http[0].match[0].headers.x-a.regex":        "{hosts: [other], http: [{match: [{headers: {x-a: {regex: '**'}}}], route: [{destination: {host: other, port: {number: 80}}}]}]}",
		"spec.http[0].match[0].withoutHeaders.x-a.regex": "{hosts: [other], http: [{match: [{withoutHeaders: {x-a: {regex: '+'}}}], route: [{destination: {host: other, port: {number: 80}}}]}]}",
		"spec.http[0].match[0].queryParams.q.regex":      "{hosts: [other], http: [{match: [{queryParams: {q: {regex: '?'}}}], route: [{destination: {host: other, port: {number: 80}}}]}]}",
		"spec.http[0].match[0].uri.regex ":               "{hosts: [bad.example.com], gateways: [istio-system/edge], http: [{match: [{uri: {regex: '*'}}], route: [{destination: {host: other, port: {number: 80}}}]}]}",
	} {
		bad := "\n---\nkind: VirtualService\nmetadata: {name: bad, namespace: shop, creationTimestamp: \"2026-02-01T00:00:00Z\"}\nspec: " + spec
		s := mesh.New(mesh.Settings{Cluster: "cluster1", Check: Trial}).Apply(load(t, []byte(good+bad))...)
		if f := s.Findings(); field == "" && len(f) > 0 || field != "" && (len(f) != 1 || f[0].Field != strings.TrimSpace(field) || f[0].Object.Name != "bad") {
			t.Errorf("%s: found %v", field, f)
		}
		r := &round{seed: uint64(len(rounds))}
		r.compile(t, s)
		rounds = append(rounds, r)
	}
	if err := envoyTakes(t, envoytest.Program(t), rounds); err != nil {
		t.Error(err)
	}
}

// TestFragmentIsLeftOut: without the trial, an object that proxies would refuse loses its own fragment, is told of,
// and takes nothing else with it.
func TestFragmentIsLeftOut(t *testing.T) {
	var rounds []*round
	for name, spec := range refused {
		spec = strings.ReplaceAll(spec, "web", "other")
		spec = strings.Replace(spec, "hosts: [other]", "hosts: [other, bad.example.com], gateways: [mesh, istio-system/edge]", 1)
		kind, spec, _ := strings.Cut(spec, "\n")
		bad := "\n---\n" + kind + "\nmetadata: {name: bad, namespace: shop, creationTimestamp: \"2026-02-01T00:00:00Z\"}\n" + spec
		s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(good+bad))...)
		r := &round{seed: uint64(len(rounds))}
		faults := r.compile(t, s).Faults()
		built := name != "second match" && name != "maglev table of a subset" // which no proxy here has a use for
		if built && len(s.Findings()) == 0 && (len(faults) == 0 || faults[0].Object.Name != "bad") {
			t.Errorf("%s: faults %v", name, faults)
		}
		rounds = append(rounds, r)
	}
	if err := envoyTakes(t, envoytest.Program(t), rounds); err != nil {
		t.Error(err)
	}
}
