package ca

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// crlKey is the key of Secret cacerts with revocation lists, as in Istio; it may be absent.
const crlKey = "ca-crl.pem"

// revoke takes the revocation lists of the plugged-in CA. Envoy refuses every peer whose chain has
// an authority without a list as soon as there is any, so the CA's own chain must be covered; the
// lists of other clusters' authorities may stand beside.
func (s *Signer) revoke(pem []byte) error {
	if len(bytes.TrimSpace(pem)) == 0 {
		return nil
	}
	lists, err := certs.RevocationLists(pem)
	if err != nil {
		return fmt.Errorf("%s %w", crlKey, err)
	}
	for _, c := range append(s.intermediates(), s.anchor) {
		switch {
		case certs.ListOf(c, lists) != nil:
		case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCRLSign == 0:
			return fmt.Errorf("%s: %s may not sign revocation lists: its keyUsage lacks cRLSign", crlKey, c.Subject)
		case c.Equal(s.anchor) && !isSelfSigned(c): // its issuer need not be there
		default:
			return fmt.Errorf("%s holds no list that %s has signed; with lists for some authorities, each of the chain needs one, or no peer is trusted", crlKey, c.Subject)
		}
	}
	// A CA that is revoked would sign certificates that nobody takes. That a list has ended is told
	// elsewhere: it must not keep the control plane from starting.
	if err := certs.Revoked(append(s.intermediates(), s.anchor), lists, time.Time{}, false); err != nil {
		return fmt.Errorf("%s: %w", crlKey, err)
	}
	s.lists, s.crl = lists, pem
	return nil
}

// listNotices tells of revocation lists that end within a quarter of their life, or have ended:
// from then on no chain under their authority is trusted.
func (s *Signer) listNotices(now time.Time) (all []string) {
	for _, c := range append(s.intermediates(), s.anchor) {
		l := certs.ListOf(c, s.lists)
		if l == nil || l.NextUpdate.IsZero() || l.NextUpdate.Sub(now) > l.NextUpdate.Sub(l.ThisUpdate)/4 {
			continue
		}
		when := "ends"
		if now.After(l.NextUpdate) {
			when = "ended"
		}
		all = append(all, fmt.Sprintf("the revocation list of %s in %s of Secret %s %s at %s, and then no certificate under it is trusted; issue a newer one (openssl ca -gencrl) and replace %s",
			c.Subject, crlKey, PluggedInSecret, when, l.NextUpdate.UTC().Format(time.RFC3339), crlKey))
	}
	return all
}
