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

// Reachable reports an error unless something listens on a unix socket.
func Reachable(ctx context.Context, socket string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// loadLimit bounds the loading of one archive into one node.
const loadLimit = 3 * time.Minute

// Load imports archives, Docker's or OCI's, into the containerd that listens on
// a socket, where a kubelet finds them. ctr is containerd's client program.
func Load(ctx context.Context, ctr, socket string, files ...string) error {
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
