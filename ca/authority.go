package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

// Store reads and makes the objects that hold CA material, in the control plane's namespace.
type Store interface {
	// Secret returns a Secret's data, nil if there is no such Secret.
	Secret(ctx context.Context, name string) (map[string][]byte, error)
	// CreateSecret writes a new Secret and returns ErrExists if somebody was first.
	CreateSecret(ctx context.Context, name, typ string, data map[string][]byte) error
	// PublishedRoots returns root-cert.pem of ConfigMap istio-ca-root-cert, nil if absent.
	PublishedRoots(ctx context.Context) ([]byte, error)
}

// ErrExists is returned by Store.CreateSecret.
var ErrExists = errors.New("exists already")

// Publisher brings roots to everybody who verifies workloads.
type Publisher interface {
	// PublishRoots hands over the bundle from now on: to the root ConfigMaps, to the
	// webhooks' caBundle and to the proxies over ADS. It does not wait for them.
	PublishRoots(Bundle)
	// AwaitRoots returns when every connected proxy has acknowledged the bundle last
	// published, or with ctx's error when ctx ends before.
	AwaitRoots(context.Context) error
}

// Config is what an Authority needs. Zero durations take the defaults named.
type Config struct {
	Store     Store
	Publisher Publisher
	Log       *slog.Logger
	// Report, if not nil, is given all that is wrong with a Secret's CA whenever that changes:
	// its end is near, or it was refused. Nothing is that all is well.
	Report func(secret string, wrong []string)

	Organization string        // subject of a self-signed CA; "cluster.local"
	DefaultTTL   time.Duration // of a leaf that asks for none; 24 h
	MaxTTL       time.Duration // bound of what a leaf may ask for; 24 h
	Poll         time.Duration // between looks at the Secrets beside Reload; 1 min
	AckTimeout   time.Duration // the longest wait for proxies in a roll; 1 min
	// Grace is how long a roll that begins at start waits for proxies to connect at all,
	// before it asks whether all connected ones have acknowledged; 15 s.
	Grace time.Duration
}

// Authority is the mesh CA of one cluster. Its methods may be called from any goroutine.
//
// A change of root is a roll. Old and new roots are published together; when every
// connected proxy has acknowledged them, or after a bounded wait, the new signer takes over,
// which tells the agents to renew; the old roots go when the last leaf under them has
// expired. A new signer under a root that is published already takes over at once.
type Authority struct {
	cfg     Config
	poke    chan struct{}
	state   atomic.Pointer[state]
	metrics *metrics

	// Owned by New, then by Run.
	rollAtStart bool
	lastProblem string
	lastNotices []string
}

// state is immutable.
type state struct {
	signer *Signer // signs leaves; nil while there is none, or none that is trusted yet
	next   *Signer // takes over when its root has arrived everywhere
	roots  []root
	bundle Bundle
}

// newState publishes roots. Revocation lists of a signer that is yet to come go out with those of
// the present one only: before that, no peer's authority has one.
func newState(signer, next *Signer, roots []root) state {
	st := state{signer: signer, next: next, roots: roots}
	var keyID, crl []byte
	if signer != nil {
		keyID, crl = signer.keyID, signer.crl
	}
	if next != nil && (signer == nil || len(crl) > 0) && !bytes.Equal(crl, next.crl) {
		crl = slices.Concat(crl, []byte("\n"), next.crl)
	}
	st.bundle = encodeBundle(keyID, roots)
	st.bundle.CRL = string(crl)
	return st
}

// New reads the CA material, making a self-signed CA if there is none at all, and returns an
// Authority that can sign at once; rolls, retirement and reloading need Run. Material that
// is there but unusable is not an error: it is logged, Ready reports it, and Run looks again.
func New(ctx context.Context, cfg Config) (*Authority, error) {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&cfg.MaxTTL, 24*time.Hour)
	set(&cfg.DefaultTTL, 24*time.Hour)
	cfg.DefaultTTL = min(cfg.DefaultTTL, cfg.MaxTTL)
	set(&cfg.Poll, time.Minute)
	set(&cfg.AckTimeout, time.Minute)
	set(&cfg.Grace, 15*time.Second)
	cfg.Organization = or(cfg.Organization, "cluster.local")
	a := &Authority{cfg: cfg, poke: make(chan struct{}, 1)}
	a.metrics = newMetrics(a)

	pem, err := cfg.Store.PublishedRoots(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the published roots: %w", err)
	}
	published, err := parseBundle(pem)
	if err != nil {
		cfg.Log.Warn("ConfigMap istio-ca-root-cert is not usable, starting without the roots it held", "error", err)
	}
	want, old, err := a.load(ctx)
	var bad *materialError
	if errors.As(err, &bad) {
		a.report(bad)
	} else if err != nil {
		return nil, err
	}
	st, roll := begin(current(published, time.Now()), want, old)
	a.rollAtStart = roll
	a.state.Store(&st)
	if st.signer != nil {
		a.logSigner(st.signer)
	}
	return a, nil
}

// begin decides with what a control plane starts, given the roots its predecessor published
// and the signers there are: want is the one to use (nil if unusable), old the self-signed
// one if it is not the same. roll says that want's root has yet to be made known.
func begin(published []root, want, old *Signer) (_ state, roll bool) {
	known := func(s *Signer) bool { r := find(published, s.anchor); return r != nil && r.retire.IsZero() }
	settled := len(published) == 0
	if want != nil && known(want) {
		settled = true
		for _, r := range published {
			if !contains(want.roots, r.cert) && r.retire.IsZero() {
				settled = false // the predecessor stopped in the middle of its roll
			}
		}
	}
	if want != nil && settled {
		roots := join(published, want)
		return newState(want, nil, roots), false
	}
	if old != nil && !known(old) {
		old = nil
	}
	switch {
	case old != nil:
		roots := join(published, old, want)
		return newState(old, want, roots), want != nil
	case want != nil:
		// The old key is gone. Leaves of the new one would not be trusted yet.
		roots := join(published, want)
		return newState(nil, want, roots), true
	}
	if len(published) == 0 {
		return state{}, false
	}
	return newState(nil, nil, published), false
}

// materialError is an error in what the operator plugged in, not in reaching it.
type materialError struct{ error }

func (e *materialError) Unwrap() error { return e.error }

// load reads the Secrets. want is the signer they ask for; old is the self-signed one that
// is there beside a plugged-in one.
func (a *Authority) load(ctx context.Context) (want, old *Signer, err error) {
	plugged, err := a.cfg.Store.Secret(ctx, PluggedInSecret)
	if err != nil {
		return nil, nil, fmt.Errorf("reading Secret %s: %w", PluggedInSecret, err)
	}
	self, err := a.cfg.Store.Secret(ctx, SelfSignedSecret)
	if err != nil {
		return nil, nil, fmt.Errorf("reading Secret %s: %w", SelfSignedSecret, err)
	}
	if plugged == nil {
		if self == nil {
			if self, err = a.createSelfSigned(ctx); err != nil {
				return nil, nil, err
			}
		}
		want, err = ParseSelfSigned(self, time.Now())
		if err != nil {
			return nil, nil, &materialError{err}
		}
		return want, nil, nil
	}
	if self != nil {
		old, err = ParseSelfSigned(self, time.Now())
		if err != nil {
			a.cfg.Log.Debug("the former self-signed CA is not usable", "error", err)
		}
	}
	want, err = ParsePluggedIn(plugged, time.Now())
	if err != nil {
		return nil, old, &materialError{err}
	}
	return want, old, nil
}

func (a *Authority) createSelfSigned(ctx context.Context) (map[string][]byte, error) {
	data, err := newSelfSigned(a.cfg.Organization)
	if err != nil {
		return nil, err
	}
	err = a.cfg.Store.CreateSecret(ctx, SelfSignedSecret, SelfSignedSecretType, data)
	if errors.Is(err, ErrExists) {
		if data, err = a.cfg.Store.Secret(ctx, SelfSignedSecret); err == nil && data == nil {
			err = errors.New("it was made and deleted again by somebody else")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("creating Secret %s: %w", SelfSignedSecret, err)
	}
	return data, nil
}

// report logs a problem with the material once, until it changes.
func (a *Authority) report(err error) {
	msg := ""
	if err != nil {
		msg = err.Error()
	}
	if msg != "" && msg != a.lastProblem {
		a.cfg.Log.Error("CA material refused; the last good signer stays", "error", msg)
	}
	a.lastProblem = msg
}

func (a *Authority) logSigner(s *Signer) {
	log := a.cfg.Log
	if s.selfSigned {
		log.Info("No plugged-in cert at etc/cacerts/ca-key.pem; self-signed cert is used")
	} else {
		log.Info(s.format)
		log.Info("Use plugged-in cert at etc/cacerts/ca-key.pem")
	}
	for _, c := range s.intermediates() {
		log.Info(describe(c))
	}
	log.Info(describe(s.anchor))
}

// Reload makes Run look at the Secrets now. It does not block.
func (a *Authority) Reload() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// Bundle returns the roots published now. Before there is any CA its PEM is empty.
func (a *Authority) Bundle() Bundle { return a.state.Load().bundle }

// Signer returns the signer of leaves, nil while there is none.
func (a *Authority) Signer() *Signer { return a.state.Load().signer }

// Ready returns why the control plane must not serve: no usable CA, or one that has expired.
func (a *Authority) Ready() error {
	st := a.state.Load()
	s := st.signer
	if s == nil {
		s = st.next // proxies must be able to connect to learn the new root
	}
	if s == nil {
		return errors.New("no usable CA: see the log for what is wrong with Secret " + PluggedInSecret)
	}
	if now := time.Now(); now.After(s.NotAfter()) {
		return fmt.Errorf("the signing certificate (%s) or its chain expired at %s", s.cert.Subject, s.NotAfter().UTC().Format(time.RFC3339))
	}
	return nil
}
