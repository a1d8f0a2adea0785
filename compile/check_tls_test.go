package compile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/mesh"
)

// pair is a certificate and its key in PEM.
type pair struct{ cert, key []byte }

func newPair(t *testing.T, until time.Time) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: until.Add(-48 * time.Hour), NotAfter: until, DNSNames: []string{"a.example.com"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})}
}

// A Secret that a gateway cannot serve with is told of, by what is wrong with it and never by what is in it.
func TestCheckSecrets(t *testing.T) {
	good, other, old := newPair(t, time.Now().Add(time.Hour)), newPair(t, time.Now().Add(time.Hour)), newPair(t, time.Now().Add(-time.Hour))
	objects := func(tls string) []mesh.Event {
		return load(t, []byte(strings.ReplaceAll(`
cluster: cluster1
kind: Pod
metadata: {name: gw, namespace: edge, labels: {istio: gw}}
status: {podIP: 10.1.0.1}
---
kind: Gateway
metadata: {name: web, namespace: edge}
spec:
  selector: {istio: gw}
  servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: [a.example.com], tls: TLS}]
`, "TLS", tls)))
	}
	const simple, mutual = "{mode: SIMPLE, credentialName: c}", "{mode: MUTUAL, credentialName: c}"
	for _, c := range []struct {
		name, tls string
		secret    *mesh.Credential
		want      string // begins the finding; "" for none
	}{
		{"good", simple, &mesh.Credential{Cert: good.cert, PrivateKey: good.key}, ""},
		{"no Secret", simple, nil, "spec.servers[0].tls.credentialName: namespace edge of the gateway has no Secret c"},
		{"another key", simple, &mesh.Credential{Cert: good.cert, PrivateKey: other.key}, "spec.servers[0].tls.credentialName: Secret edge/c: its certificate and key cannot be used"},
		{"garbage", simple, &mesh.Credential{Cert: []byte("junk"), PrivateKey: []byte("junk")}, "spec.servers[0].tls.credentialName: Secret edge/c: its certificate holds no PEM block of type CERTIFICATE"},
		{"wrong order", simple, &mesh.Credential{Cert: slices.Concat(other.cert, good.cert), PrivateKey: good.key}, "spec.servers[0].tls.credentialName: Secret edge/c: its chain is in the wrong order: the key is that of certificate 2"},
		{"expired", simple, &mesh.Credential{Cert: old.cert, PrivateKey: old.key}, "spec.servers[0].tls.credentialName: Secret edge/c: its certificate expired at"},
		{"MUTUAL without roots", mutual, &mesh.Credential{Cert: good.cert, PrivateKey: good.key}, "spec.servers[0].tls.credentialName: mode MUTUAL needs roots for clients"},
		{"MUTUAL", mutual, &mesh.Credential{Cert: good.cert, PrivateKey: good.key, CA: good.cert}, ""},
		{"pins that nothing is compared with", "{mode: SIMPLE, credentialName: c, verifyCertificateHash: [ab]}", &mesh.Credential{Cert: good.cert, PrivateKey: good.key}, "spec.servers[0].tls.verifyCertificateHash: mode SIMPLE asks clients for no certificate"},
		{"roots of a ConfigMap", "{mode: MUTUAL, credentialName: c, caCertCredentialName: 'configmap://x'}", &mesh.Credential{Cert: good.cert, PrivateKey: good.key}, "spec.servers[0].tls.caCertCredentialName: configmap://x is not read"},
	} {
		events := objects(c.tls)
		if c.secret != nil {
			c.secret.Cluster, c.secret.Namespace, c.secret.Name = "cluster1", "edge", "c"
			events = append(events, mesh.Event{Object: c.secret})
		}
		found := Check(mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(events...), nil)
		var want []string
		if c.want != "" {
			want = []string{"Gateway/edge/web@cluster1: " + c.want}
		}
		compareFindings(t, c.name, found, want)
		for _, f := range found {
			if strings.Contains(f.String(), "PRIVATE KEY") || c.secret != nil && strings.Contains(f.String(), string(c.secret.PrivateKey)) {
				t.Errorf("%s: the finding has the key in it: %v", c.name, f)
			}
		}
	}
}

// What has no effect is told where it is said; a policy's ports are those of workloads.
func TestCheckUnheeded(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(load(t, []byte(`
cluster: cluster1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    proxyListenPort: 15002
    caCertificates: [{pem: x}]
    verifyCertificateAtClient: false
    outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}
    meshMTLS: {cipherSuites: [NO-SUCH]}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90}]}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
status: {podIP: 10.1.0.1}
---
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: DISABLE}, 90: {mode: DISABLE}, 8080: {mode: STRICT}}}
---
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy:
    tunnel: {targetHost: a, targetPort: 1}
    proxyProtocol: {}
    outlierDetection: {outlierDetectionHttpErrorCodes: [429]}
    loadBalancer: {zoneAwareLbSetting: {}}
    tls: {mode: ISTIO_MUTUAL, insecureSkipVerify: true}
`))...)
	compareFindings(t, "unheeded", Check(s, nil), []string{
		"DestinationRule/shop/web@cluster1: spec.trafficPolicy.loadBalancer.zoneAwareLbSetting: regions are preferred as it says",
		"DestinationRule/shop/web@cluster1: spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes: it has no effect",
		"DestinationRule/shop/web@cluster1: spec.trafficPolicy.proxyProtocol: it has no effect",
		"DestinationRule/shop/web@cluster1: spec.trafficPolicy.tls.insecureSkipVerify: it has no effect with ISTIO_MUTUAL",
		"DestinationRule/shop/web@cluster1: spec.trafficPolicy.tunnel: it has no effect",
		"MeshConfig/@cluster1: caCertificates: it has no effect",
		`MeshConfig/@cluster1: meshMTLS.cipherSuites[0]: "NO-SUCH" is not a cipher suite`,
		"MeshConfig/@cluster1: outboundTrafficPolicy.mode: it is taken as ALLOW_ANY",
		"MeshConfig/@cluster1: proxyListenPort: sidecars listen on port 15001",
		"MeshConfig/@cluster1: verifyCertificateAtClient: servers are verified",
		"PeerAuthentication/shop/web@cluster1: spec.portLevelMtls.80: port 80 is that of Service web; its pods listen on 8080",
	})
}
