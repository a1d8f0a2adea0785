package http2

import (
	"net"
	"os/exec"
	"strconv"
	"testing"
)

// TestH2Spec runs h2spec (github.com/summerwind/h2spec), if it is installed, against an echo server.
func TestH2Spec(t *testing.T) {
	bin, err := exec.LookPath("h2spec")
	if err != nil {
		t.Skip("h2spec is not in PATH: go install github.com/summerwind/h2spec/cmd/h2spec@latest")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			run(conn, func(*peer) *Conn { return NewServer(Options{}, &echo{}) })
		}
	}()
	port := ln.Addr().(*net.TCPAddr).Port
	out, err := exec.Command(bin, "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-o", "3").CombinedOutput()
	if err != nil {
		t.Errorf("h2spec: %v\n%s", err, out)
	}
	t.Logf("%s", out[max(0, len(out)-100):])
}
