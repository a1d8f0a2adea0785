package ca

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// Names of the Secrets in the control plane's namespace that hold CA material.
const (
	PluggedInSecret      = "cacerts"         // the operator's own CA
	SelfSignedSecret     = "istio-ca-secret" // made at first start if there is no cacerts
	SelfSignedSecretType = "istio.io/ca-root"
)

// names are the keys of a Secret under which the parts are found.
type names struct{ cert, key, chain, root string }

var (
	istioNames = names{"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"}
	tlsNames   = names{"tls.crt", "tls.key", "tls.crt", "ca.crt"}
	selfNames  = names{"ca-cert.pem", "ca-key.pem", "ca-cert.pem", "ca-cert.pem"}
)

// ParsePluggedIn reads the data of Secret cacerts in either layout: ca-cert.pem, ca-key.pem,
// cert-chain.pem and root-cert.pem, or tls.crt (the CA certificate, then its chain), tls.key
// and ca.crt. It refuses material that could not sign a leaf which verifies now; the error
// names the Secret's key and what is wrong with it.
func ParsePluggedIn(data map[string][]byte, now time.Time) (*Signer, error) {
	n, format := istioNames, "Using istiod file format for signing ca files"
	if len(data["tls.crt"]) > 0 && len(data["tls.key"]) > 0 && len(data["ca.crt"]) > 0 {
		n, format = tlsNames, "Using kubernetes.io/tls secret type for signing ca files"
	}
	var missing []string
	for _, k := range []string{n.cert, n.key, n.chain, n.root} {
		if _, ok := data[k]; !ok {
			missing = append(missing, k)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("Secret %s: %s missing (it needs ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem, or tls.crt, tls.key and ca.crt)",
			PluggedInSecret, strings.Join(missing, ", "))
	}
	s, err := parse(data, n, now)
	if err != nil {
		return nil, fmt.Errorf("Secret %s: %w", PluggedInSecret, err)
	}
	s.format = format
	return s, nil
}

// ParseSelfSigned reads the data of Secret istio-ca-secret: ca-cert.pem is the root and signs.
func ParseSelfSigned(data map[string][]byte, now time.Time) (*Signer, error) {
	s, err := parse(data, selfNames, now)
	if err != nil {
		return nil, fmt.Errorf("Secret %s: %w", SelfSignedSecret, err)
	}
	s.selfSigned = true
	return s, nil
}

func parse(data map[string][]byte, n names, now time.Time) (*Signer, error) {
	own, err := certs.Certificates(data[n.cert])
	if err != nil {
		return nil, fmt.Errorf("%s %w", n.cert, err)
	}
	key, err := certs.Key(data[n.key])
	if err != nil {
		return nil, fmt.Errorf("%s %w", n.key, err)
	}
	roots, err := certs.Certificates(data[n.root])
	if err != nil {
		return nil, fmt.Errorf("%s %w", n.root, err)
	}
	chain := own
	if n.chain != n.cert && len(bytes.TrimSpace(data[n.chain])) > 0 {
		more, err := certs.Certificates(data[n.chain])
		if err != nil {
			return nil, fmt.Errorf("%s %w", n.chain, err)
		}
		if n == istioNames && !contains(more, own[0]) {
			// Istio serves cert-chain.pem as it stands, so this would break there, and
			// it is the sign of files of two clusters mixed up.
			if more[0].IsCA && bytes.Equal(more[0].RawSubject, own[0].RawSubject) {
				return nil, fmt.Errorf("%s starts with another certificate (serial %x) of the subject of %s (serial %x); take both from one run",
					n.chain, more[0].SerialNumber, n.cert, own[0].SerialNumber)
			}
		}
		chain = append(own[:len(own):len(own)], more...)
	}
	s, err := newSigner(material{cert: own[0], key: key, chain: chain, roots: unique(roots), names: n}, now)
	if err != nil {
		return nil, err
	}
	if err := s.revoke(data[crlKey]); err != nil {
		return nil, err
	}
	return s, nil
}

func contains(all []*x509.Certificate, c *x509.Certificate) bool {
	for _, d := range all {
		if d.Equal(c) {
			return true
		}
	}
	return false
}

func unique(all []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range all {
		if !contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}
