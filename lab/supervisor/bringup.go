package supervisor

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/lab/image"
	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/topo"
)

//go:embed coredns.yaml
var coreDNS string

// patience bounds each wait of bringing a cluster up: a cold page cache and a
// busy machine make them ten times as long as they are at best.
const patience = 120 * time.Second

// bringUp waits until every cluster's nodes are Ready, its DNS answers and the
// images are in.
func (s *Supervisor) bringUp(ctx context.Context) error {
	return s.each(func(c *topo.Cluster) error {
		loaded := make(chan error, 1)
		go func() { loaded <- s.loadAll(ctx, c) }()
		err := s.bringUpCluster(ctx, c)
		return errors.Join(err, <-loaded)
	})
}

func (s *Supervisor) bringUpCluster(ctx context.Context, c *topo.Cluster) error {
	a := s.apis[c.Name]
	if err := until(ctx, c.Name+": API server", patience, func() error { return a.get(ctx, "/readyz", nil) }); err != nil {
		return err
	}
	s.Progress("%s: API server is ready", c.Name)
	if err := until(ctx, c.Name+": DNS", 20*time.Second, func() error { return s.apply(ctx, c, coreDNS) }); err != nil {
		return err
	}
	if err := until(ctx, c.Name+": nodes", patience, func() error {
		ready, err := a.readyNodes(ctx)
		if err == nil && len(ready) < len(c.Nodes) {
			err = fmt.Errorf("%d of %d are Ready", len(ready), len(c.Nodes))
		}
		return err
	}); err != nil {
		return err
	}
	s.Progress("%s: %d nodes are Ready", c.Name, len(c.Nodes))
	if err := until(ctx, c.Name+": DNS", patience, func() error { return a.available(ctx, "kube-system", "coredns") }); err != nil {
		return fmt.Errorf("%w\n%s%s", err, s.events(ctx, c), s.restarts(c))
	}
	s.Progress("%s: DNS answers", c.Name)
	return nil
}

// events is what a cluster says of pods that do not run.
func (s *Supervisor) events(ctx context.Context, c *topo.Cluster) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(s.Bin, "kubectl"), "--kubeconfig", s.Lab.Kubeconfig(), "--context", c.Name,
		"get", "events", "-n", "kube-system", "--sort-by=.lastTimestamp",
		"-o", `jsonpath={range .items[*]}{.lastTimestamp} {.count} {.reason}: {.message}{"\n"}{end}`).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("no events: %v: %s", err, out)
	}
	return string(out)
}

// restarts is the end of what a cluster's nodes have logged of themselves:
// programs that do not stay.
func (s *Supervisor) restarts(c *topo.Cluster) string {
	var b strings.Builder
	for _, n := range c.Nodes {
		log, err := os.ReadFile(s.Lab.Node(n.Name, "logs", "node.log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		for _, l := range lines[max(0, len(lines)-3):] {
			fmt.Fprintf(&b, "%s: %s\n", n.Name, l)
		}
	}
	return b.String()
}

func (s *Supervisor) apply(ctx context.Context, c *topo.Cluster, manifest string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, "kubectl"), "--kubeconfig", s.Lab.Kubeconfig(), "--context", c.Name,
		"apply", "--validate=false", "-f", "-")
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(manifest, "@DNS", c.DNS.String()))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, out)
	}
	return nil
}

// loadAll gives every node of a cluster the images.
func (s *Supervisor) loadAll(ctx context.Context, c *topo.Cluster) error {
	var wg sync.WaitGroup
	errs := make([]error, len(c.Nodes))
	for i, n := range c.Nodes {
		wg.Go(func() {
			begin := time.Now()
			if err := image.Load(ctx, filepath.Join(s.Bin, "ctr"), Containerd(s.Lab, n.Name), s.Images...); err != nil {
				errs[i] = fmt.Errorf("%s: %w", n.Name, err)
				return
			}
			s.Log.Info("images loaded", "node", n.Name, "took", time.Since(begin))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Containerd is the socket of a node's containerd as the machine sees it.
func Containerd(lab state.Lab, node string) string {
	return fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", state.PID(lab.Node(node, "pid")))
}
