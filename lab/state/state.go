// Package state knows where one lab keeps its files on the machine and which of
// its processes are alive. It starts and ends nothing.
//
// The folder of a lab holds topology.json, kubeconfig, up.log, supervisor.log,
// control.sock, the mark ready, set (a link to the programs that it runs),
// bin/kubectl (for a PATH), and nodes with a folder for each node.
package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrick-mesh/carrick/lab/topo"
)

// Root is the folder that holds one folder for each lab.
const Root = "/var/lib/carrick-lab"

// Lab is one lab's folder.
type Lab struct{ ID, Dir string }

// Of returns the folder of the lab with that run id, which need not exist.
func Of(runID string) Lab { return Lab{runID, filepath.Join(Root, runID)} }

// Path joins names below the lab's folder.
func (l Lab) Path(elem ...string) string {
	return filepath.Join(append([]string{l.Dir}, elem...)...)
}

// Node joins names below one node's folder.
func (l Lab) Node(name string, elem ...string) string {
	return l.Path(append([]string{"nodes", name}, elem...)...)
}

func (l Lab) Kubeconfig() string { return l.Path("kubeconfig") }
func (l Lab) Socket() string     { return l.Path("control.sock") }
func (l Lab) UpLog() string      { return l.Path("up.log") }
func (l Lab) PID() string        { return l.Path("pid") }

// UseSet notes the folder of the programs that the lab runs.
func (l Lab) UseSet(dir string) error {
	if err := os.Symlink(dir, l.Path("set")); err != nil {
		return err
	}
	if err := os.Mkdir(l.Path("bin"), 0o755); err != nil {
		return err
	}
	return os.Symlink("../set/bin/kubectl", l.Path("bin", "kubectl"))
}

// Program is the path of one of the programs that the lab runs.
func (l Lab) Program(name string) string { return l.Path("set", "bin", name) }

// Ready reports whether the lab is up: its supervisor lives and has finished.
func (l Lab) Ready() bool {
	_, err := os.Stat(l.Path("ready"))
	return err == nil && PID(l.PID()) != 0
}

// WriteTopology keeps the plan for later commands.
func (l Lab) WriteTopology(t *topo.Topology) error {
	b, err := json.MarshalIndent(t, "", " ")
	if err != nil {
		return err
	}
	return WriteFile(l.Path("topology.json"), b, 0o644)
}

// Topology reads the plan of a lab that is up or coming up.
func (l Lab) Topology() (*topo.Topology, error) {
	b, err := os.ReadFile(l.Path("topology.json"))
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("no lab with run id %q is up; start it with: lab --run-id %s up", l.ID, l.ID)
	}
	if err != nil {
		return nil, err
	}
	t := new(topo.Topology)
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("reading %s: %w", l.Path("topology.json"), err)
	}
	return t, nil
}

// Lock waits until no other command is starting or stopping this lab. The
// returned function ends the lock and removes its file.
func (l Lab) Lock() (func(), error) {
	path := filepath.Join("/run/lock", "carrick-lab."+l.ID)
	if err := os.MkdirAll(filepath.Dir(path), 0o1777); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		// The former holder may have removed the file while we waited.
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

// WriteFile writes a file so that a reader sees the old or the new, never half.
func WriteFile(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b); err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// WritePID notes a live process by number and start time, so that a later
// reader can tell it from another that was given the same number.
func WritePID(path string, pid int) error {
	return WriteFile(path, fmt.Appendf(nil, "%d %s\n", pid, startTime(pid)), 0o644)
}

// PID returns the number of the process noted in a file, or 0 if it has ended.
func PID(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil || pid <= 1 || startTime(pid) != f[1] {
		return 0
	}
	return pid
}

// startTime is field 22 of /proc/PID/stat, empty for a process that has ended,
// whether its parent has looked or not.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return ""
	}
	return f[19]
}
