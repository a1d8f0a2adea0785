package ca

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// reports keeps what an Authority reports.
type reports struct {
	mu  sync.Mutex
	all []string
}

func (r *reports) add(secret string, wrong []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, fmt.Sprintf("%s: %s", secret, strings.Join(wrong, " | ")))
}

func (r *reports) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == 0 {
		return ""
	}
	return r.all[len(r.all)-1]
}

// An intermediate's end is told 30 days before, once a day, and no more after it was renewed.
func TestExpiryIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		root, _ := plugged(t, "x")
		m.put(PluggedInSecret, under(t, root, IntermediateOptions{Cluster: "cluster1", Days: 60}))
		var log bytes.Buffer
		told := &reports{}
		a, stop := start(t, m, func(c *Config) {
			c.Report, c.Poll = told.add, time.Hour
			c.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		at := func(days int) string {
			// The bubble's clock: days pass at once, and a sleep is how it is moved.
			time.Sleep(time.Until(a.Signer().NotAfter().Add(-time.Duration(days)*day - time.Hour + time.Minute)))
			synctest.Wait()
			return told.last()
		}
		if got := at(31); got != "" {
			t.Errorf("told 31 days before: %s", got)
		}
		for _, tt := range []struct {
			days int
			want string
		}{{29, "ends in 29 days"}, {6, "ends in 6 days"}, {1, "ends in 25 hours"}, {0, "ends within the hour"}} {
			if got := at(tt.days); !strings.Contains(got, "cacerts: intermediate CA of Secret cacerts (") || !strings.Contains(got, tt.want) || !strings.Contains(got, "carrick ca renew --root-key PATH") {
				t.Errorf("%d days before, what is told is %q, want %q", tt.days, got, tt.want)
			}
		}
		if n := len(told.all); n < 28 || n > 80 {
			t.Errorf("told %d times in the last 30 days", n)
		}
		before := a.Signer()
		m.put(PluggedInSecret, under(t, root, IntermediateOptions{Cluster: "cluster1", Days: 60}))
		a.Reload()
		synctest.Wait()
		if a.Signer().same(before) {
			t.Fatal("the renewed intermediate does not sign")
		}
		if got := told.last(); got != "cacerts: " {
			t.Errorf("after the renewal, what is told is %q", got)
		}
		if n := len(rootsIn(t, a.Bundle())); n != 1 {
			t.Errorf("a renewal under the same root left %d roots", n)
		}
		m.put(PluggedInSecret, map[string][]byte{})
		a.Reload()
		synctest.Wait()
		if got := told.last(); !strings.Contains(got, "refused, the last good CA stays: Secret cacerts: ca-cert.pem, ") {
			t.Errorf("of a refused Secret is told %q", got)
		}
		stop()
		if !strings.Contains(log.String(), "level=ERROR msg=\"intermediate CA of Secret cacerts") || !strings.Contains(log.String(), "level=WARN msg=\"intermediate CA") {
			t.Errorf("the log does not warn:\n%s", log.String())
		}
	})
}

func TestNotices(t *testing.T) {
	root, files := plugged(t, "c1")
	s, err := ParsePluggedIn(files, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if n := Notices(PluggedInSecret, s.chain(), time.Now()); len(n) != 0 {
		t.Errorf("a new CA: %v", n)
	}
	n := Notices(PluggedInSecret, s.chain(), s.cert.NotAfter)
	if len(n) != 1 || n[0].Stage != 0 || !strings.Contains(n[0].Text, "has ended") {
		t.Errorf("an intermediate at its end: %v", n)
	}
	n = Notices(PluggedInSecret, s.chain(), s.anchor.NotAfter.Add(-7*day))
	stages := []int{}
	for _, x := range n {
		stages = append(stages, x.Stage)
	}
	if !slices.Equal(stages, []int{0, 7}) || !strings.Contains(n[1].String(), "root CA of Secret cacerts (CN=Root CA,O=Istio) ends in 7 days") || !strings.Contains(n[1].Fix, "carrick ca root") {
		t.Errorf("a root near its end: %v", n)
	}
	list, err := certs.Certificates(root.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	n = Notices(SelfSignedSecret, list, list[0].NotAfter.Add(-time.Hour/2))
	if len(n) != 1 || n[0].Stage != 1 || !strings.Contains(n[0].String(), "within the hour") || !strings.HasSuffix(n[0].Fix, "carrick ca renew") {
		t.Errorf("a self-signed CA near its end: %v", n)
	}
}
