package config

import (
	"crypto/sha256"
	ctls "crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/carrick-mesh/carrick/resource"
)

func (c *Cluster) compileTransport(m *cluster.Cluster, ns *needs) error {
	var err error
	if c.TLS, err = compileUpstreamSocket(m.TransportSocket, ns); err != nil {
		return in("transport_socket", err)
	}
	for i, s := range m.TransportSocketMatches {
		x := SocketMatch{Name: s.Name, Match: labels(s.Match)}
		if x.TLS, err = compileUpstreamSocket(s.TransportSocket, ns); err != nil {
			return inIndex("transport_socket_matches", i, in("transport_socket", err))
		}
		c.SocketMatches = append(c.SocketMatches, x)
	}
	return nil
}

// compileUpstreamSocket returns nil for plaintext.
func compileUpstreamSocket(s *core.TransportSocket, ns *needs) (*UpstreamTLS, error) {
	if s == nil {
		return nil, nil
	}
	m, err := unpack(s.GetTypedConfig())
	if err != nil {
		return nil, in("typed_config", err)
	}
	switch m := m.(type) {
	case *raw_bufferv3.RawBuffer:
		return nil, nil
	case *tls.UpstreamTlsContext:
		t := &UpstreamTLS{SNI: m.Sni, AutoHostSNI: m.AutoHostSni, AutoSAN: m.AutoSniSanValidation}
		if err := t.compile(m.CommonTlsContext, ns); err != nil {
			return nil, in("typed_config", in("common_tls_context", err))
		}
		if t.AutoSAN && t.Validation == nil {
			return nil, in("typed_config", in("auto_sni_san_validation", errors.New("needs a validation context, without which nothing is verified")))
		}
		return t, nil
	}
	return nil, in("typed_config", notSupported(s.GetTypedConfig().GetTypeUrl()))
}

// compileDownstreamSocket returns nil for plaintext.
func compileDownstreamSocket(s *core.TransportSocket, ns *needs) (*DownstreamTLS, error) {
	m, err := unpack(s.GetTypedConfig())
	if err != nil {
		return nil, in("typed_config", err)
	}
	switch m := m.(type) {
	case *raw_bufferv3.RawBuffer:
		return nil, nil
	case *tls.DownstreamTlsContext:
		if p := m.OcspStaplePolicy; p != tls.DownstreamTlsContext_LENIENT_STAPLING {
			return nil, in("typed_config", in("ocsp_staple_policy", notSupported(p.String()))) // there are no staples
		}
		t := &DownstreamTLS{RequireClientCert: m.RequireClientCertificate.GetValue(), RequireSNI: m.RequireSni.GetValue(), NoTickets: m.GetDisableStatelessSessionResumption()}
		if err := t.compile(m.CommonTlsContext, ns); err != nil {
			return nil, in("typed_config", in("common_tls_context", err))
		}
		if len(t.Certificates) == 0 {
			return nil, in("typed_config", in("common_tls_context", errors.New("has no certificate")))
		}
		return t, nil
	}
	return nil, in("typed_config", notSupported(s.GetTypedConfig().GetTypeUrl()))
}

// peerExchange is the ALPN of Istio's TCP metadata exchange. Whoever negotiates it speaks a preamble
// that only Istio's filter understands, so it is never offered nor chosen here.
const peerExchange = "istio-peer-exchange"

func (t *TLS) compile(m *tls.CommonTlsContext, ns *needs) error {
	t.ALPN = slices.DeleteFunc(slices.Clone(m.GetAlpnProtocols()), func(s string) bool { return s == peerExchange })
	if err := t.compileParameters(m.GetTlsParams()); err != nil {
		return in("tls_params", err)
	}
	for i, c := range m.GetTlsCertificates() {
		x, err := compileCertificate(c)
		if err != nil {
			return inIndex("tls_certificates", i, err)
		}
		t.Certificates = append(t.Certificates, x)
	}
	for i, s := range m.GetTlsCertificateSdsSecretConfigs() {
		r, err := compileSecretRef(s, ns)
		if err != nil {
			return inIndex("tls_certificate_sds_secret_configs", i, err)
		}
		t.Certificates = append(t.Certificates, Certificate{SDS: r})
	}
	var err error
	switch v := m.GetValidationContextType().(type) {
	case *tls.CommonTlsContext_ValidationContext:
		if t.Validation, err = compileValidation(v.ValidationContext); err == nil {
			err = t.Validation.whole()
		}
		err = in("validation_context", err)
	case *tls.CommonTlsContext_ValidationContextSdsSecretConfig:
		t.Validation = &Validation{}
		t.Validation.SDS, err = compileSecretRef(v.ValidationContextSdsSecretConfig, ns)
		err = in("validation_context_sds_secret_config", err)
	case *tls.CommonTlsContext_CombinedValidationContext:
		t.Validation, err = compileValidation(v.CombinedValidationContext.GetDefaultValidationContext())
		if err == nil {
			t.Validation.SDS, err = compileSecretRef(v.CombinedValidationContext.GetValidationContextSdsSecretConfig(), ns)
			err = in("validation_context_sds_secret_config", err)
		} else {
			err = in("default_validation_context", err)
		}
		err = in("combined_validation_context", err)
	}
	return err
}

func compileSecretRef(m *tls.SdsSecretConfig, ns *needs) (SecretRef, error) {
	r := SecretRef{Name: m.GetName()}
	if r.Name == "" {
		return r, in("name", errors.New("is empty"))
	}
	switch s := m.GetSdsConfig().GetConfigSourceSpecifier().(type) {
	case nil: // a static secret
	case *core.ConfigSource_Ads, *core.ConfigSource_Self:
		ns.add(resource.SecretType, r.Name)
	case *core.ConfigSource_PathConfigSource:
		return r, in("sds_config.path_config_source", errNotSupported)
	case *core.ConfigSource_Path:
		return r, in("sds_config.path", errNotSupported)
	case *core.ConfigSource_ApiConfigSource:
		// The agent's own socket, whatever cluster leads to it.
		if t := s.ApiConfigSource.GetApiType(); t != core.ApiConfigSource_GRPC && t != core.ApiConfigSource_DELTA_GRPC {
			return r, in("sds_config.api_config_source.api_type", notSupported(t.String()))
		}
		for i, g := range s.ApiConfigSource.GetGrpcServices() {
			if name := g.GetEnvoyGrpc().GetClusterName(); name != agentSDS {
				return r, in("sds_config.api_config_source", inIndex("grpc_services", i, in("envoy_grpc.cluster_name", notSupported(fmt.Sprintf("%q (only %q)", name, agentSDS)))))
			}
		}
	}
	return r, nil
}

// agentSDS is the bootstrap cluster that leads to the agent's SDS.
const agentSDS = "sds-grpc"

func compileCertificate(m *tls.TlsCertificate) (Certificate, error) {
	c := Certificate{Chain: compileData(m.GetCertificateChain()), Key: compileData(m.GetPrivateKey())}
	if c.Chain.empty() {
		return c, in("certificate_chain", errors.New("is missing"))
	}
	if c.Key.empty() {
		return c, in("private_key", errors.New("is missing"))
	}
	var err error
	c.Pair, err = loadPair(c.Chain, c.Key)
	return c, err
}

func (d Data) empty() bool { return d.File == "" && len(d.Inline) == 0 }

func compileValidation(m *tls.CertificateValidationContext) (*Validation, error) {
	v := &Validation{
		CA:   compileData(m.GetTrustedCa()),
		SPKI: m.GetVerifyCertificateSpki(), AllowExpired: m.GetAllowExpiredCertificate(),
		SystemRoots:     m.GetSystemRootCerts() != nil,
		AcceptUntrusted: m.GetTrustChainVerification() == tls.CertificateValidationContext_ACCEPT_UNTRUSTED,
		CRL:             compileData(m.GetCrl()), LeafCRLOnly: m.GetOnlyVerifyLeafCertCrl(),
	}
	if err := v.loadAnchors(); err != nil {
		return nil, err
	}
	for i, p := range v.SPKI {
		if b, err := base64.StdEncoding.DecodeString(p); err != nil || len(b) != sha256.Size {
			return nil, inIndex("verify_certificate_spki", i, errors.New("is not the base64 of a SHA-256"))
		}
	}
	for i, h := range m.GetVerifyCertificateHash() {
		h = strings.ToLower(strings.ReplaceAll(h, ":", ""))
		if b, err := hex.DecodeString(h); err != nil || len(b) != sha256.Size {
			return nil, inIndex("verify_certificate_hash", i, errors.New("is not a SHA-256 in hexadecimal"))
		}
		v.Hash = append(v.Hash, h)
	}
	for i, s := range m.GetMatchSubjectAltNames() {
		x, err := compileString(s)
		if err != nil {
			return nil, inIndex("match_subject_alt_names", i, err)
		}
		v.SANs = append(v.SANs, SANMatcher{AnySAN, x})
	}
	kinds := map[tls.SubjectAltNameMatcher_SanType]SANKind{
		tls.SubjectAltNameMatcher_EMAIL: EmailSAN, tls.SubjectAltNameMatcher_DNS: DNSSAN,
		tls.SubjectAltNameMatcher_URI: URISAN, tls.SubjectAltNameMatcher_IP_ADDRESS: IPSAN,
	}
	for i, s := range m.GetMatchTypedSubjectAltNames() {
		k, ok := kinds[s.SanType]
		if !ok {
			return nil, inIndex("match_typed_subject_alt_names", i, in("san_type", notSupported(s.SanType.String())))
		}
		x, err := compileString(s.Matcher)
		if err != nil {
			return nil, inIndex("match_typed_subject_alt_names", i, in("matcher", err))
		}
		v.SANs = append(v.SANs, SANMatcher{k, x})
	}
	return v, nil
}

func compileSecret(m *tls.Secret) (*Secret, error) {
	s := &Secret{Name: m.Name}
	switch x := m.Type.(type) {
	case *tls.Secret_TlsCertificate:
		c, err := compileCertificate(x.TlsCertificate)
		if err != nil {
			return nil, in("tls_certificate", err)
		}
		s.Certificate = &c
	case *tls.Secret_ValidationContext:
		v, err := compileValidation(x.ValidationContext)
		if err != nil {
			return nil, in("validation_context", err)
		}
		s.Validation = v
	default:
		return nil, errors.New("is empty")
	}
	return s, nil
}

func (t *TLS) compileParameters(m *tls.TlsParameters) error {
	t.MinVersion, t.MaxVersion = ctls.VersionTLS12, ctls.VersionTLS13
	versions := map[tls.TlsParameters_TlsProtocol]uint16{tls.TlsParameters_TLSv1_2: ctls.VersionTLS12, tls.TlsParameters_TLSv1_3: ctls.VersionTLS13}
	for _, b := range []struct {
		field string
		v     tls.TlsParameters_TlsProtocol
		to    *uint16
	}{
		{"tls_minimum_protocol_version", m.GetTlsMinimumProtocolVersion(), &t.MinVersion},
		{"tls_maximum_protocol_version", m.GetTlsMaximumProtocolVersion(), &t.MaxVersion},
	} {
		if b.v == tls.TlsParameters_TLS_AUTO {
			continue
		}
		v, ok := versions[b.v]
		if !ok {
			return in(b.field, notSupported(b.v.String()+" (TLS 1.2 and 1.3 are)"))
		}
		*b.to = v
	}
	if t.MinVersion > t.MaxVersion {
		return in("tls_minimum_protocol_version", errors.New("is above tls_maximum_protocol_version"))
	}
	for i, group := range m.GetCipherSuites() {
		// "[A|B]" is a group of equal preference.
		for _, name := range strings.Split(strings.Trim(group, "[]"), "|") {
			id, ok := ciphers[name]
			if !ok {
				return inIndex("cipher_suites", i, notSupported(fmt.Sprintf("%q", name)))
			}
			t.Ciphers = append(t.Ciphers, id)
		}
	}
	for i, name := range m.GetEcdhCurves() {
		id, ok := curves[name]
		if !ok {
			return inIndex("ecdh_curves", i, notSupported(fmt.Sprintf("%q", name)))
		}
		t.Curves = append(t.Curves, uint16(id))
	}
	return nil
}

// ciphers are the suites of TLS 1.2 by OpenSSL's names, which Envoy uses.
var ciphers = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": ctls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": ctls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": ctls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        ctls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        ctls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES128-GCM-SHA256":   ctls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES256-GCM-SHA384":   ctls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-CHACHA20-POLY1305":   ctls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-AES128-SHA":          ctls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          ctls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"AES128-GCM-SHA256":             ctls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	"AES256-GCM-SHA384":             ctls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	"AES128-SHA":                    ctls.TLS_RSA_WITH_AES_128_CBC_SHA,
	"AES256-SHA":                    ctls.TLS_RSA_WITH_AES_256_CBC_SHA,
}

var curves = map[string]ctls.CurveID{
	"X25519": ctls.X25519, "P-256": ctls.CurveP256, "P-384": ctls.CurveP384, "P-521": ctls.CurveP521,
	"X25519MLKEM768": ctls.X25519MLKEM768,
}
