package build

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func source(mod string) fs.FS {
	return fstest.MapFS{"go.mod": {Data: []byte(mod)}, "kube/main.go": {Data: []byte("package main")}}
}

func TestHash(t *testing.T) {
	hash := func(b Builder, v string) string {
		t.Helper()
		h, err := b.hash(v)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	a := Builder{Source: source("module a")}
	if hash(a, "go1") != hash(Builder{Source: source("module a")}, "go1") {
		t.Error("the same sources have two names")
	}
	if hash(a, "go1") == hash(Builder{Source: source("module b")}, "go1") {
		t.Error("another go.mod has the same name")
	}
	if hash(a, "go1") == hash(a, "go2") {
		t.Error("another compiler has the same name")
	}
}

// What has been made is not made again.
func TestEnsureUsesWhatIsThere(t *testing.T) {
	b := Builder{Source: source("module a"), Cache: t.TempDir(), Progress: t.Logf}
	ctx := context.Background()
	if _, ok := b.Have(ctx); ok {
		t.Fatal("an empty cache has a set")
	}
	want, err := b.locate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(want.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Ensure(ctx); err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// A build that fails says what failed and leaves no set.
func TestFailedBuild(t *testing.T) {
	cache := t.TempDir()
	b := Builder{Source: fstest.MapFS{
		"go.mod":       {Data: []byte("module lab.test\n\ngo 1.26\n")},
		"kube/main.go": {Data: []byte("package main\n\nfunc main() { no }\n")},
	}, Cache: cache, Progress: t.Logf}
	_, err := b.Ensure(context.Background())
	if err == nil || !strings.Contains(err.Error(), "kube/main.go:3") || !strings.Contains(err.Error(), "undefined: no") {
		t.Errorf("%v; want the compiler's words", err)
	}
	if sets, _ := filepath.Glob(filepath.Join(cache, "[^.]*")); len(sets) != 0 {
		t.Errorf("%v is left", sets)
	}
	if half, _ := filepath.Glob(filepath.Join(cache, ".building-*")); len(half) != 0 {
		t.Errorf("%v is left", half)
	}
}

// The version that nodes call themselves is the one that they are built from.
func TestVersion(t *testing.T) {
	b, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "\tk8s.io/kubernetes "+Kubernetes+"\n") {
		t.Errorf("go.mod does not require k8s.io/kubernetes %s", Kubernetes)
	}
}
