package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/carrick-mesh/carrick/lab/build"
	"github.com/carrick-mesh/carrick/lab/cgroup"
	"github.com/carrick-mesh/carrick/lab/limits"
	"github.com/carrick-mesh/carrick/lab/netns"
	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/supervisor"
	"github.com/carrick-mesh/carrick/lab/topo"
)

// superviseVerb is the command by which the program becomes a supervisor; its
// arguments are the folder of the set of programs and whether it keeps what fails.
const superviseVerb = "__supervise"

func up(in invocation) error {
	begin := time.Now()
	o := topo.Options{RunID: in.lab.ID}
	f := flag.NewFlagSet("lab up", flag.ContinueOnError)
	f.IntVar(&o.Clusters, "clusters", 2, "clusters")
	f.IntVar(&o.Nodes, "nodes", 1, "nodes of each cluster")
	f.BoolVar(&o.Distinct, "distinct", false, "give the clusters different pod networks")
	f.BoolVar(&o.Overlay, "overlay", false, "join the pods of a cluster's nodes by an overlay, MTU 1480, in /26 blocks")
	f.StringVar(&o.Proxy, "proxy", "nftables", "kube-proxy's mode, nftables or iptables")
	f.StringVar(&o.Kubernetes, "kubernetes", "1.37", "minor version, 1.37 or 1.34")
	keep := f.Bool("keep", false, "leave what has failed to come up, to look at; lab down removes it")
	if err := f.Parse(in.args); err != nil {
		return exitCode(2)
	}
	if f.NArg() > 0 {
		return fmt.Errorf("up takes no argument %q", f.Arg(0))
	}
	t, err := topo.New(o)
	if err != nil {
		return err
	}
	if in.lab.Ready() {
		return alreadyUp(in.lab, t)
	}
	if err := missing(runNeeds(o.Proxy)); err != nil {
		return err
	}
	set, err := ensure(in.ctx, o.Kubernetes, progress(begin))
	if err != nil {
		return err
	}
	unlock, err := in.lab.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if in.lab.Ready() { // another has started it meanwhile
		return alreadyUp(in.lab, t)
	}
	if err := remove(in.lab); err != nil {
		return fmt.Errorf("removing the remains of an earlier lab: %w", err)
	}
	if err := os.MkdirAll(in.lab.Dir, 0o755); err != nil {
		return err
	}
	if err := limits.Machine(state.Root).Raise(); err != nil {
		return fmt.Errorf("raising the machine's limits: %w", err)
	}
	if err := in.lab.WriteTopology(t); err != nil {
		return err
	}
	if err := in.lab.UseSet(set.Dir); err != nil {
		return err
	}
	if err := launch(in.ctx, in.lab, set, *keep); err != nil {
		if *keep {
			return fmt.Errorf("%w; logs are in %s", err, in.lab.Path("nodes"))
		}
		if rerr := remove(in.lab); rerr != nil {
			err = errors.Join(err, rerr)
		}
		return err
	}
	fmt.Printf("%6.1fs  up: %d clusters, contexts cluster1 to %s\n         %s\n",
		time.Since(begin).Seconds(), len(t.Clusters), t.Clusters[len(t.Clusters)-1].Name, export(in.lab))
	return nil
}

func alreadyUp(lab state.Lab, want *topo.Topology) error {
	have, err := lab.Topology()
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(have, want) {
		return fmt.Errorf("lab %q is up in another form; take it down first with: lab --run-id %s down", lab.ID, lab.ID)
	}
	fmt.Printf("lab %q is already up\n%s\n", lab.ID, export(lab))
	return nil
}

// launch starts the supervisor and shows what it says until the lab is ready.
func launch(ctx context.Context, lab state.Lab, set build.Set, keep bool) error {
	log, err := os.Create(lab.UpLog())
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "--run-id", lab.ID, superviseVerb, set.Dir, strconv.FormatBool(keep))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := state.WritePID(lab.PID(), cmd.Process.Pid); err != nil {
		cmd.Process.Kill()
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	shown, err := os.Open(lab.UpLog())
	if err != nil {
		return err
	}
	defer shown.Close()
	for {
		var end error
		select {
		case end = <-ended:
			end = fmt.Errorf("the supervisor ended: %v", end)
		case <-ctx.Done():
			end = errors.New("interrupted")
		case <-time.After(50 * time.Millisecond):
		}
		if _, err := io.Copy(os.Stdout, shown); err != nil {
			return err
		}
		if end != nil {
			return end
		}
		if lab.Ready() {
			return nil
		}
	}
}

// supervise is the process that stays.
func supervise(in invocation) error {
	t, err := in.lab.Topology()
	if err != nil {
		return err
	}
	log, err := os.Create(in.lab.Path("supervisor.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	set := build.Set{Dir: in.args[0]}
	return supervisor.Run(in.ctx, supervisor.Config{
		Lab: in.lab, Topology: t, Bin: set.Bin(), Images: set.Images(),
		Keep:     in.args[1] == "true",
		Progress: progress(time.Now()),
		Log:      slog.New(slog.NewTextHandler(log, nil)),
	})
}

func down(in invocation) error {
	if len(in.args) > 0 {
		return fmt.Errorf("down takes no argument %q", in.args[0])
	}
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root")
	}
	unlock, err := in.lab.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	return remove(in.lab)
}

// remove ends a lab's supervisor and its nodes' first processes and removes
// what they leave: names of network namespaces, cgroups, the lab's folder. The
// kernel does the rest as the nodes' namespaces lose their last process.
func remove(lab state.Lab) error {
	files, err := filepath.Glob(lab.Node("*", "pid"))
	if err != nil {
		return err
	}
	for _, f := range append([]string{lab.PID()}, files...) {
		if err := kill(f); err != nil {
			return err
		}
	}
	names, err := netns.List(topo.NetnsPrefix(lab.ID))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := netns.Delete(n); err != nil {
			return err
		}
	}
	if err := cgroup.Remove(topo.Cgroup(lab.ID)); err != nil {
		return fmt.Errorf("removing cgroups: %w", err)
	}
	// Mounts of the last dying process may hold the folder for a moment.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = os.RemoveAll(lab.Dir); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		return err
	}
	return limits.Machine(state.Root).GiveBack()
}

// kill ends the process that a file notes and waits until it is gone.
func kill(file string) error {
	pid := state.PID(file)
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("ending process %d: %w", pid, err)
	}
	for deadline := time.Now().Add(20 * time.Second); state.PID(file) != 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d of %s does not end", pid, strings.TrimSuffix(file, "/pid"))
		}
	}
	return nil
}
