package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/lab/build"
)

// need is something that a machine must have.
type need struct {
	name string
	pkg  string // the Debian package that brings it; empty: none does
	ok   func() bool
}

func program(name, pkg string) need {
	return need{name, pkg, func() bool { _, err := exec.LookPath(name); return err == nil }}
}

func file(what, pkg string, patterns ...string) need {
	return need{what, pkg, func() bool {
		for _, p := range patterns {
			if m, _ := filepath.Glob(p); len(m) > 0 {
				return true
			}
		}
		return false
	}}
}

// runNeeds are what a lab needs to run.
func runNeeds(proxy string) []need {
	ns := []need{
		{"root", "", func() bool { return os.Geteuid() == 0 }},
		{"overlayfs in the kernel", "", overlayfs},
		{"/dev/net/tun", "", func() bool {
			if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
				return f.Close() == nil
			}
			return false
		}},
		{"cgroups at /sys/fs/cgroup", "", func() bool {
			m, _ := filepath.Glob("/sys/fs/cgroup/*")
			return len(m) > 0
		}},
		program("ip", "iproute2"),
		program("nft", "nftables"),
		program("nsenter", "util-linux"),
		program("mount", "mount"),
	}
	if proxy == "iptables" {
		ns = append(ns, program("iptables", "iptables"))
	}
	return ns
}

// buildNeeds are what making the programs needs; runc is made with cgo.
var buildNeeds = []need{
	program("go", ""),
	program("gcc", "gcc"),
	program("pkg-config", "pkg-config"),
	file("libc's headers", "libc6-dev", "/usr/include/stdlib.h"),
	file("libseccomp's headers", "libseccomp-dev", "/usr/include/seccomp.h", "/usr/include/*/seccomp.h"),
	file("the static libseccomp", "libseccomp-dev", "/usr/lib/*/libseccomp.a", "/usr/lib/libseccomp.a"),
}

// extras are for the images of tests and for looking around.
var extras = []string{"iptables", "busybox-static", "curl", "ca-certificates"}

func overlayfs() bool {
	b, _ := os.ReadFile("/proc/filesystems")
	if strings.Contains(string(b), "\toverlay\n") {
		return true
	}
	return exec.Command("modprobe", "overlay").Run() == nil
}

// missing reports in one line all that is not there, and the command that
// brings it.
func missing(needs []need) error {
	var names, pkgs []string
	for _, n := range needs {
		if n.ok() {
			continue
		}
		names = append(names, n.name)
		if n.pkg != "" && !slices.Contains(pkgs, n.pkg) {
			pkgs = append(pkgs, n.pkg)
		}
	}
	if names == nil {
		return nil
	}
	line := "this machine lacks " + strings.Join(names, ", ")
	if pkgs != nil {
		line += "; run: apt-get install -y " + strings.Join(pkgs, " ")
	}
	return errors.New(line)
}

// ensure returns the set of programs, building it if it is not there.
func ensure(ctx context.Context, kubernetes string, progress func(string, ...any)) (build.Set, error) {
	b := builder(kubernetes, progress)
	if set, ok := b.Have(ctx); ok {
		return set, nil
	}
	if err := missing(buildNeeds); err != nil {
		return build.Set{}, err
	}
	return b.Ensure(ctx)
}

func buildSet(in invocation) error {
	f := flag.NewFlagSet("lab build", flag.ContinueOnError)
	install := f.Bool("install", false, "install the Debian packages that it needs first")
	kubernetes := f.String("kubernetes", "", "minor version, 1.37 or 1.34")
	if err := f.Parse(in.args); err != nil {
		return exitCode(2)
	}
	if *install {
		if err := deps(invocation{ctx: in.ctx, lab: in.lab}); err != nil {
			return err
		}
	}
	set, err := ensure(in.ctx, *kubernetes, progress(time.Now()))
	if err == nil {
		fmt.Println(set.Dir)
	}
	return err
}

// deps installs what is missing of the Debian packages; with nothing missing it
// does nothing.
func deps(in invocation) error {
	needs := append(runNeeds("iptables"), buildNeeds...)
	for _, p := range extras {
		needs = append(needs, need{p, p, func() bool {
			out, _ := exec.Command("dpkg-query", "-W", "-f", "${db:Status-Status}", p).Output()
			return string(out) == "installed"
		}})
	}
	var pkgs, rest []string
	for _, n := range needs {
		switch {
		case n.ok():
		case n.pkg == "":
			rest = append(rest, n.name)
		case !slices.Contains(pkgs, n.pkg):
			pkgs = append(pkgs, n.pkg)
		}
	}
	if rest != nil {
		return fmt.Errorf("this machine lacks %s, which no package brings", strings.Join(rest, ", "))
	}
	if pkgs == nil {
		return nil
	}
	for _, argv := range [][]string{{"apt-get", "update", "-q"}, append([]string{"apt-get", "install", "-y", "-q", "--no-install-recommends"}, pkgs...)} {
		fmt.Println(strings.Join(argv, " "))
		cmd := exec.CommandContext(in.ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
		}
	}
	return nil
}
