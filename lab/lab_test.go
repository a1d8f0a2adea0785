package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/supervisor"
)

// compiled builds lab and returns a function that runs it, or skips the test
// where a lab cannot run or its programs have not been built.
func compiled(t *testing.T) func(args ...string) (string, error) {
	t.Helper()
	if testing.Short() {
		t.Skip("not in -short")
	}
	if err := missing(runNeeds("nftables")); err != nil {
		t.Skip(err)
	}
	if _, ok := builder("", t.Logf).Have(context.Background()); !ok {
		t.Skip("the nodes' programs have not been built; lab build does")
	}
	exe := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return func(args ...string) (string, error) {
		var out, errs bytes.Buffer
		cmd := exec.Command(exe, args...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			return out.String(), fmt.Errorf("lab %s: %w\n%s%s", strings.Join(args, " "), err, &out, &errs)
		}
		return out.String(), nil
	}
}

// Two labs at once, one of them checked, and then nothing left of either.
func TestLab(t *testing.T) {
	lab := compiled(t)
	a, b := fmt.Sprintf("t%da", os.Getpid()%100000), fmt.Sprintf("t%db", os.Getpid()%100000)
	must := func(args ...string) string {
		t.Helper()
		out, err := lab(args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	t.Cleanup(func() { lab("--run-id", a, "down"); lab("--run-id", b, "down") })
	before := machine(t)

	if _, err := lab("--run-id", a, "status"); err == nil || !strings.Contains(err.Error(), "lab --run-id "+a+" up") {
		t.Errorf("status without a lab: %v; want the command that starts one", err)
	}
	must("--run-id", a, "up")
	begin := time.Now()
	if out := must("--run-id", a, "up"); !strings.Contains(out, "already up") || time.Since(begin) > 10*time.Second {
		t.Errorf("a second up: %s", out)
	}
	if _, err := lab("--run-id", a, "up", "--nodes", "2"); err == nil || !strings.Contains(err.Error(), "in another form") {
		t.Errorf("up in another form: %v", err)
	}
	must("--run-id", b, "up", "--clusters", "1", "--proxy", "iptables")
	var s supervisor.Status
	if err := json.Unmarshal([]byte(must("--run-id", a, "status", "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Clusters) != 2 || !s.Ready || !s.Clusters[0].Nodes[0].Ready || !s.Clusters[1].Nodes[0].Ready {
		t.Errorf("status %+v", s)
	}
	checkKubeconfig(t, strings.TrimSpace(must("--run-id", a, "kubeconfig")))
	if out, err := lab("--run-id", a, "prove"); err != nil {
		t.Errorf("%v", err)
	} else {
		t.Log("\n" + out)
	}
	// The other lab is whole when one goes.
	must("--run-id", a, "down")
	if out := must("--run-id", b, "kubectl", "get", "--raw=/readyz"); out != "ok" {
		t.Errorf("the other lab's API server says %q", out)
	}
	must("--run-id", b, "down")
	must("--run-id", b, "down")
	if d := cmp.Diff(before, machine(t)); d != "" {
		t.Errorf("something is left behind (-before +after): %s", d)
	}
}

// A lab that is killed leaves no node running and does not keep the next from
// starting.
func TestKilledSupervisor(t *testing.T) {
	lab := compiled(t)
	id := fmt.Sprintf("t%dk", os.Getpid()%100000)
	t.Cleanup(func() { lab("--run-id", id, "down") })
	before := machine(t)
	if _, err := lab("--run-id", id, "up", "--clusters", "1"); err != nil {
		t.Fatal(err)
	}
	if err := kill(state.Of(id).PID()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); processes(t) != ""; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nodes outlive their supervisor")
		}
	}
	if _, err := lab("--run-id", id, "up", "--clusters", "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := lab("--run-id", id, "down"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, machine(t)); d != "" {
		t.Errorf("something is left behind (-before +after): %s", d)
	}
}

// checkKubeconfig holds that servers are addresses of the LAN, reached by a
// proxy on loopback, with credentials inside.
func checkKubeconfig(t *testing.T, file string) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: mode %v, %v", file, info.Mode(), err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: cluster1\n", "name: cluster2\n", "server: https://10.10.50.10:6443\n",
		"server: https://10.29.8.10:6443\n", "proxy-url: http://127.0.0.1:", "client-key-data: "} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("the kubeconfig lacks %q", want)
		}
	}
}

// machine is all of the machine that a lab could leave something in. Other labs
// may come and go meanwhile: what bears their names is left out.
func machine(t *testing.T) map[string]string {
	t.Helper()
	m := map[string]string{}
	for name, argv := range map[string][]string{
		"links":  {"ip", "-o", "link"},
		"routes": {"ip", "route", "show", "table", "all"},
		"rules":  {"ip", "rule"},
		"nft":    {"nft", "list", "ruleset"},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
		m[name] = string(out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	m["mounts"] = mine(strings.Split(string(mounts), "\n"))
	for _, pattern := range []string{"/run/netns/*", "/sys/fs/cgroup/*/carrick-lab*", "/sys/fs/cgroup/carrick-lab*",
		"/var/lib/carrick-lab/*", "/run/lock/carrick-lab*", "/etc/cni/*", "/opt/lab*", "/var/lib/kubelet*",
		"/var/lib/containerd*", "/var/lib/etcd*", "/run/containerd*", "/var/log/pods*", "/etc/kubernetes*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		m[pattern] = mine(found)
	}
	for _, key := range []string{"net/ipv4/ip_forward", "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic",
		"kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		b, err := os.ReadFile("/proc/sys/" + key)
		if err != nil {
			t.Fatal(err)
		}
		m[key] = string(b)
	}
	m["processes"] = processes(t)
	return m
}

// mine keeps the lines that are of no other lab.
func mine(lines []string) string {
	own := fmt.Sprintf("t%d", os.Getpid()%100000)
	lines = slices.DeleteFunc(slices.Clone(lines), func(l string) bool {
		other := strings.Contains(l, "lab.") || strings.Contains(l, "carrick-lab")
		return other && !strings.Contains(l, own)
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// processes lists the programs of this test's labs that run; one that has ended
// and that its parent has not looked at yet has no command line.
func processes(t *testing.T) string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf("carrick-lab.t%d", os.Getpid()%100000)
	var found []string
	for _, d := range dirs {
		group, _ := os.ReadFile(filepath.Join(d, "cgroup"))
		if strings.Contains(string(group), own) {
			cmdline, _ := os.ReadFile(filepath.Join(d, "cmdline"))
			if len(cmdline) > 0 {
				found = append(found, strings.ReplaceAll(string(cmdline), "\x00", " "))
			}
		}
	}
	slices.Sort(found)
	return strings.Join(found, "\n")
}
