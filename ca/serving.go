package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ServiceHosts returns the names under which proxies and API servers reach a Service of the
// control plane: NAME.NAMESPACE.svc, NAME.NAMESPACE and NAME.NAMESPACE.svc.DOMAIN.
func ServiceHosts(name, namespace, domain string) []string {
	short := name + "." + namespace
	return []string{short + ".svc", short, short + ".svc." + domain}
}

// Serving keeps the control plane's own server certificate: for given host names, signed by
// the Authority's signer, renewed at half its life and at once when the signer changes.
type Serving struct {
	authority *Authority
	hosts     []string

	mu     sync.Mutex
	cert   *tls.Certificate
	signer *Signer
	renew  time.Time
}

// Serving returns the certificate for hosts; the first is its main name. It is issued at once
// if there is a CA, else when it is first needed.
func (a *Authority) Serving(hosts ...string) *Serving {
	s := &Serving{authority: a, hosts: hosts}
	if _, err := s.GetCertificate(nil); err != nil {
		a.cfg.Log.Warn("the control plane has no certificate yet", "error", err)
	}
	return s
}

// TLSConfig returns a server's configuration with this certificate.
func (s *Serving) TLSConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.GetCertificate}
}

// GetCertificate is for tls.Config. While a renewal fails, a certificate still valid is used.
func (s *Serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	st := s.authority.state.Load()
	signer := st.signer
	if signer == nil {
		signer = st.next // old proxies cannot verify it yet; they learn the root from its ConfigMap
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.cert != nil && s.signer.same(signer) && now.Before(s.renew) {
		return s.cert, nil
	}
	cert, err := s.issue(signer, now)
	if err != nil {
		if s.cert != nil && now.Before(s.cert.Leaf.NotAfter) {
			return s.cert, nil
		}
		return nil, fmt.Errorf("certificate for %s: %w", s.hosts[0], err)
	}
	log := s.authority.cfg.Log
	log.Info(describe(cert.Leaf))
	if s.cert != nil {
		log.Info("Istiod certificates are reloaded")
	}
	s.cert, s.signer, s.renew = cert, signer, cert.Leaf.NotBefore.Add(cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)/2)
	return cert, nil
}

func (s *Serving) issue(signer *Signer, now time.Time) (*tls.Certificate, error) {
	if signer == nil {
		return nil, errors.New("there is no usable CA")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := signer.sign(key.Public(), nil, s.hosts, s.authority.cfg.DefaultTTL, now)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading it back: %w", err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	for _, c := range signer.intermediates() {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
