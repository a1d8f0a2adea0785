package proxy

import (
	"io"
	"net/netip"
	"syscall"

	"github.com/carrick-mesh/carrick/proxy/loop"
	"github.com/carrick-mesh/carrick/proxy/tlsconn"
)

const (
	// highWater is how many bytes may wait for a connection before whoever fills it should stop.
	highWater = 64 << 10
	// direct is from how many bytes on a write skips the output buffer.
	direct = 8 << 10
	// maxEarly is how much ciphertext is read before the TLS handshake is done; the client's first
	// data may follow its last handshake message at once.
	maxEarly = 128 << 10
)

// user is what a connection is used for. Its methods are called on the loop's goroutine.
type user interface {
	// onRead says that bytes may be read. It is also called for a turn asked for with again.
	onRead()
	// onWrite says that the output, which was full, is empty, or that the connection is made.
	onWrite()
	// onFail says that the connection failed; it is closed.
	onFail(err error)
	// holds returns how many bytes it keeps beside the connection's.
	holds() int
}

// source has output that is collected when it is sent: HTTP/2 has all streams' in one.
type source interface {
	// Take appends output to dst, or gives a buffer of its own away if that is nil; nothing if no
	// more is to be sent now.
	Take(dst []byte) []byte
	// Queued returns how many bytes Take would give.
	Queued() int
	// Size returns how many bytes it holds.
	Size() int
	// Drained says that all that Take gave is with the kernel.
	Drained()
}

// conn is a TCP connection of one worker, plaintext or TLS. It knows how bytes get to and from
// the socket, not what they mean.
type conn struct {
	w    *worker
	fd   int
	user user
	tls  *tlsconn.Conn

	out  []byte // not yet encrypted; flushed after the batch
	src  source // more output, taken at each flush; may be nil
	wire []byte // what the socket had no room for, from off on
	off  int

	local, remote netip.AddrPort
	host          *host // of an upstream connection, which counts there until it is closed
	size          int   // its part of the worker's account
	streams       int   // the parts of its requests
	early         int   // bytes fed to the handshake
	high          int   // highWater, or less: per_connection_buffer_limit_bytes

	connected   bool // false while connecting
	handshaking bool
	peek        bool // TLS may hold plaintext without having got new ciphertext
	readable    bool // the kernel may hold unread bytes
	hup         bool // the kernel announced the end of the stream
	small       bool // little is to be read at once
	blocked     bool // the socket is full
	full        bool // output went over high; onWrite is due
	dirty       bool // among the worker's dirty connections
	finish      bool // send FIN when the output is empty
	finished    bool // FIN sent
	closing     bool // close when the output is empty
	closed      bool
	heard       bool // plaintext has come
	readErr     error
	failure     error // of the socket, told when what came before it has been read
	writeErr    error // the next flush fails the connection; never in the middle of a write
	hsDone      func(error)
}

func (w *worker) newConn(fd int, remote netip.AddrPort, u user) (*conn, error) {
	c := &conn{w: w, fd: fd, user: u, remote: remote, high: highWater}
	if err := w.loop.Watch(fd, c); err != nil {
		loop.CloseFD(fd)
		return nil, err
	}
	w.conns[c] = struct{}{}
	c.measure()
	return c, nil
}

// Ready implements loop.Handler.
func (c *conn) Ready(ev loop.Events) {
	defer c.w.guard(c)
	c.ready(ev)
	c.measure()
}

func (c *conn) ready(ev loop.Events) {
	if ev == 0 {
		c.user.onRead()
		return
	}
	if !c.connected {
		if ev&(loop.Err|loop.Hup) != 0 {
			err := loop.Failure(c.fd)
			if err == nil {
				err = syscall.ECONNREFUSED
			}
			c.fail(err)
			return
		}
		if ev&loop.Out == 0 {
			return
		}
		c.connected = true
		c.local = loop.LocalAddr(c.fd)
		c.user.onWrite()
		if c.closed {
			return
		}
		if ev&(loop.In|loop.RdHup) == 0 {
			return
		}
	}
	if ev&loop.Err != 0 {
		err := loop.Failure(c.fd)
		if err == nil {
			err = syscall.ECONNRESET
		}
		c.ends(err)
		return
	}
	if ev&(loop.In|loop.RdHup|loop.Hup) != 0 {
		c.readable = true
		c.hup = c.hup || ev&(loop.RdHup|loop.Hup) != 0
	}
	if ev&loop.Out != 0 && c.blocked {
		c.blocked = false
		c.flush()
		if c.closed {
			return
		}
	}
	if c.readable {
		if c.handshaking {
			c.feed()
		} else {
			c.user.onRead()
		}
	}
}

// ends fails c once its user has had what came before the end: an answer, or an alert.
func (c *conn) ends(err error) {
	if !c.handshaking && !c.closed {
		c.suspectIf(err)
		c.failure, c.readable = err, true
		c.user.onRead()
	}
	c.fail(err)
}

// fail closes c and tells its user.
func (c *conn) fail(err error) {
	if c.closed {
		return
	}
	if c.handshaking {
		c.tls.Abort()
	}
	c.suspectIf(err)
	c.close()
	c.user.onFail(err)
}

// read returns plaintext that has come, good until the worker's next read: nothing without an
// error if there is none, io.EOF at the end.
func (c *conn) read() ([]byte, error) {
	w := c.w
	if c.tls == nil {
		b := c.room(w.in)
		n, e := loop.Read(c.fd, b)
		return c.got(b, n, e)
	}
	if c.readErr != nil {
		c.readable = false
		return nil, c.readErr
	}
	plain, in := c.room(w.in), c.room(w.cin)
	for {
		var cipher []byte
		if !c.peek && !c.tls.Buffered() {
			n, e := loop.Read(c.fd, in)
			b, err := c.got(in, n, e)
			if err != nil || len(b) == 0 {
				return nil, err
			}
			cipher = b
		}
		c.peek = false
		n, err := c.tls.Read(cipher, plain)
		c.heard = c.heard || n > 0
		if err != nil && err != tlsconn.ErrAgain {
			c.suspectIf(err)
			c.mark() // an alert may be waiting
			c.readErr, c.readable = err, n > 0
		} else if n == len(plain) {
			c.readable, c.peek = true, true
		}
		if n > 0 {
			return plain[:n], nil
		}
		if c.readErr != nil || !c.readable {
			return nil, c.readErr
		}
	}
}

// got interprets the result of a read from the socket. A short read has drained it: the next
// edge will tell, unless the kernel has already told of the end.
func (c *conn) got(buf []byte, n int, e syscall.Errno) ([]byte, error) {
	switch {
	case e == loop.Again:
		c.readable = false
		return nil, nil
	case e != 0:
		c.readable = false
		return nil, e
	case n == 0:
		c.readable = false
		if c.failure != nil {
			return nil, c.failure
		}
		return nil, io.EOF
	}
	if n < len(buf) {
		c.readable = c.hup
	}
	return buf[:n], nil
}

// again asks for another onRead after other connections had their turn.
func (c *conn) again() { c.w.loop.Again(c.fd) }

// write sends b, at the latest after the current batch of events. b is not kept.
func (c *conn) write(b []byte) {
	if c.closed || c.finish || c.writeErr != nil || len(b) == 0 {
		return
	}
	if len(b) >= direct && c.src == nil && c.connected && !c.handshaking && !c.blocked && len(c.wire) == 0 {
		if len(c.out) == 0 {
			c.send(b)
		} else {
			c.sendAfterOut(b)
		}
		return
	}
	if c.out == nil {
		c.out = c.w.buf()
	}
	c.out = append(c.out, b...)
	c.mark()
}

// idle reports whether b could go straight to the socket.
func (c *conn) idle() bool {
	return c.connected && !c.handshaking && !c.blocked && len(c.out) == 0 && len(c.wire) == 0
}

// buffer returns the output buffer to append to; put it back with setBuffer.
func (c *conn) buffer() []byte {
	if c.out == nil {
		return c.w.buf()
	}
	return c.out
}

func (c *conn) setBuffer(b []byte) {
	if c.closed || c.finish {
		c.w.recycle(b)
		return
	}
	c.out = b
	c.mark()
}

func (c *conn) mark() {
	if !c.dirty && !c.closed {
		c.dirty = true
		c.w.dirty = append(c.w.dirty, c)
	}
}

// limit lets less than highWater wait.
func (c *conn) limit(bytes uint32) { c.high = min(highWater, int(bytes)) }

// isFull reports whether enough is waiting; if so onWrite will come.
func (c *conn) isFull() bool {
	c.full = c.full || c.waiting() > c.high
	return c.full
}

// waiting returns how many bytes of output are not with the kernel.
func (c *conn) waiting() int {
	n := len(c.out) + len(c.wire) - c.off
	if c.src != nil {
		n += c.src.Queued()
	}
	return n
}

// flush writes what waits. It may fail the connection.
func (c *conn) flush() {
	if c.writeErr != nil {
		c.ends(c.writeErr)
		return
	}
	if c.handshaking {
		c.writeWire()
		return
	}
	if c.closed || !c.connected || c.blocked {
		return
	}
	if len(c.wire) > 0 {
		n, e := loop.Write(c.fd, c.wire[c.off:])
		c.off += n
		if e == loop.Again {
			c.blocked = true
			return
		}
		if e != 0 {
			c.broken(e)
			return
		}
		c.w.recycle(c.wire)
		c.wire, c.off = nil, 0
	}
	for {
		if c.src != nil {
			c.out = c.src.Take(c.out)
		}
		out := c.out
		if len(out) == 0 {
			break
		}
		c.out = nil
		ok := c.send(out)
		c.w.recycle(out)
		if !ok {
			return
		}
	}
	if c.tls != nil {
		if b := c.tls.Flush(c.w.cout[:0]); len(b) > 0 && !c.put(b) {
			return
		}
	}
	if c.src != nil {
		c.src.Drained()
	}
	c.emptied()
}

// send encrypts if need be and writes b; false if not all has gone. Nothing may be waiting.
func (c *conn) send(b []byte) bool {
	if c.tls == nil {
		return c.put(b)
	}
	out, err := c.tls.Write(c.w.cout[:0], b)
	if cap(out) <= maxKeep {
		c.w.cout = out
	}
	if err != nil {
		c.broken(err)
		return false
	}
	return c.put(out)
}

// sendAfterOut is send for what waits and b, which is not copied behind it.
func (c *conn) sendAfterOut(b []byte) {
	out := c.out
	c.out = nil
	defer c.w.recycle(out)
	if c.tls != nil {
		enc, err := c.tls.Write(c.w.cout[:0], out)
		if err == nil {
			enc, err = c.tls.Write(enc, b)
		}
		if cap(enc) <= maxKeep {
			c.w.cout = enc
		}
		if err != nil {
			c.broken(err)
			return
		}
		c.put(enc)
		return
	}
	n, e := loop.WriteBoth(c.fd, out, b)
	switch {
	case e != 0 && e != loop.Again:
		c.broken(e)
	case n >= len(out):
		if b = b[n-len(out):]; len(b) > 0 {
			c.put(b)
		}
	default:
		c.put(append(out[n:], b...))
	}
}

// put writes b to the socket and keeps what it has no room for.
func (c *conn) put(b []byte) bool {
	n, e := loop.Write(c.fd, b)
	if e == 0 {
		return true
	}
	if e != loop.Again {
		c.broken(e)
		return false
	}
	c.wire, c.off = append(c.w.buf(), b[n:]...), 0
	c.blocked = true
	return false
}

// broken lets the next flush fail the connection.
func (c *conn) broken(err error) {
	c.writeErr = err
	c.mark()
}

// emptied does what was to be done once all output has gone.
func (c *conn) emptied() {
	if c.closing {
		c.close()
		return
	}
	if c.finish && !c.finished {
		c.finished = true
		if c.tls != nil {
			if b := c.tls.CloseWrite(c.w.cout[:0]); !c.put(b) {
				return
			}
		}
		loop.CloseWrite(c.fd)
	}
	if c.full {
		c.full = false
		c.user.onWrite()
	}
}

// isBlocked is isFull for connections with a source, of which nothing is taken while the socket
// is full.
func (c *conn) isBlocked() bool {
	c.full = c.full || c.blocked
	return c.isFull()
}

// closeWrite sends the end of the stream after what waits.
func (c *conn) closeWrite() {
	if !c.finish && !c.closed {
		c.finish = true
		c.mark()
	}
}

func (c *conn) close() {
	if c.closed {
		return
	}
	c.closed = true
	delete(c.w.conns, c)
	c.uncount()
	if c.handshaking {
		c.tls.Abort()
	}
	if l, ok := c.user.(*lingerer); ok {
		l.timer.Stop()
	}
	c.w.account.set(&c.size, 0)
	c.w.recycle(c.out)
	c.w.recycle(c.wire)
	c.out, c.wire, c.off = nil, nil, 0
	c.w.loop.Close(c.fd)
}
