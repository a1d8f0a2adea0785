package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
)

// TestPoison: a request that makes its upstream close connections is sent over one kept connection and
// one new one, not over all that are kept.
func TestPoison(t *testing.T) {
	var sent, open atomic.Int32
	gate := make(chan struct{})
	addr := tcpServer(t, func(c net.Conn) {
		for b := bufio.NewReader(c); ; {
			r, err := http.ReadRequest(b)
			if err != nil {
				return
			}
			if r.URL.Path == "/poison" {
				sent.Add(1)
				return
			}
			open.Add(1)
			<-gate
			io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
		}
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "b"), ""), clusterYAML("b", "", addr)), nil)
	const kept = 8
	done := make(chan error, kept)
	for range kept {
		go func() {
			resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
			if err == nil {
				resp.Body.Close()
			}
			done <- err
		}()
	}
	eventually(t, "all are open", func() bool { return open.Load() == kept })
	close(gate)
	for range kept {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if code, _, _ := get(t, http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d/poison", port)); code != 503 {
		t.Errorf("code %d", code)
	}
	if n := sent.Load(); n > 2 {
		t.Errorf("sent %d times", n)
	}
}
