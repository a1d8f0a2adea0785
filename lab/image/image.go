// Package image writes container images of one layer from files of this
// machine, as archives that docker load and ctr images import take, and loads
// archives into a containerd. It runs no containers to make them.
package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Builder collects the files of an image. Its zero value is an empty image.
type Builder struct {
	Entrypoint []string
	Env        []string // KEY=VALUE, beside PATH
	User       string   // UID[:GID]; root if empty

	tree map[string]entry // by absolute path
}

// entry is one file: a copy of src, or one with a text.
type entry struct {
	mode fs.FileMode
	src  string
	link string
	text string
}

// mergedUsr are folders that are links into /usr, as in Debian. A layer that
// held them as folders would hide the links of another.
var mergedUsr = []string{"/bin", "/sbin", "/lib", "/lib64"}

func (b *Builder) put(name string, e entry) {
	for _, m := range mergedUsr {
		if name == m || strings.HasPrefix(name, m+"/") {
			name = "/usr" + name
		}
	}
	if b.tree == nil {
		b.tree = map[string]entry{}
	}
	if name == "/" || e.mode.IsDir() && b.tree[name].mode != 0 {
		return
	}
	b.tree[name] = e
	for d := path.Dir(name); d != "/"; d = path.Dir(d) {
		if _, ok := b.tree[d]; !ok {
			b.tree[d] = entry{mode: fs.ModeDir | 0o755}
		}
	}
}

// Add copies a file or a folder to dst. A link that is named itself is
// followed; links inside a folder stay links.
func (b *Builder) Add(src, dst string) error {
	return filepath.WalkDir(src, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		name := path.Join("/", dst, filepath.ToSlash(rel))
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		e := entry{mode: info.Mode(), src: p}
		if info.Mode()&fs.ModeSymlink != 0 {
			if p != src {
				e.link, err = os.Readlink(p)
			} else if e.src, err = filepath.EvalSymlinks(p); err == nil {
				if info, err = os.Stat(e.src); err == nil {
					e.mode = info.Mode()
				}
			}
			if err != nil {
				return err
			}
		}
		b.put(name, e)
		return nil
	})
}

// AddText puts a file with that text.
func (b *Builder) AddText(dst, text string, mode fs.FileMode) {
	b.put(path.Join("/", dst), entry{mode: mode, text: text})
}

// Link puts a symbolic link.
func (b *Builder) Link(name, target string) {
	b.put(path.Join("/", name), entry{mode: fs.ModeSymlink | 0o777, link: target})
}

// AddProgram copies a program and the shared libraries that it needs.
func (b *Builder) AddProgram(src, dst string) error {
	if err := b.Add(src, dst); err != nil {
		return err
	}
	libs, err := libraries(src)
	if err != nil {
		return err
	}
	for _, l := range libs {
		if err := b.Add(l, l); err != nil {
			return err
		}
	}
	return nil
}

func libraries(program string) ([]string, error) {
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("not a dynamic")) {
			return nil, nil
		}
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, out)
	}
	var libs []string
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		for _, w := range strings.Fields(lines.Text()) {
			if strings.HasPrefix(w, "/") {
				libs = append(libs, w)
			}
		}
	}
	return libs, nil
}

// notNeeded are dependencies of packages that do nothing in a container.
var notNeeded = []string{"debconf", "perl", "perl-base", "dpkg", "tar", "install-info"}

// AddDebian unpacks Debian packages with all that they depend on. Its files are
// read when the image is written, so dir must last until then.
func (b *Builder) AddDebian(dir string, packages ...string) error {
	out, err := exec.Command("apt-cache", append([]string{"depends", "--recurse", "--no-recommends", "--no-suggests",
		"--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}, packages...)...).Output()
	if err != nil {
		return fmt.Errorf("apt-cache depends: %w", err)
	}
	var all []string
	for _, l := range strings.Split(string(out), "\n") {
		if l != "" && !strings.ContainsAny(l[:1], " <|") && !slices.Contains(notNeeded, l) {
			all = append(all, l)
		}
	}
	get := exec.Command("apt-get", append([]string{"-o", "APT::Sandbox::User=root", "download"}, all...)...)
	get.Dir = dir
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download: %w: %s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	for _, d := range debs {
		if out, err := exec.Command("dpkg-deb", "-x", d, root).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w: %s", filepath.Base(d), err, out)
		}
	}
	return b.Add(root, "/")
}

// complete adds what every image needs and its files do not bring.
func (b *Builder) complete() {
	for name, e := range map[string]entry{
		"/tmp":               {mode: fs.ModeDir | fs.ModeSticky | 0o777},
		"/run":               {mode: fs.ModeDir | 0o755}, // iptables keeps its lock there
		"/root":              {mode: fs.ModeDir | 0o700},
		"/var/run":           {mode: fs.ModeSymlink | 0o777, link: "../run"},
		"/etc/passwd":        {mode: 0o644, text: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		"/etc/group":         {mode: 0o644, text: "root:x:0:\nnogroup:x:65534:\n"},
		"/etc/nsswitch.conf": {mode: 0o644, text: "hosts: files dns\n"},
	} {
		if _, ok := b.tree[name]; !ok {
			b.put(name, e)
		}
	}
	for _, m := range mergedUsr {
		if _, ok := b.tree["/usr"+m]; ok {
			b.tree[m] = entry{mode: fs.ModeSymlink | 0o777, link: "usr" + m}
		}
	}
}

// WriteFile writes the image as an archive at file, under one or more names
// such as docker.io/lab/pause:1. The same files give the same bytes.
func (b *Builder) WriteFile(file string, names ...string) error {
	if len(names) == 0 {
		return errors.New("an image needs a name")
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = b.write(f, names)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func (b *Builder) write(w io.Writer, names []string) error {
	b.complete()
	layer, err := b.layer()
	if err != nil {
		return err
	}
	diff := digest(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2020-01-01T00:00:00Z",
		"config": map[string]any{
			"Entrypoint": b.Entrypoint,
			"User":       b.User,
			"Env":        append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, b.Env...),
			"WorkingDir": "/",
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + diff}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": digest(config) + ".json", "RepoTags": names, "Layers": []string{diff + ".tar"}}})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		data []byte
	}{{digest(config) + ".json", config}, {diff + ".tar", layer}, {"manifest.json", manifest}} {
		if err := tw.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	return tw.Close()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (b *Builder) layer() ([]byte, error) {
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(b.tree)) {
		e := b.tree[name]
		h := &tar.Header{Name: name[1:], Mode: int64(e.mode.Perm())}
		if e.mode&fs.ModeSetuid != 0 {
			h.Mode |= 0o4000
		}
		if e.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		data := []byte(e.text)
		switch {
		case e.mode.IsDir():
			h.Typeflag, h.Name, data = tar.TypeDir, h.Name+"/", nil
		case e.mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname, data = tar.TypeSymlink, e.link, nil
		case e.mode.IsRegular():
			if e.src != "" {
				var err error
				if data, err = os.ReadFile(e.src); err != nil {
					return nil, err
				}
			}
			h.Typeflag, h.Size = tar.TypeReg, int64(len(data))
		default:
			continue // sockets, devices
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), tw.Close()
}
