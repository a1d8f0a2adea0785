// Package connect is an HTTP CONNECT proxy: the way from the machine's own
// network into a lab's. It does not look at what passes.
package connect

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// Dial connects to an address.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Serve answers CONNECT requests on l with connections made by dial, until ctx
// ends or l fails. Connections that are open then stay open.
func Serve(ctx context.Context, l net.Listener, dial Dial) error {
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodConnect {
				http.Error(w, "only CONNECT is served here", http.StatusMethodNotAllowed)
				return
			}
			tunnel(w, r, dial)
		}),
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func tunnel(w http.ResponseWriter, r *http.Request, dial Dial) {
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	up, err := dial(ctx, "tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer down.Close()
	if _, err := io.WriteString(down, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		io.Copy(down, up)
		closeWrite(down)
	}()
	// What the client sent with its request is still in the buffer.
	io.Copy(up, buf)
	closeWrite(up)
	<-back
}

func closeWrite(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.CloseWrite()
	}
}
