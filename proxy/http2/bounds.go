package http2

// full reports whether so much output waits that a server handles no further frame: each may want an
// answer, and a peer that does not read would fill our memory. Only the peer's reading helps, so frames
// that open windows may wait with the others. A client goes on: what it is sent it has asked for, and two
// proxies that both waited for the other to read would wait for ever.
func (c *Conn) full() bool { return !c.client && len(c.out) >= maxOut }

// pause keeps b for Resume if output is full.
func (c *Conn) pause(b []byte) bool {
	if len(b) == 0 || len(c.rest) == 0 && !c.full() {
		return false
	}
	if c.rest == nil {
		c.rest = c.o.Buffer()
	}
	c.rest = append(c.rest, b...)
	return true
}

// Paused reports whether a part of what was fed waits until output is taken. Then Feed only keeps what
// it gets: the owner reads no more from the peer, and calls Resume once the output has gone.
func (c *Conn) Paused() bool { return len(c.rest) > 0 }

// Resume handles what waits; it is Feed in all else.
func (c *Conn) Resume() error {
	rest := c.rest
	c.rest = nil
	err := c.Feed(rest)
	if rest != nil {
		c.o.Recycle(rest)
	}
	return err
}

// Size returns how many bytes the connection holds: input that is not handled, a header block that is
// not complete, output, and what windows hold back.
func (c *Conn) Size() int {
	const stream = 256 // of a Stream and its place in the table
	return cap(c.in) + cap(c.rest) + cap(c.block) + cap(c.out) + c.held + c.head.Memory() + stream*len(c.streams)
}

// Block returns the stream of a header block that has begun and is not complete; 0: there is none.
// Until it is complete the peer may send nothing else.
func (c *Conn) Block() uint32 { return c.blockID }

// Expire resets the streams of which only the last bytes are left to send and the peer's windows have
// let none of them go since so many calls. The handler, for which they are over, is not told. It reports
// whether there were any.
func (c *Conn) Expire(calls int) (some bool) {
	if c.held == 0 || c.err != nil {
		return false
	}
	for _, s := range c.streams {
		n := s.Pending()
		switch {
		case !s.end || n == 0:
			s.seen, s.still = 0, 0
		case n != s.seen:
			s.seen, s.still = n, 0
		default:
			if s.still++; s.still >= calls {
				s.Reset(Cancel)
				some = true
			}
		}
	}
	return some
}
