package agent

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// revocationList is one of an authority, with serials.
func revocationList(t *testing.T, a *authority, serials ...*big.Int) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, n := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// Revocation lists come by the mounted file, are replaced by those of the control plane's stream, reach
// both kinds of proxies, and what cannot be read never means that nothing is revoked.
func TestRevocationLists(t *testing.T) {
	root := newRoot(t, "Root")
	cp := newControlPlane(t, root)
	dir, rootFile, tokenFile := folder(t, root.cert)
	e := endpoint{address: cp.address, rootFile: rootFile, tokenFile: tokenFile, clusterID: "cluster1"}
	file := filepath.Join(dir, "ca-crl.pem")
	write(t, file, "-----BEGIN X509 CRL-----\n")
	c := NewCertificates(CertificateOptions{Identity: sleep, Sign: certificateService(e), RootFile: rootFile, CRLFile: file, Spread: time.Nanosecond,
		Poll: 10 * time.Millisecond, MaxWait: 20 * time.Millisecond, Logger: logger(t)})
	start(t, c.Run)
	eventually(t, "the damaged lists are told", func() error {
		if c.Failure() == nil {
			return errors.New("no failure")
		}
		return nil
	})
	if cr, _ := c.Current(); cr != nil {
		t.Fatal("a certificate without its revocation lists")
	}
	mounted := revocationList(t, root)
	write(t, file, string(mounted))
	first := another(t, c, "")
	has := func(want []byte) func() error {
		return func() error {
			cr, _ := c.Current()
			if string(cr.CRL) != string(want) || len(cr.Revoked) == 0 && len(want) > 0 {
				return errors.New("others")
			}
			return nil
		}
	}
	eventually(t, "the mounted lists", has(mounted))
	write(t, file, "damaged")
	streamed := revocationList(t, root, big.NewInt(7))
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	sec := &tlspb.Secret{Name: rootsName, Type: &tlspb.Secret_ValidationContext{ValidationContext: &tlspb.CertificateValidationContext{
		TrustedCa: inline(encodePEM(root.cert)), Crl: inline(streamed)}}}
	if err := c.setRootsSecret(sec); err != nil {
		t.Fatal(err)
	}
	if err := has(streamed)(); err != nil {
		t.Error(err)
	}
	sec.GetValidationContext().Crl = inline([]byte("damaged"))
	if err := c.setRootsSecret(sec); err == nil {
		t.Error("damaged lists are taken")
	}
	cr, _ := c.Current()
	if serialOf(c) != first.Certificate.Leaf.SerialNumber.String() {
		t.Error("other lists asked for another certificate")
	}
	a, err := secret(cr, rootsName)
	if err != nil {
		t.Fatal(err)
	}
	out := &tlspb.Secret{}
	if err := a.UnmarshalTo(out); err != nil || string(out.GetValidationContext().GetCrl().GetInlineBytes()) != string(streamed) {
		t.Errorf("Envoy gets %v, %v", out, err)
	}
	w := &workloadSecrets{certs: c}
	if r := w.Roots(rootsName); len(r.Revoked) != 1 || len(r.Revoked[0].RevokedCertificateEntries) != 1 {
		t.Errorf("the built-in proxy gets %d lists", len(r.Revoked))
	}
}
