package compile

import (
	"strings"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/carrick-mesh/carrick/identity"
	"github.com/carrick-mesh/carrick/mesh"
)

// What clients in the mesh offer by ALPN, and servers choose chains by (formats of Istio). Each list
// ends with what a server that is no proxy of a mesh may select.
var (
	alpnHTTP  = []string{"istio-http/1.1", "istio", "http/1.1"}
	alpnHTTP2 = []string{"istio-h2", "istio", "h2"}
	alpnTCP   = []string{"istio"}

	meshALPN     = []string{"istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"}
	meshALPNHTTP = []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}
	meshALPNTCP  = []string{"istio-peer-exchange", "istio"}
	serverALPN   = []string{"h2", "http/1.1"}
	plainHTTP    = []string{"http/1.1", "h2c"}
)

// tlsModeLabel of a Pod, with the value istio, says that it takes mutual TLS. Injection sets it.
const tlsModeLabel = "security.istio.io/tlsMode"

const (
	tlsSocket = "envoy.transport_sockets.tls"
	rawSocket = "envoy.transport_sockets.raw_buffer"
)

// sds returns where a proxy gets a secret of the workload from: its agent, which serves as the cluster
// sds-grpc.
func sds(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: agentSDS()}
}

var agentSDS = sync.OnceValue(func() *core.ConfigSource {
	return &core.ConfigSource{
		ConfigSourceSpecifier: &core.ConfigSource_ApiConfigSource{ApiConfigSource: &core.ApiConfigSource{
			ApiType:                   core.ApiConfigSource_GRPC,
			SetNodeOnFirstMessageOnly: true,
			TransportApiVersion:       core.ApiVersion_V3,
			GrpcServices: []*core.GrpcService{{TargetSpecifier: &core.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: "sds-grpc"},
			}}},
		}},
		ResourceApiVersion:  core.ApiVersion_V3,
		InitialFetchTimeout: seconds(0),
	}
})

// workloadTLS is the workload's certificate, and its roots with what else the peer's name must be.
func workloadTLS(alpn []string, peers []*tlsv3.SubjectAltNameMatcher, params *tlsv3.TlsParameters) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		AlpnProtocols:                  alpn,
		TlsParams:                      params,
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds("default")},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: peers},
				ValidationContextSdsSecretConfig: sds("ROOTCA"),
			},
		},
	}
}

func tlsVersions() *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3}
}

// serverTLSParams is what servers take from workloads: what MeshConfig says, or Istio's.
func serverTLSParams(c *meshconfig.MeshConfig_TLSConfig) *tlsv3.TlsParameters {
	p := tlsVersions()
	p.CipherSuites = []string{
		"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256",
		"ECDHE-RSA-AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-GCM-SHA256",
	}
	applyTLSDefaults(p, c)
	return p
}

func uriSAN(m *matcher.StringMatcher) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m}
}

// accountSANs matches the SPIFFE IDs of accounts in any of the trust domains.
func accountSANs(accounts *mesh.Accounts, domains []string) (peers []*tlsv3.SubjectAltNameMatcher) {
	for _, a := range accounts.List {
		for _, td := range domains {
			id := identity.Identity{TrustDomain: td, Namespace: a.Namespace, ServiceAccount: a.Name}
			peers = append(peers, uriSAN(exact(id.String())))
		}
	}
	return peers
}

// clientTLS is the transport socket of a client in the mesh.
func clientTLS(sni string, alpn []string, peers []*tlsv3.SubjectAltNameMatcher) *core.TransportSocket {
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: workloadTLS(alpn, peers, tlsVersions()), Sni: sni,
	})}}
}

// serverTLS is the transport socket of a sidecar, which takes any workload of the trust domains.
func serverTLS(alpn []string, s clusterSettings) *core.TransportSocket {
	return serverSocket(workloadTLS(alpn, trustedPeers(s.trust), serverTLSParams(s.meshTLS)), true)
}

// trustedPeers matches any workload of the trust domains.
func trustedPeers(trust string) (peers []*tlsv3.SubjectAltNameMatcher) {
	for _, td := range strings.Split(trust, ",") {
		peers = append(peers, uriSAN(prefix("spiffe://"+td+"/")))
	}
	return peers
}

func plaintext() *core.TransportSocket {
	return &core.TransportSocket{Name: rawSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&rawv3.RawBuffer{})}}
}

func exact(s string) *matcher.StringMatcher {
	return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: s}}
}

func prefix(s string) *matcher.StringMatcher {
	return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Prefix{Prefix: s}}
}
