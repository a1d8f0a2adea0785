package limits

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type machine struct {
	t *testing.T
	Keeper
}

func newMachine(t *testing.T, instances, watches string) machine {
	t.Helper()
	m := machine{t, Keeper{filepath.Join(t.TempDir(), "labs"), t.TempDir()}}
	m.write("fs/inotify/max_user_instances", instances)
	m.write("fs/inotify/max_user_watches", watches)
	return m
}

func (m machine) write(key, value string) {
	m.t.Helper()
	file := filepath.Join(m.Proc, key)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) up(lab string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Join(m.Labs, lab), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := m.Raise(); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) down(lab string) {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.Labs, lab)); err != nil {
		m.t.Fatal(err)
	}
	if err := m.GiveBack(); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) want(when string, instances, watches int) {
	m.t.Helper()
	got := [2]int{}
	for i, key := range []string{"fs/inotify/max_user_instances", "fs/inotify/max_user_watches"} {
		var err error
		if got[i], err = m.get(key); err != nil {
			m.t.Fatal(err)
		}
	}
	if d := cmp.Diff([2]int{instances, watches}, got); d != "" {
		m.t.Errorf("%s: %s", when, d)
	}
}

func TestTwoLabs(t *testing.T) {
	m := newMachine(t, "128", "1000000")
	m.up("a")
	m.want("with a lab; what is enough is left alone", 8192, 1000000)
	m.up("b")
	m.down("a")
	m.want("one of two is gone", 8192, 1000000)
	m.down("b")
	m.want("both are gone", 128, 1000000)
	if _, err := os.Stat(m.Labs); !os.IsNotExist(err) {
		t.Errorf("the folder of labs is left: %v", err)
	}
	m.down("b")
	m.want("down again", 128, 1000000)
}

func TestChangedMeanwhile(t *testing.T) {
	m := newMachine(t, "128", "100")
	m.up("a")
	m.write("fs/inotify/max_user_instances", "9000")
	m.down("a")
	m.want("somebody raised it further", 9000, 100)
}

func TestNothingToRaise(t *testing.T) {
	m := newMachine(t, "10000", "1000000")
	m.up("a")
	m.down("a")
	m.want("with enough from the start", 10000, 1000000)
}
