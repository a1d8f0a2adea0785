package main

import (
	"io"
	"log/slog"

	"github.com/carrick-mesh/carrick/log"
)

// newLogger returns a logger of lines or of JSON. level is as in --log_output_level; it may be changed
// later.
func newLogger(w io.Writer, level string, json bool) (*slog.Logger, *slog.LevelVar, error) {
	l, err := log.ParseLevel(level)
	if err != nil {
		return nil, nil, err
	}
	v := new(slog.LevelVar)
	v.Set(l)
	if json {
		return log.NewJSON(w, v), v, nil
	}
	return log.New(w, v), v, nil
}
