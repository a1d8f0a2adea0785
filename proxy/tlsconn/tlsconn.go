// Package tlsconn runs crypto/tls without a socket: ciphertext is put in and taken out as bytes,
// so that an event loop can own the socket. The handshake, which computes for long, runs on a
// goroutine of the caller's; afterwards all is synchronous. It knows nothing of loops or of
// which certificates are right.
package tlsconn

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Conn is one TLS connection.
type Conn struct {
	tls *tls.Conn
	t   transport
}

// Server returns the server side of a connection.
func Server(cfg *tls.Config) *Conn {
	c := new(Conn)
	c.t.cond.L = &c.t.mu
	c.tls = tls.Server(&c.t, cfg)
	return c
}

// Client returns the client side.
func Client(cfg *tls.Config) *Conn {
	c := new(Conn)
	c.t.cond.L = &c.t.mu
	c.tls = tls.Client(&c.t, cfg)
	return c
}

// Handshake runs the handshake and blocks until it ends. Meanwhile another goroutine calls Feed
// and Output; notify, called on this one, says that there is output.
func (c *Conn) Handshake(ctx context.Context, notify func()) error {
	c.t.notify = notify
	stop := context.AfterFunc(ctx, c.Abort)
	defer stop()
	err := c.tls.HandshakeContext(ctx)
	c.t.mu.Lock()
	c.t.direct = err == nil
	c.t.mu.Unlock()
	return err
}

// Feed gives the handshake ciphertext that has come.
func (c *Conn) Feed(b []byte) {
	c.t.mu.Lock()
	c.t.in = append(c.t.in, b...)
	c.t.cond.Signal()
	c.t.mu.Unlock()
}

// Abort ends a handshake: the peer has closed, or there is no more time.
func (c *Conn) Abort() {
	c.t.mu.Lock()
	c.t.eof = true
	c.t.cond.Signal()
	c.t.mu.Unlock()
}

// Output appends the ciphertext that the handshake wants sent.
func (c *Conn) Output(dst []byte) []byte {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	dst = append(dst, c.t.out...)
	c.t.out = c.t.out[:0]
	return dst
}

// Start ends the concurrent part after a successful handshake. From here on one goroutine owns c.
func (c *Conn) Start() {
	c.t.notify = nil
	c.t.left = len(c.t.in) > 0
}

// State describes the connection after the handshake.
func (c *Conn) State() tls.ConnectionState { return c.tls.ConnectionState() }

// ErrAgain says that more ciphertext is needed.
var ErrAgain error = again{}

// again is a net.Error that is temporary: crypto/tls does not keep those.
type again struct{}

func (again) Error() string   { return "tlsconn: more ciphertext needed" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

// Read decrypts: cipher is what has come from the peer since (nil for what the handshake read too
// much), plain gets the bytes. It returns ErrAgain with the last of them, io.EOF at the peer's
// close_notify, or what is wrong; plain must have room for MaxPlain(len(cipher)). Records that the
// protocol wants sent in answer are left for Write or Flush.
func (c *Conn) Read(cipher, plain []byte) (n int, err error) {
	c.t.src = cipher
	for n < len(plain) {
		k, err := c.tls.Read(plain[n:])
		n += k
		if err != nil {
			c.t.keep()
			if errors.Is(err, io.EOF) {
				err = io.EOF
			}
			return n, err
		}
	}
	c.t.keep()
	return n, nil
}

// Buffered reports whether Read without new ciphertext may return something.
func (c *Conn) Buffered() bool { return c.t.left }

// MaxPlain returns how many bytes n bytes of ciphertext can hold at most, with a partial record
// that came before.
func MaxPlain(n int) int { return n + 17<<10 }

// Write encrypts p and appends the ciphertext to dst.
func (c *Conn) Write(dst, p []byte) ([]byte, error) {
	c.t.dst = append(dst, c.t.out...)
	c.t.out = c.t.out[:0]
	c.t.writing = true
	_, err := c.tls.Write(p)
	c.t.writing = false
	dst, c.t.dst = c.t.dst, nil
	return dst, err
}

// Flush appends ciphertext that Read left.
func (c *Conn) Flush(dst []byte) []byte {
	dst = append(dst, c.t.out...)
	c.t.out = c.t.out[:0]
	return dst
}

// CloseWrite appends a close_notify alert to dst.
func (c *Conn) CloseWrite(dst []byte) []byte {
	c.t.dst, c.t.writing = dst, true
	c.tls.CloseWrite() // fails only if it was called before
	c.t.writing = false
	dst, c.t.dst = c.t.dst, nil
	return dst
}

// transport is the net.Conn under a tls.Conn: memory.
type transport struct {
	// During the handshake, under mu.
	mu     sync.Mutex
	cond   sync.Cond
	eof    bool
	notify func()

	in, out []byte // ciphertext waiting to be read and to be sent
	direct  bool   // the handshake is over

	// After it.
	src     []byte // of the current Read
	dst     []byte // of the current Write
	writing bool
	left    bool // in is not empty
}

func (t *transport) Read(p []byte) (int, error) {
	if t.direct {
		if len(t.in) > 0 {
			n := copy(p, t.in)
			if t.in = t.in[n:]; len(t.in) == 0 {
				t.in, t.left = nil, false
			}
			return n, nil
		}
		if len(t.src) == 0 {
			return 0, ErrAgain
		}
		n := copy(p, t.src)
		t.src = t.src[n:]
		return n, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.in) == 0 {
		if t.eof {
			return 0, io.ErrUnexpectedEOF
		}
		t.cond.Wait()
	}
	n := copy(p, t.in)
	if t.in = t.in[n:]; len(t.in) == 0 {
		t.in = nil
	}
	return n, nil
}

// keep holds on to what the current Read did not use.
func (t *transport) keep() {
	if len(t.src) > 0 {
		t.in = append(t.in, t.src...)
		t.left = true
	}
	t.src = nil
}

func (t *transport) Write(p []byte) (int, error) {
	if t.direct {
		if t.writing {
			t.dst = append(t.dst, p...)
		} else {
			t.out = append(t.out, p...)
		}
		return len(p), nil
	}
	t.mu.Lock()
	t.out = append(t.out, p...)
	t.mu.Unlock()
	if t.notify != nil {
		t.notify()
	}
	return len(p), nil
}

func (t *transport) Close() error                     { return nil }
func (t *transport) LocalAddr() net.Addr              { return addr{} }
func (t *transport) RemoteAddr() net.Addr             { return addr{} }
func (t *transport) SetDeadline(time.Time) error      { return nil }
func (t *transport) SetReadDeadline(time.Time) error  { return nil }
func (t *transport) SetWriteDeadline(time.Time) error { return nil }

type addr struct{}

func (addr) Network() string { return "memory" }
func (addr) String() string  { return "memory" }
