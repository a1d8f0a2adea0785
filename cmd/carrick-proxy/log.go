package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// newLogger returns a logger of Istio's format: time, level and message between tabs, then
// attributes; or JSON. levels is as in --log_output_level: "info", "default:debug", "all:warn,xds:debug";
// only the level of default or all counts. The level may be changed later.
func newLogger(w io.Writer, levels string, json bool) (*slog.Logger, *slog.LevelVar, error) {
	l, err := parseLevels(levels)
	if err != nil {
		return nil, nil, err
	}
	level := new(slog.LevelVar)
	level.Set(l)
	if json {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.LevelKey {
				a.Value = slog.StringValue(levelName(a.Value.Any().(slog.Level)))
			}
			return a
		}})), level, nil
	}
	return slog.New(&lineHandler{out: &lockedWriter{w: w}, level: level}), level, nil
}

func parseLevels(s string) (slog.Level, error) {
	level := slog.LevelInfo
	for part := range strings.SplitSeq(s, ",") {
		scope, name, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok {
			scope, name = "default", scope
		}
		if scope != "default" && scope != "all" || name == "" {
			continue
		}
		switch name {
		case "debug":
			level = slog.LevelDebug
		case "info":
			level = slog.LevelInfo
		case "warn", "warning":
			level = slog.LevelWarn
		case "error", "fatal":
			level = slog.LevelError
		case "none":
			level = slog.LevelError + 4
		default:
			return 0, fmt.Errorf("--log_output_level: %q is none of debug, info, warn, error, fatal, none", name)
		}
	}
	return level, nil
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	}
	return "error"
}

// lineHandler writes a line for each record.
type lineHandler struct {
	out    *lockedWriter
	level  slog.Leveler
	prefix string // of attribute keys, from groups
	attrs  string // already formatted
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"))
	b.WriteByte('\t')
	b.WriteString(levelName(r.Level))
	b.WriteByte('\t')
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool { h.format(&b, h.prefix, a); return true })
	b.WriteByte('\n')
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := io.WriteString(h.out.w, b.String())
	return err
}

func (h *lineHandler) format(b *strings.Builder, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		for _, g := range v.Group() {
			h.format(b, prefix+a.Key+".", g)
		}
		return
	}
	if a.Equal(slog.Attr{}) {
		return
	}
	s := v.String()
	if v.Kind() == slog.KindTime {
		s = v.Time().UTC().Format(time.RFC3339Nano)
	}
	if s == "" || strings.ContainsAny(s, " \t\n\"=") {
		s = fmt.Sprintf("%q", s)
	}
	fmt.Fprintf(b, "\t%s%s=%s", prefix, a.Key, s)
}

func (h *lineHandler) WithAttrs(as []slog.Attr) slog.Handler {
	c := *h
	var b strings.Builder
	for _, a := range as {
		h.format(&b, h.prefix, a)
	}
	c.attrs += b.String()
	return &c
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.prefix += name + "."
	return &c
}
