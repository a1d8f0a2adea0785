// Package build makes a lab's programs and base images from their Go modules
// and keeps them in a folder named by a hash of all that they are made from. It
// installs nothing on the machine.
package build

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrick-mesh/carrick/lab/image"
)

// Kubernetes is the version that the nodes call themselves; go.mod's is the
// same.
const Kubernetes = "v1.37.2"

// releases are the Kubernetes that a lab can be of, by minor version. An older
// one has a go.mod of its own beside the lab's, as its modules and CoreDNS's do
// not resolve together.
var releases = map[string]release{
	"":     {version: Kubernetes},
	"1.37": {version: Kubernetes},
	"1.34": {version: "v1.34.4", modfile: "kube134.mod"},
}

type release struct{ version, modfile string }

// Releases lists the minor versions that Builder takes.
func Releases() []string { return []string{"1.37", "1.34"} }

// Set is a folder of programs (bin) and image archives (images).
type Set struct{ Dir string }

func (s Set) Bin() string { return filepath.Join(s.Dir, "bin") }

// Images lists the archives that every node needs.
func (s Set) Images() []string {
	return []string{filepath.Join(s.Dir, "images", "pause.tar"), filepath.Join(s.Dir, "images", "coredns.tar")}
}

// step is one go build.
type step struct {
	name     string
	out      string // below bin; a folder if there are several packages
	packages []string
	tags     string
	ldflags  string // beside -s -w
	cgo      bool
	modfile  string // in place of go.mod
}

const (
	containerd = "github.com/containerd/containerd/v2/cmd/"
	plugins    = "github.com/containernetworking/plugins/plugins/"
)

// steps makes a release's programs. They are ordered by size; all share one
// build cache.
func steps(r release) []step {
	return append([]step{
		{name: "Kubernetes " + r.version + " and etcd", out: "kube", packages: []string{"./kube"},
			ldflags: kubeVersion(r.version), modfile: r.modfile},
		{name: "kubectl", out: "kubectl", packages: []string{"k8s.io/kubernetes/cmd/kubectl"},
			ldflags: kubeVersion(r.version), modfile: r.modfile},
	}, others...)
}

var others = []step{
	{name: "containerd", out: "./", tags: "no_btrfs,no_devmapper,no_zfs",
		packages: []string{containerd + "containerd", containerd + "containerd-shim-runc-v2", containerd + "ctr"}},
	// Without seccomp no pod starts: the pause container has the default profile.
	{name: "runc", out: "runc", packages: []string{"github.com/opencontainers/runc"},
		tags: "seccomp,netgo,osusergo", ldflags: "-extldflags -static", cgo: true},
	{name: "CNI plugins", out: "cni/", packages: []string{
		plugins + "main/ptp", plugins + "main/loopback", plugins + "ipam/host-local", plugins + "meta/portmap"}},
	{name: "CoreDNS", out: "coredns", packages: []string{"./coredns"}},
	{name: "pause and probe", out: "./", packages: []string{"./pause", "./probe"}},
}

func kubeVersion(version string) string {
	number := strings.Split(strings.TrimPrefix(version, "v"), ".")
	var w []string
	for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		w = append(w,
			"-X "+p+".gitVersion="+version,
			"-X "+p+".gitMajor="+number[0],
			"-X "+p+".gitMinor="+number[1])
	}
	return strings.Join(w, " ")
}

// Builder makes sets.
type Builder struct {
	Source     fs.FS  // go.mod, go.sum, those of older releases, kube, coredns, pause and probe
	Cache      string // folder of the sets
	Kubernetes string // one of Releases; default the newest
	Progress   func(format string, args ...any)
}

// locate returns the set that the builder's source makes with the Go of this
// machine, whether it is there or not.
func (b Builder) locate(ctx context.Context) (Set, error) {
	if _, ok := releases[b.Kubernetes]; !ok {
		return Set{}, fmt.Errorf("no Kubernetes %q can be built: want one of %s", b.Kubernetes, strings.Join(Releases(), ", "))
	}
	version, err := exec.CommandContext(ctx, "go", "env", "GOVERSION", "GOARCH").Output()
	if err != nil {
		return Set{}, fmt.Errorf("asking the go command for its version: %w", err)
	}
	sum, err := b.hash(string(version))
	return Set{filepath.Join(b.Cache, sum)}, err
}

// Have returns the set if it has been made.
func (b Builder) Have(ctx context.Context) (Set, bool) {
	set, err := b.locate(ctx)
	return set, err == nil && exists(set.Dir)
}

// Ensure returns the set, making it if it is not there.
func (b Builder) Ensure(ctx context.Context) (Set, error) {
	set, err := b.locate(ctx)
	if err != nil || exists(set.Dir) {
		return set, err
	}
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		return Set{}, err
	}
	unlock, err := b.lock(filepath.Join(b.Cache, ".lock"))
	if err != nil {
		return Set{}, err
	}
	defer unlock()
	if exists(set.Dir) { // another has made it meanwhile
		return set, nil
	}
	tmp, err := os.MkdirTemp(b.Cache, ".building-")
	if err != nil {
		return Set{}, err
	}
	defer os.RemoveAll(tmp)
	if err := b.build(ctx, Set{tmp}); err != nil {
		return Set{}, err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return Set{}, err
	}
	return set, os.Rename(tmp, set.Dir)
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func (b Builder) lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		b.Progress("waiting for another build to finish")
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, err
		}
	}
	return func() { f.Close() }, nil
}

// hash covers the sources, the module versions, the flags and the compiler.
func (b Builder) hash(goVersion string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%+v\n", goVersion, steps(releases[b.Kubernetes]))
	err := fs.WalkDir(b.Source, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(b.Source, p)
		fmt.Fprintf(h, "%s %d\n%s", p, len(text), text)
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:16], err
}

func (b Builder) build(ctx context.Context, set Set) error {
	src := filepath.Join(set.Dir, "src")
	if err := os.CopyFS(src, b.Source); err != nil {
		return err
	}
	begin := time.Now()
	b.Progress("building the clusters' programs once; later starts use them as they are")
	b.Progress("fetching modules")
	if err := b.command(ctx, src, false, "mod", "download").Run(); err != nil {
		return fmt.Errorf("go mod download: %w", err)
	}
	todo := steps(releases[b.Kubernetes])
	for i, s := range todo {
		at := time.Now()
		if err := b.step(ctx, src, set, fmt.Sprintf("[%d/%d] %s", i+1, len(todo), s.name), s); err != nil {
			return fmt.Errorf("building %s: %w", s.name, err)
		}
		b.Progress("[%d/%d] %s: built in %v", i+1, len(todo), s.name, time.Since(at).Round(time.Second))
	}
	for name, entry := range map[string]string{"pause": "/pause", "coredns": "/coredns"} {
		var im image.Builder
		if err := im.Add(filepath.Join(set.Bin(), name), entry); err != nil {
			return err
		}
		im.Entrypoint = []string{entry}
		if err := im.WriteFile(filepath.Join(set.Dir, "images", name+".tar"), "docker.io/lab/"+name+":1"); err != nil {
			return fmt.Errorf("making image %s: %w", name, err)
		}
	}
	b.Progress("built everything in %v", time.Since(begin).Round(time.Second))
	return os.RemoveAll(src)
}

func (b Builder) command(ctx context.Context, dir string, cgo bool, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-trimpath -buildvcs=false", "GOWORK=off", "CGO_ENABLED=0", "GO111MODULE=on")
	if cgo {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
	}
	// A build that is interrupted leaves the build cache whole.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// step runs one go build and tells every 10 s how far it is.
func (b Builder) step(ctx context.Context, src string, set Set, title string, s step) error {
	args := []string{"build", "-v", "-ldflags", strings.TrimSpace("-s -w " + s.ldflags), "-tags", s.tags,
		"-o", filepath.Join(set.Bin(), s.out) + trailingSlash(s.out)}
	if s.modfile != "" {
		args = append(args, "-modfile="+s.modfile)
	}
	cmd := b.command(ctx, src, s.cgo, append(args, s.packages...)...)
	if err := os.MkdirAll(filepath.Join(set.Bin(), "cni"), 0o755); err != nil {
		return err
	}
	out, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var compiled atomic.Int64
	ended := make(chan struct{})
	ticked := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(ticked)
		for {
			select {
			case <-ended:
				return
			case <-time.After(10 * time.Second):
				b.Progress("%s: %d packages compiled, %v", title, compiled.Load(), time.Since(begin).Round(time.Second))
			}
		}
	}()
	var said []string // -v's lines are package paths; anything else is an error
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if l := lines.Text(); strings.ContainsAny(l, " :") {
			said = append(said, l)
		} else {
			compiled.Add(1)
		}
	}
	err = cmd.Wait()
	close(ended)
	<-ticked
	if err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(cmd.Args[1:], " "), err, strings.Join(said, "\n"))
	}
	return nil
}

func trailingSlash(out string) string {
	if strings.HasSuffix(out, "/") {
		return "/"
	}
	return ""
}
