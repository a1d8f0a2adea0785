package agent

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/identity"
)

var sleep = identity.Identity{TrustDomain: "cluster.local", Namespace: "sample", ServiceAccount: "sleep"}

func serialOf(c *Certificates) string {
	if cr, _ := c.Current(); cr != nil {
		return cr.Certificate.Leaf.SerialNumber.String()
	}
	return ""
}

// another waits for a certificate that is not this one.
func another(t *testing.T, c *Certificates, serial string) *Credentials {
	t.Helper()
	eventually(t, "another certificate", func() error {
		if serialOf(c) == serial {
			return errors.New("still the same")
		}
		return nil
	})
	cr, _ := c.Current()
	return cr
}

func TestCertificate(t *testing.T) {
	root := newRoot(t, "Root")
	cp := newControlPlane(t, root)
	_, rootFile, tokenFile := folder(t, root.cert)
	e := endpoint{address: cp.address, rootFile: rootFile, tokenFile: tokenFile, clusterID: "cluster1"}
	c := NewCertificates(CertificateOptions{Identity: sleep, Sign: certificateService(e), RootFile: rootFile, Spread: time.Nanosecond, Poll: 10 * time.Millisecond, Logger: logger(t)})
	start(t, c.Run)
	first := another(t, c, "")
	leaf := first.Certificate.Leaf
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/sample/sa/sleep" {
		t.Errorf("URIs = %v", leaf.URIs)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: first.RootPool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(first.RootsPEM, encodePEM(root.cert)) || len(first.Certificate.Certificate) != 2 {
		t.Errorf("roots %s, chain of %d", first.RootsPEM, len(first.Certificate.Certificate))
	}
	cp.mu.Lock()
	md := cp.metadata[0]
	cp.mu.Unlock()
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer the.token.it-is" {
		t.Errorf("authorization = %q", got)
	}
	if got := md.Get("clusterid"); len(got) != 1 || got[0] != "cluster1" {
		t.Errorf("clusterid = %q", got)
	}

	c.Renew()
	second := another(t, c, leaf.SerialNumber.String())

	// The mesh gets a second root by the mounted file: it is trusted, and another certificate asked for.
	next := newRoot(t, "Next")
	write(t, rootFile, string(encodePEM(root.cert, next.cert)))
	third := another(t, c, second.Certificate.Leaf.SerialNumber.String())
	if len(third.Roots) != 2 {
		t.Errorf("%d roots, want 2", len(third.Roots))
	}
}

// A change of root, as Carrick's control plane does it: first both are trusted, then the new one
// signs, then the old one goes.
func TestRootRoll(t *testing.T) {
	old, next := newRoot(t, "Old"), newRoot(t, "New")
	cp := newControlPlane(t, old)
	_, rootFile, tokenFile := folder(t, old.cert)
	e := endpoint{address: cp.address, rootFile: rootFile, tokenFile: tokenFile}
	c := NewCertificates(CertificateOptions{Identity: sleep, Sign: certificateService(e), RootFile: rootFile, Spread: time.Nanosecond, Logger: logger(t)})
	start(t, c.Run)
	serial := another(t, c, "").Certificate.Leaf.SerialNumber.String()

	bundle := func(signer *authority, roots ...*x509.Certificate) []byte {
		return append([]byte("# signer: "+hex.EncodeToString(signer.cert.SubjectKeyId)+"\n"), encodePEM(roots...)...)
	}
	if err := c.SetRoots(bundle(old, old.cert, next.cert)); err != nil {
		t.Fatal(err)
	}
	cr, _ := c.Current()
	if len(cr.Roots) != 2 || cr.Certificate.Leaf.SerialNumber.String() != serial {
		t.Errorf("both roots published: %d trusted, serial %s, want 2 and %s", len(cr.Roots), cr.Certificate.Leaf.SerialNumber, serial)
	}
	cp.mu.Lock()
	cp.signer, cp.roots = next, []*x509.Certificate{next.cert, old.cert}
	cp.mu.Unlock()
	if err := c.SetRoots(bundle(next, next.cert, old.cert)); err != nil {
		t.Fatal(err)
	}
	cr = another(t, c, serial)
	if !bytes.Equal(cr.Certificate.Leaf.AuthorityKeyId, next.cert.SubjectKeyId) || len(cr.Roots) != 2 {
		t.Errorf("the new root signs: issuer %s, %d roots", cr.Certificate.Leaf.Issuer, len(cr.Roots))
	}
	serial = cr.Certificate.Leaf.SerialNumber.String()
	if err := c.SetRoots(bundle(next, next.cert)); err != nil {
		t.Fatal(err)
	}
	cr, _ = c.Current()
	if len(cr.Roots) != 1 || !cr.Roots[0].Equal(next.cert) || cr.Certificate.Leaf.SerialNumber.String() != serial {
		t.Errorf("the old root is gone: trusted %s, serial %s, want only the new one and %s", describe(cr.Roots...), cr.Certificate.Leaf.SerialNumber, serial)
	}
	if err := c.SetRoots([]byte("no roots")); err == nil {
		t.Error("SetRoots of nothing: no error")
	}
	if cr, _ = c.Current(); len(cr.Roots) != 1 {
		t.Error("bad roots have taken the good ones away")
	}
}

func TestRotation(t *testing.T) {
	root := newRoot(t, "Root")
	cp := newControlPlane(t, root)
	cp.ttl = 2 * time.Second
	_, rootFile, tokenFile := folder(t, root.cert)
	e := endpoint{address: cp.address, rootFile: rootFile, tokenFile: tokenFile}
	c := NewCertificates(CertificateOptions{Identity: sleep, Sign: certificateService(e), RootFile: rootFile, RSABits: 2048, Logger: logger(t)})
	start(t, c.Run)
	first := another(t, c, "")
	if _, ok := first.Certificate.PrivateKey.(*rsa.PrivateKey); !ok {
		t.Errorf("the key is a %T", first.Certificate.PrivateKey)
	}
	second := another(t, c, first.Certificate.Leaf.SerialNumber.String())
	if first.Certificate.Leaf.PublicKey.(*rsa.PublicKey).Equal(second.Certificate.Leaf.PublicKey) {
		t.Error("the renewed certificate has the old key")
	}
}

func TestRenewIn(t *testing.T) {
	for range 1000 {
		if d := renewIn(24 * time.Hour); d < 24*time.Hour*49/100 || d > 24*time.Hour*51/100 {
			t.Fatalf("renewIn(24h) = %v, want 49-51 %%", d)
		}
	}
	for n := range 100 {
		if d := backOff(n+1, 30*time.Second); d <= 0 || d > 33*time.Second {
			t.Fatalf("backOff(%d) = %v", n+1, d)
		}
	}
}

func TestErrors(t *testing.T) {
	root, other := newRoot(t, "Root A"), newRoot(t, "Root B")
	cp := newControlPlane(t, root)
	_, rootFile, tokenFile := folder(t, other.cert)
	sum := func(a *authority) string {
		s := sha256.Sum256(a.cert.Raw)
		return hex.EncodeToString(s[:])
	}
	attempt := func(change func(*CertificateOptions)) string {
		t.Helper()
		e := endpoint{address: cp.address, rootFile: rootFile, tokenFile: tokenFile}
		o := CertificateOptions{Identity: sleep, Sign: certificateService(e), RootFile: rootFile, Logger: slog.New(slog.DiscardHandler)}
		change(&o)
		c := NewCertificates(o)
		c.readMounted()
		_, err := c.obtain(context.Background(), c.trusted())
		if err == nil {
			t.Fatal("no error")
		}
		return err.Error()
	}
	none := func(*CertificateOptions) {}
	got := attempt(none)
	for _, want := range []string{"Root A", "Root B", sum(root), sum(other), rootFile, cp.address, "istio-ca-root-cert", "cacerts"} {
		if !strings.Contains(got, want) {
			t.Errorf("another root: %q does not say %q", got, want)
		}
	}
	write(t, rootFile, string(encodePEM(root.cert)))
	cp.mu.Lock()
	cp.fail = errors.New("not you")
	cp.mu.Unlock()
	if got := attempt(none); !strings.Contains(got, "not you") || !strings.Contains(got, cp.address) {
		t.Errorf("refused: %q", got)
	}
	cp.mu.Lock()
	cp.fail, cp.signer = nil, other
	cp.mu.Unlock()
	if got := attempt(none); !strings.Contains(got, "trusted root") {
		t.Errorf("signed by a root that is not sent: %q", got)
	}
	if got := attempt(func(o *CertificateOptions) {
		o.Sign = func(context.Context, []byte, time.Duration) ([]string, error) {
			leaf := issue(t, root, &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}, nil)
			return []string{string(encodePEM(leaf.cert)), string(encodePEM(root.cert))}, nil
		}
	}); !strings.Contains(got, "another key") {
		t.Errorf("another key: %q", got)
	}
	for _, bad := range [][]string{nil, {""}, {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, {string(encodePEM(root.cert))}} {
		attempt(func(o *CertificateOptions) {
			o.Sign = func(context.Context, []byte, time.Duration) ([]string, error) { return bad, nil }
		})
	}
	write(t, rootFile, "junk")
	if got := attempt(none); !strings.Contains(got, rootFile) {
		t.Errorf("junk in the root file: %q", got)
	}
}

func FuzzParseTrust(f *testing.F) {
	f.Add([]byte("# signer: ab\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tr, err := parseTrust(b); err == nil && len(tr.roots) == 0 {
			t.Error("no roots, no error")
		}
	})
}
