package ca

import (
	"context"
	"errors"
	"time"
)

// Run publishes the roots, finishes a roll that New found necessary, and then follows the
// Secrets and the clock until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	if b := a.Bundle(); b.PEM != "" {
		a.cfg.Publisher.PublishRoots(b)
	}
	if a.rollAtStart {
		if next := a.state.Load().next; next != nil {
			a.cfg.Log.Info("the CA's root has changed since the last start; old and new root are trusted while proxies learn the new one",
				"new", next.anchor.Subject.String(), "fingerprint", fingerprint(next.anchor))
			a.finish(ctx, a.cfg.Grace)
		}
	}
	tick := time.NewTicker(a.cfg.Poll)
	defer tick.Stop()
	for {
		a.tell()
		retire := time.NewTimer(a.nextRetirement())
		select {
		case <-ctx.Done():
			retire.Stop()
			return nil
		case <-a.poke:
			a.reload(ctx)
		case <-tick.C:
			a.reload(ctx)
		case <-retire.C:
		}
		retire.Stop()
		a.dropRetired()
	}
}

// reload takes the signer that the Secrets ask for, if it is another one.
func (a *Authority) reload(ctx context.Context) {
	st := a.state.Load()
	plugged, err := a.cfg.Store.Secret(ctx, PluggedInSecret)
	if err != nil {
		if ctx.Err() == nil {
			a.cfg.Log.Warn("cannot look for new CA material; the signer stays", "error", err)
		}
		return
	}
	if plugged == nil && st.signer != nil {
		// A deletion, maybe the first half of a replacement or a part of removing the
		// control plane, does not ask for a new root.
		self, err := a.cfg.Store.Secret(ctx, SelfSignedSecret)
		if err == nil && (!st.signer.selfSigned || self == nil) {
			a.report(errors.New("the Secret of the CA in use is gone; the CA keeps signing until the control plane restarts"))
			return
		}
	}
	want, _, err := a.load(ctx)
	var bad *materialError
	if errors.As(err, &bad) {
		a.report(bad)
		return
	}
	if err != nil {
		if ctx.Err() == nil {
			a.cfg.Log.Warn("cannot look for new CA material; the signer stays", "error", err)
		}
		return
	}
	a.report(nil)
	if want.same(st.signer) {
		return
	}
	if len(st.roots) == 0 || isKnown(st.roots, want) {
		a.take(want)
		return
	}
	a.set(newState(st.signer, want, join(st.roots, st.signer, want)))
	a.cfg.Log.Info("the CA's root changes; old and new root are trusted while proxies learn the new one",
		"new", want.anchor.Subject.String(), "fingerprint", fingerprint(want.anchor))
	a.finish(ctx, 0)
}

func isKnown(roots []root, s *Signer) bool { return find(roots, s.anchor) != nil }

// finish waits until the new root has arrived and lets state.next sign.
func (a *Authority) finish(ctx context.Context, grace time.Duration) {
	next := a.state.Load().next
	wait, cancel := context.WithTimeout(ctx, a.cfg.AckTimeout+grace)
	defer cancel()
	pause(wait, grace)
	err := a.cfg.Publisher.AwaitRoots(wait)
	if ctx.Err() != nil {
		return // the next start goes on from the published roots
	}
	if err != nil {
		a.cfg.Log.Warn("not every proxy has acknowledged the new root in time; going on", "error", err)
	}
	a.take(next)
}

// take lets s sign from now on and lets all other roots retire when the last leaf that may
// have been signed under them has expired.
func (a *Authority) take(s *Signer) {
	now := time.Now()
	roots := retireOthers(current(join(a.state.Load().roots, s), now), s, now.Add(a.cfg.MaxTTL))
	a.set(newState(s, nil, roots))
	a.logSigner(s)
	for _, r := range roots {
		if !r.retire.IsZero() {
			a.cfg.Log.Info("an old root stays trusted until the last certificate under it has expired",
				"root", r.cert.Subject.String(), "fingerprint", fingerprint(r.cert), "until", r.retire.UTC().Format(time.RFC3339))
		}
	}
}

func (a *Authority) dropRetired() {
	st := *a.state.Load()
	roots := current(st.roots, time.Now())
	// A CA that has expired as a whole keeps its roots: no bundle helps nobody.
	if len(roots) == len(st.roots) || len(roots) == 0 || st.signer == nil {
		return
	}
	a.cfg.Log.Info("retired roots are no longer trusted", "roots", len(roots))
	a.set(newState(st.signer, st.next, roots))
}

func (a *Authority) nextRetirement() time.Duration {
	d := 24 * time.Hour
	now := time.Now()
	for _, r := range a.state.Load().roots {
		if !r.retire.IsZero() {
			d = min(d, max(r.retire.Sub(now), time.Second))
		}
	}
	return d
}

func (a *Authority) set(st state) {
	changed := a.state.Load().bundle != st.bundle
	a.state.Store(&st)
	if changed {
		a.cfg.Publisher.PublishRoots(st.bundle)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
