package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/proxy/config"
)

// A peer whose certificate is revoked is refused, also when it was accepted before.
func TestRevokedPeer(t *testing.T) {
	issue := func(name string, serial int64, parent *x509.Certificate, by *ecdsa.PrivateKey, usage ...x509.ExtKeyUsage) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtKeyUsage: usage}
		if parent == nil {
			parent, by = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, key
	}
	root, key := issue("root", 1, nil, nil)
	good, _ := issue("good", 2, root, key, x509.ExtKeyUsageClientAuth)
	bad, _ := issue("bad", 3, root, key, x509.ExtKeyUsageClientAuth)
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: bad.SerialNumber, RevocationTime: time.Now()}}}, root, key)
	if err != nil {
		t.Fatal(err)
	}
	before, err := NewRoots(certs.Encode(root))
	if err != nil {
		t.Fatal(err)
	}
	// As in Envoy, lists may stand beside the anchors.
	after, err := NewRoots(append(certs.Encode(root), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...))
	if err != nil {
		t.Fatal(err)
	}
	v := &verifier{c: &config.Validation{Anchors: before}, usage: x509.ExtKeyUsageClientAuth}
	check := func(c *x509.Certificate) error {
		return v.verify(nil, tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}})
	}
	for _, c := range []*x509.Certificate{good, bad} {
		if err := check(c); err != nil {
			t.Errorf("before: %v", err)
		}
	}
	v = &verifier{c: &config.Validation{Anchors: after}, usage: x509.ExtKeyUsageClientAuth}
	if err := check(good); err != nil {
		t.Errorf("good: %v", err)
	}
	for range 2 {
		if err := check(bad); err == nil || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("bad: %v", err)
		}
	}
}
