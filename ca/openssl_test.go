package ca

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

func openssl(t *testing.T, dir string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	cmd := exec.Command("openssl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func write(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What we generate is what Istio's Makefile would have made, as openssl reads it.
func TestGeneratedFilesInOpenSSL(t *testing.T) {
	dir := t.TempDir()
	root, err := NewRoot(RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewIntermediate(*root, IntermediateOptions{Cluster: "cluster1"})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, i.Files())
	if got := openssl(t, dir, "verify", "-CAfile", "root-cert.pem", "ca-cert.pem"); strings.TrimSpace(got) != "ca-cert.pem: OK" {
		t.Error(got)
	}
	for _, tt := range []struct {
		file string
		want []string
	}{
		{"root-cert.pem", []string{"Issuer: O = Istio, CN = Root CA", "Subject: O = Istio, CN = Root CA", "CA:TRUE",
			"Digital Signature, Non Repudiation, Key Encipherment, Certificate Sign", "(4096 bit)", "sha256WithRSAEncryption"}},
		{"ca-cert.pem", []string{"Issuer: O = Istio, CN = Root CA", "CN = Intermediate CA", "O = Istio", "L = cluster1", "CA:TRUE, pathlen:0",
			"Digital Signature, Non Repudiation, Key Encipherment, Certificate Sign", "DNS:istiod.istio-system.svc", "(4096 bit)"}},
	} {
		got := openssl(t, dir, "x509", "-in", tt.file, "-noout", "-text", "-nameopt", "oneline,-esc_msb")
		for _, w := range tt.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q is not in\n%s", tt.file, w, got)
			}
		}
	}
	if got := string(i.ChainPEM); got != string(i.CertPEM)+string(root.CertPEM) {
		t.Error("cert-chain.pem is not ca-cert.pem followed by root-cert.pem")
	}
	for file, days := range map[string]int{"ca-cert.pem": 730, "root-cert.pem": 3650} {
		openssl(t, dir, "x509", "-in", file, "-noout", "-checkend", "60")
		c, _ := certs.Certificates(i.Files()[file])
		if got := c[0].NotAfter.Sub(c[0].NotBefore) - backdate; got != time.Duration(days)*24*time.Hour {
			t.Errorf("%s is valid for %s", file, got)
		}
	}
}

const rootConf = `[req]
encrypt_key = no
prompt = no
utf8 = yes
default_md = sha256
default_bits = 2048
req_extensions = ext
x509_extensions = ext
distinguished_name = dn
[ext]
subjectKeyIdentifier = hash
basicConstraints = critical, CA:true
keyUsage = critical, digitalSignature, nonRepudiation, keyEncipherment, keyCertSign
[dn]
O = Istio
CN = Root CA
`

const caConf = `[req]
encrypt_key = no
prompt = no
utf8 = yes
default_md = sha256
default_bits = 2048
req_extensions = ext
x509_extensions = ext
distinguished_name = dn
[ext]
subjectKeyIdentifier = hash
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, digitalSignature, nonRepudiation, keyEncipherment, keyCertSign
subjectAltName=@san
[san]
DNS.1 = istiod.istio-system.svc
[dn]
O = Istio
CN = Intermediate CA
L = cluster1
`

// Files made with openssl by the steps of Istio's Makefile, with each form of key that old
// and new openssl write, sign leaves that openssl verifies.
func TestOpenSSLFiles(t *testing.T) {
	keys := map[string][][]string{
		"pkcs8-rsa": {{"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "KEY"}},
		"pkcs1-rsa": {{"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "p8"}, {"rsa", "-traditional", "-in", "p8", "-out", "KEY"}},
		"sec1-ec":   {{"ecparam", "-name", "prime256v1", "-genkey", "-out", "KEY"}}, // EC PARAMETERS, then EC PRIVATE KEY
		"pkcs8-ec":  {{"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", "KEY"}},
	}
	for name, steps := range keys {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string][]byte{"root.conf": []byte(rootConf), "ca.conf": []byte(caConf)})
			genkey := func(file string) {
				for _, s := range steps {
					args := append([]string(nil), s...)
					for i := range args {
						if args[i] == "KEY" {
							args[i] = file
						}
					}
					openssl(t, dir, args...)
				}
			}
			genkey("root-key.pem")
			openssl(t, dir, "req", "-sha256", "-new", "-key", "root-key.pem", "-config", "root.conf", "-out", "root.csr")
			openssl(t, dir, "x509", "-req", "-sha256", "-days", "3650", "-signkey", "root-key.pem", "-extensions", "ext", "-extfile", "root.conf", "-in", "root.csr", "-out", "root-cert.pem")
			genkey("ca-key.pem")
			openssl(t, dir, "req", "-sha256", "-new", "-key", "ca-key.pem", "-config", "ca.conf", "-out", "ca.csr")
			openssl(t, dir, "x509", "-req", "-sha256", "-days", "730", "-CA", "root-cert.pem", "-CAkey", "root-key.pem", "-CAcreateserial", "-extensions", "ext", "-extfile", "ca.conf", "-in", "ca.csr", "-out", "ca-cert.pem")
			files := map[string][]byte{}
			for _, f := range []string{"ca-cert.pem", "ca-key.pem", "root-cert.pem", "root-key.pem"} {
				data, err := os.ReadFile(filepath.Join(dir, f))
				if err != nil {
					t.Fatal(err)
				}
				files[f] = data
			}
			files["cert-chain.pem"] = append(append([]byte(nil), files["ca-cert.pem"]...), files["root-cert.pem"]...)
			verifyLeaf(t, dir, files)
			// The same material as a kubernetes.io/tls Secret.
			verifyLeaf(t, dir, map[string][]byte{"tls.crt": files["cert-chain.pem"], "tls.key": files["ca-key.pem"], "ca.crt": files["root-cert.pem"]})
			// A cluster's CA of ours under openssl's root.
			i, err := NewIntermediate(Root{KeyPEM: files["root-key.pem"], CertPEM: files["root-cert.pem"]}, IntermediateOptions{Cluster: "cluster2", Key: P256})
			if err != nil {
				t.Fatal(err)
			}
			verifyLeaf(t, dir, i.Files())
		})
	}
}

func verifyLeaf(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	m := &memory{secrets: map[string]map[string][]byte{PluggedInSecret: files}}
	a, err := New(t.Context(), testConfig(t, m))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "leaf.csr")); err != nil {
		openssl(t, dir, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "leaf-key.pem", "-subj", "/", "-out", "leaf.csr")
	}
	req, err := os.ReadFile(filepath.Join(dir, "leaf.csr"))
	if err != nil {
		t.Fatal(err)
	}
	chain := issueFor(t, a, string(req))
	write(t, dir, map[string][]byte{"leaf.pem": []byte(chain[0]), "mid.pem": []byte(chain[1]), "roots.pem": []byte(chain[len(chain)-1])})
	if got := openssl(t, dir, "verify", "-x509_strict", "-CAfile", "roots.pem", "-untrusted", "mid.pem", "leaf.pem"); !strings.Contains(got, "leaf.pem: OK") {
		t.Error(got)
	}
	text := openssl(t, dir, "x509", "-in", "leaf.pem", "-noout", "-text")
	for _, w := range []string{"X509v3 Subject Alternative Name: critical", "URI:spiffe://cluster.local/ns/sample/sa/sleep", "CA:FALSE"} {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%s", w, text)
		}
	}
}
