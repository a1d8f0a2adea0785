// Package netns names network namespaces, works inside them and wires them
// with iproute2's ip. It knows nothing of labs.
package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where iproute2 looks for names.
const Dir = "/run/netns"

// Path is the file that stands for a namespace.
func Path(name string) string { return filepath.Join(Dir, name) }

// Create makes a new namespace of that name, with its loopback up.
func Create(name string) error {
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("creating a network namespace: %w", err)
		}
		return pin(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), name)
	})
	if err != nil {
		return err
	}
	return IP("-n " + name + " link set lo up")
}

// Attach gives the namespace of a process that name.
func Attach(name string, pid int) error { return pin(fmt.Sprintf("/proc/%d/ns/net", pid), name) }

// pin keeps a namespace alive under a name. It makes no mount of Dir itself,
// unlike ip netns add, so that nothing is left once the name is deleted.
func pin(ns, name string) error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(Path(name), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, Path(name), "", unix.MS_BIND, ""); err != nil {
		os.Remove(Path(name))
		return fmt.Errorf("naming network namespace %s: %w", name, err)
	}
	return nil
}

// Delete takes a name away; the namespace goes with its last process.
func Delete(name string) error {
	if err := unix.Unmount(Path(name), unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmounting %s: %w", Path(name), err)
	}
	if err := os.Remove(Path(name)); err != nil && !os.IsNotExist(err) {
		return err
	}
	os.Remove(Dir) // succeeds only when it is empty and no mount
	return nil
}

// List returns the names that begin with prefix.
func List(prefix string) ([]string, error) {
	es, err := os.ReadDir(Dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	var names []string
	for _, e := range es {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Do calls f on a thread that is in the named namespace, /proc/sys/net
// included; goroutines that f starts are not in it.
func Do(name string, f func() error) error {
	return onThread(func() error {
		fd, err := unix.Open(Path(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening network namespace %s: %w", name, err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", name, err)
		}
		return f()
	})
}

// onThread calls f on a thread of its own, which ends with f.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		done <- f()
	}()
	return <-done
}

// Dialer returns a function that connects from within the namespace to
// addresses given as numbers.
func Dialer(name string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, err
		}
		err = Do(name, func() error {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

// Sysctl writes a value of the calling thread's namespace.
func Sysctl(key, value string) error {
	return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644)
}

// IP runs ip once for each line of its arguments and stops at the first that
// fails.
func IP(lines ...string) error {
	for _, l := range lines {
		if err := Run(append([]string{"ip"}, strings.Fields(l)...)...); err != nil {
			return err
		}
	}
	return nil
}

// Run runs a command; what it printed is in the error.
func Run(argv ...string) error {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
