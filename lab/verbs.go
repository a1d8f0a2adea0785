package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/carrick-mesh/carrick/lab/image"
	"github.com/carrick-mesh/carrick/lab/netns"
	"github.com/carrick-mesh/carrick/lab/prove"
	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/supervisor"
)

func status(in invocation) error {
	f := flag.NewFlagSet("lab status", flag.ContinueOnError)
	format := f.String("o", "", "json, or a table")
	if err := f.Parse(in.args); err != nil {
		return exitCode(2)
	}
	b, err := supervisor.Ask(in.ctx, in.lab, http.MethodGet, "/status", "")
	if err != nil {
		return err
	}
	switch *format {
	case "json":
		_, err = os.Stdout.Write(b)
		return err
	case "":
	default:
		return fmt.Errorf("-o %s: want json", *format)
	}
	var s supervisor.Status
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NODE\tADDRESS\tSTATUS\tPID\tCLUSTER\tPODS\tFREE FOR LOAD BALANCERS")
	for _, c := range s.Clusters {
		for _, n := range c.Nodes {
			word := "NotReady"
			if n.Ready {
				word = "Ready"
			}
			if n.PID == 0 {
				word = "Stopped"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", n.Name, n.Address, word, n.PID, c.Name, c.Pods, c.Pool)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("wan: %s\n%s\n", s.WAN, export(in.lab))
	return nil
}

// export is the line for a shell in which kubectl is to work on the lab.
func export(lab state.Lab) string {
	return fmt.Sprintf("export KUBECONFIG=%s PATH=%s:$PATH", lab.Kubeconfig(), lab.Path("bin"))
}

func kubeconfig(in invocation) error {
	if _, err := in.lab.Topology(); err != nil {
		return err
	}
	fmt.Println(in.lab.Kubeconfig())
	return nil
}

func kubectl(in invocation) error {
	if _, err := in.lab.Topology(); err != nil {
		return err
	}
	return become(in.lab.Program("kubectl"), append([]string{"kubectl"}, in.args...), "KUBECONFIG="+in.lab.Kubeconfig())
}

// become replaces this process by a program, with variables changed.
func become(path string, argv []string, changed ...string) error {
	env := slices.DeleteFunc(os.Environ(), func(old string) bool {
		name, _, _ := strings.Cut(old, "=")
		return slices.ContainsFunc(changed, func(c string) bool { return strings.HasPrefix(c, name+"=") })
	})
	if err := syscall.Exec(path, argv, append(env, changed...)); err != nil {
		return fmt.Errorf("running %s: %w", path, err)
	}
	return nil
}

func execute(in invocation) error {
	t, err := in.lab.Topology()
	if err != nil {
		return err
	}
	if len(in.args) < 2 {
		return fmt.Errorf("want exec HOST CMD...; hosts: %s", strings.Join(t.Hosts(), ", "))
	}
	host, cmd := in.args[0], in.args[1:]
	argv := []string{"nsenter", "--net=" + netns.Path(t.Netns(host)), "--"}
	if _, n := t.Find(host); n != nil {
		pid := state.PID(in.lab.Node(host, "pid"))
		if pid == 0 {
			return fmt.Errorf("node %s is not running", host)
		}
		argv = []string{"nsenter", "-t", fmt.Sprint(pid), "-m", "-n", "-p", "-u", "-i", "-r", "-w", "--"}
	} else if !slices.Contains(t.Hosts(), host) {
		return fmt.Errorf("no host %q; there are %s", host, strings.Join(t.Hosts(), ", "))
	}
	path, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	return become(path, append(argv, cmd...), "PATH=/opt/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

func nodePower(in invocation) error {
	if len(in.args) != 2 {
		return errors.New("want node stop|start NODE")
	}
	_, err := supervisor.Ask(in.ctx, in.lab, http.MethodPost, "/node/"+in.args[1]+"/"+in.args[0], "")
	return err
}

func wanFaults(in invocation) error {
	b, err := supervisor.Ask(in.ctx, in.lab, http.MethodPost, "/wan", strings.Join(in.args, " "))
	if err == nil {
		fmt.Print("wan: ", string(b))
	}
	return err
}

func proveLab(in invocation) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return prove.Run(in.ctx, in.lab, self, os.Stdout)
}

func images(in invocation) error {
	if len(in.args) > 0 {
		rest := invocation{in.ctx, in.lab, in.args[1:]}
		switch in.args[0] {
		case "load":
			return imageLoad(rest)
		case "build":
			return imageBuild(rest)
		}
	}
	return errors.New("want image load FILE... or image build ...; see lab help")
}

func imageLoad(in invocation) error {
	t, err := in.lab.Topology()
	if err != nil {
		return err
	}
	if len(in.args) == 0 {
		return errors.New("want image load FILE...")
	}
	for _, f := range in.args {
		if _, err := os.Stat(f); err != nil {
			return err
		}
	}
	begin := time.Now()
	done := make(chan error)
	running := 0
	for _, c := range t.Clusters {
		for _, n := range c.Nodes {
			if state.PID(in.lab.Node(n.Name, "pid")) == 0 {
				continue
			}
			running++
			go func() {
				err := image.Load(in.ctx, in.lab.Program("ctr"), supervisor.Containerd(in.lab, n.Name), in.args...)
				if err != nil {
					err = fmt.Errorf("node %s: %w", n.Name, err)
				}
				done <- err
			}()
		}
	}
	for range running {
		err = errors.Join(err, <-done)
	}
	if err == nil {
		fmt.Printf("loaded %d archives into %d nodes in %.1fs\n", len(in.args), running, time.Since(begin).Seconds())
	}
	return err
}

// imageBuild makes an image; its flags act in the order in which they are given.
func imageBuild(in invocation) error {
	var b image.Builder
	var out string
	tmp, err := os.MkdirTemp("", "lab-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	pair := func(s string) (string, string) {
		src, dst, ok := strings.Cut(s, ":")
		if !ok {
			dst = src
		}
		return src, dst
	}
	f := flag.NewFlagSet("lab image build", flag.ContinueOnError)
	f.StringVar(&out, "o", "", "the archive; default: the image's base name with .tar")
	f.Func("add", "SRC[:DST]: a file or folder", func(s string) error { return b.Add(pair(s)) })
	f.Func("elf", "FILE[:DST]: a program with its shared libraries", func(s string) error { return b.AddProgram(pair(s)) })
	f.Func("deb", "PKG,...: Debian packages with what they depend on", func(s string) error {
		return b.AddDebian(tmp, strings.Split(s, ",")...)
	})
	f.Func("link", "PATH=TARGET: a symbolic link", func(s string) error {
		name, target, _ := strings.Cut(s, "=")
		b.Link(name, target)
		return nil
	})
	f.StringVar(&b.User, "user", "", "UID[:GID] that it runs as; default root")
	f.Func("env", "KEY=VALUE", func(s string) error { b.Env = append(b.Env, s); return nil })
	if err := f.Parse(in.args); err != nil {
		return exitCode(2)
	}
	if f.NArg() < 2 {
		return errors.New("want image build [FLAGS] NAME:TAG[,NAME:TAG] CMD...")
	}
	names := strings.Split(f.Arg(0), ",")
	b.Entrypoint = f.Args()[1:]
	if out == "" {
		base, _, _ := strings.Cut(filepath.Base(names[0]), ":")
		out = base + ".tar"
	}
	if err := b.WriteFile(out, names...); err != nil {
		return err
	}
	fmt.Println(out)
	return nil
}
