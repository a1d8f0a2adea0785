package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// inOrder returns an image archive with its files in the order of their names, and the images and
// tags of its manifest in theirs: the library writes them as its maps give them.
func inOrder(archive io.Reader) ([]byte, error) {
	files := map[string][]byte{}
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			return nil, err
		}
	}
	const manifest = "manifest.json"
	var m tarball.Manifest
	if err := json.Unmarshal(files[manifest], &m); err != nil {
		return nil, err
	}
	for _, d := range m {
		slices.Sort(d.RepoTags)
	}
	slices.SortFunc(m, func(a, b tarball.Descriptor) int {
		return cmp.Or(slices.Compare(a.RepoTags, b.RepoTags), cmp.Compare(a.Config, b.Config))
	})
	last, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	delete(files, manifest)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := put(name, files[name]); err != nil {
			return nil, err
		}
	}
	if err := put(manifest, last); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil { // it writes the end, which belongs to the bytes
		return nil, err
	}
	return b.Bytes(), nil
}
