package main

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestInOrder: however the library orders what it writes, the archive is the same, and whole.
func TestInOrder(t *testing.T) {
	refs := map[name.Reference]v1.Image{}
	for i := range 6 {
		img, err := random.Image(100, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range []string{"latest", "1.0", "1.1"} {
			ref, err := name.NewTag(fmt.Sprintf("docker.io/istio/examples-%d:%s", i, tag))
			if err != nil {
				t.Fatal(err)
			}
			refs[ref] = img
		}
	}
	var first []byte
	for range 10 {
		var b bytes.Buffer
		if err := tarball.MultiRefWrite(refs, &b); err != nil {
			t.Fatal(err)
		}
		got, err := inOrder(&b)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		}
		if !bytes.Equal(first, got) {
			t.Fatal("two archives of the same images differ")
		}
	}
	if end := make([]byte, 1024); len(first)%512 != 0 || !bytes.HasSuffix(first, end) {
		t.Errorf("the archive of %d bytes does not end in two empty blocks", len(first))
	}
	for ref, want := range refs {
		tag := ref.(name.Tag)
		img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(first)), nil }, &tag)
		if err != nil {
			t.Fatal(err)
		}
		w, _ := want.ConfigName()
		if got, err := img.ConfigName(); err != nil || got != w {
			t.Errorf("%s: %v, %v, want %v", ref, got, err, w)
		}
	}
}
