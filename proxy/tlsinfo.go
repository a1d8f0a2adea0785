package proxy

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
)

// trustError says that a peer's chain does not end in a root of ours. It names both sides' roots:
// different roots are what usually went wrong between clusters.
type trustError struct {
	chain []*x509.Certificate
	roots *Roots
	err   error
}

func (e *trustError) Unwrap() error { return e.err }

func (e *trustError) Error() string {
	last := e.chain[len(e.chain)-1]
	theirs := describe(last)
	if string(last.RawIssuer) != string(last.RawSubject) {
		theirs = fmt.Sprintf("%q, which its last certificate %s names as issuer", last.Issuer, theirs)
	}
	ours := make([]string, 0, len(e.roots.Certificates))
	for _, c := range e.roots.Certificates {
		ours = append(ours, describe(c))
	}
	return fmt.Sprintf("the peer's certificate %s is not trusted (%v): its root is %s; trusted roots are %s; "+
		"if both belong to one mesh, give both clusters' CAs (Secret cacerts) the same root certificate",
		describe(e.chain[0]), e.err, theirs, strings.Join(ours, ", "))
}

// sanError says that a trusted peer is not whom we meant to reach.
type sanError struct {
	leaf *x509.Certificate
	want []config.SANMatcher
}

func (e *sanError) Error() string {
	want := make([]string, 0, len(e.want))
	for _, m := range e.want {
		want = append(want, m.Value)
	}
	return fmt.Sprintf("the peer's certificate %s has none of the expected names %s", describe(e.leaf), strings.Join(want, ", "))
}

// describe names a certificate by identity or subject and by its SHA-256 fingerprint.
func describe(c *x509.Certificate) string {
	h := sha256.Sum256(c.Raw)
	name := c.Subject.String()
	if len(c.URIs) > 0 {
		name = c.URIs[0].String()
	}
	return fmt.Sprintf("%q (SHA-256 %s)", name, hex.EncodeToString(h[:]))
}

// maxText bounds what a peer's own words may take of a log line.
const maxText = 1 << 10

// printable makes text of others fit for a log line or a header: what is no printable ASCII becomes an
// underscore, and what is too long is cut.
func printable(v string) string {
	if len(v) > maxText {
		v = v[:maxText] + "..."
	}
	for i := range len(v) {
		if v[i] < ' ' || v[i] > '~' {
			b := []byte(v)
			for k := i; k < len(b); k++ {
				if b[k] < ' ' || b[k] > '~' {
					b[k] = '_'
				}
			}
			return string(b)
		}
	}
	return v
}

// report logs a failed handshake, the same failure with the same peer at most once a minute.
func (t *tlsContexts) report(p *Proxy, side, peer string, err error) {
	key := side + " " + err.Error()
	t.mu.Lock()
	now := time.Now()
	last, seen := t.reported[key]
	due := !seen || now.Sub(last) > time.Minute
	if due {
		if t.reported == nil || len(t.reported) > 1000 {
			t.reported = map[string]time.Time{}
		}
		t.reported[key] = now
	}
	t.mu.Unlock()
	if due {
		p.log.Warn("TLS handshake failed", "side", side, "peer", peer, "error", err)
	}
}

// tlsState is what is kept of a handshake.
type tlsState struct {
	info accesslog.TLSInfo
	peer *x509.Certificate // nil: none was presented
	// chain is the presented chain, for X-Forwarded-Client-Cert.
	chain []*x509.Certificate
	xfcc  string // the element for it, once made
}

func newTLSState(s tls.ConnectionState) *tlsState {
	t := &tlsState{info: accesslog.TLSInfo{
		Version: versionName(s.Version),
		Cipher:  cipherName(s.CipherSuite),
		ALPN:    s.NegotiatedProtocol,
	}}
	if len(s.PeerCertificates) == 0 {
		return t
	}
	c := s.PeerCertificates[0]
	t.peer, t.chain = c, s.PeerCertificates
	h := sha256.Sum256(c.Raw)
	t.info.PeerSubject = printable(c.Subject.String())
	t.info.PeerIssuer = printable(c.Issuer.String())
	t.info.PeerSerial = c.SerialNumber.Text(16)
	h1 := sha1.Sum(c.Raw)
	t.info.PeerFingerprint1 = hex.EncodeToString(h1[:])
	ips := make([]string, len(c.IPAddresses))
	for i, a := range c.IPAddresses {
		ips[i] = a.String()
	}
	t.info.PeerIPSAN = strings.Join(ips, ",")
	t.info.PeerFingerprint256 = hex.EncodeToString(h[:])
	uris := make([]string, len(c.URIs))
	for i, u := range c.URIs {
		uris[i] = u.String()
	}
	t.info.PeerURISAN = printable(strings.Join(uris, ","))
	t.info.PeerDNSSAN = printable(strings.Join(c.DNSNames, ","))
	t.info.PeerNotBefore, t.info.PeerNotAfter = c.NotBefore, c.NotAfter
	return t
}

// certPEM returns a certificate as X-Forwarded-Client-Cert has it: URL-encoded PEM.
func certPEM(cs ...*x509.Certificate) string {
	var b []byte
	for _, c := range cs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return url.QueryEscape(string(b))
}

func versionName(v uint16) string {
	switch v {
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return tls.VersionName(v)
}

// cipherName returns OpenSSL's name for the suites of TLS 1.2, as Envoy logs.
func cipherName(id uint16) string {
	switch id {
	case tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:
		return "ECDHE-ECDSA-AES128-GCM-SHA256"
	case tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:
		return "ECDHE-ECDSA-AES256-GCM-SHA384"
	case tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:
		return "ECDHE-RSA-AES128-GCM-SHA256"
	case tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:
		return "ECDHE-RSA-AES256-GCM-SHA384"
	case tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return "ECDHE-ECDSA-CHACHA20-POLY1305"
	case tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:
		return "ECDHE-RSA-CHACHA20-POLY1305"
	}
	return tls.CipherSuiteName(id)
}
