package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// entries reads a tar: each file's content, or for others a word and the link.
func entries(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	got := map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := got[h.Name]; ok {
			t.Errorf("%s is there twice", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			got[h.Name] = fmt.Sprintf("folder %o", h.Mode)
		case tar.TypeSymlink:
			got[h.Name] = "link " + h.Linkname
		default:
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			got[h.Name] = string(b)
		}
	}
}

func sample(t *testing.T) *Builder {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"tree/bin/tool": "tool", "tree/etc/x/conf": "conf", "one": "one"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"tree/etc/same": "x/conf", "alias": "one"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	b := &Builder{Entrypoint: []string{"/bin/tool", "run"}, Env: []string{"A=b"}}
	for src, dst := range map[string]string{"tree": "/", "alias": "/opt/one"} {
		if err := b.Add(filepath.Join(dir, src), dst); err != nil {
			t.Fatal(err)
		}
	}
	b.Link("/usr/bin/other", "tool")
	b.AddText("/etc/motd", "hello", 0o644)
	return b
}

func TestArchive(t *testing.T) {
	file := filepath.Join(t.TempDir(), "images", "x.tar")
	if err := sample(t).WriteFile(file, "docker.io/lab/x:1", "docker.io/lab/x:2"); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	outer := entries(t, bytes.NewReader(raw))
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal([]byte(outer["manifest.json"]), &manifest); err != nil || len(manifest) != 1 || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest %s: %v", outer["manifest.json"], err)
	}
	m := manifest[0]
	if d := cmp.Diff([]string{"docker.io/lab/x:1", "docker.io/lab/x:2"}, m.RepoTags); d != "" {
		t.Error(d)
	}
	var config struct {
		Config struct {
			Entrypoint, Env []string
		}
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal([]byte(outer[m.Config]), &config); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"/bin/tool", "run"}, config.Config.Entrypoint); d != "" {
		t.Error(d)
	}
	layer := outer[m.Layers[0]]
	if want := "sha256:" + digest([]byte(layer)); config.Rootfs.DiffIDs[0] != want {
		t.Errorf("diff id %s, want %s", config.Rootfs.DiffIDs[0], want)
	}
	got := entries(t, strings.NewReader(layer))
	for name, want := range map[string]string{
		"usr/bin/tool":  "tool", // /bin is a link
		"bin":           "link usr/bin",
		"usr/bin/other": "link tool",
		"etc/x/conf":    "conf",
		"etc/same":      "link x/conf", // inside a folder links stay
		"opt/one":       "one",         // one that is named is followed
		"etc/motd":      "hello",
		"tmp/":          "folder 1777",
		"run/":          "folder 755",
		"var/run":       "link ../run",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
}

func TestSameFilesSameBytes(t *testing.T) {
	var a, b bytes.Buffer
	if err := sample(t).write(&a, []string{"x:1"}); err != nil {
		t.Fatal(err)
	}
	if err := sample(t).write(&b, []string{"x:1"}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of the same files differ")
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	b := sample(t)
	b.put("/gone", entry{mode: 0o644, src: filepath.Join(dir, "gone")})
	if err := b.WriteFile(filepath.Join(dir, "x.tar"), "x:1"); err == nil {
		t.Error("a file that is gone is no error")
	}
	if err := (&Builder{}).WriteFile(filepath.Join(dir, "x.tar")); err == nil {
		t.Error("an image without a name is no error")
	}
	if es, _ := os.ReadDir(dir); len(es) != 0 {
		t.Errorf("%v is left", es)
	}
}
