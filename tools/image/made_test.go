package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestMade: an archive is written when it is not there, when something of it has changed, and when the last try
// failed; not otherwise.
func TestMade(t *testing.T) {
	dir := t.TempDir()
	o := options{out: dir, version: "1", made: filepath.Join(dir, "made.json")}
	from := filepath.Join(dir, "program")
	a := archive{file: "a.tar", from: []string{from}}
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(from, "one")
	written := func(o options, result error) bool {
		t.Helper()
		m, err := readMade(o.made)
		if err != nil {
			t.Fatal(err)
		}
		called := false
		if err := m.unless(o, a, func() error {
			called = true
			put(filepath.Join(dir, a.file), "archive")
			return result
		}); !errors.Is(err, result) {
			t.Fatal(err)
		}
		return called
	}
	expect := func(when string, got, want bool) {
		t.Helper()
		if got != want {
			t.Errorf("%s: written: %v, want %v", when, got, want)
		}
	}
	expect("at first", written(o, nil), true)
	expect("again", written(o, nil), false)
	put(from, "two")
	expect("another program", written(o, nil), true)
	newer := o
	newer.version = "2"
	expect("another version", written(newer, nil), true)
	expect("again", written(newer, nil), false)
	if err := os.Remove(filepath.Join(dir, a.file)); err != nil {
		t.Fatal(err)
	}
	expect("without the archive", written(newer, nil), true)
	put(from, "three")
	expect("with a failure", written(newer, os.ErrInvalid), true)
	expect("after a failure", written(newer, nil), true)
	put(o.made, "{")
	expect("with a file that is none", written(newer, nil), true)
	forgetful := newer
	forgetful.made = ""
	expect("without a memory", written(forgetful, nil), true)
}
