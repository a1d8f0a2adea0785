package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/carrick-mesh/carrick/resource"
)

// testCA signs what tests need.
type testCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func block(typ string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
}

func newTestCA(t *testing.T, name string) *testCA {
	ca := &testCA{t: t}
	ca.cert, ca.key = ca.issue(name, 1, true)
	return ca
}

func (ca *testCA) issue(name string, serial int64, isCA bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	parent, signer := c, key
	if isCA {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	}
	if ca.cert != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key
}

func (ca *testCA) crl(until time.Time, serials ...int64) string {
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: until}
	for _, s := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, ca.cert, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return block("X509 CRL", der)
}

func inline(s string) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: s}}
}

// TestCertificatesAreChecked: what a handshake would stumble over is refused with the configuration,
// and no word of a key is in the error.
func TestCertificatesAreChecked(t *testing.T) {
	ca := newTestCA(t, "root")
	cert, key := ca.issue("a", 2, false)
	_, other := ca.issue("b", 3, false)
	pemKey := func(k *ecdsa.PrivateKey) string {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return block("PRIVATE KEY", der)
	}
	chain, root := block("CERTIFICATE", cert.Raw), block("CERTIFICATE", ca.cert.Raw)
	broken := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	file := &core.DataSource{Specifier: &core.DataSource_Filename{Filename: "/nonexistent.pem"}}
	pair := func(c, k *core.DataSource) *tls.Secret {
		return &tls.Secret{Name: "s", Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{CertificateChain: c, PrivateKey: k}}}
	}
	trust := func(ca, crl *core.DataSource) *tls.Secret {
		return &tls.Secret{Name: "s", Type: &tls.Secret_ValidationContext{ValidationContext: &tls.CertificateValidationContext{TrustedCa: ca, Crl: crl}}}
	}
	goodCRL := ca.crl(time.Now().Add(time.Hour))
	for _, c := range []struct {
		secret *tls.Secret
		want   string // part of the error; empty: taken
	}{
		{pair(inline(chain), inline(pemKey(key))), ""},
		{pair(inline(chain+root), inline(pemKey(key))), ""},
		{pair(inline(chain), inline(pemKey(other))), "tls_certificate.private_key: does not fit certificate_chain"},
		{pair(inline(broken), inline(pemKey(key))), "tls_certificate.certificate_chain: block 1 (line 1): "},
		{pair(inline("rubbish"), inline(pemKey(key))), "tls_certificate.certificate_chain: holds no PEM block"},
		{pair(file, inline(pemKey(key))), "tls_certificate.certificate_chain: open /nonexistent.pem"},
		{pair(inline(chain), file), "tls_certificate.private_key: open /nonexistent.pem"},
		{pair(inline(chain), inline("rubbish")), "tls_certificate.private_key: holds no PEM block"},
		{trust(inline(root), nil), ""},
		{trust(inline(root), inline(goodCRL)), ""},
		{trust(inline(root+goodCRL), nil), ""},
		{trust(inline(broken), nil), "validation_context.trusted_ca: block 1 (line 1): "},
		{trust(inline(root+strings.Replace(root, "-----END CERTIFICATE", "-----END CERTIFICAT", 1)), nil), "validation_context.trusted_ca: block 2"},
		{trust(inline("rubbish"), nil), "validation_context.trusted_ca: holds no PEM block"},
		{trust(file, nil), "validation_context.trusted_ca: open /nonexistent.pem"},
		{trust(inline(root), inline(root)), "validation_context.crl: block 1"},
		{trust(inline(root), file), "validation_context.crl: open /nonexistent.pem"},
	} {
		var comp Compiler
		_, err := comp.Decode(resource.SecretType, resource.New("s", marshal(t, c.secret)))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("refused: %v", err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("error %v, want %s", err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("the error has part of a key: %v", err)
		}
	}
}
