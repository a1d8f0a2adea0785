package mesh

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	"sigs.k8s.io/yaml"
)

func fromYAML(t testing.TB, text string, m proto.Message) {
	t.Helper()
	j, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = protojson.Unmarshal(j, m)
	}
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// What a proxy would refuse a whole resource for is refused here, by the field's name.
func TestValidate(t *testing.T) {
	const dest = "route: [{destination: {host: a}}]"
	meta := Meta{Cluster: "c1", Namespace: "ns", Name: "x"}
	for _, c := range []struct{ kind, spec, field string }{
		{"vs", "{hosts: [a], http: [{" + dest + "}]}", ""},
		{"vs", "{hosts: ['*.example.com', 'a.b'], gateways: [gw, ns/gw, mesh], http: [{match: [{uri: {regex: '/a.*'}}], " + dest + "}]}", ""},
		{"vs", "{hosts: [], http: [{" + dest + "}]}", ""}, // a delegate
		{"vs", "{gateways: [g], http: [{" + dest + "}]}", "spec.gateways"},
		{"vs", "{tcp: [{" + dest + "}]}", "spec.tcp"},
		{"vs", "{http: [{delegate: {name: b}}]}", "spec.http[0].delegate"},
		{"vs", "{hosts: [a], http: [{delegate: {name: b}}]}", ""},
		{"vs", "{hosts: [a], http: [{delegate: {namespace: b}}]}", "spec.http[0].delegate.name"},
		{"vs", "{hosts: [a], http: [{delegate: {name: b}, " + dest + "}]}", "spec.http[0].delegate"},
		{"vs", "{hosts: ['*-preview.example.com'], http: [{" + dest + "}]}", ""},
		{"vs", "{hosts: ['a*.example.com'], http: [{" + dest + "}]}", "spec.hosts[0]"},
		{"vs", "{hosts: [a], http: [{match: [{uri: {regex: '^/(?!admin).*$'}}], " + dest + "}]}", "spec.http[0].match[0].uri.regex"},
		{"vs", "{hosts: [a], http: [{route: [{weight: 100}]}]}", "spec.http[0].route[0].destination.host"},
		{"vs", "{hosts: [a], tcp: [{route: [{destination: null}]}]}", "spec.tcp[0].route[0].destination.host"},
		{"vs", "{hosts: [a], http: [{headers: {response: {set: {csp: 'report-uri /csp?d=100%25'}}}, " + dest + "}]}", "spec.http[0].headers.response.set.csp"},
		{"vs", "{hosts: [a], http: [{match: [{headers: {'@request.auth.claims.group': {exact: b}}}], " + dest + "}]}", ""},
		{"vs", "{hosts: [a], http: [{match: [{headers: {'a@b': {exact: b}}}], " + dest + "}]}", "spec.http[0].match[0].headers.a@b"},
		{"vs", "{hosts: [a], tls: [{match: [{sniHosts: ['*-preview.example.com']}], " + dest + "}]}", "spec.tls[0].match[0].sniHosts[0]"},
		{"vs", "{hosts: ['a b'], http: [{" + dest + "}]}", "spec.hosts[0]"},
		{"vs", "{hosts: [a]}", "spec"},
		{"vs", "{hosts: [a], http: [{}]}", "spec.http[0]"},
		{"vs", "{hosts: [a], http: [{match: [{uri: {regex: '['}}], " + dest + "}]}", "spec.http[0].match[0].uri.regex"},
		{"vs", "{hosts: [a], http: [{match: [{uri: {regex: '*'}}], " + dest + "}]}", "spec.http[0].match[0].uri.regex"},
		{"vs", "{hosts: [a], http: [{match: [{uri: {regex: ''}}], " + dest + "}]}", "spec.http[0].match[0].uri.regex"},
		{"vs", "{hosts: [a], http: [{match: [{headers: {x: {regex: '*'}}}], " + dest + "}]}", ""},
		{"vs", "{hosts: [a], http: [{corsPolicy: {allowOrigins: [{regex: '*'}]}, " + dest + "}]}", ""},
		{"vs", "{hosts: [a], http: [{timeout: 9223372036s, " + dest + "}]}", "spec.http[0].timeout"},
		{"dr", "{host: a, subsets: [{name: '*'}]}", "spec.subsets[0].name"},
		{"dr", "{host: a, subsets: [{name: v1}, {name: V1}]}", "spec.subsets[1].name"},
		{"vs", "{hosts: [a], http: [{match: [{headers: {'a b': {exact: c}}}], " + dest + "}]}", "spec.http[0].match[0].headers.a b"},
		{"vs", "{hosts: [a], http: [{route: [{destination: {host: a, port: {number: 70000}}}]}]}", "spec.http[0].route[0].destination.port.number"},
		{"vs", "{hosts: [a], http: [{route: [{destination: {host: a}, weight: -1}]}]}", "spec.http[0].route[0].weight"},
		{"vs", "{hosts: [a], http: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}", "spec.http[0].route[0].weight"},
		{"vs", "{hosts: [a], tcp: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}", "spec.tcp[0].route[0].weight"},
		{"vs", "{hosts: [a], http: [{timeout: 0.0001s, " + dest + "}]}", "spec.http[0].timeout"},
		{"vs", "{hosts: [a], http: [{retries: {attempts: 2, retryOn: 'often'}, " + dest + "}]}", "spec.http[0].retries.retryOn"},
		{"vs", "{hosts: [a], http: [{retries: {attempts: 2, retryOn: '5xx,503'}, " + dest + "}]}", ""},
		{"vs", "{hosts: [a], http: [{fault: {abort: {httpStatus: 42}}, " + dest + "}]}", "spec.http[0].fault.abort.httpStatus"},
		{"vs", "{hosts: [a], http: [{fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}, " + dest + "}]}", "spec.http[0].fault.delay.percentage"},
		{"vs", "{hosts: [a], http: [{headers: {request: {set: {x: '%NO_SUCH%'}}}, " + dest + "}]}", "spec.http[0].headers.request.set.x"},
		{"vs", "{hosts: [a], http: [{redirect: {uri: /b, redirectCode: 200}}]}", "spec.http[0].redirect.redirectCode"},
		{"vs", "{hosts: [a], http: [{redirect: {uri: /b}, " + dest + "}]}", "spec.http[0]"},
		{"vs", "{hosts: [a], tls: [{match: [{}], " + dest + "}]}", "spec.tls[0].match[0].sniHosts"},
		{"dr", "{host: a, subsets: [{name: v1, labels: {version: v1}}]}", ""},
		{"dr", "{host: ''}", "spec.host"},
		{"dr", "{host: a, workloadSelector: {matchLabels: {app: b}}, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}", ""},
		{"dr", "{host: a, workloadSelector: {matchLabels: {app: b}}, subsets: [{name: v1, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}}]}", "spec.subsets[0].trafficPolicy.tls.credentialName"},
		{"dr", "{host: a, subsets: [{name: v1}, {name: v1}]}", "spec.subsets[1].name"},
		{"dr", "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {}}}}", "spec.trafficPolicy.loadBalancer.consistentHash"},
		{"dr", "{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}", "spec.trafficPolicy.tls"},
		{"dr", "{host: a, trafficPolicy: {outlierDetection: {interval: 0s}}}", "spec.trafficPolicy.outlierDetection.interval"},
		{"dr", "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 0}}]}}", "spec.trafficPolicy.portLevelSettings[0].port.number"},
		{"gw", "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}", ""},
		{"gw", "{servers: [{port: {number: 80, name: http, protocol: HTTTP}, hosts: ['*']}]}", "spec.servers[0].port.protocol"},
		{"gw", "{servers: [{port: {number: 0, name: http, protocol: HTTP}, hosts: ['*']}]}", "spec.servers[0].port.number"},
		{"gw", "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*']}]}", "spec.servers[0].tls"},
		{"gw", "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE}}]}", "spec.servers[0].tls.credentialName"},
		{"gw", "{servers: [{port: {number: 15443, name: tls, protocol: TLS}, hosts: ['*.local'], tls: {mode: AUTO_PASSTHROUGH}}]}", ""},
		{"gw", "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], bind: 127.0.0.1}]}", ""},
		{"gw", "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], bind: localhost}]}", "spec.servers[0].bind"},
		{"gw", "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: MUTUAL, credentialNames: [a, b]}}]}", ""},
		{"gw", "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: a, credentialNames: [b]}}]}", "spec.servers[0].tls.credentialNames"},
		{"gw", "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: /c, privateKey: /k}]}}]}", ""},
		{"gw", "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: /c}]}}]}", "spec.servers[0].tls.tlsCertificates[0]"},
		{"gw", "{servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: MUTUAL, tlsCertificates: [{serverCertificate: /c, privateKey: /k}]}}]}", "spec.servers[0].tls.caCertificates"},
		{"dr", "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [version]}, warmup: {duration: 10s}}}}", ""},
		{"dr", "{host: a, trafficPolicy: {loadBalancer: {warmup: {}}}}", "spec.trafficPolicy.loadBalancer.warmup.duration"},
		{"dr", "{host: a, trafficPolicy: {loadBalancer: {warmup: {duration: 10s, aggression: 0}}}}", "spec.trafficPolicy.loadBalancer.warmup.aggression"},
		{"dr", "{host: a, trafficPolicy: {connectionPool: {http: {http2KeepAlive: {interval: 1s}}}}}", "spec.trafficPolicy.connectionPool.http.http2KeepAlive"},
		{"dr", "{host: a, trafficPolicy: {connectionPool: {http: {maxConcurrentStreams: -1}}}}", "spec.trafficPolicy.connectionPool.http.maxConcurrentStreams"},
		{"dr", "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: c, attributes: [{name: Path, value: '/; Domain=x'}]}}}}}", "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[0]"},
		{"mc", "{accessLogFormat: '%UPSTREAM_WIRE_BYTES_SENT% %DOWNSTREAM_HEADER_BYTES_SENT% %GRPC_STATUS(NUMBER)%'}", ""},
		{"mc", "{accessLogFormat: '%UPSTREAM_HOST_NAME%'}", "accessLogFormat"},
		{"mc", "{accessLogFormat: '%DURATION(a)%'}", "accessLogFormat"},
		{"mc", "{accessLogFormat: '%REQ%'}", "accessLogFormat"},
		{"mc", "{defaultTrafficPolicy: {outlierDetection: {interval: 0s}}}", "defaultTrafficPolicy.outlierDetection.interval"},
		{"mc", "{discoverySelectors: [{matchExpressions: [{key: a, operator: Is}]}]}", "discoverySelectors[0].matchExpressions[0].operator"},
		{"pa", "{mtls: {mode: STRICT}}", ""},
		{"pa", "{portLevelMtls: {80: {mode: STRICT}}}", "spec.portLevelMtls"},
		{"mc", "{accessLogFile: /dev/stdout, accessLogFormat: '%REQ(:METHOD)% %START_TIME(%Y-%m)% 100%%'}", ""},
		{"mc", "{accessLogFormat: '%REQ(:METHOD'}", "accessLogFormat"},
		{"mc", "{accessLogFormat: '%METHOD%'}", "accessLogFormat"},
		{"mc", "{accessLogEncoding: JSON, accessLogFormat: '{}}'}", "accessLogFormat"},
	} {
		var o Object
		switch c.kind {
		case "vs":
			x := &VirtualService{Meta: meta, Spec: &networking.VirtualService{}}
			fromYAML(t, c.spec, x.Spec)
			o = x
		case "dr":
			x := &DestinationRule{Meta: meta, Spec: &networking.DestinationRule{}}
			fromYAML(t, c.spec, x.Spec)
			o = x
		case "gw":
			x := &Gateway{Meta: meta, Spec: &networking.Gateway{}}
			fromYAML(t, c.spec, x.Spec)
			o = x
		case "pa":
			x := &PeerAuthentication{Meta: meta, Spec: &security.PeerAuthentication{}}
			fromYAML(t, c.spec, x.Spec)
			o = x
		case "mc":
			x := &MeshConfig{Cluster: "c1", Spec: &meshconfig.MeshConfig{}}
			fromYAML(t, c.spec, x.Spec)
			o = x
		}
		found := validate(o)
		switch {
		case c.field == "" && len(found) > 0:
			t.Errorf("%s: %v", c.spec, found)
		case c.field != "" && (len(found) != 1 || found[0].Field != c.field || found[0].Message == "" || found[0].Fix == ""):
			t.Errorf("%s: found %v, want field %s", c.spec, found, c.field)
		}
	}
}

// A bad object changes nothing: what the mesh held of it stays, until it is good again or gone.
func TestLastGoodStays(t *testing.T) {
	rule := func(host, subset string) *DestinationRule {
		return &DestinationRule{Meta: Meta{Cluster: "c1", Namespace: "sample", Name: "r"}, Spec: &networking.DestinationRule{
			Host: host, Subsets: []*networking.Subset{{Name: subset}}}}
	}
	s := New(Settings{Cluster: "c1"}).Apply(set(svc("c1", "sample", "a"), rule("a", "v1"))...)
	bad := s.Apply(set(rule("a", "v 2"))...)
	if f := bad.Findings(); len(f) != 1 || f[0].Field != "spec.subsets[0].name" || !strings.Contains(f[0].String(), "DestinationRule/sample/r@c1") {
		t.Errorf("findings %v", f)
	}
	if r := bad.Host("a.sample.svc.cluster.local").Rules; len(r) != 1 || r[0].Spec.Subsets[0].Name != "v1" {
		t.Errorf("rules %v", r)
	}
	good := bad.Apply(set(rule("a", "v3"))...)
	if r := good.Host("a.sample.svc.cluster.local").Rules; len(good.Findings()) != 0 || r[0].Spec.Subsets[0].Name != "v3" {
		t.Errorf("findings %v, rules %v", good.Findings(), r)
	}
	gone := bad.Apply(Gone(rule("a", "").Key()))
	if len(gone.Findings()) != 0 || len(gone.Host("a.sample.svc.cluster.local").Rules) != 0 {
		t.Errorf("gone: findings %v", gone.Findings())
	}
}
