package certs

import (
	"bytes"
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
)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a CA certificate under a, self-signed if a is nil.
func issue(t *testing.T, name string, a *authority, serial int64) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	parent, signer := tmpl, key
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{c, key}
}

// list signs a revocation list.
func (a *authority) list(t *testing.T, until time.Time, revoked ...int64) []byte {
	t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: until}
	for _, n := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeCRL, Bytes: der})
}

// What is damaged is never skipped: the error names the block, its line and the cause.
func TestDamageIsNamed(t *testing.T) {
	a, b := string(Encode(issue(t, "a", nil, 1).cert)), string(Encode(issue(t, "b", nil, 2).cert))
	lines := strings.Split(a, "\n")
	for _, tt := range []struct{ name, text, want string }{
		{"empty", " \n", "is empty"},
		{"no PEM", "hello", "holds no PEM block"},
		{"a byte order mark", "\xef\xbb\xbf" + a, "byte order mark"},
		{"UTF-16", "\xff\xfe" + a, "UTF-16"},
		{"glued", strings.TrimSpace(a) + b, "block 1 (line 1): the next block begins on its -----END line"},
		{"glued behind a good one", a + strings.TrimSpace(b) + a, "block 2 "},
		{"cut off at the end", a + b[:200], "block 2 (line " + line(a) + "): it is cut off"},
		{"cut off before a good one", a[:200] + "\n" + b, "block 1 (line 1): it is cut off: another block begins on line"},
		{"no BEGIN before a good one", a[40:] + b, "a block ends that did not begin"},
		{"damaged base64", strings.Replace(a, lines[3], "*"+lines[3][1:], 1) + b, "block 1 (line 1): its base64 text is damaged"},
		{"a missing line", strings.Replace(a, lines[3]+"\n", "", 1) + b, "block 1 (line 1): "},
		{"ends by another type", strings.Replace(a, "END CERTIFICATE", "END PRIVATE KEY", 1), "BEGIN CERTIFICATE is followed by END PRIVATE KEY"},
		{"indented", b + "  " + a, "-----BEGIN does not begin its line"},
		{"literal \\n", strings.ReplaceAll(a, "\n", `\n`), `\n as two characters`},
		{"text behind BEGIN", strings.Replace(a, "CERTIFICATE-----", "CERTIFICATE----- x", 1), "does not end after -----"},
		{"four dashes", strings.Replace(a, "CERTIFICATE-----", "CERTIFICATE----", 1), "lacks the closing -----"},
		{"another type", a + "-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n", `block 2 (line ` + line(a) + `): it is of type "PKCS7"`},
		{"TRUSTED", strings.ReplaceAll(a, "CERTIFICATE", "TRUSTED CERTIFICATE"), `of type "TRUSTED CERTIFICATE"`},
		{"no certificate in it", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "block 1 (line 1): x509"},
	} {
		if got, err := Certificates([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %d certificates, error %v, want one with %q", tt.name, len(got), err, tt.want)
		}
	}
	for name, text := range map[string]string{
		"CRLF":              strings.ReplaceAll(a+b, "\n", "\r\n"),
		"blanks after":      strings.ReplaceAll(a+b, "-----\n", "----- \t\n"),
		"text around":       "Certificate:\n  Data: x\n" + a + "\nsubject=b\n" + b + "tail",
		"comments":          "# -----BEGIN CERTIFICATE-----\n" + a + b,
		"no last line feed": a + strings.TrimSpace(b),
	} {
		if got, err := Certificates([]byte(text)); err != nil || len(got) != 2 {
			t.Errorf("%s: %d certificates, error %v", name, len(got), err)
		}
	}
}

func line(before string) string { return big.NewInt(int64(strings.Count(before, "\n") + 1)).String() }

func TestKeyHoldsOne(t *testing.T) {
	der, err := x509.MarshalPKCS8PrivateKey(issue(t, "a", nil, 1).key)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if _, err := Key(append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), key...)); err != nil {
		t.Error(err)
	}
	if _, err := Key(bytes.Repeat(key, 2)); err == nil || !strings.Contains(err.Error(), "one private key is expected") {
		t.Errorf("two keys: %v", err)
	}
	damaged := bytes.Replace(key, []byte("\n"), []byte("\nA"), 1)
	if _, err := Key(damaged); err == nil || strings.Contains(err.Error(), string(key[40:60])) {
		t.Errorf("a damaged key: %v", err)
	}
}

// As in Envoy: a list for one authority obliges to lists of all, outdated lists trust nobody.
func TestRevoked(t *testing.T) {
	root := issue(t, "root", nil, 1)
	mid := issue(t, "mid", root, 2)
	leaf := issue(t, "leaf", mid, 3)
	chain := []*x509.Certificate{leaf.cert, mid.cert, root.cert}
	now, later := time.Now(), time.Now().Add(time.Hour)
	for _, tt := range []struct {
		name     string
		pem      []byte
		leafOnly bool
		want     string
	}{
		{"nothing revoked", append(mid.list(t, later), root.list(t, later, 9)...), false, ""},
		{"the leaf", append(mid.list(t, later, 3), root.list(t, later)...), false, "serial 3"},
		{"the intermediate", append(mid.list(t, later), root.list(t, later, 2)...), false, "serial 2"},
		{"the intermediate, but only leaves count", append(mid.list(t, later), root.list(t, later, 2)...), true, ""},
		{"no list of the root", mid.list(t, later), false, "no revocation list of CN=root"},
		{"no list of the root, but only leaves count", mid.list(t, later), true, ""},
		{"an outdated list", append(mid.list(t, now.Add(-time.Minute)), root.list(t, later)...), false, "expired"},
		{"a list by another of the same name", append(issue(t, "mid", root, 4).list(t, later), root.list(t, later)...), false, "no revocation list of CN=mid"},
	} {
		lists, err := RevocationLists(tt.pem)
		if err != nil {
			t.Fatal(err)
		}
		if err := Revoked(chain, lists, now, tt.leafOnly); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := Revoked(chain, nil, now, false); err != nil {
		t.Errorf("without lists: %v", err)
	}
	anchors, lists, err := Anchors(append([]byte("-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n"), append(Encode(root.cert, mid.cert), root.list(t, later)...)...))
	if err != nil || len(anchors) != 2 || len(lists) != 1 {
		t.Errorf("anchors with a list: %d, %d, %v", len(anchors), len(lists), err)
	}
	if _, err := RevocationLists(Encode(root.cert)); err == nil {
		t.Error("a certificate passes for a revocation list")
	}
}

// Nothing that looks like a block goes missing, and nothing panics.
func FuzzCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE----------BEGIN X509 CRL-----\n"))
	f.Add([]byte("-----END A-----\n-----BEGIN A-----"))
	f.Fuzz(func(t *testing.T, text []byte) {
		bs, err := blocks(text)
		if err == nil && len(bs) > bytes.Count(text, begin) {
			t.Errorf("%d blocks of %d", len(bs), bytes.Count(text, begin))
		}
		Certificates(text)
		RevocationLists(text)
		Key(text)
	})
}
