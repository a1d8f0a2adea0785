package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
)

// systemRoots is the trust store of the machine, where a file is named.
const systemRoots = "system"

// fileCertificate and fileRoots are the secrets that an agent makes of files of its pod, which it watches
// (formats of Istio).
func fileCertificate(chain, key string) *tlsv3.SdsSecretConfig {
	return fileSecret("file-cert:" + chain + "~" + key)
}

func fileRoots(path string) *tlsv3.SdsSecretConfig { return fileSecret("file-root:" + path) }

// fileSecret is waited for a short while only: a file that does not exist keeps connections that need it from
// being made, and not the whole proxy from its start.
func fileSecret(name string) *tlsv3.SdsSecretConfig {
	s := sds(name)
	from := proto.Clone(s.SdsConfig).(*core.ConfigSource)
	from.InitialFetchTimeout = seconds(5)
	s.SdsConfig = from
	return s
}

// ruleTLS is the transport socket of a rule that says how to do TLS itself (SIMPLE and MUTUAL). A server is
// verified, against the machine's trust store if the rule names no other, unless the rule says not to.
func ruleTLS(t *networking.ClientTLSSettings, http2 bool, defaults *meshconfig.MeshConfig_TLSConfig) *core.TransportSocket {
	tls := &tlsv3.CommonTlsContext{TlsParams: tlsVersions()}
	applyTLSDefaults(tls.TlsParams, defaults)
	if http2 {
		tls.AlpnProtocols = []string{"h2"}
	}
	secret := "kubernetes://" + t.CredentialName
	if t.Mode == networking.ClientTLSSettings_MUTUAL {
		certificate := fileCertificate(t.ClientCertificate, t.PrivateKey)
		if t.CredentialName != "" {
			certificate = &tlsv3.SdsSecretConfig{Name: secret, SdsConfig: ads()}
		}
		tls.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{certificate}
	}
	if !t.GetInsecureSkipVerify().GetValue() {
		roots := fileRoots(cmp.Or(t.CaCertificates, systemRoots))
		validation := &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: anySAN(t.SubjectAltNames)}
		if t.CredentialName != "" {
			roots = &tlsv3.SdsSecretConfig{Name: secret + "-cacert", SdsConfig: ads()}
		} else if t.CaCrl != "" {
			validation.Crl = file(t.CaCrl)
		}
		tls.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: validation, ValidationContextSdsSecretConfig: roots,
			},
		}
	}
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: tls, Sni: t.Sni,
	})}}
}

// verifyByName has HTTP requests name their host as SNI, where a rule that does TLS itself names none, and the
// server prove that it is that host, where the rule names no other.
func verifyByName(http *httpv3.HttpProtocolOptions, t *networking.ClientTLSSettings) {
	own := t.GetMode() == networking.ClientTLSSettings_SIMPLE || t.GetMode() == networking.ClientTLSSettings_MUTUAL
	if own && t.Sni == "" {
		http.UpstreamHttpProtocolOptions = &core.UpstreamHttpProtocolOptions{
			AutoSni: true, AutoSanValidation: len(t.SubjectAltNames) == 0 && !t.GetInsecureSkipVerify().GetValue(),
		}
	}
}

// anySAN matches names of whatever kind they can be.
func anySAN(names []string) (ms []*tlsv3.SubjectAltNameMatcher) {
	for _, name := range names {
		kinds := []tlsv3.SubjectAltNameMatcher_SanType{tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI}
		if _, err := netip.ParseAddr(name); err == nil {
			kinds = append(kinds, tlsv3.SubjectAltNameMatcher_IP_ADDRESS)
		}
		if strings.Contains(name, "@") {
			kinds = append(kinds, tlsv3.SubjectAltNameMatcher_EMAIL)
		}
		for _, kind := range kinds {
			ms = append(ms, &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: exact(name)})
		}
	}
	return ms
}

// applyTLSDefaults writes what MeshConfig says of TLS, as far as proxies know it: they refuse a whole resource
// for a name that they do not.
func applyTLSDefaults(p *tlsv3.TlsParameters, c *meshconfig.MeshConfig_TLSConfig) {
	if known := keepKnown(c.GetCipherSuites(), cipherSuites); len(known) > 0 {
		p.CipherSuites = known
	}
	if known := keepKnown(c.GetEcdhCurves(), curves); len(known) > 0 {
		p.EcdhCurves = known
	}
	if c.GetMinProtocolVersion() == meshconfig.MeshConfig_TLSConfig_TLSV1_3 {
		p.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_3
	}
}

// curves are those that all proxies know.
var curves = []string{"X25519", "P-256", "P-384", "P-521", "X25519MLKEM768"}

func keepKnown(names, known []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !slices.Contains(known, n) })
}

func file(path string) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: path}}
}
