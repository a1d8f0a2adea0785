package log

import (
	"fmt"
	"log/slog"
	"strings"
)

// The level of what logs nothing, and its name.
const (
	levelNone = slog.LevelError + 8
	nameNone  = "none"
)

// levels are Istio's, by name.
var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "warning": slog.LevelWarn,
	"error": slog.LevelError, "fatal": slog.LevelError, nameNone: levelNone, "": slog.LevelInfo,
}

// LevelName is Istio's name of a level.
func LevelName(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	case l < levelNone:
		return "error"
	}
	return nameNone
}

// ParseLevel reads Istio's --log_output_level, "LEVEL" or "SCOPE:LEVEL,...", and returns the level of
// what has no scope of its own: that of the scopes default and all; info if there is none.
func ParseLevel(s string) (slog.Level, error) {
	level := slog.LevelInfo
	for part := range strings.SplitSeq(s, ",") {
		scope, name, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok {
			scope, name = "default", scope
		}
		l, ok := levels[name]
		if !ok {
			return 0, fmt.Errorf("--log_output_level %q: level %q is not debug, info, warn, error or none", s, name)
		}
		if scope == "default" || scope == "all" {
			level = l
		}
	}
	return level, nil
}
