package main

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/kube/kubetest"
)

// TestExpiryEvent: an intermediate that ends soon is an event on its Secret, in the log and in the
// metrics; a renewed one is taken without a restart.
func TestExpiryEvent(t *testing.T) {
	s := kubetest.Start(t)
	root, err := ca.NewRoot(ca.RootOptions{Key: ca.P256})
	if err != nil {
		t.Fatal(err)
	}
	files := func(days int) map[string][]byte {
		i, err := ca.NewIntermediate(*root, ca.IntermediateOptions{Cluster: "cluster1", Key: ca.P256, Days: days})
		if err != nil {
			t.Fatal(err)
		}
		return i.Files()
	}
	if _, err := s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	secrets := s.Client.CoreV1().Secrets("istio-system")
	secret, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "cacerts"}, Data: files(5)}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := startPlane(t, s)
	within(t, "an event on Secret cacerts", func() error {
		l, err := s.Client.CoreV1().Events("istio-system").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=cacerts"})
		if err != nil {
			return err
		}
		for _, e := range l.Items {
			if e.InvolvedObject.UID == secret.UID && strings.Contains(e.Message, "ends in 4 days") && strings.Contains(e.Message, "carrick ca renew") {
				return nil
			}
		}
		return fmt.Errorf("%d events: %v", len(l.Items), l.Items)
	})
	if !strings.Contains(p.log.String(), "ends in 4 days") {
		t.Error("the log does not warn")
	}
	left := func() (n float64) {
		metrics, err := p.get(p.metrics, "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(metrics) {
			if _, err := fmt.Sscanf(l, "citadel_server_cert_chain_expiry_seconds %g", &n); err == nil {
				return n
			}
		}
		t.Fatal("no metric citadel_server_cert_chain_expiry_seconds")
		return 0
	}
	if n := left() / 86400; n < 4 || n > 5 {
		t.Errorf("the metric says %g days", n)
	}
	secret.Data = files(90)
	if _, err := secrets.Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	within(t, "the renewed intermediate signs", func() error {
		if n := left() / 86400; n < 80 {
			return fmt.Errorf("the metric says %g days", n)
		}
		return nil
	})
}

func TestLives(t *testing.T) {
	for _, tt := range []struct {
		usual, longest         string
		wantUsual, wantLongest time.Duration
		told                   bool
	}{
		{"", "", 0, 24 * time.Hour, false}, // 0 is the CA's default
		{"1h", "", time.Hour, 24 * time.Hour, false},
		{"48h", "", 48 * time.Hour, 48 * time.Hour, false},
		{"48h", "12h", 48 * time.Hour, 12 * time.Hour, false}, // the CA takes the lesser
		{"", "2160h", 0, 2160 * time.Hour, false},
		{"1d", "-1h", 0, 24 * time.Hour, true},
	} {
		var log strings.Builder
		usual, longest := lives(discoveryOptions{defaultTTL: tt.usual, maxTTL: tt.longest}, slog.New(slog.NewTextHandler(&log, nil)))
		if usual != tt.wantUsual || longest != tt.wantLongest || strings.Contains(log.String(), "MAX_WORKLOAD_CERT_TTL") != tt.told {
			t.Errorf("%q, %q: %s, %s, log %s", tt.usual, tt.longest, usual, longest, &log)
		}
	}
}
