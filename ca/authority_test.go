package ca

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// memory is a Store and a Publisher: what it is given as bundle it returns as ConfigMap.
type memory struct {
	mu        sync.Mutex
	secrets   map[string]map[string][]byte
	roots     string
	published []Bundle
	acked     chan struct{} // AwaitRoots waits for one receive; nil: at once
}

func (m *memory) Secret(_ context.Context, name string) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.secrets[name]), nil
}

func (m *memory) CreateSecret(_ context.Context, name, typ string, data map[string][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.secrets[name] != nil {
		return ErrExists
	}
	if typ != SelfSignedSecretType {
		return errors.New("type " + typ)
	}
	m.set(name, data)
	return nil
}

func (m *memory) set(name string, data map[string][]byte) {
	if m.secrets == nil {
		m.secrets = map[string]map[string][]byte{}
	}
	m.secrets[name] = data
}

func (m *memory) put(name string, data map[string][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(name, data)
}

func (m *memory) PublishedRoots(context.Context) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []byte(m.roots), nil
}

func (m *memory) PublishRoots(b Bundle) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.roots = b.PEM
	m.published = append(m.published, b)
}

func (m *memory) AwaitRoots(ctx context.Context) error {
	if m.acked == nil {
		return nil
	}
	select {
	case <-m.acked:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func testConfig(t *testing.T, m *memory) Config {
	return Config{Store: m, Publisher: m, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
}

// plugged makes a root and an intermediate with P-256 keys and returns the latter's files.
func plugged(t *testing.T, cluster string) (Root, map[string][]byte) {
	t.Helper()
	root, err := NewRoot(RootOptions{Key: P256})
	if err != nil {
		t.Fatal(err)
	}
	return *root, under(t, *root, IntermediateOptions{Cluster: cluster})
}

func under(t *testing.T, root Root, o IntermediateOptions) map[string][]byte {
	t.Helper()
	o.Key = P256
	i, err := NewIntermediate(root, o)
	if err != nil {
		t.Fatal(err)
	}
	return i.Files()
}

func start(t *testing.T, m *memory, change ...func(*Config)) (a *Authority, stop func()) {
	t.Helper()
	cfg := testConfig(t, m)
	for _, c := range change {
		c(&cfg)
	}
	a, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return a, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func rootsIn(t *testing.T, b Bundle) []root {
	t.Helper()
	r, err := parseBundle([]byte(b.PEM))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSelfSigned(t *testing.T) {
	m := &memory{}
	a, stop := start(t, m)
	defer stop()
	s := a.Signer()
	if s == nil || !s.SelfSigned() {
		t.Fatal("no self-signed signer")
	}
	if err := a.Ready(); err != nil {
		t.Error(err)
	}
	data := m.secrets[SelfSignedSecret]
	if len(data) != 5 || len(data["cert-chain.pem"])+len(data["key.pem"])+len(data["root-cert.pem"]) != 0 {
		t.Errorf("istio-ca-secret has %d keys, want 5, three of them empty", len(data))
	}
	if got := s.cert.Subject.String(); got != "O=cluster.local" {
		t.Errorf("subject %s", got)
	}
	if d := s.cert.NotAfter.Sub(s.cert.NotBefore); d != 10*365*24*time.Hour+backdate {
		t.Errorf("validity %s", d)
	}
	// A second replica or a restart finds the same CA.
	b, stopB := start(t, m)
	defer stopB()
	if !b.Signer().same(s) {
		t.Error("a second control plane has another signer")
	}
}

func TestPluggedInBeforeInstall(t *testing.T) {
	m := &memory{}
	_, files := plugged(t, "cluster1")
	m.put(PluggedInSecret, files)
	a, stop := start(t, m)
	defer stop()
	if a.Signer() == nil || a.Signer().SelfSigned() {
		t.Error("the plugged-in CA does not sign")
	}
	if m.secrets[SelfSignedSecret] != nil {
		t.Error("istio-ca-secret was made although cacerts is there")
	}
}

// A change of root while running: union first, the new signer only after the ACKs, the old
// root gone when its last leaf has expired.
func TestRollLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{acked: make(chan struct{})}
		a, stop := start(t, m)
		defer stop()
		synctest.Wait()
		old := a.Signer()
		before := a.Bundle()

		_, files := plugged(t, "cluster1")
		m.put(PluggedInSecret, files)
		a.Reload()
		synctest.Wait()
		union := a.Bundle()
		if r := rootsIn(t, union); len(r) != 2 {
			t.Fatalf("%d roots are published, want old and new", len(r))
		}
		if !a.Signer().same(old) || union.SignerKeyID != before.SignerKeyID {
			t.Fatal("the new signer signs before the new root is acknowledged")
		}
		m.acked <- struct{}{}
		synctest.Wait()
		if a.Signer().SelfSigned() {
			t.Fatal("the old signer still signs after the ACKs")
		}
		after := a.Bundle()
		if after.SignerKeyID == union.SignerKeyID || after.PEM == union.PEM {
			t.Error("the switch does not tell agents to renew")
		}
		r := rootsIn(t, after)
		if len(r) != 2 || !r[0].cert.Equal(a.Signer().anchor) || !r[1].cert.Equal(old.anchor) {
			t.Fatal("after the switch both roots must be published, the signer's first")
		}
		time.Sleep(time.Until(r[1].retire) - time.Minute) // by the bubble's clock
		synctest.Wait()
		if len(rootsIn(t, a.Bundle())) != 2 {
			t.Error("the old root went while a leaf under it may still be valid")
		}
		if d := time.Until(r[1].retire); d > 24*time.Hour {
			t.Errorf("the old root stays another %s", d)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(rootsIn(t, a.Bundle())) != 1 {
			t.Error("the old root did not go")
		}
		if got := m.published[len(m.published)-1]; got != a.Bundle() {
			t.Error("the last bundle was not published")
		}
	})
}

// A proxy that never acknowledges delays the roll, but only for AckTimeout.
func TestRollIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{acked: make(chan struct{})}
		a, stop := start(t, m)
		defer stop()
		_, files := plugged(t, "cluster1")
		m.put(PluggedInSecret, files)
		a.Reload()
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()
		if !a.Signer().SelfSigned() {
			t.Error("switched early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if a.Signer().SelfSigned() {
			t.Error("did not switch after the bounded wait")
		}
	})
}

// The same across a restart: rollout restart after creating cacerts.
func TestRollAcrossRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		a, stop := start(t, m)
		synctest.Wait()
		old := a.Signer()
		stop()
		_, files := plugged(t, "cluster1")
		m.put(PluggedInSecret, files)

		m.acked = make(chan struct{})
		a, stop = start(t, m)
		synctest.Wait()
		if !a.Signer().same(old) {
			t.Fatal("the old key does not sign until the new root is known")
		}
		if len(rootsIn(t, a.Bundle())) != 2 {
			t.Fatal("old and new root are not both published")
		}
		// The control plane dies in the middle; its successor goes on.
		stop()
		a, stop = start(t, m)
		defer stop()
		synctest.Wait()
		if !a.Signer().same(old) {
			t.Fatal("an interrupted roll is taken for finished")
		}
		time.Sleep(15 * time.Second) // Grace
		m.acked <- struct{}{}
		synctest.Wait()
		if a.Signer().SelfSigned() {
			t.Fatal("did not switch")
		}
		published := a.Bundle()
		b, stopB := start(t, m)
		defer stopB()
		if b.Signer() == nil || b.Bundle() != published {
			t.Errorf("a restart after the roll changes the bundle:\n%s\n%s", published.PEM, b.Bundle().PEM)
		}
	})
}

// cacerts replaced by others while nothing ran: the old key is nowhere, so nothing is signed
// until the new root had time to arrive, but the control plane is ready and serves.
func TestRootReplacedWhileStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		_, files := plugged(t, "cluster1")
		m.put(PluggedInSecret, files)
		_, stop := start(t, m)
		synctest.Wait()
		stop()
		_, files = plugged(t, "cluster1")
		m.put(PluggedInSecret, files)
		a, stop := start(t, m)
		defer stop()
		synctest.Wait()
		if a.Signer() != nil {
			t.Error("signs with a root nobody knows")
		}
		if err := a.Ready(); err != nil {
			t.Errorf("not ready, so no proxy can learn the new root: %v", err)
		}
		if _, err := a.Serving("istiod.istio-system.svc").GetCertificate(nil); err != nil {
			t.Error(err)
		}
		time.Sleep(16 * time.Second)
		synctest.Wait()
		if a.Signer() == nil || len(rootsIn(t, a.Bundle())) != 2 {
			t.Error("does not sign after the wait, or the old root is gone")
		}
	})
}

// Another intermediate under the same root needs no roll.
func TestIntermediateReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{acked: make(chan struct{})}
		root, files := plugged(t, "cluster1")
		m.put(PluggedInSecret, files)
		a, stop := start(t, m)
		defer stop()
		synctest.Wait()
		old := a.Signer()
		serving := a.Serving("istiod.istio-system.svc")
		c1, err := serving.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		m.put(PluggedInSecret, under(t, root, IntermediateOptions{Cluster: "cluster1"}))
		a.Reload()
		synctest.Wait()
		if a.Signer().same(old) {
			t.Error("the new intermediate does not sign")
		}
		if n := len(rootsIn(t, a.Bundle())); n != 1 {
			t.Errorf("%d roots, want 1", n)
		}
		c2, err := serving.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if c1 == c2 {
			t.Error("the serving certificate was not reissued")
		}
	})
}

// Broken material never replaces a good signer, and neither does its absence.
func TestLastGoodSignerStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		_, files := plugged(t, "cluster1")
		m.put(PluggedInSecret, files)
		a, stop := start(t, m)
		defer stop()
		synctest.Wait()
		good := a.Signer()
		_, other := plugged(t, "cluster1")
		for _, bad := range []map[string][]byte{
			nil,
			{},
			{"ca-cert.pem": files["ca-cert.pem"]},
			merge(files, "ca-key.pem", other["ca-key.pem"]),
			merge(files, "root-cert.pem", other["root-cert.pem"]),
		} {
			m.put(PluggedInSecret, bad)
			a.Reload()
			synctest.Wait()
			if !a.Signer().same(good) || a.Ready() != nil {
				t.Errorf("the last good signer did not stay")
			}
		}
		if m.secrets[SelfSignedSecret] != nil {
			t.Error("a self-signed CA was made")
		}
	})
}

func TestBadMaterialAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		_, files := plugged(t, "cluster1")
		m.put(PluggedInSecret, merge(files, "ca-key.pem", nil))
		a, stop := start(t, m)
		synctest.Wait()
		if a.Ready() == nil || a.Signer() != nil {
			t.Error("ready without a usable CA")
		}
		if m.secrets[SelfSignedSecret] != nil {
			t.Error("a self-signed CA was made although cacerts is there")
		}
		if len(m.published) != 0 {
			t.Error("a bundle without roots was published")
		}
		// What is mended counts at once.
		m.put(PluggedInSecret, files)
		a.Reload()
		synctest.Wait()
		if err := a.Ready(); err != nil || a.Signer() == nil {
			t.Errorf("not ready after cacerts was mended: %v", err)
		}
		stop()
		// Broken again over a restart, the roots in use stay published.
		before := m.roots
		m.put(PluggedInSecret, merge(files, "ca-key.pem", nil))
		a, stop = start(t, m)
		defer stop()
		synctest.Wait()
		if a.Ready() == nil {
			t.Error("ready without a usable CA")
		}
		if r, err := parseBundle([]byte(m.roots)); err != nil || len(r) != 1 || !strings.Contains(before, string(certs.Encode(r[0].cert))) {
			t.Errorf("the published roots changed: %v, %v", r, err)
		}
	})
}

func TestExpiredSignerIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		root, _ := plugged(t, "x")
		m.put(PluggedInSecret, under(t, root, IntermediateOptions{Cluster: "cluster1", Days: 1}))
		a, stop := start(t, m)
		defer stop()
		if err := a.Ready(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Hour)
		if err := a.Ready(); err == nil || !strings.Contains(err.Error(), "expired at") {
			t.Errorf("Ready() = %v after the signer expired", err)
		}
		if n := len(rootsIn(t, a.Bundle())); n != 1 {
			t.Errorf("%d roots published", n)
		}
	})
}

func merge(m map[string][]byte, k string, v []byte) map[string][]byte {
	m = maps.Clone(m)
	m[k] = v
	return m
}

func FuzzParseBundle(f *testing.F) {
	made, err := NewRoot(RootOptions{Key: P256})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(made.CertPEM)
	c, _ := certs.Certificates(made.CertPEM)
	f.Add([]byte(encodeBundle([]byte{1}, []root{{cert: c[0], retire: time.Unix(1e9, 0)}}).PEM))
	f.Fuzz(func(t *testing.T, data []byte) {
		roots, err := parseBundle(data)
		if err != nil || len(roots) == 0 {
			return
		}
		again, err := parseBundle([]byte(encodeBundle(nil, roots).PEM))
		if err != nil || len(again) != len(roots) {
			t.Fatalf("%d roots became %d: %v", len(roots), len(again), err)
		}
		for i := range roots {
			if !again[i].cert.Equal(roots[i].cert) || !again[i].retire.Equal(roots[i].retire.Truncate(time.Second)) {
				t.Fatalf("root %d changed", i)
			}
		}
	})
}
