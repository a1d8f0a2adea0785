package certs

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Revoked says why a verified chain, from the leaf to its root, does not hold under revocation
// lists: one of its certificates is listed, or its issuer's list is missing or outdated. As in
// Envoy, lists for one authority oblige to lists for every authority of the chain; with leafOnly
// only the leaf's issuer counts. No lists at all revoke nothing.
func Revoked(chain []*x509.Certificate, lists []*x509.RevocationList, now time.Time, leafOnly bool) error {
	if len(lists) == 0 {
		return nil
	}
	for i, c := range chain {
		if leafOnly && i > 0 {
			return nil
		}
		issuer := chain[min(i+1, len(chain)-1)]
		if i == len(chain)-1 && !bytes.Equal(c.RawIssuer, c.RawSubject) {
			return nil // an anchor whose issuer is not there: it is trusted as it is
		}
		l := ListOf(issuer, lists)
		switch {
		case l == nil:
			return fmt.Errorf("there is no revocation list of %s", issuer.Subject)
		case !l.NextUpdate.IsZero() && now.After(l.NextUpdate):
			return fmt.Errorf("the revocation list of %s expired at %s", issuer.Subject, l.NextUpdate.UTC().Format(time.RFC3339))
		}
		if slices.ContainsFunc(l.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(c.SerialNumber) == 0 }) {
			return fmt.Errorf("the certificate with serial %x (%s) is revoked by %s", c.SerialNumber, c.Subject, issuer.Subject)
		}
	}
	return nil
}

// ListOf returns the newest of the lists that the authority has signed, or nil.
func ListOf(authority *x509.Certificate, lists []*x509.RevocationList) (newest *x509.RevocationList) {
	for _, l := range lists {
		if bytes.Equal(l.RawIssuer, authority.RawSubject) && (newest == nil || l.ThisUpdate.After(newest.ThisUpdate)) &&
			l.CheckSignatureFrom(authority) == nil {
			newest = l
		}
	}
	return newest
}
