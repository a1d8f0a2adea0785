package ca

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lines keeps the messages of a log.
type lines struct {
	slog.Handler
	all []string
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo {
		l.all = append(l.all, r.Message)
	}
	return nil
}

// TestGuideLog: what the control plane logs of its CA at the guide's steps 6 and 8 is what the guide shows.
func TestGuideLog(t *testing.T) {
	for name, before := range map[string]func(*memory){
		"self-signed": func(*memory) {},
		"plugged-in":  func(m *memory) { _, files := plugged(t, "cluster1"); m.put(PluggedInSecret, files) },
	} {
		m := &memory{}
		before(m)
		log := &lines{}
		cfg := testConfig(t, m)
		cfg.Log = slog.New(log)
		a, err := New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		a.Serving(ServiceHosts("istiod", "istio-system", "cluster.local")...)
		pattern, err := os.ReadFile(filepath.Join("testdata", "guide", name+".pattern"))
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSpace(string(pattern)), "\n")
		if len(log.all) != len(want) {
			t.Errorf("%s: %d lines, want %d:\n%s", name, len(log.all), len(want), strings.Join(log.all, "\n"))
			continue
		}
		for i, w := range want {
			re := regexp.QuoteMeta(w)
			for k, v := range map[string]string{"{SERIAL}": `[0-9a-f]{1,40}`, "{TIME}": `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`} {
				re = strings.ReplaceAll(re, regexp.QuoteMeta(k), v)
			}
			if !regexp.MustCompile("^" + re + "$").MatchString(log.all[i]) {
				t.Errorf("%s: line %d is %q, want one like %q", name, i+1, log.all[i], w)
			}
		}
	}
}
