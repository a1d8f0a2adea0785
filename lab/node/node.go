// Package node is process 1 of a lab's node: it lays the node's root file
// system, starts the node's programs and restarts any that ends.
//
// It expects pid, mount, network, uts and ipc namespaces of its own. Its death
// ends all of the node's processes, and with the last of them every mount and
// interface of the node is gone; so nothing here cleans up.
package node

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/carrick-mesh/carrick/lab/cgroup"
	"github.com/carrick-mesh/carrick/lab/pki"
	"github.com/carrick-mesh/carrick/lab/topo"
)

// Spec is all that a node is told.
type Spec struct {
	Topology *topo.Topology
	Name     string
	Dir      string // of the machine: pki, logs, and the folders that need a real file system
	Bin      string // of the machine: the programs
}

// Folders of a node as its programs see them.
const (
	binDir = "/opt/lab/bin"
	logDir = "/var/log/lab"
	runDir = "/run/lab" // configurations
)

// heavy are the folders that an overlay on a tmpfs cannot hold: containerd's own
// overlays need a real file system below them, images are large, and etcd's data
// outlives a stop of the node.
var heavy = []string{"/var/lib/etcd", "/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods", "/var/log/containers"}

// Run is the node's life. The network may be used once a byte has come on
// wired; its end without one means that the lab is gone. Run returns only on
// failure or when told to end by SIGTERM.
func Run(s Spec, wired io.Reader, log *slog.Logger) error {
	c, n := s.Topology.Find(s.Name)
	if n == nil {
		return fmt.Errorf("no node %q in the plan", s.Name)
	}
	if err := syscall.Sethostname([]byte(n.Name)); err != nil {
		return err
	}
	group := topo.Cgroup(s.Topology.RunID) + "/" + n.Name
	// The node's own programs are beside the pods' groups, not above them.
	if err := cgroup.Join(group + "/system"); err != nil {
		return fmt.Errorf("joining the node's cgroup: %w", err)
	}
	if err := suppressSyncs(); err != nil {
		return fmt.Errorf("suppressing waits for the disk: %w", err)
	}
	if err := layRoot(s); err != nil {
		return fmt.Errorf("laying the root file system: %w", err)
	}
	if err := settle(n); err != nil {
		return err
	}
	files, err := configs(s.Topology, c, n, group)
	if err != nil {
		return err
	}
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(wired, make([]byte, 1)); err != nil {
		return errors.New("the lab went away before the network was wired")
	}
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGTERM, syscall.SIGINT)
	go func() { <-sig; os.Exit(0) }()
	return newInit(programs(c, n), log).run()
}

// layRoot makes the process's root a private copy-on-write view of the
// machine's. The writable part is a tmpfs, as the upper folder of an overlay
// may not lie within its lower one.
func layRoot(s Spec) error {
	m := &mounter{}
	m.mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	up := filepath.Join(s.Dir, "root")
	m.mkdir(up)
	m.mount("tmpfs", up, "tmpfs", 0, "mode=755")
	for _, d := range []string{"upper", "work", "merged"} {
		m.mkdir(filepath.Join(up, d))
	}
	root := filepath.Join(up, "merged")
	m.mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", up, up))
	m.bind("/dev", root+"/dev")
	m.bind("/sys", root+"/sys")
	m.mount("proc", root+"/proc", "proc", 0, "")
	m.mount("tmpfs", root+"/run", "tmpfs", 0, "mode=755")
	m.mount("tmpfs", root+"/tmp", "tmpfs", 0, "mode=1777")
	m.mkdir(root + "/etc/cni")
	m.mount("tmpfs", root+"/etc/cni", "tmpfs", 0, "mode=755") // the machine's own is not ours
	m.bind(s.Bin, root+binDir)
	m.mount("", root+binDir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	m.bind(filepath.Join(s.Dir, "pki"), root+pki.Dir)
	m.bind(filepath.Join(s.Dir, "logs"), root+logDir)
	for _, d := range heavy {
		m.bind(filepath.Join(s.Dir, strings.ReplaceAll(d[1:], "/", "-")), root+d)
	}
	old := root + "/.machine"
	m.mkdir(old)
	m.do("pivot_root", syscall.PivotRoot(root, old))
	m.do("chdir", os.Chdir("/"))
	m.do("unmounting the machine's root", syscall.Unmount("/.machine", syscall.MNT_DETACH))
	// As on an ordinary machine: mounts propagate to pods that ask for it.
	m.mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
	if m.err == nil {
		os.Remove("/.machine")
	}
	return m.err
}

// mounter does nothing more after the first failure.
type mounter struct{ err error }

func (m *mounter) do(what string, err error) {
	if m.err == nil && err != nil {
		m.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (m *mounter) mkdir(dir string) {
	if m.err == nil {
		m.do("making "+dir, os.MkdirAll(dir, 0o755))
	}
}

func (m *mounter) mount(source, target, kind string, flags uintptr, data string) {
	if m.err == nil {
		m.do(fmt.Sprintf("mounting %s %s on %s", kind, source, target), syscall.Mount(source, target, kind, flags, data))
	}
}

func (m *mounter) bind(source, target string) {
	m.mkdir(source)
	m.mkdir(target)
	m.mount(source, target, "", syscall.MS_BIND|syscall.MS_REC, "")
}

// machineWide are sysctls that a kubelet insists on and that are not the
// node's alone. The node sees files with the wanted values in their place, so
// that the machine's stay as they are.
var machineWide = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// settle sets what is the node's alone.
func settle(n *topo.Node) error {
	m := &mounter{}
	m.mkdir(runDir)
	for key, value := range machineWide {
		shown := filepath.Join(runDir, strings.ReplaceAll(key, "/", "-"))
		m.do(key, os.WriteFile(shown, []byte(value+"\n"), 0o644))
		m.mount(shown, "/proc/sys/"+key, "", syscall.MS_BIND, "")
	}
	for key, value := range map[string]string{
		"ip_forward":             "1",
		"conf/all/rp_filter":     "0",
		"conf/default/rp_filter": "0",
	} {
		m.do(key, os.WriteFile("/proc/sys/net/ipv4/"+key, []byte(value), 0o644))
	}
	m.mkdir("/run/containerd")
	for name, text := range map[string]string{
		"/etc/hosts":       fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", n.Address, n.Name),
		"/etc/hostname":    n.Name + "\n",
		"/etc/resolv.conf": "# there is no resolver on this LAN\n",
	} {
		os.Remove(name) // it may be a link to a file that is not here
		m.do(name, os.WriteFile(name, []byte(text), 0o644))
	}
	return m.err
}
