package proxy

import (
	"math"
	"time"

	"github.com/carrick-mesh/carrick/proxy/loop"
)

// closeAfter closes c once its output has gone, or when the peer has taken nothing of it for a second.
func (c *conn) closeAfter() {
	if c.closed || c.closing {
		return
	}
	c.closing = true
	c.leaveOpen()
	c.mark()
}

// linger sends the end of the stream after what waits and then reads, for a second at most, what
// the peer is still sending: closing at once would reset the connection, and the answer with it.
func (c *conn) linger() {
	if c.closed {
		return
	}
	c.leaveOpen()
	c.closeWrite()
	if c.readable {
		c.again()
	}
}

// leaveOpen gives c to a lingerer.
func (c *conn) leaveOpen() {
	l := &lingerer{c: c, left: math.MaxInt}
	l.timer.Fire = c.guarded(l.onTimer)
	c.user = l
	c.w.loop.Arm(&l.timer, time.Second)
}

// lingerer closes a connection when its peer has taken nothing for a second.
type lingerer struct {
	c     *conn
	timer loop.Timer
	left  int // bytes that the peer did not have a second ago
}

func (l *lingerer) onTimer() {
	if n := l.c.waiting() + loop.Unacknowledged(l.c.fd); n > 0 && n < l.left {
		l.left = n
		l.c.w.loop.Arm(&l.timer, time.Second)
		return
	}
	l.c.close()
}

func (l *lingerer) onRead() {
	for l.c.readable && !l.c.closed {
		if _, err := l.c.read(); err != nil {
			l.c.closing = true // once the output has gone
			l.c.mark()
			return
		}
	}
}
func (l *lingerer) onWrite() {}
func (l *lingerer) onFail(error) {
	l.timer.Stop()
	l.c.close()
}
