package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// layer is the files of an image layer by path. The first error is kept and returned by onto.
type layer struct {
	entries map[string]entry
	packed  v1.Layer // of entries, once an image has been made with it
	err     error
}

type entry struct {
	mode int64
	data []byte
	link string // a symbolic link if not empty
}

func (l *layer) put(p string, e entry) {
	if l.entries == nil {
		l.entries = map[string]entry{}
	}
	l.entries[p], l.packed = e, nil
}

func (l *layer) file(to, from string, mode int64) {
	data, err := os.ReadFile(from)
	if err != nil && l.err == nil {
		l.err = err
	}
	l.put(to, entry{mode: mode, data: data})
}

func (l *layer) link(p, target string) { l.put(p, entry{mode: 0o777, link: target}) }

// roots are the authorities that this machine trusts for the web.
const roots = "/etc/ssl/certs/ca-certificates.crt"

// base is what every program may expect: names for the users, a folder for temporary files, roots of the web.
func (l *layer) base() {
	l.put("etc/passwd", entry{mode: 0o644, data: []byte("root:x:0:0:root:/:/sbin/nologin\nistio-proxy:x:1337:1337:proxy:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n")})
	l.put("etc/group", entry{mode: 0o644, data: []byte("root:x:0:\nistio-proxy:x:1337:\nnobody:x:65534:\n")})
	l.put("tmp/", entry{mode: 0o1777})
	l.put("run/", entry{mode: 0o755})
	if _, err := os.Stat(roots); err == nil {
		l.file(strings.TrimPrefix(roots, "/"), roots, 0o644)
	}
}

// program puts a program of this machine in, with the libraries that it is linked to.
func (l *layer) program(to, from string) {
	l.file(to, from, 0o755)
	for _, f := range libraries(from) {
		l.file(strings.TrimPrefix(f, "/"), f, 0o755)
	}
}

// libraries returns the files that a program of this machine is linked to.
func libraries(program string) (out []string) {
	lines, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil // a static program: ldd says so with a failure
	}
	for line := range strings.Lines(string(lines)) {
		for _, f := range strings.Fields(line) { // libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)
			if strings.HasPrefix(f, "/") {
				out = append(out, f)
			}
		}
	}
	return out
}

// onto returns an image with the layer on top of it.
func (l *layer) onto(img v1.Image) (v1.Image, error) {
	if l.err == nil && l.packed == nil {
		l.packed, l.err = l.pack()
	}
	if l.err != nil {
		return nil, l.err
	}
	return mutate.AppendLayers(img, l.packed)
}

// pack compresses the files.
func (l *layer) pack() (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dirs := map[string]bool{}
	for _, p := range slices.Sorted(maps.Keys(l.entries)) {
		e := l.entries[p]
		for _, d := range parents(p) {
			if !dirs[d] {
				dirs[d] = true
				if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, Format: tar.FormatPAX}); err != nil {
					return nil, err
				}
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: p, Mode: e.mode, Size: int64(len(e.data)), Format: tar.FormatPAX}
		switch {
		case strings.HasSuffix(p, "/"):
			h.Typeflag = tar.TypeDir
			dirs[strings.TrimSuffix(p, "/")] = true
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}, tarball.WithCompressedCaching)
}

// parents returns the folders above p, outermost first.
func parents(p string) (out []string) {
	for d := path.Dir(strings.TrimSuffix(p, "/")); d != "." && d != "/"; d = path.Dir(d) {
		out = append([]string{d}, out...)
	}
	return out
}
