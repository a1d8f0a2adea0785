package log

import (
	"io"
	"log/slog"
	"strings"
)

// Scope is a part of the log with a level of its own, which can be changed at any time.
type Scope struct {
	Name, Description string
	Least             slog.Level // what it logs at least unless it is named; zero is no bound

	level slog.LevelVar
}

// Scopes are the parts of a program's log, by name.
type Scopes struct {
	all []*Scope
	out *lockedWriter
}

// NewScopes reads Istio's --log_output_level: LEVEL, or SCOPE:LEVEL,... A scope that is not named has the
// level of default, and not less than its Least. all holds the scope "default".
func NewScopes(out io.Writer, level string, all ...*Scope) (*Scopes, error) {
	s := &Scopes{out: &lockedWriter{w: out}, all: all}
	l, err := ParseLevel(level)
	if err != nil {
		return nil, err
	}
	for _, sc := range s.all {
		sc.level.Set(l)
		if sc.Least != 0 {
			sc.level.Set(max(l, sc.Least))
		}
	}
	for part := range strings.SplitSeq(level, ",") {
		name, l, named := strings.Cut(strings.TrimSpace(part), ":")
		if sc := s.find(name); named && sc != nil {
			sc.level.Set(levels[l])
		}
	}
	return s, nil
}

// find returns the scope of that name, or nil.
func (s *Scopes) find(name string) *Scope {
	for _, sc := range s.all {
		if sc.Name == name {
			return sc
		}
	}
	return nil
}

// Logger returns the logger of a scope that exists.
func (s *Scopes) Logger(name string) *slog.Logger {
	return slog.New(newHandler(s.out, &s.find(name).level))
}
