package compile

import (
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// Revocation lists come from the file that a rule or a server names, or with the roots of a Secret.
func TestRevocationLists(t *testing.T) {
	up := &tlsv3.UpstreamTlsContext{}
	unpack := func(b []byte, m proto.Message) {
		t.Helper()
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
	}
	unpack(ruleTLS(&networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_SIMPLE, CaCertificates: "/ca", CaCrl: "/crl"}, false, nil).GetTypedConfig().GetValue(), up)
	g := &gateway{secrets: []*mesh.Credential{{Name: "c", CA: []byte("roots"), CRL: []byte("list")}}}
	down := map[networking.ServerTLSSettings_TLSmode]*tlsv3.DownstreamTlsContext{
		networking.ServerTLSSettings_MUTUAL: {}, networking.ServerTLSSettings_OPTIONAL_MUTUAL: {}, networking.ServerTLSSettings_ISTIO_MUTUAL: {},
	}
	for mode, m := range down {
		unpack(g.downstreamTLS(&networking.ServerTLSSettings{
			Mode: mode, ServerCertificate: "/c", PrivateKey: "/k", CaCertificates: "/ca", CaCrl: "/crl", VerifyCertificateSpki: []string{"pin"},
		}, true).GetTypedConfig().GetValue(), m)
		v := m.GetCommonTlsContext().GetCombinedValidationContext().GetDefaultValidationContext()
		if v.GetCrl().GetFilename() != "/crl" || len(v.GetVerifyCertificateSpki()) != 1 {
			t.Errorf("%s: %v", mode, v)
		}
	}
	if f := up.GetCommonTlsContext().GetCombinedValidationContext().GetDefaultValidationContext().GetCrl().GetFilename(); f != "/crl" {
		t.Errorf("a rule's list is %q", f)
	}
	for r := range g.secretList().All() {
		s := &tlsv3.Secret{}
		unpack(r.Bytes(), s)
		if s.Name != "kubernetes://c-cacert" || string(s.GetValidationContext().GetCrl().GetInlineBytes()) != "list" {
			t.Errorf("secret %v", s)
		}
	}
}
