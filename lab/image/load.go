package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"
)

// reachable waits until something listens on a unix socket.
func reachable(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd is not there after %s: %w", startLimit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// startLimit bounds the wait for containerd, loadLimit the loading of one archive into one node.
const (
	startLimit = 2 * time.Minute
	loadLimit  = 3 * time.Minute
)

// Load imports archives, Docker's or OCI's, into the containerd that listens on
// a socket, or will, where a kubelet finds them. ctr is containerd's client program.
func Load(ctx context.Context, ctr, socket string, files ...string) error {
	if err := reachable(ctx, socket); err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		ctx, cancel := context.WithTimeout(ctx, loadLimit)
		defer cancel()
		out, err := exec.CommandContext(ctx, ctr, "-a", socket, "-n", "k8s.io",
			"images", "import", "--local", "--snapshotter", "overlayfs", f).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("loading %s: %w: %s", f, err, strings.TrimSpace(string(out))))
		}
	}
	return errors.Join(errs...)
}
