package compile

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// ruleTLS is the transport socket of a rule that says how to do TLS itself (SIMPLE and MUTUAL).
func ruleTLS(t *networking.ClientTLSSettings, http2 bool) *core.TransportSocket {
	tls := &tlsv3.CommonTlsContext{TlsParams: nil}
	if http2 {
		tls.AlpnProtocols = []string{"h2"}
	}
	if t.Mode == networking.ClientTLSSettings_MUTUAL {
		if t.CredentialName != "" {
			tls.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{{Name: "kubernetes://" + t.CredentialName, SdsConfig: ads()}}
		} else {
			tls.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(t.ClientCertificate), PrivateKey: file(t.PrivateKey)}}
		}
	}
	validation := &tlsv3.CertificateValidationContext{}
	for _, name := range t.SubjectAltNames {
		for _, kind := range []tlsv3.SubjectAltNameMatcher_SanType{tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI} {
			validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: exact(name)})
		}
	}
	switch {
	case t.CredentialName != "":
		tls.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         validation,
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: "kubernetes://" + t.CredentialName + "-cacert", SdsConfig: ads()},
			},
		}
	case t.CaCertificates != "":
		validation.TrustedCa = file(t.CaCertificates)
		tls.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	}
	return &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: tls, Sni: t.Sni,
	})}}
}

func file(path string) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: path}}
}
