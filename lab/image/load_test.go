package image

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestLoad waits for a containerd that comes later, as a node's does while the lab starts, and no longer than it may.
func TestLoad(t *testing.T) {
	ctr, err := exec.LookPath("true") // what it is asked to do is containerd's business
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended, stop := context.WithCancel(ctx)
	stop()
	if err := Load(ended, ctr, socket, "a.tar"); err == nil {
		t.Error("loaded without a containerd")
	}
	loaded := make(chan error)
	go func() { loaded <- Load(ctx, ctr, socket, "a.tar") }()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := <-loaded; err != nil {
		t.Error(err)
	}
}
