package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/carrick-mesh/carrick/certs"
)

// Anchors are what peers' chains are verified with: trusted certificates, and what their authorities
// have revoked. Immutable.
type Anchors struct {
	Pool         *x509.CertPool
	Certificates []*x509.Certificate    // none if they are the system's
	Revoked      []*x509.RevocationList // lists that chains are checked against; none if empty
}

// ParseAnchors reads PEM: certificates, of which there must be one, and revocation lists.
func ParseAnchors(b []byte) (*Anchors, error) {
	all, lists, err := certs.Anchors(b)
	if err != nil {
		return nil, err
	}
	a := &Anchors{Pool: x509.NewCertPool(), Certificates: all, Revoked: lists}
	for _, c := range all {
		a.Pool.AddCert(c)
	}
	return a, nil
}

// loadAnchors reads what peers are verified with.
func (v *Validation) loadAnchors() error {
	switch {
	case !v.CA.empty():
		b, err := v.CA.read()
		if err == nil {
			v.Anchors, err = ParseAnchors(b)
		}
		if err != nil {
			return in("trusted_ca", err)
		}
	case v.SystemRoots:
		pool, err := x509.SystemCertPool()
		if err != nil {
			return in("system_root_certs", err)
		}
		v.Anchors = &Anchors{Pool: pool}
	}
	if v.CRL.empty() {
		return nil
	}
	b, err := v.CRL.read()
	if err != nil {
		return in("crl", err)
	}
	v.Revoked, err = certs.RevocationLists(b)
	return in("crl", err)
}

// whole refuses a context that does not come by SDS and checks names or revocations of certificates
// that anybody may have issued.
func (v *Validation) whole() error {
	switch {
	case v.Anchors != nil:
		return nil
	case len(v.SANs) > 0:
		return in("trusted_ca", errors.New("is missing, and without it names prove nothing"))
	case len(v.Revoked) > 0:
		return in("trusted_ca", errors.New("is missing, and crl needs it"))
	}
	return nil
}

func (d Data) read() ([]byte, error) {
	if d.File == "" {
		return d.Inline, nil
	}
	return os.ReadFile(d.File)
}

// loadPair reads a certificate with its chain and the key, which must be that certificate's.
func loadPair(chain, key Data) (*tls.Certificate, error) {
	c, err := chain.read()
	if err != nil {
		return nil, in("certificate_chain", err)
	}
	k, err := key.read()
	if err != nil {
		return nil, in("private_key", err)
	}
	if _, err := certs.Certificates(c); err != nil {
		return nil, in("certificate_chain", err)
	}
	if _, err := certs.Key(k); err != nil {
		return nil, in("private_key", err)
	}
	pair, err := tls.X509KeyPair(c, k)
	if err != nil {
		return nil, in("private_key", fmt.Errorf("does not fit certificate_chain: %w", err))
	}
	return &pair, nil
}
