// Package supervisor is the process that a lab consists of: it builds the
// router, the segments and the nodes, brings the clusters up, and stays. The
// nodes die with it.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/lab/cgroup"
	"github.com/carrick-mesh/carrick/lab/connect"
	"github.com/carrick-mesh/carrick/lab/netns"
	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/topo"
	"github.com/carrick-mesh/carrick/lab/wan"
)

// Config is what a supervisor is given.
type Config struct {
	Lab      state.Lab
	Topology *topo.Topology
	Bin      string   // folder of the programs
	Images   []string // archives that every node gets before the lab is ready
	Keep     bool     // stay, for inspection, even if a cluster does not come up
	Progress func(format string, args ...any)
	Log      *slog.Logger
}

// Supervisor is one running lab.
type Supervisor struct {
	Config
	link  *wan.Link
	apis  map[string]*api   // by cluster
	ports map[string]string // by cluster: its CONNECT proxy's address on loopback
	start chan func()       // run by the thread that the nodes' lives hang on
}

// Run brings the lab up and stays until ctx ends.
func Run(ctx context.Context, c Config) error {
	s := &Supervisor{Config: c, apis: map[string]*api{}, ports: map[string]string{}, start: make(chan func())}
	// The kernel kills a node when the thread that started it ends.
	runtime.LockOSThread()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := cgroup.Join(topo.Cgroup(c.Topology.RunID) + "/supervisor"); err != nil {
		return fmt.Errorf("joining a cgroup: %w", err)
	}
	if err := s.wire(); err != nil {
		return err
	}
	s.Progress("router and %d segments are wired", len(c.Topology.Clusters))
	go func() { cancel(s.link.Run(ctx)) }()
	for _, cl := range c.Topology.Clusters {
		if err := s.certify(cl); err != nil {
			return err
		}
		for _, n := range cl.Nodes {
			if err := s.startNode(cl, n); err != nil {
				return fmt.Errorf("starting node %s: %w", n.Name, err)
			}
		}
	}
	if err := s.serve(ctx, cancel); err != nil {
		return err
	}
	s.Progress("nodes are started")
	go func() {
		if err := s.bringUp(ctx); err != nil {
			if s.Keep {
				s.Progress("FAILED: %v", err)
				return
			}
			cancel(err)
			return
		}
		if err := state.WriteFile(s.Lab.Path("ready"), nil, 0o644); err != nil {
			cancel(err)
		}
	}()
	for {
		select {
		case f := <-s.start:
			f()
		case <-ctx.Done():
			if err := context.Cause(ctx); err != context.Canceled {
				return err
			}
			return nil
		}
	}
}

// wire makes the router, its segments and the plain hosts on them.
func (s *Supervisor) wire() error {
	t := s.Topology
	router := t.Netns(topo.RouterName)
	if err := netns.Create(router); err != nil {
		return err
	}
	r := "-n " + router + " "
	var segments []wan.Segment
	for _, c := range t.Clusters {
		if err := netns.IP(
			r+"link add "+c.Bridge+" type bridge forward_delay 0",
			r+fmt.Sprintf("addr add %s/%d dev %s", c.Gateway, c.LAN.Bits(), c.Bridge),
			r+"link set "+c.Bridge+" up"); err != nil {
			return err
		}
		segments = append(segments, wan.Segment{Interface: c.Bridge, Net: c.LAN})
		if err := netns.Create(t.Netns(c.Client.Name)); err != nil {
			return err
		}
		if err := s.plug(c, c.Client); err != nil {
			return err
		}
	}
	err := netns.Do(router, func() error {
		return errors.Join(
			netns.Sysctl("ipv4/ip_forward", "1"),
			netns.Sysctl("ipv4/conf/all/rp_filter", "0"),
			netns.Sysctl("ipv4/conf/default/rp_filter", "0"))
	})
	if err != nil {
		return fmt.Errorf("setting the router up: %w", err)
	}
	s.link, err = wan.New(router, segments, t.LANMTU, s.Log)
	return err
}

// plug joins a host's namespace to its segment, as eth0.
func (s *Supervisor) plug(c *topo.Cluster, h topo.Host) error {
	t := s.Topology
	ns, router := t.Netns(h.Name), t.Netns(topo.RouterName)
	in := "-n " + ns + " "
	return netns.IP(
		fmt.Sprintf("link add eth0 address %s mtu %d netns %s type veth peer name %s mtu %[2]d netns %[5]s",
			h.MAC(), t.LANMTU, ns, h.Name, router),
		fmt.Sprintf("-n %s link set %s master %s up", router, h.Name, c.Bridge),
		in+"link set lo up",
		in+fmt.Sprintf("addr add %s/%d dev eth0", h.Address, c.LAN.Bits()),
		in+"link set eth0 up",
		in+fmt.Sprintf("route add default via %s mtu 1500", c.Gateway))
}

// serve opens the ways in from the machine's own network: a CONNECT proxy for
// each cluster, the kubeconfig that names them, and the control socket.
func (s *Supervisor) serve(ctx context.Context, cancel context.CancelCauseFunc) error {
	for _, c := range s.Topology.Clusters {
		dial := netns.Dialer(s.Topology.Netns(c.Nodes[0].Name))
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s.ports[c.Name] = l.Addr().String()
		go func() { cancel(connect.Serve(ctx, l, dial)) }()
		if s.apis[c.Name], err = newAPI(s.Lab, c, dial); err != nil {
			return err
		}
	}
	if err := s.writeKubeconfig(); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	return s.listen(ctx, cancel)
}

// each calls f for every cluster at once.
func (s *Supervisor) each(f func(*topo.Cluster) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(s.Topology.Clusters))
	for i, c := range s.Topology.Clusters {
		wg.Go(func() { errs[i] = f(c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// until tries f every 100 ms until it succeeds, for at most a limit.
func until(ctx context.Context, what string, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func readAll(paths ...string) ([][]byte, error) {
	var all [][]byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}
