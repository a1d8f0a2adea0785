// Package pki makes the certificates, keys and kubeconfigs of one Kubernetes
// cluster. Everything is new at each call and lives for a year.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Files is a folder in the making: its files by name.
type Files map[string][]byte

// Write writes the files with mode 0600 into dir, which it makes with 0700.
func (f Files) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, b := range f {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Cluster is what the certificates of a cluster are made from.
type Cluster struct {
	Name    string
	Server  string   // the API server's URL
	Names   []string // the API server's names and addresses
	Workers []Worker // every node, the control plane's first
}

// Worker is a node: its name and its address on the LAN.
type Worker struct{ Name, Address string }

// Dir is where a node finds its files; the kubeconfigs name it.
const Dir = "/etc/kubernetes/pki"

// Make returns the files of each node, in the order of c.Workers. The first
// one's hold the control plane's too, and admin.crt, admin.key.
func Make(c Cluster) ([]Files, error) {
	m := &maker{files: Files{}}
	root := m.authority("ca", c.Name)
	front := m.authority("front-proxy-ca", c.Name+"-front-proxy")
	m.serviceAccountKey()
	m.issue(root, "apiserver", "kube-apiserver", "", c.Names...)
	m.issue(root, "apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters")
	m.issue(front, "front-proxy", "front-proxy-client", "")
	for name, user := range map[string]string{
		"admin": "admin", "kcm": "system:kube-controller-manager", "sched": "system:kube-scheduler"} {
		group := ""
		if name == "admin" {
			group = "system:masters"
		}
		m.issue(root, name, user, group)
		m.kubeconfig(c.Server, name)
	}
	ca := m.files["ca.crt"]
	var all []Files
	for i, w := range c.Workers {
		if i > 0 {
			m.files = Files{"ca.crt": ca}
		}
		m.issue(root, "kubelet", "system:node:"+w.Name, "system:nodes", w.Name, w.Address, "127.0.0.1")
		m.kubeconfig(c.Server, "kubelet")
		m.issue(root, "proxy", "system:kube-proxy", "")
		m.kubeconfig(c.Server, "proxy")
		all = append(all, m.files)
	}
	if m.err != nil {
		return nil, fmt.Errorf("making certificates of %s: %w", c.Name, m.err)
	}
	return all, nil
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// maker collects files, and the first error.
type maker struct {
	files Files
	err   error
}

func (m *maker) put(name, kind string, der []byte, err error) {
	if m.err == nil {
		m.err = err
	}
	m.files[name] = pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func template(name, group string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	if group != "" {
		t.Subject.Organization = []string{group}
	}
	return t
}

func (m *maker) key(file string) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.err = err
		return nil
	}
	der, err := x509.MarshalECPrivateKey(k)
	m.put(file, "EC PRIVATE KEY", der, err)
	return k
}

func (m *maker) authority(file, name string) *authority {
	k := m.key(file + ".key")
	if m.err != nil {
		return nil
	}
	t := template(name, "")
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	m.put(file+".crt", "CERTIFICATE", der, err)
	if m.err != nil {
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	m.err = err
	return &authority{cert, k}
}

// issue makes FILE.crt and FILE.key for a user of a group, or for a server by
// that name.
func (m *maker) issue(a *authority, file, user, group string, names ...string) {
	if m.err != nil {
		return
	}
	k := m.key(file + ".key")
	if m.err != nil {
		return
	}
	t := template(user, group)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, k.Public(), a.key)
	m.put(file+".crt", "CERTIFICATE", der, err)
}

// serviceAccountKey makes the key that signs tokens: RSA, as in most clusters.
func (m *maker) serviceAccountKey() {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		m.err = err
		return
	}
	m.put("sa.key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k), nil)
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	m.put("sa.pub", "PUBLIC KEY", der, err)
}

// kubeconfig makes NAME.conf for the user whose NAME.crt and NAME.key there are.
func (m *maker) kubeconfig(server, name string) {
	m.files[name+".conf"] = fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: %q, certificate-authority: %s/ca.crt}}]
users: [{name: lab, user: {client-certificate: %[2]s/%[3]s.crt, client-key: %[2]s/%[3]s.key}}]
contexts: [{name: lab, context: {cluster: lab, user: lab}}]
current-context: lab
`, server, Dir, name)
}
