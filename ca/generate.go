package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// KeyType is the kind of key a generated CA gets.
type KeyType string

const (
	RSA4096 KeyType = "rsa4096" // Istio's Makefile's, the default
	RSA2048 KeyType = "rsa2048"
	P256    KeyType = "p256"
)

// RootOptions say what NewRoot makes. The zero value is what Istio's Makefile makes.
type RootOptions struct {
	Organization string  // "Istio"
	CommonName   string  // "Root CA"
	Days         int     // 3650
	Key          KeyType // RSA4096
}

// Root is a root CA as files: root-key.pem (keep it elsewhere, mode 0600) and root-cert.pem.
type Root struct {
	KeyPEM  []byte
	CertPEM []byte
}

// NewRoot makes a root CA: self-signed, SHA-256, CA:true, keyUsage digitalSignature,
// nonRepudiation, keyEncipherment and keyCertSign, as Istio's certificate Makefile does, and
// cRLSign, so that it can revoke what it has signed (ca-crl.pem).
func NewRoot(o RootOptions) (*Root, error) {
	org, cn := or(o.Organization, "Istio"), or(o.CommonName, "Root CA")
	key, cert, err := newRoot(pkix.Name{Organization: []string{org}, CommonName: cn}, o.Key, days(o.Days, 3650))
	if err != nil {
		return nil, fmt.Errorf("making root CA: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Root{KeyPEM: keyPEM, CertPEM: certs.Encode(cert)}, nil
}

// IntermediateOptions say what NewIntermediate makes.
type IntermediateOptions struct {
	Cluster      string   // the subject's locality, as Istio's Makefile has it; required
	Organization string   // "Istio"
	CommonName   string   // "Intermediate CA"
	Days         int      // 730, and never beyond the root
	Key          KeyType  // RSA4096
	DNSNames     []string // "istiod.istio-system.svc"
}

// Intermediate is one cluster's CA as files, ready for Secret cacerts.
type Intermediate struct {
	CertPEM  []byte // ca-cert.pem
	KeyPEM   []byte // ca-key.pem, mode 0600
	ChainPEM []byte // cert-chain.pem: ca-cert.pem, then root-cert.pem
	RootPEM  []byte // root-cert.pem
}

// Files returns the intermediate under the names that Secret cacerts has.
func (i *Intermediate) Files() map[string][]byte {
	return map[string][]byte{
		istioNames.cert: i.CertPEM, istioNames.key: i.KeyPEM, istioNames.chain: i.ChainPEM, istioNames.root: i.RootPEM,
	}
}

// NewIntermediate makes a cluster's CA, signed by root: CA:true with path length 0. root may
// come from NewRoot or from openssl.
func NewIntermediate(root Root, o IntermediateOptions) (*Intermediate, error) {
	if o.Cluster == "" {
		return nil, fmt.Errorf("making intermediate CA: the cluster's name is empty")
	}
	now := time.Now()
	r, err := parse(map[string][]byte{"root-cert.pem": root.CertPEM, "root-key.pem": root.KeyPEM},
		names{"root-cert.pem", "root-key.pem", "root-cert.pem", "root-cert.pem"}, now)
	if err != nil {
		return nil, fmt.Errorf("making intermediate CA for %s: %w", o.Cluster, err)
	}
	if r.cert.MaxPathLenZero {
		return nil, fmt.Errorf("making intermediate CA for %s: root-cert.pem (%s) has path length 0, so nothing below it may sign", o.Cluster, r.cert.Subject)
	}
	key, err := newKey(o.Key)
	if err != nil {
		return nil, fmt.Errorf("making intermediate CA for %s: %w", o.Cluster, err)
	}
	tmpl, err := caTemplate(pkix.Name{
		Organization: []string{or(o.Organization, "Istio")},
		CommonName:   or(o.CommonName, "Intermediate CA"),
		Locality:     []string{o.Cluster},
	}, key, now, days(o.Days, 730))
	if err != nil {
		return nil, fmt.Errorf("making intermediate CA for %s: %w", o.Cluster, err)
	}
	tmpl.MaxPathLen, tmpl.MaxPathLenZero = 0, true
	tmpl.AuthorityKeyId = r.keyID
	tmpl.DNSNames = o.DNSNames
	if len(tmpl.DNSNames) == 0 {
		tmpl.DNSNames = []string{"istiod.istio-system.svc"}
	}
	if tmpl.NotAfter.After(r.cert.NotAfter) {
		tmpl.NotAfter = r.cert.NotAfter
	}
	if tmpl.NotBefore.Before(r.cert.NotBefore) {
		tmpl.NotBefore = r.cert.NotBefore
	}
	cert, err := create(tmpl, r.cert, key.Public(), r.key)
	if err != nil {
		return nil, fmt.Errorf("making intermediate CA for %s: %w", o.Cluster, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Intermediate{
		CertPEM: certs.Encode(cert), KeyPEM: keyPEM,
		ChainPEM: certs.Encode(cert, r.cert), RootPEM: certs.Encode(r.cert),
	}, nil
}

// newSelfSigned returns the data of a new Secret istio-ca-secret: five keys, of which only
// ca-cert.pem and ca-key.pem are filled. The subject is O=organization, the validity ten years.
func newSelfSigned(organization string) (map[string][]byte, error) {
	key, cert, err := newRoot(pkix.Name{Organization: []string{organization}}, RSA2048, 10*365*24*time.Hour)
	if err != nil {
		return nil, fmt.Errorf("making self-signed CA: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"ca-cert.pem": certs.Encode(cert), "ca-key.pem": keyPEM,
		"cert-chain.pem": {}, "key.pem": {}, "root-cert.pem": {},
	}, nil
}

// RenewSelfSigned returns the data of Secret istio-ca-secret with a new root in the place of the one
// in data: of the same subject, with a new key, valid for ten years.
func RenewSelfSigned(data map[string][]byte) (map[string][]byte, error) {
	old, err := certs.Certificates(data[selfNames.cert])
	if err != nil {
		return nil, fmt.Errorf("%s %w", selfNames.cert, err)
	}
	org := "cluster.local"
	if o := old[0].Subject.Organization; len(o) > 0 {
		org = o[0]
	}
	return newSelfSigned(org)
}

func newRoot(subject pkix.Name, kind KeyType, validity time.Duration) (crypto.Signer, *x509.Certificate, error) {
	key, err := newKey(kind)
	if err != nil {
		return nil, nil, err
	}
	tmpl, err := caTemplate(subject, key, time.Now(), validity)
	if err != nil {
		return nil, nil, err
	}
	cert, err := create(tmpl, tmpl, key.Public(), key)
	return key, cert, err
}

// caTemplate holds what root and intermediate have in common.
func caTemplate(subject pkix.Name, key crypto.Signer, now time.Time, validity time.Duration) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	id, err := subjectKeyID(key.Public())
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            -1,
		SubjectKeyId:          id,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment |
			x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil
}

// subjectKeyID is method 1 of RFC 5280, 4.2.1.2 (openssl's "hash"): a name, not a proof.
func subjectKeyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	sum := sha1.Sum(spki.Key.Bytes)
	return sum[:], nil
}

func create(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return x509.ParseCertificate(der)
}

func newKey(kind KeyType) (crypto.Signer, error) {
	switch kind {
	case "", RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("key type %q, want %s, %s or %s", kind, RSA4096, RSA2048, P256)
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

func days(n, fallback int) time.Duration {
	if n <= 0 {
		n = fallback
	}
	return time.Duration(n) * 24 * time.Hour
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
