package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// Bundle is what the mesh is told about trust: every root that may verify a workload now,
// and which key signs. It is comparable; equal bundles say the same.
type Bundle struct {
	// PEM holds the roots, the signer's own first, and two kinds of comment lines, which
	// PEM readers skip:
	//
	//	# signer: HEX           first line: the AuthorityKeyId of the leaves signed now
	//	# retire: RFC3339       before a root: when its last leaf will have expired
	//
	// A workload whose leaf has another AuthorityKeyId asks for a new one now (after a
	// random delay of some seconds, so that not all ask at once); so one change of PEM
	// serves both "trust these" and "renew".
	PEM string
	// CRL holds the revocation lists of the plugged-in CA, PEM; empty without any.
	CRL string
	// SignerKeyID is the first line's HEX: lower case, no colons.
	SignerKeyID string
}

// root is one published root. A zero retire means it stays.
type root struct {
	cert   *x509.Certificate
	retire time.Time
}

const signerLine, retireLine = "# signer: ", "# retire: "

func encodeBundle(keyID []byte, roots []root) Bundle {
	b := Bundle{SignerKeyID: hex.EncodeToString(keyID)}
	var w strings.Builder
	fmt.Fprintf(&w, "%s%s\n", signerLine, b.SignerKeyID)
	for _, r := range roots {
		if !r.retire.IsZero() {
			fmt.Fprintf(&w, "%s%s\n", retireLine, r.retire.UTC().Format(time.RFC3339))
		}
		w.Write(certs.Encode(r.cert))
	}
	b.PEM = w.String()
	return b
}

// parseBundle reads what encodeBundle wrote, or a plain PEM file of roots. Nothing is no roots.
func parseBundle(pem []byte) ([]root, error) {
	if len(bytes.TrimSpace(pem)) == 0 {
		return nil, nil
	}
	all, err := certs.Certificates(pem)
	if err != nil {
		return nil, fmt.Errorf("root-cert.pem %w", err)
	}
	var retire []time.Time // one for each block, zero without a line
	var next time.Time
	for line := range strings.Lines(string(pem)) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, retireLine); ok {
			if next, err = time.Parse(time.RFC3339, s); err != nil {
				return nil, fmt.Errorf("root-cert.pem: line %q: not a time", line)
			}
		}
		if line == "-----END CERTIFICATE-----" {
			retire, next = append(retire, next), time.Time{}
		}
	}
	var roots []root
	for i, c := range all {
		if find(roots, c) != nil {
			continue
		}
		r := root{cert: c}
		if i < len(retire) {
			r.retire = retire[i]
		}
		roots = append(roots, r)
	}
	return roots, nil
}

func find(roots []root, c *x509.Certificate) *root {
	for i := range roots {
		if roots[i].cert.Equal(c) {
			return &roots[i]
		}
	}
	return nil
}

// join returns the roots of the signers, to stay, followed by those of old that are not
// among them, unchanged.
func join(old []root, signers ...*Signer) []root {
	var out []root
	for _, s := range signers {
		if s == nil {
			continue
		}
		for _, c := range s.roots {
			if find(out, c) == nil {
				out = append(out, root{cert: c})
			}
		}
	}
	for _, r := range old {
		if find(out, r.cert) == nil {
			out = append(out, r)
		}
	}
	return out
}

// retireOthers gives every root that s does not name the time at which it may go.
func retireOthers(roots []root, s *Signer, at time.Time) []root {
	out := make([]root, len(roots))
	for i, r := range roots {
		if !contains(s.roots, r.cert) && r.retire.IsZero() {
			r.retire = at.Truncate(time.Second).Add(time.Second)
		}
		out[i] = r
	}
	return out
}

// current returns the roots that are of use at now: neither retired nor expired.
func current(roots []root, now time.Time) []root {
	var out []root
	for _, r := range roots {
		if (r.retire.IsZero() || now.Before(r.retire)) && now.Before(r.cert.NotAfter) {
			out = append(out, r)
		}
	}
	return out
}
