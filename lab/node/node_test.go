package node

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/carrick-mesh/carrick/lab/topo"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The files of a node and its programs' command lines, as they are.
func TestGolden(t *testing.T) {
	p, err := topo.New(topo.Options{RunID: "x", Clusters: 2, Nodes: 2, Overlay: true, Proxy: "nftables"})
	if err != nil {
		t.Fatal(err)
	}
	c := p.Clusters[1]
	for i, n := range c.Nodes {
		var b strings.Builder
		files, err := configs(p, c, n, "/carrick-lab.x/"+n.Name)
		if err != nil {
			t.Fatal(err)
		}
		var paths []string
		for path := range files {
			paths = append(paths, path)
		}
		slices.Sort(paths)
		for _, path := range paths {
			fmt.Fprintf(&b, "-- %s --\n%s\n", path, files[path])
		}
		for _, prog := range programs(c, n) {
			fmt.Fprintf(&b, "-- program %s --\n%s\n", prog.name, strings.Join(prog.argv, "\n  "))
		}
		if strings.Contains(b.String(), "@") {
			t.Errorf("%s: a word in @ is left", n.Name)
		}
		golden(t, []string{"control-plane.out", "worker.out"}[i], b.String())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-update writes it anew): %s", name, d)
	}
}

const beFiltered = "LAB_TEST_SUPPRESS_SYNCS"

// The filter cannot be taken off again, so a process of its own puts it on.
func TestMain(m *testing.M) {
	if os.Getenv(beFiltered) != "" {
		fmt.Println(syncsOfNoFile())
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(m.Run())
}

func syncsOfNoFile() error {
	if err := unix.Fsync(-1); err != unix.EBADF {
		return fmt.Errorf("fsync of no file before: %v", err)
	}
	if err := suppressSyncs(); err != nil {
		return err
	}
	errs := []error{unix.Fsync(-1), unix.Fdatasync(-1), unix.Syncfs(-1)}
	if err := unix.Close(-1); err != unix.EBADF {
		errs = append(errs, fmt.Errorf("close of no file: %v", err))
	}
	return errors.Join(errs...)
}

func TestSuppressSyncs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a seccomp filter needs root")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), beFiltered+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "<nil>" {
		t.Errorf("%s, %v", out, err)
	}
}
