package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"
)

// backdate is how far NotBefore lies in the past, for hosts whose clocks are behind.
const backdate = 2 * time.Minute

// Signer is a CA certificate with its key and the way up to its roots. It is immutable and
// has been checked: the key fits, and a leaf it signs verifies against its roots.
type Signer struct {
	cert       *x509.Certificate
	key        crypto.Signer
	above      []*x509.Certificate // from cert's issuer up, without the anchor
	anchor     *x509.Certificate   // the certificate of root-cert.pem at which cert's chain ends
	roots      []*x509.Certificate // all of root-cert.pem; anchor is one of them
	lists      []*x509.RevocationList
	crl        []byte // the same, PEM
	keyID      []byte // what leaves carry as AuthorityKeyId
	selfSigned bool   // made by us, not plugged in
	format     string // which layout the Secret had, for the log
}

// material is what a signer is made of. The names are those of the Secret's keys, for messages.
// chain may hold cert itself and roots; what is needed of it is taken.
type material struct {
	cert         *x509.Certificate
	key          crypto.Signer
	chain, roots []*x509.Certificate
	names        names
}

// newSigner checks the material as of now.
func newSigner(m material, now time.Time) (*Signer, error) {
	cert, n := m.cert, m.names
	if !cert.BasicConstraintsValid || !cert.IsCA {
		return nil, fmt.Errorf("%s (%s) is not a CA certificate: basicConstraints CA:true is missing", n.cert, cert.Subject)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("%s (%s) may not sign certificates: keyUsage lacks keyCertSign", n.cert, cert.Subject)
	}
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(m.key.Public()) {
		return nil, fmt.Errorf("%s is not the key of %s (%s)", n.key, n.cert, cert.Subject)
	}
	if err := checkValid(n.cert, cert, now); err != nil {
		return nil, err
	}
	for _, r := range m.roots {
		if !r.BasicConstraintsValid && r.Version == 3 || r.BasicConstraintsValid && !r.IsCA {
			return nil, fmt.Errorf("%s holds %s, which is not a CA certificate", n.root, r.Subject)
		}
	}
	path, err := m.path(now)
	if err != nil {
		return nil, err
	}
	s := &Signer{cert: cert, key: m.key, anchor: path[len(path)-1], roots: m.roots, keyID: cert.SubjectKeyId}
	if len(path) > 2 {
		s.above = path[1 : len(path)-1]
	}
	if len(s.keyID) == 0 {
		sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		s.keyID = sum[:20]
	}
	if err := s.probe(now); err != nil {
		return nil, fmt.Errorf("a workload's certificate signed by %s (%s) does not verify: %w", n.cert, cert.Subject, err)
	}
	return s, nil
}

// path returns the way from the certificate to its anchor. Any certificate of root-cert.pem can
// be the anchor; a self-signed one is preferred, for other clusters may trust that one only.
func (m material) path(now time.Time) ([]*x509.Certificate, error) {
	n := m.names
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: pool(m.chain), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	for _, r := range m.roots {
		if isSelfSigned(r) {
			opts.Roots.AddCert(r)
		} else {
			opts.Intermediates.AddCert(r)
		}
	}
	if chains, err := m.cert.Verify(opts); err == nil {
		return chains[0], nil
	}
	opts.Roots = pool(m.roots)
	chains, err := m.cert.Verify(opts)
	if err == nil {
		return chains[0], nil
	}
	// An expired certificate on the way is the likelier cause, and a clearer message.
	for _, c := range m.chain {
		if err := checkValid(n.chain, c, now); err != nil {
			return nil, err
		}
	}
	for _, c := range m.roots {
		if err := checkValid(n.root, c, now); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s (subject %s, issuer %s) does not lead through %s to a root in %s (%s): %w",
		n.cert, m.cert.Subject, m.cert.Issuer, n.chain, n.root, m.roots[0].Subject, err)
}

func pool(all []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range all {
		p.AddCert(c)
	}
	return p
}

func isSelfSigned(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

// probe signs a throw-away leaf, such as a workload gets, and verifies it as its peers will: as a
// client's and as a server's. That finds what no single certificate shows: a path length too
// small, an extended key usage or a name constraint that excludes workloads, a signature
// algorithm that nobody accepts.
func (s *Signer) probe(now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	name := &url.URL{Scheme: "spiffe", Host: s.trustDomain(), Path: "/ns/default/sa/default"}
	der, err := s.sign(key.Public(), []*url.URL{name}, nil, time.Hour, now)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading it back: %w", err)
	}
	opts := x509.VerifyOptions{Roots: pool(s.roots), Intermediates: pool(s.intermediates()), CurrentTime: now}
	for usage, role := range map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "server", x509.ExtKeyUsageClientAuth: "client"} {
		opts.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf.Verify(opts); err != nil {
			for _, c := range append(s.intermediates(), s.anchor) {
				if len(c.ExtKeyUsage) > 0 && !slices.Contains(c.ExtKeyUsage, usage) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
					return fmt.Errorf("extendedKeyUsage of %s excludes TLS %ss, and workloads are servers and clients; issue it without extendedKeyUsage, or with serverAuth and clientAuth", c.Subject, role)
				}
			}
			return fmt.Errorf("as a TLS %s: %w", role, err)
		}
	}
	return nil
}

// trustDomain returns one that the chain's name constraints allow.
func (s *Signer) trustDomain() string {
	for _, c := range append(s.intermediates(), s.anchor) {
		for _, d := range c.PermittedURIDomains {
			if d = strings.TrimPrefix(d, "."); d != "" {
				return d
			}
		}
	}
	return "cluster.local"
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
// those above it, without a self-signed root; nothing when that root itself signs.
func (s *Signer) intermediates() []*x509.Certificate {
	if isSelfSigned(s.cert) {
		return nil
	}
	all := append([]*x509.Certificate{s.cert}, s.above...)
	if !s.cert.Equal(s.anchor) && !isSelfSigned(s.anchor) {
		all = append(all, s.anchor)
	}
	return all
}

// same reports whether t would sign and be trusted just as s.
func (s *Signer) same(t *Signer) bool {
	if s == nil || t == nil {
		return s == t
	}
	if !s.cert.Equal(t.cert) || !bytes.Equal(s.crl, t.crl) || len(s.roots) != len(t.roots) || len(s.above) != len(t.above) {
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
