package differential

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pki is two authorities with leaves, as files that the bootstrap names and as values.
type pki struct {
	t      *testing.T
	dir    string
	serial int64
	cas    map[string]*authority
	leaves map[string]tls.Certificate
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPKI(t *testing.T) *pki {
	p := &pki{t: t, dir: t.TempDir(), cas: map[string]*authority{}, leaves: map[string]tls.Certificate{}}
	p.authority("root")
	p.authority("other")
	p.issue("server", "root", "DNS:a.example", "DNS:*.wild.example", "DNS:b.example", "DNS:localhost")
	p.issue("serverb", "root", "DNS:b.example")
	p.issue("client", "root", "URI:spiffe://cluster.local/ns/x/sa/y", "DNS:client")
	p.issue("revoked", "root", "URI:spiffe://cluster.local/ns/x/sa/y", "DNS:revoked", "DNS:a.example")
	p.issue("stranger", "other", "URI:spiffe://cluster.local/ns/x/sa/y")
	p.revoke("crl", "root", "revoked")
	p.revoke("empty-crl", "root")
	p.revoke("other-crl", "other")
	p.write("bad.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	p.write("empty.pem", "")
	return p
}

func (p *pki) write(name, text string) {
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pki) pem(name, typ string, der []byte) {
	p.write(name, string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})))
}

func (p *pki) key(name string) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		p.t.Fatal(err)
	}
	p.pem(name+".key", "PRIVATE KEY", der)
	return k
}

func (p *pki) template(name string) *x509.Certificate {
	p.serial++
	return &x509.Certificate{SerialNumber: big.NewInt(p.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
}

func (p *pki) authority(name string) {
	k, c := p.key(name), p.template(name)
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cas[name] = &authority{cert, k}
	p.pem(name+".pem", "CERTIFICATE", der)
}

func (p *pki) issue(name, by string, sans ...string) {
	ca, k, c := p.cas[by], p.key(name), p.template(name)
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, s := range sans {
		switch {
		case s[:4] == "DNS:":
			c.DNSNames = append(c.DNSNames, s[4:])
		case s[:4] == "URI:":
			u, err := url.Parse(s[4:])
			if err != nil {
				p.t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
		default:
			c.IPAddresses = append(c.IPAddresses, net.ParseIP(s))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, k.Public(), ca.key)
	if err != nil {
		p.t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	p.leaves[name] = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k, Leaf: leaf}
	p.pem(name+".pem", "CERTIFICATE", der)
}

func (p *pki) revoke(file, by string, leaves ...string) {
	ca := p.cas[by]
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(24 * time.Hour)}
	for _, n := range leaves {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: p.leaf(n).Leaf.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, ca.cert, ca.key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.pem(file+".pem", "X509 CRL", der)
}

func (p *pki) leaf(name string) tls.Certificate { return p.leaves[name] }

func (p *pki) pool(name string) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.cas[name].cert)
	return pool
}

// server chooses a certificate by the name that the client asks for: "revoked.example" and
// "stranger.example" get those, all others the good one.
func (p *pki) server(h *tls.ClientHelloInfo) (*tls.Config, error) {
	name := "server"
	switch h.ServerName {
	case "revoked.example":
		name = "revoked"
	case "stranger.example":
		name = "stranger"
	}
	return &tls.Config{Certificates: []tls.Certificate{p.leaf(name)}}, nil
}

// spki and hash are the pins of a leaf as Envoy's configuration has them.
func (p *pki) spki(name string) string {
	h := sha256.Sum256(p.leaf(name).Leaf.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(h[:])
}

func (p *pki) hash(name string) string {
	h := sha256.Sum256(p.leaf(name).Leaf.Raw)
	return hex.EncodeToString(h[:])
}
