package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// made is a CA as operators make them, by any tool.
type made struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// makeCA returns a CA under another one, or a self-signed one, with a template that change has changed.
func makeCA(t *testing.T, name string, by *made, key crypto.Signer, change func(*x509.Certificate)) *made {
	t.Helper()
	if key == nil {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key = k
	}
	serial, err := serialNumber()
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	if change != nil {
		change(tmpl)
	}
	parent, signer := tmpl, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &made{c, key}
}

func (m *made) pem() []byte { return certs.Encode(m.cert) }

func (m *made) keyPEM(t *testing.T) []byte {
	t.Helper()
	b, err := encodeKey(m.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// crl returns a revocation list of m.
func (m *made) crl(t *testing.T, next time.Time, revoked ...*made) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: next}
	for _, r := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.cert.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, m.cert, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func join2(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// secret is the data of Secret cacerts.
func (m *made) secret(t *testing.T, chain, root []byte) map[string][]byte {
	t.Helper()
	return map[string][]byte{"ca-cert.pem": m.pem(), "ca-key.pem": m.keyPEM(t), "cert-chain.pem": chain, "root-cert.pem": root}
}

// What people plugged in, by public reports: what loads, and which cause is named for what does not.
func TestMaterialOfTheField(t *testing.T) {
	root := makeCA(t, "root", nil, nil, nil)
	other := makeCA(t, "root2", nil, nil, nil)
	policy := makeCA(t, "policy", root, nil, nil)
	issuing := makeCA(t, "issuing", policy, nil, nil)
	good := func() map[string][]byte {
		return issuing.secret(t, join2(issuing.pem(), policy.pem(), root.pem()), root.pem())
	}
	with := func(k string, v []byte) map[string][]byte { return merge(good(), k, v) }
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	byRSA, byEd := makeCA(t, "rsa", root, rsaKey, nil), makeCA(t, "ed25519", root, edKey, nil)
	sec1 := func() []byte {
		der, err := x509.MarshalECPrivateKey(issuing.key.(*ecdsa.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		return join2([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	}()
	expired := makeCA(t, "issuing", policy, issuing.key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	cross := makeCA(t, "root", other, root.key, nil) // root's key, signed by root2
	usage := func(u ...x509.ExtKeyUsage) *made {
		return makeCA(t, "usage", root, nil, func(c *x509.Certificate) { c.ExtKeyUsage = u })
	}
	short := makeCA(t, "short", root, nil, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	below := makeCA(t, "below", short, nil, nil)
	constrained := func(domain string) *made {
		return makeCA(t, "constrained", root, nil, func(c *x509.Certificate) { c.PermittedURIDomains = []string{domain} })
	}
	dns := makeCA(t, "dns", root, nil, func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"cluster.local"} })
	glue := func(parts ...*made) (out []byte) {
		for _, p := range parts {
			out = append(out, bytes.TrimSpace(p.pem())...)
		}
		return out
	}
	later := time.Now().Add(time.Hour)
	lists := join2(issuing.crl(t, later), policy.crl(t, later), root.crl(t, later))
	for _, tt := range []struct {
		name string
		data map[string][]byte
		want string // empty: it loads
	}{
		{"three levels", good(), ""},
		{"the chain reversed", with("cert-chain.pem", join2(root.pem(), policy.pem(), issuing.pem())), ""},
		{"EC key with parameters", with("ca-key.pem", sec1), ""},
		{"an RSA key in PKCS#1", merge(byRSA.secret(t, nil, root.pem()), "ca-key.pem", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})), ""},
		{"Ed25519", byEd.secret(t, nil, root.pem()), ""},
		{"CRLF", with("cert-chain.pem", bytes.ReplaceAll(good()["cert-chain.pem"], []byte("\n"), []byte("\r\n"))), ""},
		{"text around", with("root-cert.pem", join2([]byte("Certificate:\n    Data:\n"), root.pem(), []byte("the root of example.com\n"))), ""},
		{"garbage behind", with("ca-cert.pem", join2(issuing.pem(), []byte("\x00\x01garbage"))), ""},
		{"two roots", with("root-cert.pem", join2(other.pem(), root.pem())), ""},
		{"a cross-signed chain", issuing.secret(t, join2(issuing.pem(), policy.pem(), cross.pem()), other.pem()), ""},
		{"an empty chain", policy.secret(t, nil, root.pem()), ""},
		{"the root signs", root.secret(t, root.pem(), root.pem()), ""},
		{"an expired intermediate beside its renewal", with("cert-chain.pem", join2(issuing.pem(), expired.pem(), policy.pem())), ""},
		{"the issuing CA and the root as anchors", with("root-cert.pem", join2(issuing.pem(), root.pem())), ""},
		{"the policy CA alone as anchor", with("root-cert.pem", policy.pem()), ""},
		{"the issuing CA alone as anchor", with("root-cert.pem", issuing.pem()), ""},
		{"both usages", usage(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth).secret(t, nil, root.pem()), ""},
		{"constrained to a trust domain", constrained("example.org").secret(t, nil, root.pem()), ""},
		{"revocation lists of the whole chain", with(crlKey, lists), ""},
		{"an outdated revocation list", with(crlKey, join2(issuing.crl(t, time.Now().Add(-time.Minute)), policy.crl(t, later), root.crl(t, later))), ""},

		{"glued in the chain", with("cert-chain.pem", glue(issuing, policy, root)), "cert-chain.pem block 1 (line 1): the next block begins on its -----END line"},
		{"glued roots, then the good one", with("root-cert.pem", join2(glue(other, policy), []byte("\n"), root.pem())), "root-cert.pem block 1 (line 1): the next block begins on its -----END line"},
		{"a byte order mark", with("ca-cert.pem", join2([]byte("\xef\xbb\xbf"), issuing.pem())), "ca-cert.pem begins with a byte order mark"},
		{"a cut file", with("root-cert.pem", root.pem()[:300]), "root-cert.pem block 1 (line 1): it is cut off"},
		{"the key in the certificate's file", with("ca-cert.pem", join2(issuing.pem(), issuing.keyPEM(t))), `it is of type "PRIVATE KEY" where a CERTIFICATE is expected`},
		{"the key of another", with("ca-key.pem", policy.keyPEM(t)), "ca-key.pem is not the key of ca-cert.pem"},
		{"a path length too small", below.secret(t, short.pem(), root.pem()), "ca-cert.pem"},
		{"TRUSTED CERTIFICATE", with("root-cert.pem", bytes.ReplaceAll(root.pem(), []byte("CERTIFICATE"), []byte("TRUSTED CERTIFICATE"))), `of type "TRUSTED CERTIFICATE"`},
		{"PKCS#7", with("cert-chain.pem", []byte("-----BEGIN PKCS7-----\nMAA=\n-----END PKCS7-----\n")), `of type "PKCS7"`},
		{"an expired CA", expired.secret(t, policy.pem(), root.pem()), "expired at"},
		{"for servers only", usage(x509.ExtKeyUsageServerAuth).secret(t, nil, root.pem()), "extendedKeyUsage of CN=usage excludes TLS clients"},
		{"for clients only", usage(x509.ExtKeyUsageClientAuth).secret(t, nil, root.pem()), "extendedKeyUsage of CN=usage excludes TLS servers"},
		{"workloads' names excluded", dns.secret(t, nil, root.pem()), "a workload's certificate signed by ca-cert.pem (CN=dns) does not verify"},
		{"no list of the root", with(crlKey, join2(issuing.crl(t, later), policy.crl(t, later))), "ca-crl.pem holds no list that CN=root has signed"},
		{"the CA itself revoked", with(crlKey, join2(issuing.crl(t, later), policy.crl(t, later, issuing), root.crl(t, later))), "ca-crl.pem: the certificate with serial"},
		{"a damaged list", with(crlKey, lists[:200]), "ca-crl.pem block 1 (line 1): it is cut off"},
	} {
		s, err := ParsePluggedIn(tt.data, time.Now())
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if err != nil {
			continue
		}
		// A peer that trusts the self-signed root alone can follow the chain that servers send.
		if _, err := s.cert.Verify(x509.VerifyOptions{Roots: pool([]*x509.Certificate{root.cert, other.cert}), Intermediates: pool(s.intermediates()), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil && !strings.Contains(tt.name, "alone as anchor") {
			t.Errorf("%s: what servers send does not lead to the root: %v", tt.name, err)
		}
	}
}

// Lists are published with the roots, renewed with the Secret, and taken back with it.
func TestRevocationListsArePublished(t *testing.T) {
	root := makeCA(t, "root", nil, nil, nil)
	issuing := makeCA(t, "issuing", root, nil, nil)
	m := &memory{}
	lists := join2(issuing.crl(t, time.Now().Add(time.Minute)), root.crl(t, time.Now().Add(30*24*time.Hour)))
	m.put(PluggedInSecret, merge(issuing.secret(t, nil, root.pem()), crlKey, lists))
	var told reports
	a, stop := start(t, m, func(c *Config) { c.Report = told.add; c.Poll = 10 * time.Millisecond })
	defer stop()
	if a.Bundle().CRL != string(lists) {
		t.Fatalf("published: %q", a.Bundle().CRL)
	}
	until(t, func() bool {
		return strings.Contains(told.last(), "the revocation list of CN=issuing in ca-crl.pem of Secret cacerts ends at")
	})
	m.put(PluggedInSecret, issuing.secret(t, nil, root.pem()))
	until(t, func() bool { return a.Bundle().CRL == "" })
	if a.Signer() == nil || !a.Signer().cert.Equal(issuing.cert) {
		t.Error("the signer went with the list")
	}
}

// until waits for a condition.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("it does not become so")
		}
		time.Sleep(5 * time.Millisecond)
	}
}
