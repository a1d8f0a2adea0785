package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
)

// made is of what the archives of a folder were made: by archive, a hash of all that went into it.
type made struct {
	path string // "" remembers nothing
	sums map[string]string
}

// readMade returns what a file remembers: nothing if it is not there, or not such a file.
func readMade(path string) (*made, error) {
	m := &made{path: path, sums: map[string]string{}}
	b, err := os.ReadFile(path)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	if json.Unmarshal(b, &m.sums) != nil || m.sums == nil {
		m.sums = map[string]string{}
	}
	return m, nil
}

// unless writes an archive unless it is there and was made of the same.
func (m *made) unless(o options, a archive, write func() error) error {
	if m.path == "" {
		return write()
	}
	sum, err := sum(o, a)
	if err != nil {
		return err
	}
	path := filepath.Join(o.out, a.file)
	if _, err := os.Stat(path); err == nil && m.sums[path] == sum {
		fmt.Printf("%s: made of the same before\n", path)
		return nil
	}
	// Forgotten first: a write that is cut short leaves an archive that nobody vouches for.
	delete(m.sums, path)
	if err := m.save(); err != nil {
		return err
	}
	if err := write(); err != nil {
		return err
	}
	m.sums[path] = sum
	return m.save()
}

func (m *made) save() error {
	b, err := json.MarshalIndent(m.sums, "", "  ")
	if err != nil {
		return err
	}
	return replace(m.path, append(b, '\n'))
}

// source is this program. Its executable would not do: go run's differs between the first run and the next.
//
//go:embed *.go
var source embed.FS

// sum hashes this program, its options and the files that an archive is made of.
func sum(o options, a archive) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q\n", o.version, o.hub, o.arch)
	if b, ok := debug.ReadBuildInfo(); ok {
		fmt.Fprintln(h, b.GoVersion)
		for _, d := range b.Deps {
			fmt.Fprintln(h, d.Path, d.Version, d.Sum)
		}
	}
	files, err := source.ReadDir(".")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := source.ReadFile(f.Name())
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q %d\n%s", f.Name(), len(b), b)
	}
	for _, path := range append([]string{roots}, a.from...) {
		if err := hashFile(h, path); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashFile adds a file, with its name and size; one that is not there differs from an empty one.
func hashFile(h io.Writer, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(h, "%q is not there\n", path)
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "%q %d\n", path, info.Size())
	_, err = io.Copy(h, f)
	return err
}
