package state

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/lab/topo"
)

func TestPID(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pid")
	if err := WritePID(file, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if got := PID(file); got != cmd.Process.Pid {
		t.Fatalf("a live process: %d, want %d", got, cmd.Process.Pid)
	}
	// A process that is dead but not waited for is dead.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); PID(file) != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a killed process still counts as alive")
		}
	}
	cmd.Wait()
	// The number given to another process.
	me := os.Getpid()
	if err := os.WriteFile(file, []byte(strconv.Itoa(me)+" 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := PID(file); got != 0 {
		t.Errorf("another process of that number: %d", got)
	}
	for _, bad := range []string{"", "x y", "1 2 3", "-4 5", "1 0"} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := PID(file); got != 0 {
			t.Errorf("%q: %d", bad, got)
		}
	}
}

func TestTopology(t *testing.T) {
	lab := Lab{"x", t.TempDir()}
	if _, err := lab.Topology(); err == nil || !strings.Contains(err.Error(), "lab --run-id x up") {
		t.Errorf("without a lab: %v; want the command that starts one", err)
	}
	want, err := topo.New(topo.Options{RunID: "x", Clusters: 3, Nodes: 2, Overlay: true, Proxy: "iptables"})
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.WriteTopology(want); err != nil {
		t.Fatal(err)
	}
	got, err := lab.Topology()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(want, got) {
		t.Errorf("read %+v, want %+v", got, want)
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	for _, text := range []string{"one", "two"} {
		if err := WriteFile(file, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil || string(b) != text {
			t.Fatalf("read %q, %v", b, err)
		}
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if es, _ := os.ReadDir(dir); len(es) != 1 {
		t.Errorf("%d files are left", len(es))
	}
}
