package compile

import (
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/resource"
)

var tlsVersion = map[networking.ServerTLSSettings_TLSProtocol]tlsv3.TlsParameters_TlsProtocol{
	networking.ServerTLSSettings_TLSV1_2: tlsv3.TlsParameters_TLSv1_2,
	networking.ServerTLSSettings_TLSV1_3: tlsv3.TlsParameters_TLSv1_3,
}

// cipherSuites are those of TLS 1.2 that a server may name, as OpenSSL calls them. Proxies refuse a whole
// listener for any other.
var cipherSuites = []string{
	"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
	"ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
	"ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA",
}

// downstreamTLS returns the transport socket of a server that ends TLS. Versions below 1.2 are not offered,
// whatever the server says. Cipher suites are the proxy's own, all with forward secrecy, unless the server or
// MeshConfig names others.
func (g *gateway) downstreamTLS(t *networking.ServerTLSSettings, http bool) *core.TransportSocket {
	if t.Mode == networking.ServerTLSSettings_ISTIO_MUTUAL {
		return g.workloadServerTLS(t, http)
	}
	c := &tlsv3.CommonTlsContext{TlsParams: g.serverParameters(t), AlpnProtocols: serverALPN}
	ca := ""
	for _, name := range certificateCredentials(t) {
		c.TlsCertificateSdsSecretConfigs = append(c.TlsCertificateSdsSecretConfigs, &tlsv3.SdsSecretConfig{Name: secretName(name), SdsConfig: ads()})
		if ca == "" {
			ca = name
		}
	}
	for _, f := range certificateFiles(t) {
		c.TlsCertificateSdsSecretConfigs = append(c.TlsCertificateSdsSecretConfigs, fileCertificate(f.chain, f.key))
	}
	if verifiesClients(t) {
		roots := fileRoots(clientRootsFile(t))
		if name := t.GetCaCertCredentialName(); name != "" {
			ca = name
		}
		if ca != "" {
			roots = &tlsv3.SdsSecretConfig{Name: rootsName(ca), SdsConfig: ads()}
		}
		c.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: clientValidation(t), ValidationContextSdsSecretConfig: roots,
		}}
	}
	return serverSocket(c, t.Mode == networking.ServerTLSSettings_MUTUAL)
}

// workloadServerTLS is the transport socket of a server for workloads: what a sidecar takes, or the names that
// the server says instead.
func (g *gateway) workloadServerTLS(t *networking.ServerTLSSettings, http bool) *core.TransportSocket {
	alpn := serverALPN
	if !http {
		alpn = nil
	}
	own := clientValidation(t)
	if len(own.MatchTypedSubjectAltNames) == 0 {
		own.MatchTypedSubjectAltNames = trustedPeers(g.settings.trust)
	}
	c := workloadTLS(alpn, nil, serverTLSParams(g.settings.meshTLS))
	c.GetCombinedValidationContext().DefaultValidationContext = own
	return serverSocket(c, true)
}

func serverSocket(c *tlsv3.CommonTlsContext, requireCertificate bool) *core.TransportSocket {
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.DownstreamTlsContext{
		CommonTlsContext: c, RequireClientCertificate: boolean(requireCertificate),
	})}}
}

// serverParameters returns what a server says of TLS, or MeshConfig.
func (g *gateway) serverParameters(t *networking.ServerTLSSettings) *tlsv3.TlsParameters {
	p := tlsVersions()
	applyTLSDefaults(p, g.settings.tls)
	if known := keepKnown(t.GetCipherSuites(), cipherSuites); len(known) > 0 {
		p.CipherSuites = known
	}
	if v, ok := tlsVersion[t.GetMinProtocolVersion()]; ok {
		p.TlsMinimumProtocolVersion = v
	}
	if v, ok := tlsVersion[t.GetMaxProtocolVersion()]; ok {
		p.TlsMaximumProtocolVersion = max(v, p.TlsMinimumProtocolVersion)
	}
	return p
}

func verifiesClients(t *networking.ServerTLSSettings) bool {
	return t.GetMode() == networking.ServerTLSSettings_MUTUAL || t.GetMode() == networking.ServerTLSSettings_OPTIONAL_MUTUAL
}

// clientValidation returns what a server wants of clients' certificates beside the roots.
func clientValidation(t *networking.ServerTLSSettings) *tlsv3.CertificateValidationContext {
	v := &tlsv3.CertificateValidationContext{
		MatchTypedSubjectAltNames: anySAN(t.GetSubjectAltNames()),
		VerifyCertificateSpki:     t.GetVerifyCertificateSpki(),
		VerifyCertificateHash:     t.GetVerifyCertificateHash(),
	}
	if t.GetCaCrl() != "" {
		v.Crl = file(t.GetCaCrl())
	}
	if t.GetInsecureSkipVerify().GetValue() {
		v.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	}
	return v
}

// certificateCredentials returns the Secrets that a server has its certificates in.
func certificateCredentials(t *networking.ServerTLSSettings) []string {
	if names := t.GetCredentialNames(); len(names) > 0 {
		return names
	}
	if n := t.GetCredentialName(); n != "" {
		return []string{n}
	}
	return nil
}

// serverCredentials returns all Secrets that a server makes use of.
func serverCredentials(t *networking.ServerTLSSettings) (names []string) {
	for _, n := range append(slices.Clone(certificateCredentials(t)), t.GetCaCertCredentialName()) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

type certificateFile struct{ chain, key string }

// certificateFiles returns the files that a server without Secrets has its certificates in.
func certificateFiles(t *networking.ServerTLSSettings) (files []certificateFile) {
	if len(certificateCredentials(t)) > 0 {
		return nil
	}
	for _, c := range t.GetTlsCertificates() {
		files = append(files, certificateFile{c.GetServerCertificate(), c.GetPrivateKey()})
	}
	if len(files) == 0 && t.GetServerCertificate() != "" {
		files = append(files, certificateFile{t.GetServerCertificate(), t.GetPrivateKey()})
	}
	return files
}

// clientRootsFile returns the file that a server has the roots of its clients in.
func clientRootsFile(t *networking.ServerTLSSettings) string {
	for _, c := range t.GetTlsCertificates() {
		if t.GetCaCertificates() == "" && c.GetCaCertificates() != "" {
			return c.GetCaCertificates()
		}
	}
	return t.GetCaCertificates()
}

const secretScheme = "kubernetes://"

// secretName returns the name of a Secret's certificate in SDS, rootsName that of its roots.
func secretName(credential string) string {
	return secretScheme + strings.TrimPrefix(credential, secretScheme)
}

func rootsName(credential string) string {
	return strings.TrimSuffix(secretName(credential), "-cacert") + "-cacert"
}

// secretList returns the TLS material that servers name, for the gateway alone.
func (g *gateway) secretList() *resource.List {
	var rs []*resource.Resource
	add := func(s *tlsv3.Secret) { rs = append(rs, newResource(s.Name, s)) }
	seen := map[string]bool{}
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	for _, c := range g.secrets {
		if len(c.Cert) > 0 && len(c.PrivateKey) > 0 {
			add(&tlsv3.Secret{Name: secretName(c.Name), Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
				CertificateChain: inline(c.Cert), PrivateKey: inline(c.PrivateKey),
			}}})
		}
		if name := rootsName(c.Name); len(c.CA) > 0 && !seen[name] {
			seen[name] = true
			v := &tlsv3.CertificateValidationContext{TrustedCa: inline(c.CA)}
			if len(c.CRL) > 0 {
				v.Crl = inline(c.CRL)
			}
			add(&tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}})
		}
	}
	if p := partOf(rs); p != nil {
		return &resource.List{Parts: []*resource.Part{p}}
	}
	return nil
}
