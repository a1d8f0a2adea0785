package http2

import (
	"strings"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// Stream is one request and its response. Its methods do nothing once it is over.
type Stream struct {
	// User is the owner's.
	User any

	c  *Conn // nil: over
	id uint32

	headCame    bool  // the peer's head
	remoteDone  bool  // the peer's side has ended
	localDone   bool  // ours has
	answered    bool  // our head was sent
	faulty      bool  // the peer made an error on it
	headRequest bool  // HEAD: the response has no body
	left        int64 // of content-length to come; -1: not known

	sendWindow, recvWindow int64
	unread                 int64 // given to OnData and not Consumed
	consumed               int64 // and not yet given back

	pending  []byte // held back
	sent     int    // of pending
	end      bool   // the end comes after pending
	deaf     bool   // nothing more of the peer is wanted once our side has ended
	trailers *header.Header
	queued   bool // in the connection's list
	seen     int  // Pending at the last Expire
	still    int  // calls of Expire since it changed
	next     *Stream
}

// ID returns the stream's number.
func (s *Stream) ID() uint32 { return s.id }

// Over reports whether nothing more can happen on the stream.
func (s *Stream) Over() bool { return s.c == nil }

// Faulty reports whether the stream has ended because of an error of the peer's.
func (s *Stream) Faulty() bool { return s.faulty }

// Pending returns the bytes that are held back, by windows or because much waits to be taken.
func (s *Stream) Pending() int { return len(s.pending) - s.sent }

// SendHead sends a request's or final response's head; end says that nothing follows.
func (s *Stream) SendHead(h *header.Header, end bool) {
	if s.c == nil || s.localDone {
		return
	}
	s.answered = true
	if s.c.client {
		m, _ := h.Header(":method")
		s.headRequest = m == "HEAD"
	}
	s.headers(h, end)
	if end {
		s.localDone = true
		s.settle()
	}
}

// SendInformational sends a 1xx response.
func (s *Stream) SendInformational(h *header.Header) {
	if s.c != nil && !s.localDone {
		s.headers(h, false)
	}
}

// skip are fields of HTTP/1 that HTTP/2 has no use for (RFC 9113, 8.2.2).
func skip(name, value string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "http2-settings":
		return true
	case "te":
		return value != "trailers"
	}
	return false
}

// headers encodes h into HEADERS and, where it is large, CONTINUATION frames.
func (s *Stream) headers(h *header.Header, end bool) {
	c := s.c
	start := len(c.out)
	c.begin(0, frameHeaders, 0, s.id)
	c.out = c.enc.begin(c.out)
	for _, p := range [...]string{":status", ":method", ":scheme", ":authority", ":path"} {
		if v, ok := h.Header(p); ok {
			c.out = c.enc.field(c.out, p, v)
		}
	}
	if s.extended(h) {
		c.out = c.enc.field(c.out, ":protocol", h.First("upgrade"))
	}
	for i := range h.Len() {
		name, value := h.At(i)
		if !skip(name, value) {
			c.out = c.enc.field(c.out, name, value)
		}
	}
	flags := uint8(0)
	if end {
		flags = flagEnd
	}
	c.frameBlock(start, flags, s.id)
}

// extended reports whether a client's head is an extended CONNECT.
func (s *Stream) extended(h *header.Header) bool {
	if !s.c.client || !h.Has("upgrade") {
		return false
	}
	m, _ := h.Header(":method")
	return strings.EqualFold(m, "CONNECT")
}

// frameBlock fills in the frame header at start, and cuts the block behind it into frames.
func (c *Conn) frameBlock(start int, flags uint8, id uint32) {
	n := len(c.out) - start - frameHeader
	if n <= c.peerFrame {
		appendFrame(c.out[:start], n, frameHeaders, flags|flagEndHeaders, id)
		return
	}
	block := append([]byte(nil), c.out[start+frameHeader:]...)
	c.out = c.out[:start]
	kind := frameHeaders
	for len(block) > 0 {
		m := min(len(block), c.peerFrame)
		if m == len(block) {
			flags |= flagEndHeaders
		}
		c.begin(m, kind, flags, id)
		c.out = append(c.out, block[:m]...)
		block = block[m:]
		kind, flags = frameContinuation, 0
	}
}

// SendData sends a part of the body. What cannot go now is kept; see Pending and OnWritable.
func (s *Stream) SendData(b []byte) {
	if s.c == nil || s.localDone || s.end || len(b) == 0 {
		return
	}
	if s.Pending() == 0 {
		b = b[s.put(b):]
	}
	if len(b) > 0 {
		s.hold(b)
	}
}

// SendEnd ends the body, with trailers or nil.
func (s *Stream) SendEnd(trailers *header.Header) {
	if s.c == nil || s.localDone || s.end {
		return
	}
	s.end = true
	if s.Pending() > 0 {
		if trailers != nil {
			s.trailers = &header.Header{}
			s.trailers.CopyFrom(trailers)
		}
		return
	}
	s.finish(trailers)
}

// finish puts the end out.
func (s *Stream) finish(trailers *header.Header) {
	s.localDone = true
	if trailers != nil && trailers.Len() > 0 {
		s.headers(trailers, true)
	} else {
		s.c.begin(0, frameData, flagEnd, s.id)
	}
	if s.deaf && !s.remoteDone {
		s.Reset(NoError)
		return
	}
	s.settle()
}

// put puts as much of b out as windows and room allow and returns how much that was.
func (s *Stream) put(b []byte) int {
	c := s.c
	done := 0
	for done < len(b) && len(c.out) < maxOut {
		n := min(int64(len(b)-done), s.sendWindow, c.sendWindow, int64(c.peerFrame))
		if n <= 0 {
			break
		}
		c.begin(int(n), frameData, 0, s.id)
		c.out = append(c.out, b[done:done+int(n)]...)
		s.sendWindow -= n
		c.sendWindow -= n
		c.idle = 0
		done += int(n)
	}
	return done
}

// hold keeps b until it can go.
func (s *Stream) hold(b []byte) {
	was := cap(s.pending)
	if s.pending == nil {
		s.pending = s.c.o.Buffer()
		was = 0
	}
	s.pending = append(s.pending, b...)
	s.c.held += cap(s.pending) - was
	if s.sendWindow > 0 {
		s.c.enqueue(s) // its own window does not hold it back
	}
}

// drop ends the use of pending.
func (s *Stream) drop(c *Conn) {
	if s.pending != nil {
		c.held -= cap(s.pending)
		c.o.Recycle(s.pending)
		s.pending, s.sent = nil, 0
	}
}

// waiting reports whether the stream has something that its own window allows now.
func (s *Stream) waiting() bool { return s.Pending() > 0 && s.sendWindow > 0 }

// enqueue makes s wait for the connection's window or for room, behind the others.
func (c *Conn) enqueue(s *Stream) {
	if s.queued {
		return
	}
	s.queued, s.next = true, nil
	if c.tail == nil {
		c.blocked = s
	} else {
		c.tail.next = s
	}
	c.tail = s
}

func (c *Conn) dequeue() *Stream {
	s := c.blocked
	if c.blocked = s.next; c.blocked == nil {
		c.tail = nil
	}
	s.queued, s.next = false, nil
	return s
}

// flush puts out what windows and room allow, a frame of each stream in turn.
func (c *Conn) flush() {
	for c.blocked != nil && c.sendWindow > 0 && len(c.out) < maxOut && c.err == nil {
		s := c.dequeue()
		if s.c == nil || !s.waiting() {
			continue
		}
		b := s.pending[s.sent:]
		s.sent += s.put(b[:min(len(b), c.peerFrame)])
		switch {
		case s.waiting():
			c.enqueue(s)
		case s.Pending() == 0:
			s.drop(c)
			if s.end {
				s.finish(s.trailers)
			} else {
				c.h.OnWritable(s)
			}
		}
	}
}

// Consumed gives n bytes of OnData back to the windows.
func (s *Stream) Consumed(n int) {
	if s.c == nil {
		return
	}
	s.unread = max(s.unread-int64(n), 0)
	s.giveBack(n)
}

func (s *Stream) giveBack(n int) {
	s.c.credit(int64(n))
	s.consumed += int64(n)
	if !s.remoteDone && s.consumed >= int64(s.c.o.StreamWindow)/2 {
		s.c.windowUpdate(s.id, uint32(s.consumed))
		s.recvWindow += s.consumed
		s.consumed = 0
	}
}

// Reset ends the stream early. The handler is not told.
func (s *Stream) Reset(code Code) {
	if s.c == nil {
		return
	}
	s.c.reset(s.id, code)
	s.forget()
}

// Ignore resets the stream without an error once all that was given to it has been put out, the end
// too: a server wants nothing more of a request that it has answered (RFC 9113, 8.1).
func (s *Stream) Ignore() {
	if s.localDone {
		s.Reset(NoError)
	}
	s.deaf = true
}

// settle forgets the stream if both sides have ended.
func (s *Stream) settle() {
	if s.c != nil && s.localDone && s.remoteDone {
		s.forget()
	}
}

// forget ends the stream here.
func (s *Stream) forget() {
	c := s.c
	if c == nil {
		return
	}
	if s.unread > 0 {
		c.credit(s.unread) // nobody will consume it
		s.unread = 0
	}
	s.c = nil
	s.drop(c)
	s.trailers = nil
	delete(c.streams, s.id)
	c.open--
}
