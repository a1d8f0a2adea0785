// Package cgroup makes, joins and removes trees of control groups, in the
// hierarchies of version 1, in a unified one, or in both where a machine has
// both. It sets no limits.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const mount = "/sys/fs/cgroup"

// delegated are the controllers that a kubelet wants below its own root.
var delegated = []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"}

// Unified reports whether the machine has only the unified hierarchy.
func Unified() bool {
	_, err := os.Stat(filepath.Join(mount, "cgroup.controllers"))
	return err == nil
}

// hierarchies lists the folders in which every path below names a group.
func hierarchies() []string {
	if Unified() {
		return []string{mount}
	}
	files, _ := filepath.Glob(filepath.Join(mount, "*", "cgroup.procs"))
	var dirs []string
	for _, f := range files {
		if d, err := filepath.EvalSymlinks(filepath.Dir(f)); err == nil && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// Join makes the group path, which begins with a slash, in every hierarchy and
// moves the calling process into it. In the unified hierarchy only a leaf may
// hold processes, so the group's parents must hold none.
func Join(path string) error {
	hs := hierarchies()
	if len(hs) == 0 {
		return fmt.Errorf("no cgroup hierarchy is mounted at %s", mount)
	}
	var errs []error
	for _, h := range hs {
		if err := join(h, path); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func join(hierarchy, path string) error {
	dir := hierarchy
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.subtree_control")); err == nil {
			if err := delegate(dir); err != nil {
				return err
			}
		}
		parent := dir
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		// A new group of version 1's cpuset is empty and takes no process.
		for _, k := range []string{"cpuset.cpus", "cpuset.mems"} {
			if strings.HasPrefix(hierarchy, mount+"/") {
				if v, err := os.ReadFile(filepath.Join(parent, k)); err == nil {
					if err := os.WriteFile(filepath.Join(dir, k), v, 0o644); err != nil {
						return err
					}
				}
			}
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644)
}

// delegate lets the groups below dir have the controllers that dir has.
func delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(have)) {
		if !slices.Contains(delegated, c) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("enabling controller %s below %s: %w", c, dir, err)
		}
	}
	return nil
}

// Remove removes the group path and all below it in every hierarchy. It waits
// up to 10 s for their last processes to be gone.
func Remove(path string) error {
	deadline := time.Now().Add(10 * time.Second)
	var errs []error
	for _, h := range hierarchies() {
		dir := filepath.Join(h, path)
		for {
			err := removeTree(dir)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				errs = append(errs, err)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	es, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	for _, e := range es {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
