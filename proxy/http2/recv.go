package http2

import "encoding/binary"

// badMessage are Envoy's details of a request whose parts do not make one.
const badMessage = "http2.violation.of.messaging.rule"

// streamError resets a stream because of the peer's error.
func (c *Conn) streamError(id uint32, code Code) *ConnError {
	if c.isIdle(id) {
		return &ConnError{code, "error on an idle stream"}
	}
	c.reset(id, code)
	if err := c.answer(); err != nil {
		return err
	}
	if s := c.streams[id]; s != nil {
		if err := c.countReset(s); err != nil {
			return err
		}
		s.faulty = true
		s.forget()
		c.h.OnReset(s, code, false)
	}
	return nil
}

// countReset counts a stream that ends early because of the peer. Requests that are cancelled at once
// cost us much and the client nothing, whether it resets them (CVE-2023-44487) or makes us do it by an
// error (CVE-2025-8671).
func (c *Conn) countReset(s *Stream) *ConnError {
	if c.client || s.answered {
		return nil
	}
	if c.resets--; c.resets < 0 {
		return &ConnError{EnhanceYourCalm, "too many requests cancelled before they were answered"}
	}
	return nil
}

// isIdle reports whether a stream was never opened.
func (c *Conn) isIdle(id uint32) bool {
	if c.client {
		return id%2 == 0 || id >= c.nextID
	}
	return id%2 == 0 || id > c.lastPeer
}

// unpad takes the padding off a payload.
func unpad(f frame, p []byte) ([]byte, *ConnError) {
	if f.flags&flagPadded == 0 {
		return p, nil
	}
	if len(p) == 0 {
		return nil, &ConnError{FrameSizeError, "padded frame without a pad length"}
	}
	n := int(p[0])
	if n > len(p)-1 {
		return nil, &ConnError{ProtocolError, "more padding than payload"}
	}
	return p[1 : len(p)-n], nil
}

func (c *Conn) onData(f frame, p []byte) *ConnError {
	if f.stream == 0 {
		return &ConnError{ProtocolError, "DATA on stream 0"}
	}
	if c.isIdle(f.stream) {
		return &ConnError{ProtocolError, "DATA on an idle stream"}
	}
	size := int64(f.length)
	if size > c.recvWindow {
		return &ConnError{FlowControlError, "more DATA than the connection's window"}
	}
	c.recvWindow -= size
	b, err := unpad(f, p)
	if err != nil {
		return err
	}
	s := c.streams[f.stream]
	if s == nil || s.remoteDone || !s.headCame {
		c.credit(size)
		switch {
		case s == nil && c.wasReset(f.stream):
			return nil // it was under way
		case s != nil && !s.remoteDone:
			return c.streamError(f.stream, ProtocolError) // before the response's head
		}
		return c.streamError(f.stream, StreamClosed)
	}
	if size > s.recvWindow {
		c.credit(size)
		return c.streamError(f.stream, FlowControlError)
	}
	s.recvWindow -= size
	if n := int(size) - len(b); n > 0 {
		s.giveBack(n) // nobody else gives padding back
	}
	end := f.flags&flagEnd != 0
	if s.left >= 0 {
		s.left -= int64(len(b))
		if s.left < 0 || end && s.left > 0 {
			c.credit(int64(len(b)))
			return c.streamError(f.stream, ProtocolError) // not as long as content-length says
		}
	}
	if len(b) > 0 {
		c.idle = 0
		s.unread += int64(len(b))
		c.h.OnData(s, b)
	}
	if end && s.c != nil {
		c.idle = 0
		s.remoteDone = true
		c.h.OnEnd(s, nil)
		s.settle()
	}
	return nil
}

// credit gives bytes back to the connection's window that no stream will consume.
func (c *Conn) credit(n int64) {
	c.consumed += n
	if c.consumed >= int64(c.o.ConnectionWindow)/2 {
		c.windowUpdate(0, uint32(c.consumed))
		c.recvWindow += c.consumed
		c.consumed = 0
	}
}

func (c *Conn) onHeaders(f frame, p []byte) *ConnError {
	if f.stream == 0 {
		return &ConnError{ProtocolError, "HEADERS on stream 0"}
	}
	b, err := unpad(f, p)
	if err != nil {
		return err
	}
	if f.flags&flagPriority != 0 {
		if len(b) < 5 {
			return &ConnError{FrameSizeError, "HEADERS too short for its priority"}
		}
		if binary.BigEndian.Uint32(b)&maxStreamID == f.stream {
			return &ConnError{ProtocolError, "a stream depends on itself"}
		}
		b = b[5:]
	}
	if c.client {
		if c.isIdle(f.stream) {
			return &ConnError{ProtocolError, "HEADERS on an idle stream"}
		}
	} else if f.stream%2 == 0 {
		return &ConnError{ProtocolError, "a client's stream has an even number"}
	}
	c.blockID, c.blockEnd, c.blockConts = f.stream, f.flags&flagEnd != 0, 0
	if f.flags&flagEndHeaders != 0 {
		return c.headersDone(b)
	}
	c.block = append(c.block[:0], b...)
	return c.boundBlock()
}

func (c *Conn) onContinuation(f frame, p []byte) *ConnError {
	c.blockConts++
	c.block = append(c.block, p...)
	if err := c.boundBlock(); err != nil {
		return err
	}
	if f.flags&flagEndHeaders == 0 {
		return nil
	}
	b := c.block
	err := c.headersDone(b)
	c.block = b[:0]
	if cap(b) > maxFrame {
		c.block = nil
	}
	return err
}

// boundBlock bounds a header block that goes on and on.
func (c *Conn) boundBlock() *ConnError {
	if c.blockConts > maxCont || len(c.block) > maxBlock*int(c.o.MaxHeaderBytes)+maxFrame {
		return &ConnError{EnhanceYourCalm, "header block too large"}
	}
	return nil
}

// headersDone handles a complete header block.
func (c *Conn) headersDone(b []byte) *ConnError {
	id, end := c.blockID, c.blockEnd
	c.blockID = 0
	s := c.streams[id]
	trailers := s != nil && s.headCame
	// The block is decoded whatever becomes of the stream: the tables must stay in step.
	c.head.Reset()
	v := &c.checks
	*v = validator{h: &c.head, response: c.client, trailers: trailers, maxBytes: int(c.o.MaxHeaderBytes), maxFields: int(c.o.MaxHeaders), cookie: v.cookie[:0]}
	if err := c.dec.decode(b, v); err != nil {
		return &ConnError{CompressionError, err.Error()}
	}
	if !v.bad() {
		v.finish()
	}
	switch {
	case s != nil:
	case c.client || c.wasReset(id):
		return nil // it was under way when we reset the stream
	case id <= c.lastPeer:
		return &ConnError{StreamClosed, "HEADERS on a closed stream"}
	default:
		c.idle = 0
		return c.newRequest(id, end, v)
	}
	if s.remoteDone {
		return c.streamError(id, StreamClosed)
	}
	if v.bad() || !trailers && !v.complete() || trailers && !end {
		return c.streamError(id, ProtocolError)
	}
	c.idle = 0
	if trailers {
		if s.left > 0 {
			return c.streamError(id, ProtocolError)
		}
		s.remoteDone = true
		c.h.OnEnd(s, &c.head)
		s.settle()
		return nil
	}
	return c.response(s, end, v)
}

func (c *Conn) newRequest(id uint32, end bool, v *validator) *ConnError {
	c.lastPeer = id
	if id > c.lastTaken {
		return nil // after GOAWAY: the client knows that it was not taken
	}
	if c.open >= c.o.MaxStreams {
		c.reset(id, RefusedStream)
		return c.answer()
	}
	switch {
	case v.tooLarge:
		c.reset(id, EnhanceYourCalm)
		c.h.OnRefused(&c.head, "http2.headers_too_large")
		return c.answer()
	case v.bad():
		c.reset(id, ProtocolError)
		c.h.OnRefused(&c.head, "http2.invalid.header.field")
		return c.answer()
	case !v.complete() || v.protocol && !c.o.Connect:
		c.reset(id, ProtocolError)
		c.h.OnRefused(&c.head, badMessage)
		return c.answer()
	}
	s := c.newStream(id)
	s.headCame, s.left = true, v.length
	if end {
		s.remoteDone = true
		if v.length > 0 {
			return c.streamErrorQuiet(s, ProtocolError)
		}
	}
	c.h.OnHead(s, &c.head, end)
	s.settle()
	return nil
}

// streamErrorQuiet resets a stream that the handler does not know of yet.
func (c *Conn) streamErrorQuiet(s *Stream, code Code) *ConnError {
	c.reset(s.id, code)
	s.forget()
	c.h.OnRefused(&c.head, badMessage)
	return c.answer()
}

func (c *Conn) response(s *Stream, end bool, v *validator) *ConnError {
	if v.status >= 100 && v.status < 200 {
		if end || v.status == 101 {
			return c.streamError(s.id, ProtocolError)
		}
		c.h.OnInformational(s, &c.head)
		return nil
	}
	s.headCame = true
	s.left = v.length
	if s.headRequest || v.status == 204 || v.status == 304 {
		s.left = 0
	}
	if end {
		s.remoteDone = true
		if s.left > 0 {
			return c.streamError(s.id, ProtocolError)
		}
	}
	c.h.OnHead(s, &c.head, end)
	s.settle()
	return nil
}

func (c *Conn) onReset(f frame, p []byte) *ConnError {
	if f.stream == 0 || c.isIdle(f.stream) {
		return &ConnError{ProtocolError, "RST_STREAM on an idle stream"}
	}
	if len(p) != 4 {
		return &ConnError{FrameSizeError, "RST_STREAM is not 4 bytes long"}
	}
	s := c.streams[f.stream]
	if s == nil {
		return nil
	}
	if err := c.countReset(s); err != nil {
		return err
	}
	code := Code(binary.BigEndian.Uint32(p))
	s.forget()
	c.h.OnReset(s, code, c.client && code == RefusedStream)
	return nil
}

func (c *Conn) onSettings(f frame, p []byte) *ConnError {
	if f.stream != 0 {
		return &ConnError{ProtocolError, "SETTINGS on a stream"}
	}
	if f.flags&flagAck != 0 {
		if len(p) != 0 {
			return &ConnError{FrameSizeError, "SETTINGS acknowledgement with a payload"}
		}
		// Only now does the peer keep to our window (RFC 9113, 6.5.3).
		diff := int64(c.o.StreamWindow) - c.ownWindow
		c.ownWindow += diff
		for _, s := range c.streams {
			s.recvWindow += diff
		}
		return nil
	}
	if len(p)%6 != 0 {
		return &ConnError{FrameSizeError, "SETTINGS is not a multiple of 6 bytes long"}
	}
	if len(p) > 6*maxEntries {
		return &ConnError{EnhanceYourCalm, "too many settings in a frame"}
	}
	if c.changes--; c.changes < 0 {
		return &ConnError{EnhanceYourCalm, "SETTINGS too often"}
	}
	was := c.peerWindow
	for ; len(p) > 0; p = p[6:] {
		if err := c.setting(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	if err := c.moveWindows(c.peerWindow - was); err != nil {
		return err
	}
	c.begin(0, frameSettings, flagAck, 0)
	if err := c.answer(); err != nil {
		return err
	}
	c.flush()
	return nil
}

func (c *Conn) setting(id uint16, v uint32) *ConnError {
	switch id {
	case settingHeaderTable:
		c.enc.resize(v)
	case settingPush:
		if v > 1 || v == 1 && c.client {
			return &ConnError{ProtocolError, "bad SETTINGS_ENABLE_PUSH"}
		}
	case settingMaxStreams:
		c.peerStreams = v
	case settingWindow:
		if v > maxWindow {
			return &ConnError{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE too large"}
		}
		c.peerWindow = int64(v)
	case settingMaxFrame:
		if v < maxFrame || v > 1<<24-1 {
			return &ConnError{ProtocolError, "bad SETTINGS_MAX_FRAME_SIZE"}
		}
		c.peerFrame = int(min(v, 64<<10)) // larger frames would hold other streams up
	case settingConnect:
		if v > 1 {
			return &ConnError{ProtocolError, "bad SETTINGS_ENABLE_CONNECT_PROTOCOL"}
		}
		c.peerConnect = v == 1
	}
	return nil
}

// moveWindows changes what the peer's open streams may be sent by the change of its setting.
func (c *Conn) moveWindows(diff int64) *ConnError {
	if diff == 0 {
		return nil
	}
	for _, s := range c.streams {
		if s.sendWindow += diff; s.sendWindow > maxWindow {
			return &ConnError{FlowControlError, "a stream's window grows too large"}
		}
		if s.waiting() {
			c.enqueue(s)
		}
	}
	return nil
}

func (c *Conn) onPing(f frame, p []byte) *ConnError {
	if f.stream != 0 {
		return &ConnError{ProtocolError, "PING on a stream"}
	}
	if len(p) != 8 {
		return &ConnError{FrameSizeError, "PING is not 8 bytes long"}
	}
	if f.flags&flagAck == 0 {
		c.begin(8, framePing, flagAck, 0)
		c.out = append(c.out, p...)
		return c.answer()
	}
	if c.shutting && [8]byte(p) == shutdownPing && c.lastTaken == lastOfAllIDs {
		c.lastTaken = c.lastPeer
		c.goAway(NoError, "")
		return nil
	}
	c.h.OnPong()
	return nil
}

func (c *Conn) onGoAway(f frame, p []byte) *ConnError {
	if f.stream != 0 {
		return &ConnError{ProtocolError, "GOAWAY on a stream"}
	}
	if len(p) < 8 {
		return &ConnError{FrameSizeError, "GOAWAY is too short"}
	}
	c.goneAway = true
	last := binary.BigEndian.Uint32(p) & maxStreamID
	code := Code(binary.BigEndian.Uint32(p[4:]))
	c.h.OnGoAway(code, string(p[8:min(len(p), 8+256)]))
	if !c.client {
		return nil
	}
	var refused []*Stream
	for id, s := range c.streams {
		if id > last {
			refused = append(refused, s)
		}
	}
	for _, s := range refused {
		if s.c != nil {
			s.forget()
			c.h.OnReset(s, RefusedStream, true)
		}
	}
	return nil
}

func (c *Conn) onWindow(f frame, p []byte) *ConnError {
	if len(p) != 4 {
		return &ConnError{FrameSizeError, "WINDOW_UPDATE is not 4 bytes long"}
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if f.stream == 0 {
		if n == 0 {
			return &ConnError{ProtocolError, "WINDOW_UPDATE by 0"}
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return &ConnError{FlowControlError, "the connection's window grows too large"}
		}
		c.flush()
		return nil
	}
	if c.isIdle(f.stream) {
		return &ConnError{ProtocolError, "WINDOW_UPDATE on an idle stream"}
	}
	s := c.streams[f.stream]
	if s == nil {
		return nil
	}
	if n == 0 {
		return c.streamError(f.stream, ProtocolError)
	}
	if s.sendWindow += n; s.sendWindow > maxWindow {
		return c.streamError(f.stream, FlowControlError)
	}
	if s.waiting() {
		c.enqueue(s)
		c.flush()
	}
	return nil
}
