package proxy

import (
	"context"
	"errors"
	"io"

	"github.com/carrick-mesh/carrick/proxy/loop"
	"github.com/carrick-mesh/carrick/proxy/tlsconn"
)

// handshake makes c a TLS connection; done is called when that has succeeded or failed, unless
// c fails or is closed before. first is ciphertext that was read already.
func (c *conn) handshake(t *tlsconn.Conn, first []byte, done func(error)) {
	c.tls, c.handshaking, c.hsDone = t, true, done
	w := c.w
	t.Feed(first)
	started := w.p.spawn(func(ctx context.Context) {
		output := c.guarded(c.handshakeOutput)
		err := w.p.calm(func() error { return t.Handshake(ctx, func() { w.loop.Post(output) }) })
		w.loop.Post(c.guarded(func() { c.handshakeEnd(err); c.measure() }))
	})
	if !started {
		c.fail(errStopped)
		return
	}
	if c.readable {
		c.feed()
	}
}

func (c *conn) feed() {
	for c.readable && c.early < maxEarly {
		n, e := loop.Read(c.fd, c.w.cin)
		b, err := c.got(c.w.cin, n, e)
		if errors.Is(err, io.EOF) {
			c.tls.Abort() // what has come may still be enough; afterwards the end is read again
			return
		}
		if err != nil {
			c.fail(err)
			return
		}
		c.early += len(b)
		c.tls.Feed(b)
	}
}

func (c *conn) handshakeOutput() {
	if c.closed {
		return
	}
	c.wire = c.tls.Output(c.wire)
	c.writeWire()
}

// writeWire writes what waits as ciphertext.
func (c *conn) writeWire() {
	if c.blocked || len(c.wire) == c.off {
		return
	}
	n, e := loop.Write(c.fd, c.wire[c.off:])
	c.off += n
	switch {
	case e == loop.Again:
		c.blocked = true
	case e != 0:
		c.broken(e)
	default:
		c.wire, c.off = c.wire[:0], 0
	}
}

func (c *conn) handshakeEnd(err error) {
	if c.closed {
		return
	}
	c.handshakeOutput() // also the alert
	if c.closed {
		return
	}
	c.handshaking = false
	if err != nil {
		c.hsDone(err)
		return
	}
	c.tls.Start()
	c.peek = true
	if len(c.wire) == 0 {
		c.wire = nil
	}
	c.hsDone(nil)
	if !c.closed {
		c.mark()
		c.readable = true
		c.again()
	}
}
