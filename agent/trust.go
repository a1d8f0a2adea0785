package agent

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/carrick-mesh/carrick/certs"
)

// trust is a set of roots as a control plane publishes it: PEM, of which Carrick's control plane
// begins with the line "# signer: HEX", the authority key id of the certificates it signs now.
type trust struct {
	roots  []*x509.Certificate
	signer string // lower-case hex; empty if the publisher does not say
	crl    []byte // revocation lists, PEM; nil if the publisher has none
}

const signerLine = "# signer: "

func parseTrust(b []byte) (*trust, error) {
	roots, err := certs.Certificates(b)
	if err != nil {
		return nil, err
	}
	t := &trust{roots: roots}
	for line := range bytes.Lines(b) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(string(line)), signerLine); ok {
			t.signer = strings.ToLower(s)
			break
		}
	}
	return t, nil
}

// same reports whether both hold the same roots in any order, and the same signer.
func (t *trust) same(o *trust) bool {
	if t == nil || o == nil {
		return t == o
	}
	has := func(l []*x509.Certificate, c *x509.Certificate) bool { return slices.ContainsFunc(l, c.Equal) }
	for _, c := range t.roots {
		if !has(o.roots, c) {
			return false
		}
	}
	for _, c := range o.roots {
		if !has(t.roots, c) {
			return false
		}
	}
	return t.signer == o.signer
}

// outdated reports whether a new leaf should take the place of this one: another key signs now.
// was is the trust that the leaf was obtained under; without a signer's name in t, any change of
// roots may mean that.
func (t *trust) outdated(leaf *x509.Certificate, was *trust) bool {
	if t == nil {
		return false
	}
	if t.signer != "" {
		return t.signer != hex.EncodeToString(leaf.AuthorityKeyId)
	}
	return was != nil && !t.same(was)
}
