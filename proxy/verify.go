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

// verifier verifies the peers of one TLS context. Chains that were found good are remembered until
// they expire, must be looked up again in revocation lists, or what is trusted changes; the handshake
// still proves that the peer has the key.
type verifier struct {
	c     *config.Validation
	usage x509.ExtKeyUsage

	mu    sync.Mutex
	good  map[[32]byte]time.Time // until when, by hash of the chain
	trust *trust                 // as it was last; good holds for it
	from  any                    // what it was made of: *config.Secret or *Roots
}

// trust is a validation context with what came for it by SDS. Immutable.
type trust struct {
	anchors         *Roots // nil: no chain is asked for
	revoked         []*x509.RevocationList
	leafCRLOnly     bool
	sans            []config.SANMatcher
	spki, hash      []string
	allowExpired    bool
	acceptUntrusted bool
}

const maxGood = 1024

func (v *verifier) verify(p *Proxy, s tls.ConnectionState) error {
	t, err := v.now(p)
	if err != nil {
		return err
	}
	leaf := s.PeerCertificates[0]
	if err := v.chain(t, s.PeerCertificates); err != nil {
		return err
	}
	if len(t.sans) > 0 && !matchSANs(t.sans, leaf) {
		return &sanError{leaf: leaf, want: t.sans}
	}
	if len(t.spki) == 0 && len(t.hash) == 0 {
		return nil
	}
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	hash := sha256.Sum256(leaf.Raw)
	if slices.Contains(t.spki, base64.StdEncoding.EncodeToString(spki[:])) || slices.Contains(t.hash, hex.EncodeToString(hash[:])) {
		return nil
	}
	return fmt.Errorf("the peer's certificate %s is not among the pinned ones", describe(leaf))
}

func (v *verifier) chain(t *trust, presented []*x509.Certificate) error {
	if t.anchors == nil || t.acceptUntrusted {
		return nil
	}
	h := sha256.New()
	for _, c := range presented {
		h.Write(c.Raw)
	}
	key := [32]byte(h.Sum(nil))
	now := time.Now()
	v.mu.Lock()
	until, ok := v.good[key]
	ok = ok && v.trust == t && now.Before(until)
	v.mu.Unlock()
	if ok {
		return nil
	}
	o := x509.VerifyOptions{Roots: t.anchors.Pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{v.usage}, CurrentTime: now}
	for _, c := range presented[1:] {
		o.Intermediates.AddCert(c)
	}
	if t.allowExpired {
		o.CurrentTime = presented[0].NotBefore.Add(time.Second)
	}
	chains, err := presented[0].Verify(o)
	if err != nil {
		return &trustError{chain: presented, roots: t.anchors, err: err}
	}
	if until, err = t.holds(chains, now); err != nil {
		return &trustError{chain: presented, roots: t.anchors, err: err}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.trust != t {
		return nil // it has changed meanwhile: what was found is forgotten
	}
	if len(v.good) >= maxGood {
		v.good = nil
	}
	if v.good == nil {
		v.good = map[[32]byte]time.Time{}
	}
	v.good[key] = until
	return nil
}

// holds returns until when the longest-lived of the chains holds of which nothing is revoked.
func (t *trust) holds(chains [][]*x509.Certificate, now time.Time) (until time.Time, err error) {
	for _, chain := range chains {
		if revoked := certs.Revoked(chain, t.revoked, now, t.leafCRLOnly); revoked != nil {
			err = revoked
			continue
		}
		end := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		for _, l := range t.revoked {
			if !l.NextUpdate.IsZero() && l.NextUpdate.Before(end) {
				end = l.NextUpdate
			}
		}
		if end.After(until) {
			until = end
		}
	}
	if until.IsZero() {
		return until, err
	}
	return until, nil
}

// now returns what is trusted now.
func (v *verifier) now(p *Proxy) (*trust, error) {
	var from any
	var add config.Validation
	if name := v.c.SDS.Name; name != "" {
		if s := p.snap.Load().cfg.Secrets[name]; s != nil && s.Validation != nil {
			from, add = s, *s.Validation
		} else if r := p.secrets.Roots(name); r != nil {
			from, add = r, config.Validation{Anchors: r}
		} else {
			return nil, fmt.Errorf("trust anchors %q have not come yet", name)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.trust == nil || v.from != from {
		t := merge(v.c, &add)
		if t.anchors == nil && (len(t.revoked) > 0 || len(t.sans) > 0) {
			return nil, fmt.Errorf("validation context %q has no trusted_ca", v.c.SDS.Name)
		}
		v.trust, v.from, v.good = t, from, nil
	}
	return v.trust, nil
}

// merge joins a context and what came for it by SDS, as Envoy merges the messages.
func merge(c, add *config.Validation) *trust {
	t := &trust{
		anchors:         c.Anchors,
		leafCRLOnly:     c.LeafCRLOnly || add.LeafCRLOnly,
		sans:            append(slices.Clip(c.SANs), add.SANs...),
		spki:            append(slices.Clip(c.SPKI), add.SPKI...),
		hash:            append(slices.Clip(c.Hash), add.Hash...),
		allowExpired:    c.AllowExpired || add.AllowExpired,
		acceptUntrusted: c.AcceptUntrusted || add.AcceptUntrusted,
		revoked:         append(slices.Clip(c.Revoked), add.Revoked...),
	}
	if add.Anchors != nil {
		t.anchors = add.Anchors
	}
	if t.anchors != nil {
		t.revoked = append(t.revoked, t.anchors.Revoked...)
	}
	return t
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
