package log

import (
	"bytes"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestLine(t *testing.T) {
	var b bytes.Buffer
	level := new(slog.LevelVar)
	level.Set(slog.LevelDebug)
	log := New(&b, level)
	log.With("a", 1).WithGroup("g").Debug("all is well", "b", "two words", "e", "", slog.Group("h", "c", true))
	if _, rest, _ := strings.Cut(b.String(), "\t"); rest != "debug\tall is well\ta=1 g.b=\"two words\" g.h.c=true\n" {
		t.Errorf("line %q", b.String())
	}
	b.Reset()
	level.Set(slog.LevelError)
	if log.Warn("no more"); b.Len() > 0 {
		t.Errorf("the level has changed, and yet: %q", b.String())
	}
}

// What comes from outside can neither begin a line of its own nor fill the disk.
func TestForged(t *testing.T) {
	var b bytes.Buffer
	log := New(&b, slog.LevelInfo)
	log.Info("a\nb\x1b[2J\xff", "sni", "x\n2026-12-01T00:00:00.000000Z\tinfo\tforged", "big", strings.Repeat("x", 1<<20))
	line := b.String()
	if strings.Count(line, "\n") != 1 || strings.Count(line, "\t") != 3 || strings.ContainsAny(line, "\x1b\xff") {
		t.Errorf("line %q", line[:200])
	}
	if len(line) > maxValue+300 || !strings.Contains(line, "... (1048576 bytes)") {
		t.Errorf("%d bytes", len(line))
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	log := NewJSON(&b, slog.LevelWarn)
	log.Info("no")
	log.Warn("yes", "a", 1)
	if got := b.String(); !strings.Contains(got, `"level":"warn","msg":"yes","a":1`) || strings.Contains(got, "no") {
		t.Errorf("JSON %q", got)
	}
}

func TestParseLevel(t *testing.T) {
	for s, want := range map[string]string{
		"default:debug": "debug", "info": "info", "ca:debug,default:warn": "warn", "": "info", "all:none": "none", "xds:error,default:debug": "debug",
	} {
		if l, err := ParseLevel(s); err != nil || LevelName(l) != want {
			t.Errorf("%q: %v %v, want %s", s, l, err, want)
		}
	}
	if _, err := ParseLevel("default:loud"); err == nil || !strings.Contains(err.Error(), `level "loud" is not debug, info, warn, error or none`) {
		t.Errorf("loud: %v", err)
	}
}

func TestScopes(t *testing.T) {
	var log bytes.Buffer
	s, err := NewScopes(&log, "ca:debug,default:warn,klog:error",
		&Scope{Name: "ads"}, &Scope{Name: "ca"}, &Scope{Name: "default"}, &Scope{Name: "klog", Least: slog.LevelWarn}, &Scope{Name: "kube"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ca": "debug", "default": "warn", "ads": "warn", "klog": "error"} {
		if got := s.find(name).info().OutputLevel; got != want {
			t.Errorf("scope %s: %s, want %s", name, got, want)
		}
	}
	h := s.ControlZ()
	for _, tt := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{"GET", "/scopej/", "", 200, `[{"name":"ads"`},
		{"GET", "/scopej/ca", "", 200, `"output_level":"debug"`},
		{"GET", "/scopej/nothing", "", 400, "unknown scope name: nothing"},
		{"PUT", "/scopej/nothing", `{"output_level":"info"}`, 400, "unknown scope name: nothing"},
		{"PUT", "/scopej/ads", `{`, 400, "unable to decode"},
		{"PUT", "/scopej/ads", `{"output_level":"loud"}`, 400, `output_level "loud" is not debug, info, warn, error or none`},
		{"PUT", "/scopej/ads", `{"stack_trace_level":"debug"}`, 400, "stack traces are not logged"},
		{"PUT", "/scopej/ads", `{"output_level":"none","stack_trace_level":"none"}`, 202, ""},
		{"GET", "/scopej/ads", "", 200, `"output_level":"none"`},
		{"POST", "/scopej/ads", "", 405, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.says) {
			t.Errorf("%s %s %s: %d %s", tt.method, tt.path, tt.body, w.Code, w.Body)
		}
	}
	s.Logger("ads").Error("lost")
	s.Logger("ca").Debug("kept")
	if got := log.String(); strings.Contains(got, "lost") || !strings.Contains(got, "kept") {
		t.Errorf("log %s", got)
	}
}
