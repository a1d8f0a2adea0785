package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/proxy/config"
)

// verifier verifies the peers of one TLS context. Chains that were found good are remembered
// until they expire or the roots change; the handshake still proves that the peer has the key.
type verifier struct {
	c     *config.Validation
	roots *Roots // inline
	usage x509.ExtKeyUsage

	mu    sync.Mutex
	good  map[[32]byte]time.Time // until when, by hash of the chain
	under *Roots                 // the roots that good holds for
	from  *config.Secret
	made  *Roots
}

const maxGood = 1024

func (v *verifier) verify(p *Proxy, s tls.ConnectionState) error {
	leaf := s.PeerCertificates[0]
	if err := v.chain(p, s.PeerCertificates); err != nil {
		return err
	}
	if len(v.c.SANs) > 0 && !matchSANs(v.c.SANs, leaf) {
		return &sanError{leaf: leaf, want: v.c.SANs}
	}
	if len(v.c.SPKI) == 0 && len(v.c.Hash) == 0 {
		return nil
	}
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	hash := sha256.Sum256(leaf.Raw)
	if slices.Contains(v.c.SPKI, base64.StdEncoding.EncodeToString(spki[:])) || slices.Contains(v.c.Hash, hex.EncodeToString(hash[:])) {
		return nil
	}
	return fmt.Errorf("the peer's certificate %s is not among the pinned ones", describe(leaf))
}

func (v *verifier) chain(p *Proxy, chain []*x509.Certificate) error {
	roots, err := v.anchors(p)
	if err != nil {
		return err
	}
	if roots == nil || v.c.AcceptUntrusted {
		return nil
	}
	h := sha256.New()
	for _, c := range chain {
		h.Write(c.Raw)
	}
	key := [32]byte(h.Sum(nil))
	now := time.Now()
	v.mu.Lock()
	until, ok := v.good[key]
	ok = ok && v.under == roots && now.Before(until)
	v.mu.Unlock()
	if ok {
		return nil
	}
	o := x509.VerifyOptions{Roots: roots.Pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{v.usage}, CurrentTime: now}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if v.c.AllowExpired {
		o.CurrentTime = chain[0].NotBefore.Add(time.Second)
	}
	chains, err := chain[0].Verify(o)
	if err != nil {
		return &trustError{chain: chain, roots: roots, err: err}
	}
	until = time.Time{}
	for _, way := range chains {
		if err = certs.Revoked(way, roots.Revoked, now, false); err != nil {
			continue
		}
		end := way[0].NotAfter
		for _, c := range way[1:] {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(until) {
			until = end
		}
	}
	if until.IsZero() {
		return &trustError{chain: chain, roots: roots, err: err}
	}
	v.mu.Lock()
	if v.under != roots || len(v.good) >= maxGood {
		v.good, v.under = map[[32]byte]time.Time{}, roots
	}
	v.good[key] = until
	v.mu.Unlock()
	return nil
}

// anchors returns the roots as they are now; nil without an error if any chain will do.
func (v *verifier) anchors(p *Proxy) (*Roots, error) {
	name := v.c.SDS.Name
	if name == "" {
		return v.roots, nil
	}
	if s := p.snap.Load().cfg.Secrets[name]; s != nil && s.Validation != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		if s != v.from {
			b, err := read(s.Validation.CA)
			if err != nil {
				return nil, fmt.Errorf("secret %q: %w", name, err)
			}
			r, err := NewRoots(b)
			if err != nil {
				return nil, fmt.Errorf("secret %q: %w", name, err)
			}
			v.from, v.made = s, r
		}
		return v.made, nil
	}
	if r := p.secrets.Roots(name); r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("trust anchors %q have not come yet", name)
}

func matchSANs(ms []config.SANMatcher, c *x509.Certificate) bool {
	for i := range ms {
		m := &ms[i]
		if m.Kind == config.AnySAN || m.Kind == config.URISAN {
			for _, u := range c.URIs {
				if m.Match(u.String()) {
					return true
				}
			}
		}
		if m.Kind == config.AnySAN || m.Kind == config.DNSSAN {
			for _, n := range c.DNSNames {
				if m.Match(n) || m.StringMatcher.Kind == config.MatchExact && wildcard(n, m.Value) {
					return true
				}
			}
		}
		if m.Kind == config.AnySAN || m.Kind == config.IPSAN {
			for _, a := range c.IPAddresses {
				if m.Match(a.String()) {
					return true
				}
			}
		}
		if m.Kind == config.AnySAN || m.Kind == config.EmailSAN {
			for _, a := range c.EmailAddresses {
				if m.Match(a) {
					return true
				}
			}
		}
	}
	return false
}

// wildcard reports whether the certificate's name "*.x" covers name.
func wildcard(san, name string) bool {
	rest, ok := strings.CutPrefix(san, "*.")
	if !ok {
		return false
	}
	_, after, ok := strings.Cut(name, ".")
	return ok && strings.EqualFold(after, rest)
}
