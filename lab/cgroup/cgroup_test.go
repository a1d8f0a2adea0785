package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const joinPath = "LAB_TEST_JOIN"

// Joining moves the whole process, so one of its own does it.
func TestMain(m *testing.M) {
	if path := os.Getenv(joinPath); path != "" {
		err := Join(path)
		b, _ := os.ReadFile("/proc/self/cgroup")
		fmt.Printf("%v\n%s", err, b)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestJoinAndRemove(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	if len(hierarchies()) == 0 {
		t.Skip("no cgroup hierarchy is mounted")
	}
	top := fmt.Sprintf("/carrick-lab-test.%d", os.Getpid())
	t.Cleanup(func() { Remove(top) })
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), joinPath+"="+top+"/node/system")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if lines[0] != "<nil>" {
		t.Fatal(lines[0])
	}
	in := 0
	for _, l := range lines[1:] {
		if strings.HasSuffix(l, ":"+top+"/node/system") {
			in++
		}
	}
	if in != len(hierarchies()) {
		t.Errorf("in %d of %d hierarchies:\n%s", in, len(hierarchies()), out)
	}
	if err := Remove(top); err != nil {
		t.Fatal(err)
	}
	for _, h := range hierarchies() {
		if _, err := os.Stat(filepath.Join(h, top)); !os.IsNotExist(err) {
			t.Errorf("%s is left in %s: %v", top, h, err)
		}
	}
	if err := Remove(top); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}
