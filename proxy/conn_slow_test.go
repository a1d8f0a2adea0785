package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSlowReader: who takes the end of an answer slowly, but takes it, gets it all, although the connection
// is to be closed after it.
func TestSlowReader(t *testing.T) {
	const size = 100 << 10
	app := backend(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, size)) })
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), ""), clusterYAML("b", "", app)), nil)
	c := connect(t, port)
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	// The kernel is to hold little of it for the proxy.
	local := c.LocalAddr().(*net.TCPAddr).Port
	eventually(t, "the connection", func() bool { return shrink(t, local) })
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
	got, begin := 0, time.Now()
	b := make([]byte, 2<<10)
	for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
		n, err := c.Read(b)
		got += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
	}
	if got < size {
		t.Errorf("%d bytes came of more than %d, in %v", got, size, time.Since(begin))
	}
}

// shrink makes the buffer of this process's end of a connection from a port small.
func shrink(t *testing.T, port int) bool {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range fds {
		fd, _ := strconv.Atoi(d.Name())
		if peer, err := unix.Getpeername(fd); err == nil {
			if in, ok := peer.(*unix.SockaddrInet4); ok && in.Port == port {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
					t.Fatal(err)
				}
				return true
			}
		}
	}
	return false
}
