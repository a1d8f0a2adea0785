package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/carrick-mesh/carrick/lab/cgroup"
	"github.com/carrick-mesh/carrick/lab/netns"
	"github.com/carrick-mesh/carrick/lab/node"
	"github.com/carrick-mesh/carrick/lab/pki"
	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/topo"
)

// NodeVerb is the command by which the program becomes a node's process 1; its
// argument is the file of the node's Spec.
const NodeVerb = "__node"

// certify gives each node of a cluster its certificates.
func (s *Supervisor) certify(c *topo.Cluster) error {
	p := pki.Cluster{Name: c.Name, Server: c.Server(), Names: []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
		c.ServiceIP.String(), "127.0.0.1", c.Nodes[0].Address.String(), c.Nodes[0].Name}}
	for _, n := range c.Nodes {
		p.Workers = append(p.Workers, pki.Worker{Name: n.Name, Address: n.Address.String()})
	}
	all, err := pki.Make(p)
	if err != nil {
		return err
	}
	for i, n := range c.Nodes {
		if err := all[i].Write(s.Lab.Node(n.Name, "pki")); err != nil {
			return err
		}
	}
	return nil
}

// startNode starts a node's process 1 in namespaces of its own and wires its
// network. It must run on the thread that stays.
func (s *Supervisor) startNode(c *topo.Cluster, n *topo.Node) error {
	dir := s.Lab.Node(n.Name)
	if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o755); err != nil {
		return err
	}
	spec, err := json.Marshal(node.Spec{Topology: s.Topology, Name: n.Name, Dir: dir, Bin: s.Bin})
	if err != nil {
		return err
	}
	specFile := filepath.Join(dir, "spec.json")
	if err := state.WriteFile(specFile, spec, 0o644); err != nil {
		return err
	}
	out, err := os.OpenFile(filepath.Join(dir, "logs", "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	wait, wired, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wired.Close()
	cmd := exec.Command("/proc/self/exe", NodeVerb, specFile)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = wait, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	err = cmd.Start()
	wait.Close()
	if err != nil {
		return err
	}
	pid := cmd.Process.Pid
	go func() { s.Log.Warn("node ended", "node", n.Name, "cause", cmd.Wait()) }()
	if err := state.WritePID(filepath.Join(dir, "pid"), pid); err != nil {
		return err
	}
	if err := netns.Attach(s.Topology.Netns(n.Name), pid); err != nil {
		return err
	}
	if err := s.wireNode(c, n); err != nil {
		return err
	}
	_, err = wired.Write([]byte{1})
	return err
}

// wireNode plugs a node in and gives it the ways to the other nodes' pods, of
// which the router knows nothing. Pods leave the cluster with their node's
// address.
func (s *Supervisor) wireNode(c *topo.Cluster, n *topo.Node) error {
	if err := s.plug(c, n.Host); err != nil {
		return err
	}
	ns := s.Topology.Netns(n.Name)
	var lines []string
	if s.Topology.Overlay {
		lines = overlay(c, n)
	} else {
		for _, o := range c.Nodes {
			for _, p := range o.Pods {
				if o != n {
					lines = append(lines, fmt.Sprintf("route add %s via %s", p, o.Address))
				}
			}
		}
	}
	for _, l := range lines {
		tool := "ip"
		if l[:3] == "fdb" {
			tool = "bridge"
		}
		if err := netns.Run("nsenter", "--net="+netns.Path(ns), "sh", "-c", tool+" "+l); err != nil {
			return err
		}
	}
	return netns.Run("nsenter", "--net="+netns.Path(ns), "nft", fmt.Sprintf(
		"add table ip lab; add chain ip lab post { type nat hook postrouting priority srcnat; }; "+
			"add rule ip lab post ip saddr %s ip daddr != %[1]s masquerade", c.PodNet))
}

// overlay returns the commands that join a node's pods to the others' by VXLAN.
// The segment's MTU makes room for its headers, so that pods have the 1480 bytes
// of an IP-in-IP overlay.
func overlay(c *topo.Cluster, n *topo.Node) []string {
	lines := []string{
		fmt.Sprintf("link add overlay0 mtu 1480 type vxlan id %d dev eth0 local %s dstport 4789 nolearning", c.Number, n.Address),
		fmt.Sprintf("addr add %s/32 dev overlay0", n.VTEP),
		"link set overlay0 up",
	}
	for _, o := range c.Nodes {
		if o == n {
			continue
		}
		lines = append(lines,
			fmt.Sprintf("fdb append 00:00:00:00:00:00 dev overlay0 dst %s", o.Address),
			fmt.Sprintf("route add %s/32 dev overlay0", o.VTEP))
		for _, p := range o.Pods {
			lines = append(lines, fmt.Sprintf("route add %s via %s dev overlay0 onlink", p, o.VTEP))
		}
	}
	return lines
}

// stopNode ends a node as a power cut does.
func (s *Supervisor) stopNode(n *topo.Node) error {
	file := s.Lab.Node(n.Name, "pid")
	pid := state.PID(file)
	if pid == 0 {
		return fmt.Errorf("node %s is not running", n.Name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); state.PID(file) != 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("the node's process 1 does not end")
		}
	}
	if err := netns.Delete(s.Topology.Netns(n.Name)); err != nil {
		return err
	}
	if err := cgroup.Remove(topo.Cgroup(s.Topology.RunID) + "/" + n.Name); err != nil {
		return fmt.Errorf("removing the node's cgroups: %w", err)
	}
	// The kernel takes the dead node's side of the cable away some time later, and
	// with it this one; there may be nothing left to delete.
	netns.IP("-n " + s.Topology.Netns(topo.RouterName) + " link del " + n.Name)
	return nil
}
