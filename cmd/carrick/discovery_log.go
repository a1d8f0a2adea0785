package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
)

// lineHandler writes records in Istio's style: time, level and message, separated by tabs, then
// attributes as key=value.
type lineHandler struct {
	out    io.Writer // one Write for each record, of any goroutine
	level  slog.Leveler
	attrs  string
	prefix string // of groups
}

// lockedWriter makes a writer fit for several goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func newLineHandler(w io.Writer, level slog.Leveler) *lineHandler {
	return &lineHandler{out: w, level: level}
}

// Enabled implements slog.Handler.
func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle implements slog.Handler.
func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	b.WriteString(r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"))
	b.WriteByte('\t')
	b.WriteString(strings.ToLower(r.Level.String()))
	b.WriteByte('\t')
	b.WriteString(oneLine(r.Message))
	attrs := h.attrs
	r.Attrs(func(a slog.Attr) bool { attrs += h.attr(a); return true })
	if attrs != "" {
		b.WriteByte('\t')
		b.WriteString(attrs[1:])
	}
	b.WriteByte('\n')
	_, err := h.out.Write(b.Bytes())
	return err
}

func (h *lineHandler) attr(a slog.Attr) string {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) || v.Kind() == slog.KindString && v.String() == "" {
		return ""
	}
	if v.Kind() == slog.KindGroup {
		s := ""
		for _, x := range v.Group() {
			s += (&lineHandler{prefix: h.prefix + a.Key + "."}).attr(x)
		}
		return s
	}
	s := v.String()
	if strings.ContainsAny(s, " \t\n\"=") {
		s = strconv.Quote(s)
	}
	return " " + h.prefix + a.Key + "=" + s
}

// WithAttrs implements slog.Handler.
func (h *lineHandler) WithAttrs(as []slog.Attr) slog.Handler {
	c := *h
	for _, a := range as {
		c.attrs += h.attr(a)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *lineHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.prefix += name + "."
	return &c
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// levelsByName are Istio's.
var levelsByName = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
	"warning": slog.LevelWarn, "error": slog.LevelError, "fatal": slog.LevelError, nameNone: levelNone, "": slog.LevelInfo}

// levelName is the name of a level of levelsByName.
func levelName(l slog.Level) string {
	if l == levelNone {
		return nameNone
	}
	return strings.ToLower(l.String())
}

// parseLevel reads Istio's --log_output_level: "info", or "scope:level,..." of which the scopes
// default and all count.
func parseLevel(s string) (slog.Level, error) {
	level := slog.LevelInfo
	for part := range strings.SplitSeq(s, ",") {
		scope, name, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok {
			scope, name = "default", scope
		}
		l, ok := levelsByName[name]
		if !ok {
			return 0, fmt.Errorf("--log_output_level %q: level %q is not debug, info, warn, error or none", s, name)
		}
		if scope == "default" || scope == "all" {
			level = l
		}
	}
	return level, nil
}

// copyBounded copies an answer of at most 512 MB.
func copyBounded(w io.Writer, r io.Reader) error {
	_, err := io.Copy(w, io.LimitReader(r, 512<<20))
	return err
}
