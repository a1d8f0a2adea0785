package log

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// maxValue bounds the text of one attribute and of a message, in bytes. Part of what is logged comes from
// the network.
const maxValue = 16 << 10

// New returns a logger of lines: time, level and message, separated by tabs, a tab, then attributes as
// key=value, separated by spaces. A record is one line and one Write, whatever its texts hold.
func New(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(newHandler(&lockedWriter{w: w}, level))
}

// NewJSON returns a logger of one JSON object for each record, with the level's name in lower case.
func NewJSON(w io.Writer, level slog.Leveler) *slog.Logger {
	name := func(groups []string, a slog.Attr) slog.Attr {
		if l, ok := a.Value.Any().(slog.Level); ok && len(groups) == 0 && a.Key == slog.LevelKey {
			a.Value = slog.StringValue(LevelName(l))
		}
		return a
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: name}))
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

// handler implements slog.Handler.
type handler struct {
	out    *lockedWriter
	level  slog.Leveler
	attrs  string // formatted, each with a space before it
	prefix string // of attribute keys, from groups
}

func newHandler(out *lockedWriter, level slog.Leveler) *handler {
	return &handler{out: out, level: level}
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	b.WriteString(r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"))
	b.WriteByte('\t')
	b.WriteString(LevelName(r.Level))
	b.WriteByte('\t')
	b.WriteString(oneLine(r.Message))
	attrs := h.attrs
	r.Attrs(func(a slog.Attr) bool { attrs += format(h.prefix, a); return true })
	if attrs != "" {
		b.WriteByte('\t')
		b.WriteString(attrs[1:])
	}
	b.WriteByte('\n')
	_, err := h.out.Write(b.Bytes())
	return err
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(as []slog.Attr) slog.Handler {
	c := *h
	for _, a := range as {
		c.attrs += format(h.prefix, a)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	c := *h
	c.prefix += name + "."
	return &c
}

// format returns an attribute with a space before it, or "" if it says nothing.
func format(prefix string, a slog.Attr) string {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		s := ""
		for _, x := range v.Group() {
			s += format(prefix+a.Key+".", x)
		}
		return s
	}
	s := v.String()
	if v.Kind() == slog.KindTime {
		s = v.Time().UTC().Format(time.RFC3339Nano)
	}
	if s == "" {
		return ""
	}
	s = bounded(s)
	if strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || r == '"' || r == '=' || unprintable(r) }) {
		s = strconv.Quote(s)
	}
	return " " + prefix + a.Key + "=" + s
}

// oneLine replaces what would end a line or move a terminal's cursor.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unprintable(r) {
			return ' '
		}
		return r
	}, bounded(s))
}

func unprintable(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }

func bounded(s string) string {
	if len(s) <= maxValue {
		return s
	}
	return s[:maxValue] + fmt.Sprintf("... (%d bytes)", len(s))
}
