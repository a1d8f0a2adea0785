package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"time"

	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/identity"
)

// Credentials are the workload's certificate and the roots to verify its peers with. Immutable.
type Credentials struct {
	Certificate tls.Certificate     // leaf first, its root last if the CA sent it; Leaf is set
	Chain       []byte              // the same chain, PEM
	Roots       []*x509.Certificate // the roots to trust
	RootPool    *x509.CertPool      // the same
	RootsPEM    []byte              // the same
	Revoked     []*x509.RevocationList
	CRL         []byte // the same, PEM; nil without any
}

// trustedPEM is all that peers are verified with.
func (cr *Credentials) trustedPEM() string { return string(cr.RootsPEM) + string(cr.CRL) }

// Signer has a certificate signed: csr is PEM, and so is each element of the chain: the leaf
// first, the roots last.
type Signer func(ctx context.Context, csr []byte, ttl time.Duration) (chain []string, err error)

// CertificateOptions says whose certificate to keep and how. Zero fields are the defaults.
type CertificateOptions struct {
	Identity identity.Identity
	Sign     Signer
	RootFile string        // PEM of the roots of the mesh, as mounted; followed
	CRLFile  string        // PEM of revocation lists, as mounted; followed; it may be absent
	RSABits  int           // 0: ECDSA P-256
	TTL      time.Duration // asked for; 24 h
	Spread   time.Duration // a renewal that all are asked for waits up to this long; 3 s
	Poll     time.Duration // how often to look at RootFile; 10 s
	MaxWait  time.Duration // longest pause between attempts; 30 s
	Logger   *slog.Logger
}

// Certificates keeps a workload's certificate valid: the key never leaves memory, and another is
// made at each renewal, at half of the certificate's life, give or take 1 %.
type Certificates struct {
	opts CertificateOptions
	log  *slog.Logger
	poke chan struct{} // has room for one: trust has changed, or a renewal is due

	mu      sync.Mutex
	current *Credentials
	changed chan struct{} // closed when current is replaced
	pushed  *trust        // from the control plane's stream; wins over the file
	mounted *trust
	crl     []byte // as mounted; nil without any
	crlBad  error  // why the mounted lists cannot be used, while there never were good ones
	asked   bool   // Renew was called
	failure error  // of the last attempt
}

// NewCertificates returns certificates that are not there until Run has had them signed.
func NewCertificates(o CertificateOptions) *Certificates {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&o.TTL, 24*time.Hour)
	set(&o.Spread, 3*time.Second)
	set(&o.Poll, 10*time.Second)
	set(&o.MaxWait, 30*time.Second)
	return &Certificates{opts: o, log: o.Logger, poke: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Current returns the credentials to use now, nil before the first, and a channel that is closed
// when others take their place.
func (c *Certificates) Current() (*Credentials, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current, c.changed
}

// Roots returns the roots that the control plane has told of, over streams that were verified.
func (c *Certificates) Roots() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pushed != nil {
		return c.pushed.roots
	}
	if c.current != nil {
		return c.current.Roots
	}
	return nil
}

// Failure says why the last attempt to get a certificate failed; nil if it did not.
func (c *Certificates) Failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// Renew asks for another certificate now.
func (c *Certificates) Renew() {
	c.mu.Lock()
	c.asked = true
	c.mu.Unlock()
	c.wake()
}

// SetRoots takes the roots that the control plane publishes, PEM. They take effect before it returns.
func (c *Certificates) SetRoots(b []byte) error {
	t, err := parseTrust(b)
	if err != nil {
		return err
	}
	c.push(t)
	return nil
}

func (c *Certificates) push(t *trust) {
	c.mu.Lock()
	c.pushed = t
	c.mu.Unlock()
	c.retrust()
	c.wake()
}

// setRootsSecret takes the roots as the secret ROOTCA of xDS.
func (c *Certificates) setRootsSecret(s *tlspb.Secret) error {
	ca := s.GetValidationContext().GetTrustedCa()
	b := ca.GetInlineBytes()
	if b == nil {
		b = []byte(ca.GetInlineString())
	}
	t, err := parseTrust(b)
	if err != nil {
		return fmt.Errorf("secret %s: validation_context.trusted_ca %w", rootsName, err)
	}
	if t.crl = s.GetValidationContext().GetCrl().GetInlineBytes(); len(t.crl) > 0 {
		if _, err := certs.RevocationLists(t.crl); err != nil {
			return fmt.Errorf("secret %s: validation_context.crl %w", rootsName, err)
		}
	}
	c.push(t)
	return nil
}

func (c *Certificates) wake() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// Run gets the first certificate and keeps it fresh until ctx ends. It returns nil then.
func (c *Certificates) Run(ctx context.Context) error {
	poll := time.NewTicker(c.opts.Poll)
	defer poll.Stop()
	c.readMounted()
	var wait time.Duration // before the next attempt
	failures := 0
	var under *trust // what the current leaf was obtained under
	attempt := time.NewTimer(0)
	defer attempt.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
			c.readMounted()
			continue
		case <-c.poke:
			if failures > 0 || !c.renewalDue(under) {
				continue // an attempt is coming anyway, or nothing to do
			}
			attempt.Reset(time.Duration(mathrand.Int64N(int64(c.opts.Spread) + 1)))
			continue
		case <-attempt.C:
		}
		trusted := c.trusted()
		cr, err := c.obtain(ctx, trusted)
		if ctx.Err() != nil {
			return nil
		}
		c.mu.Lock()
		c.failure = err
		c.mu.Unlock()
		if err != nil {
			failures++
			wait = backOff(failures, c.opts.MaxWait)
			what := "no workload certificate"
			if cr, _ := c.Current(); cr != nil {
				what = "the workload certificate is not renewed"
			}
			c.log.Warn(what, "error", err, "retry", wait.Round(time.Millisecond))
		} else {
			failures, under = 0, trusted
			wait = renewIn(time.Until(cr.Certificate.Leaf.NotAfter))
			c.publish(cr)
			l := cr.Certificate.Leaf
			c.log.Info("workload certificate", "identity", c.opts.Identity.String(), "serial", fmt.Sprintf("%x", l.SerialNumber),
				"issuer", l.Issuer.String(), "until", l.NotAfter.UTC().Format(time.RFC3339), "renewal", wait.Round(time.Second))
		}
		attempt.Reset(wait)
	}
}

// renewalDue reports whether Renew was called, or whether what the control plane signs with has
// changed since the current leaf was obtained, under that trust.
func (c *Certificates) renewalDue(under *trust) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return false
	}
	asked := c.asked
	c.asked = false
	return asked || c.trustedLocked().outdated(c.current.Certificate.Leaf, under)
}

// trusted returns the roots that the control plane publishes, nil if it does not.
func (c *Certificates) trusted() *trust {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trustedLocked()
}

func (c *Certificates) trustedLocked() *trust {
	if c.pushed != nil {
		return c.pushed
	}
	return c.mounted
}

// revokedLocked returns the revocation lists in force: what the control plane's stream tells, else
// what is mounted. A text that cannot be read was refused before.
func (c *Certificates) revokedLocked() []byte {
	if c.pushed != nil && len(c.pushed.crl) > 0 {
		return c.pushed.crl
	}
	return c.crl
}

// readMounted takes the roots and the revocation lists in the files, if they are others; what cannot
// be read changes nothing.
func (c *Certificates) readMounted() {
	c.readRevoked()
	if c.opts.RootFile == "" {
		return
	}
	b, err := readFile(c.opts.RootFile)
	var t *trust
	if err == nil {
		t, err = parseTrust(b)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("the mounted roots cannot be read; the last ones stay", "file", c.opts.RootFile, "error", err)
		}
		return
	}
	c.mu.Lock()
	was := c.mounted
	c.mounted = t
	c.mu.Unlock()
	if was != nil && !t.same(was) {
		c.retrust()
		c.wake()
	}
}

// readRevoked takes the mounted revocation lists. Lists that were there and cannot be read keep the
// workload from getting a certificate at all, for without them it would trust whom it must not.
func (c *Certificates) readRevoked() {
	if c.opts.CRLFile == "" {
		return
	}
	b, err := readFile(c.opts.CRLFile)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = nil, nil
	} else if err == nil {
		_, err = certs.RevocationLists(b)
	}
	c.mu.Lock()
	was, before := c.crl, c.crlBad
	switch {
	case err == nil:
		c.crl, c.crlBad = b, nil
	case was == nil:
		c.crlBad = fmt.Errorf("revocation lists in %s %w", c.opts.CRLFile, err)
	}
	c.mu.Unlock()
	if err != nil {
		c.log.Warn("the mounted revocation lists cannot be read; the last ones stay", "file", c.opts.CRLFile, "error", err)
	} else if before == nil && !bytes.Equal(b, was) {
		c.retrust()
	}
}

// retrust replaces the current credentials by the same certificate with the roots trusted now.
func (c *Certificates) retrust() {
	c.mu.Lock()
	cur, t, crl := c.current, c.trustedLocked(), c.revokedLocked()
	c.mu.Unlock()
	if cur == nil {
		return
	}
	trusted := cur.Roots
	if t != nil {
		trusted = roots(cur.Certificate.Leaf, cur.Certificate.Certificate, t, cur.Roots)
	}
	cr := newCredentials(cur.Certificate, trusted, crl)
	if cr.trustedPEM() == cur.trustedPEM() {
		return
	}
	c.log.Info("trusted roots", "roots", describe(cr.Roots...), "revocationLists", len(cr.Revoked))
	c.publish(cr)
}

func (c *Certificates) publish(cr *Credentials) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = cr
	close(c.changed)
	c.changed = make(chan struct{})
}

// obtain makes a key and has a certificate signed for it.
func (c *Certificates) obtain(ctx context.Context, t *trust) (*Credentials, error) {
	key, err := c.newKey()
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	uri, err := url.Parse(c.opts.Identity.String())
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	parts, err := c.opts.Sign(ctx, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), c.opts.TTL)
	if err != nil {
		return nil, err
	}
	cr, err := accept(parts, key, uri, t)
	if err != nil {
		return nil, fmt.Errorf("the certificate that the control plane signed: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crlBad != nil {
		return nil, c.crlBad
	}
	return newCredentials(cr.Certificate, cr.Roots, c.revokedLocked()), nil
}

// accept makes credentials of the CA's answer, if it is what was asked for.
func accept(parts []string, key crypto.Signer, uri *url.URL, t *trust) (*Credentials, error) {
	var chain []*x509.Certificate
	var answered []*x509.Certificate // the roots
	for i, p := range parts {
		part, err := certs.Certificates([]byte(p))
		if err != nil {
			return nil, fmt.Errorf("part %d of %d: %w", i+1, len(parts), err)
		}
		for _, crt := range part {
			if i > 0 && i == len(parts)-1 || selfSigned(crt) {
				answered = append(answered, crt)
			} else {
				chain = append(chain, crt)
			}
		}
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate but roots")
	}
	leaf := chain[0]
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(leaf.PublicKey) {
		return nil, errors.New("it is for another key")
	}
	if !slices.ContainsFunc(leaf.URIs, func(u *url.URL) bool { return u.String() == uri.String() }) {
		return nil, fmt.Errorf("it names %v, not %s: the token is of another service account", leaf.URIs, uri)
	}
	crt := tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, x := range chain {
		crt.Certificate = append(crt.Certificate, x.Raw)
	}
	rs := roots(leaf, crt.Certificate, t, answered)
	anchor, err := verify(leaf, crt.Certificate, rs)
	if err != nil {
		return nil, fmt.Errorf("it does not lead to a trusted root: %w; trusted: %s", err, describe(rs...))
	}
	// Peers get the root as well, so that one of another mesh can say whose root it refuses.
	if !anchor.Equal(leaf) && !slices.ContainsFunc(chain, anchor.Equal) {
		crt.Certificate = append(crt.Certificate, anchor.Raw)
	}
	return newCredentials(crt, rs, nil), nil
}

// roots returns what to trust: what the control plane publishes, else what the CA answered. As
// long as the leaf does not lead to a published root, both: a peer may be ahead of this pod.
func roots(leaf *x509.Certificate, chain [][]byte, t *trust, answered []*x509.Certificate) []*x509.Certificate {
	if t == nil {
		return answered
	}
	if _, err := verify(leaf, chain, t.roots); err == nil {
		return t.roots
	}
	return union(t.roots, answered)
}

// verify returns the root that the leaf leads to.
func verify(leaf *x509.Certificate, chain [][]byte, roots []*x509.Certificate) (*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, der := range chain[1:] {
		crt, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		between.AddCert(crt)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: pool(roots), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, err
	}
	return last(chains[0]), nil
}

// newCredentials takes revocation lists that have been found readable.
func newCredentials(crt tls.Certificate, roots []*x509.Certificate, crl []byte) *Credentials {
	cr := &Credentials{Certificate: crt, Roots: roots, RootPool: pool(roots), RootsPEM: certs.Encode(roots...)}
	if len(crl) > 0 {
		cr.CRL = crl
		cr.Revoked, _ = certs.RevocationLists(crl)
	}
	for _, der := range crt.Certificate {
		cr.Chain = append(cr.Chain, certs.EncodeDER(der)...)
	}
	return cr
}

func (c *Certificates) newKey() (crypto.Signer, error) {
	if c.opts.RSABits > 0 {
		return rsa.GenerateKey(rand.Reader, max(c.opts.RSABits, 2048))
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// keyPEM encodes the private key, PKCS#8.
func (cr *Credentials) keyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(cr.Certificate.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// version identifies the credentials by their content.
func (cr *Credentials) version() string {
	h := sha256.New()
	h.Write(cr.Chain)
	h.Write(cr.RootsPEM)
	h.Write(cr.CRL)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// renewIn returns when to renew a certificate with that much life left: at half of it, ±1 %.
func renewIn(life time.Duration) time.Duration {
	return max(time.Duration(float64(life)*(0.49+0.02*mathrand.Float64())), 100*time.Millisecond)
}

// backOff returns the pause after that many failures: full jitter, doubling from half a second.
func backOff(failures int, most time.Duration) time.Duration {
	d := min(500*time.Millisecond<<min(failures-1, 10), most)
	return d/10 + time.Duration(mathrand.Int64N(int64(d)))
}
