package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// backdate is how far NotBefore lies in the past, for hosts whose clocks are behind.
const backdate = 2 * time.Minute

// Signer is a CA certificate with its key and the way up to its roots. It is immutable and
// has been checked: the key fits, and a leaf it signs verifies against its roots.
type Signer struct {
	cert       *x509.Certificate
	key        crypto.Signer
	above      []*x509.Certificate // from cert's issuer up, without the root
	anchor     *x509.Certificate   // the root at which cert's chain ends
	roots      []*x509.Certificate // all of root-cert.pem; anchor is one of them
	keyID      []byte              // what leaves carry as AuthorityKeyId
	selfSigned bool                // made by us, not plugged in
	format     string              // which layout the Secret had, for the log
}

// newSigner checks the material as of now. The names are those of the Secret's keys, for
// messages. chain may hold cert itself and roots; what is needed of it is taken.
func newSigner(cert *x509.Certificate, key crypto.Signer, chain, roots []*x509.Certificate, n names, now time.Time) (*Signer, error) {
	if !cert.BasicConstraintsValid || !cert.IsCA {
		return nil, fmt.Errorf("%s (%s) is not a CA certificate: basicConstraints CA:true is missing", n.cert, cert.Subject)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("%s (%s) may not sign certificates: keyUsage lacks keyCertSign", n.cert, cert.Subject)
	}
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, fmt.Errorf("%s is not the key of %s (%s)", n.key, n.cert, cert.Subject)
	}
	if err := checkValid(n.cert, cert, now); err != nil {
		return nil, err
	}
	for _, r := range roots {
		if !bytes.Equal(r.RawIssuer, r.RawSubject) {
			return nil, fmt.Errorf("%s holds %s, which is not self-signed (issuer %s)", n.root, r.Subject, r.Issuer)
		}
	}
	rootPool, midPool := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		rootPool.AddCert(r)
	}
	for _, c := range chain {
		midPool.AddCert(c)
	}
	opts := x509.VerifyOptions{Roots: rootPool, Intermediates: midPool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	chains, err := cert.Verify(opts)
	if err != nil {
		// An expired certificate on the way is the likelier cause, and a clearer message.
		for _, c := range chain {
			if err := checkValid(n.chain, c, now); err != nil {
				return nil, err
			}
		}
		for _, c := range roots {
			if err := checkValid(n.root, c, now); err != nil {
				return nil, err
			}
		}
		return nil, fmt.Errorf("%s (subject %s, issuer %s) does not lead through %s to a root in %s (%s): %w",
			n.cert, cert.Subject, cert.Issuer, n.chain, n.root, roots[0].Subject, err)
	}
	path := chains[0]
	s := &Signer{cert: cert, key: key, anchor: path[len(path)-1], roots: roots, keyID: cert.SubjectKeyId}
	if len(path) > 2 {
		s.above = path[1 : len(path)-1]
	}
	if len(s.keyID) == 0 {
		sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		s.keyID = sum[:20]
	}
	if err := s.probe(opts); err != nil {
		return nil, fmt.Errorf("a certificate signed by %s (%s) does not verify: %w", n.cert, cert.Subject, err)
	}
	return s, nil
}

// probe signs a throw-away leaf and verifies it, which finds what no single certificate
// shows: a path length too small, a signature algorithm nobody accepts.
func (s *Signer) probe(opts x509.VerifyOptions) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	der, err := s.sign(key.Public(), nil, nil, time.Hour, opts.CurrentTime)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading it back: %w", err)
	}
	opts.Intermediates = x509.NewCertPool()
	for _, c := range s.intermediates() {
		opts.Intermediates.AddCert(c)
	}
	_, err = leaf.Verify(opts)
	return err
}

func checkValid(name string, c *x509.Certificate, now time.Time) error {
	if now.After(c.NotAfter) {
		return fmt.Errorf("%s (%s) expired at %s", name, c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
	}
	if now.Before(c.NotBefore) {
		return fmt.Errorf("%s (%s) is not valid before %s", name, c.Subject, c.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// NotAfter returns when the first certificate from the signer up to its root expires.
func (s *Signer) NotAfter() time.Time {
	t := s.cert.NotAfter
	for _, c := range append([]*x509.Certificate{s.anchor}, s.above...) {
		if c.NotAfter.Before(t) {
			t = c.NotAfter
		}
	}
	return t
}

// SelfSigned reports whether the control plane made this CA for itself.
func (s *Signer) SelfSigned() bool { return s.selfSigned }

// Certificate returns the certificate whose key signs.
func (s *Signer) Certificate() *x509.Certificate { return s.cert }

// Root returns the root at which the signer's chain ends.
func (s *Signer) Root() *x509.Certificate { return s.anchor }

// intermediates returns what a server must send beside its leaf: the signing certificate and
// those above it, without the root; nothing when the root itself signs.
func (s *Signer) intermediates() []*x509.Certificate {
	if s.cert.Equal(s.anchor) {
		return nil
	}
	return append([]*x509.Certificate{s.cert}, s.above...)
}

// same reports whether t would sign and be trusted just as s.
func (s *Signer) same(t *Signer) bool {
	if s == nil || t == nil {
		return s == t
	}
	if !s.cert.Equal(t.cert) || len(s.roots) != len(t.roots) || len(s.above) != len(t.above) {
		return false
	}
	for i := range s.roots {
		if !s.roots[i].Equal(t.roots[i]) {
			return false
		}
	}
	for i := range s.above {
		if !s.above[i].Equal(t.above[i]) {
			return false
		}
	}
	return true
}

// sign returns a leaf certificate (DER) for pub, valid for ttl or as long as the signer,
// whichever is shorter. The subject is empty, so the SAN is critical (RFC 5280, 4.2.1.6).
func (s *Signer) sign(pub crypto.PublicKey, uris []*url.URL, dns []string, ttl time.Duration, now time.Time) ([]byte, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(ttl)
	if end := s.NotAfter(); notAfter.After(end) {
		notAfter = end
	}
	if !notAfter.After(now) {
		return nil, fmt.Errorf("the signing certificate (%s) or its chain expired at %s", s.cert.Subject, s.NotAfter().UTC().Format(time.RFC3339))
	}
	notBefore := now.Add(-backdate)
	if notBefore.Before(s.cert.NotBefore) {
		notBefore = s.cert.NotBefore
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		AuthorityKeyId:        s.keyID,
		URIs:                  uris,
		DNSNames:              dns,
	}, s.cert, pub, s.key)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return der, nil
}

// serialNumber returns 127 random bits, which encode as a positive integer (RFC 5280, 4.1.2.2).
func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func encodeDER(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
