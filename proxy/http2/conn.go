// Package http2 speaks HTTP/2 (RFC 9113) and HPACK (RFC 7541) over byte slices: it takes what came
// from a connection, tells its owner what that means, and has bytes to be sent. It knows no sockets
// and no clocks, and not what a request is for.
package http2

import (
	"encoding/binary"
	"slices"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// Handler is told what happens on a connection. Its methods may call back into the connection and
// its streams.
type Handler interface {
	// OnHead is a request's head at a server, a final response's at a client. The handler may take
	// h's content, by exchanging it for that of another Header. At a server, s is new.
	OnHead(s *Stream, h *header.Header, end bool)
	// OnInformational is a 1xx response at a client.
	OnInformational(s *Stream, h *header.Header)
	// OnData is a part of the body, good during the call. It uses up the windows until Consumed is
	// called.
	OnData(s *Stream, b []byte)
	// OnEnd is the end of the body after OnHead or OnData, with trailers or nil.
	OnEnd(s *Stream, trailers *header.Header)
	// OnReset says that a stream has ended early: by the peer, or here because of the peer's error.
	// Nothing more happens on it. unprocessed is true if the peer says that it did nothing with the
	// request, which can be sent again.
	OnReset(s *Stream, code Code, unprocessed bool)
	// OnRefused says that a request was reset that is not one: malformed, or too large, as details (Envoy's)
	// say. h is what was understood of it.
	OnRefused(h *header.Header, details string)
	// OnWritable says that all that was given to a stream has been put out.
	OnWritable(s *Stream)
	// OnGoAway says that the peer takes no new streams. OnReset follows for those that it refuses.
	OnGoAway(code Code, debug string)
	// OnPong answers Ping.
	OnPong()
}

// Options of a connection. The zero value is fit for tests.
type Options struct {
	MaxStreams       uint32 // that a client may have open; default 100
	StreamWindow     uint32 // for what we receive; default 65535
	ConnectionWindow uint32 // default, and least, 65535
	HeaderTable      uint32 // of the decoder; default 4096
	MaxHeaderBytes   uint32 // of a head, names and values and 32 bytes for each field; default 60 KiB
	MaxHeaders       uint32 // fields of a head; default 100
	Connect          bool   // a server takes extended CONNECT (RFC 8441)

	// Buffer lends an empty buffer for output, Recycle takes back one that is no longer used: by
	// default the garbage collector's. What Take gives away is the caller's to recycle.
	Buffer  func() []byte
	Recycle func([]byte)
}

// maxOut is from how many bytes on that wait to be taken no more DATA is put out: it stays with its
// streams, which have their turns as Take makes room.
const maxOut = 80 << 10

// Limits on what a peer may cost us.
const (
	maxControl  = 1000   // answers to control frames that wait to be sent
	maxIdle     = 10_000 // frames in a row that bring nothing on: empty DATA, PRIORITY, WINDOW_UPDATE, …
	firstResets = 200    // requests that a client may cancel before they are answered, to begin with
	maxBlock    = 2      // a header block's size, as a multiple of MaxHeaderBytes
	maxCont     = 64     // CONTINUATION frames of a block
	maxLate     = 128    // streams that we reset and remember
	maxEntries  = 32     // settings of a frame
	maxChanges  = 100    // SETTINGS frames in a second: each may change the windows of all streams
)

// Conn is one connection. Not for concurrent use.
type Conn struct {
	client bool
	o      Options
	h      Handler
	in     []byte // an incomplete frame
	rest   []byte // what came after the output was full
	out    []byte
	held   int        // bytes that streams hold back, by the capacity of their buffers
	err    *ConnError // final

	preface  int  // bytes of the preface still to come
	settings bool // the peer's first SETTINGS has come

	enc    *encoder
	dec    decoder
	head   header.Header
	checks validator // of head

	streams  map[uint32]*Stream
	nextID   uint32 // of our next stream, at a client
	lastPeer uint32 // highest stream of a client, at a server
	open     uint32 // streams of the peer (server) or of ours (client)

	// A header block that is not complete.
	block      []byte
	blockID    uint32 // 0: none
	blockEnd   bool   // END_STREAM
	blockConts int

	// What the peer allows.
	sendWindow    int64 // of the connection
	peerWindow    int64 // of a new stream
	peerStreams   uint32
	peerFrame     int
	peerConnect   bool
	goneAway      bool    // the peer takes no new streams
	shutting      bool    // we take no new streams
	lastTaken     uint32  // the highest stream that we said we would take
	blocked, tail *Stream // waiting for the connection's window or for room in out, in order

	ownWindow  int64 // of a new stream, for what we receive: as the peer knows it
	recvWindow int64 // of the connection: what the peer may still send
	consumed   int64 // and not yet given back

	control, idle, resets int
	changes               int      // of settings, that are left for this second
	late                  []uint32 // streams that we reset, a ring: their frames may be under way
	lateAt                int
}

// NewServer returns the server's side of a connection. Its settings are to be sent at once.
func NewServer(o Options, h Handler) *Conn {
	c := newConn(o, h)
	c.preface = len(Preface)
	c.hello()
	return c
}

// NewClient returns the client's side of a connection. Its preface and settings are to be sent at
// once; streams may be opened before the server has answered.
func NewClient(o Options, h Handler) *Conn {
	c := newConn(o, h)
	c.client, c.nextID = true, 1
	c.out = append(c.o.Buffer(), Preface...)
	c.hello()
	return c
}

func newConn(o Options, h Handler) *Conn {
	def := func(v *uint32, d uint32) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.MaxStreams, 100)
	def(&o.StreamWindow, firstWindow)
	def(&o.ConnectionWindow, firstWindow)
	def(&o.HeaderTable, 4096)
	def(&o.MaxHeaderBytes, 60<<10)
	def(&o.MaxHeaders, 100)
	if o.Buffer == nil {
		o.Buffer, o.Recycle = func() []byte { return nil }, func([]byte) {}
	}
	o.StreamWindow = min(o.StreamWindow, maxWindow)
	o.ConnectionWindow = min(max(o.ConnectionWindow, firstWindow), maxWindow)
	return &Conn{
		o: o, h: h, enc: newEncoder(), streams: map[uint32]*Stream{},
		dec:        decoder{limit: int(o.HeaderTable), table: table{max: 4096}},
		sendWindow: firstWindow, peerWindow: firstWindow, peerStreams: 100, peerFrame: maxFrame,
		recvWindow: firstWindow, ownWindow: firstWindow, resets: firstResets, changes: maxChanges, lastTaken: lastOfAllIDs,
	}
}

// hello puts our settings out.
func (c *Conn) hello() {
	var b []byte
	if c.client {
		b = appendSetting(b, settingPush, 0)
	} else {
		b = appendSetting(b, settingMaxStreams, c.o.MaxStreams)
		if c.o.Connect {
			b = appendSetting(b, settingConnect, 1)
		}
	}
	if c.o.HeaderTable != 4096 {
		b = appendSetting(b, settingHeaderTable, c.o.HeaderTable)
	}
	if c.o.StreamWindow != firstWindow {
		b = appendSetting(b, settingWindow, c.o.StreamWindow)
	}
	b = appendSetting(b, settingMaxHeaderList, c.o.MaxHeaderBytes)
	c.begin(len(b), frameSettings, 0, 0)
	c.out = append(c.out, b...)
	if more := c.o.ConnectionWindow - firstWindow; more > 0 {
		c.windowUpdate(0, more)
		c.recvWindow += int64(more)
	}
}

// Take appends the bytes that are to be sent to dst; if that is nil it gives its buffer away. Call it
// after Feed, after Open, and after whatever was done to streams, until there is nothing more: what
// waited for room is put out then, which may be told by OnWritable.
func (c *Conn) Take(dst []byte) []byte {
	if dst == nil {
		dst, c.out = c.out, nil
	} else {
		dst = append(dst, c.out...)
		c.out = c.out[:0]
	}
	c.flush()
	return dst
}

// Queued returns how many bytes the next Take will give.
func (c *Conn) Queued() int { return len(c.out) }

// begin puts a frame's header out.
func (c *Conn) begin(length int, kind frameType, flags uint8, stream uint32) {
	if c.out == nil {
		c.out = c.o.Buffer()
	}
	c.out = appendFrame(c.out, length, kind, flags, stream)
}

// Drained says that all that Take gave has left for the peer: a peer that reads may send more that
// wants an answer.
func (c *Conn) Drained() { c.control = 0 }

// Refill renews what a peer may cost us in a second. Call it once a second.
func (c *Conn) Refill() {
	c.resets = min(c.resets+firstResets/2, firstResets)
	c.idle, c.changes = 0, maxChanges
}

// Streams returns the number of streams that are not over.
func (c *Conn) Streams() int { return len(c.streams) }

// Held reports whether the peer's windows hold back the end of something: the stream, or the body before
// it, is over for the handler, but not for the peer.
func (c *Conn) Held() bool {
	all := int64(0)
	for _, s := range c.streams {
		if n := int64(s.Pending()); s.end && n > 0 {
			all += n
			if n > s.sendWindow || all > c.sendWindow {
				return true
			}
		}
	}
	return false
}

// Feed takes bytes from the peer. After an error the connection is over: what Take still has (GOAWAY)
// is to be sent, then it is to be closed; streams get no OnReset.
func (c *Conn) Feed(b []byte) error {
	if c.err != nil {
		return c.err
	}
	if err := c.feed(b); err != nil {
		c.err = err
		c.goAway(err.Code, err.Reason)
		return err
	}
	return nil
}

func (c *Conn) feed(b []byte) *ConnError {
	for len(b) > 0 {
		if c.pause(b) {
			return nil
		}
		if c.preface > 0 {
			at := len(Preface) - c.preface
			n := min(c.preface, len(b))
			if string(b[:n]) != Preface[at:at+n] {
				return &ConnError{ProtocolError, "bad connection preface"}
			}
			c.preface -= n
			b = b[n:]
			continue
		}
		if len(c.in) == 0 {
			n, err := c.frames(b)
			if err != nil {
				return err
			}
			if b = b[n:]; len(b) > 0 && !c.pause(b) {
				c.in = append(c.o.Buffer(), b...)
			}
			return nil
		}
		// Complete the frame that has begun, then go on without copying.
		want := frameHeader
		if len(c.in) >= frameHeader {
			want += parseFrame(c.in).length
		}
		n := min(want-len(c.in), len(b))
		c.in = append(c.in, b[:n]...)
		b = b[n:]
		if len(c.in) < frameHeader {
			continue
		}
		if f := parseFrame(c.in); f.length > maxFrame {
			return &ConnError{FrameSizeError, "frame larger than SETTINGS_MAX_FRAME_SIZE"}
		} else if len(c.in) == frameHeader+f.length {
			in := c.in
			c.in = nil
			if _, err := c.frames(in); err != nil {
				return err
			}
			c.o.Recycle(in) // a connection at rest keeps none
		}
	}
	return nil
}

// frames handles the complete frames in b and returns their length.
func (c *Conn) frames(b []byte) (int, *ConnError) {
	done := 0
	for len(b)-done >= frameHeader && !c.full() {
		f := parseFrame(b[done:])
		if f.length > maxFrame {
			return 0, &ConnError{FrameSizeError, "frame larger than SETTINGS_MAX_FRAME_SIZE"}
		}
		if len(b)-done < frameHeader+f.length {
			break
		}
		if c.err != nil { // the handler has closed the connection
			return 0, c.err
		}
		payload := b[done+frameHeader : done+frameHeader+f.length]
		done += frameHeader + f.length
		if err := c.frame(f, payload); err != nil {
			return 0, err
		}
	}
	return done, nil
}

func (c *Conn) frame(f frame, p []byte) *ConnError {
	if !c.settings {
		if f.kind != frameSettings || f.flags&flagAck != 0 {
			return &ConnError{ProtocolError, "the first frame is not SETTINGS"}
		}
		c.settings = true
	}
	if c.blockID != 0 && (f.kind != frameContinuation || f.stream != c.blockID) {
		return &ConnError{ProtocolError, "a header block is interrupted"}
	}
	if c.idle++; c.idle > maxIdle {
		return &ConnError{EnhanceYourCalm, "too many frames that bring nothing on"}
	}
	switch f.kind {
	case frameData:
		return c.onData(f, p)
	case frameHeaders:
		return c.onHeaders(f, p)
	case framePriority:
		if f.stream == 0 {
			return &ConnError{ProtocolError, "PRIORITY on stream 0"}
		}
		if len(p) != 5 {
			return c.streamError(f.stream, FrameSizeError)
		}
		if binary.BigEndian.Uint32(p)&maxStreamID == f.stream {
			return c.streamError(f.stream, ProtocolError)
		}
		return nil
	case frameReset:
		return c.onReset(f, p)
	case frameSettings:
		return c.onSettings(f, p)
	case framePush:
		return &ConnError{ProtocolError, "PUSH_PROMISE is not allowed"}
	case framePing:
		return c.onPing(f, p)
	case frameGoAway:
		return c.onGoAway(f, p)
	case frameWindow:
		return c.onWindow(f, p)
	case frameContinuation:
		if c.blockID == 0 {
			return &ConnError{ProtocolError, "CONTINUATION without a header block"}
		}
		return c.onContinuation(f, p)
	}
	return nil // unknown types are ignored (RFC 9113, 5.5)
}

// answer counts an answer to a control frame. A peer that asks and does not read would fill our
// memory.
func (c *Conn) answer() *ConnError {
	if c.control++; c.control > maxControl {
		return &ConnError{EnhanceYourCalm, "too many control frames without reading the answers"}
	}
	return nil
}

func (c *Conn) windowUpdate(stream, n uint32) {
	c.begin(4, frameWindow, 0, stream)
	c.out = appendUint32(c.out, n)
}

func (c *Conn) reset(stream uint32, code Code) {
	if len(c.late) < maxLate {
		c.late = append(c.late, stream)
	} else {
		c.late[c.lateAt] = stream
		c.lateAt = (c.lateAt + 1) % maxLate
	}
	c.begin(4, frameReset, 0, stream)
	c.out = appendUint32(c.out, uint32(code))
}

// wasReset reports whether we have reset the stream, not long ago.
func (c *Conn) wasReset(stream uint32) bool { return slices.Contains(c.late, stream) }

func (c *Conn) goAway(code Code, debug string) {
	last := min(c.lastPeer, c.lastTaken)
	c.begin(8+len(debug), frameGoAway, 0, 0)
	c.out = appendUint32(appendUint32(c.out, last), uint32(code))
	c.out = append(c.out, debug...)
}

// shutdownPing marks the ping that Shutdown waits for.
var shutdownPing = [8]byte{'s', 'h', 'u', 't', 'd', 'o', 'w', 'n'}

// Shutdown makes the peer open no more streams: first it is told, with a ping; requests that it sent
// before it knew are taken, those after the answer are not. Streams that are open go on.
func (c *Conn) Shutdown() {
	if c.shutting || c.err != nil {
		return
	}
	c.shutting = true
	c.begin(8, frameGoAway, 0, 0)
	c.out = appendUint32(appendUint32(c.out, lastOfAllIDs), uint32(NoError))
	c.begin(8, framePing, 0, 0)
	c.out = append(c.out, shutdownPing[:]...)
}

// Settled reports whether the peer knows that it must open no more streams, and ours are all there will
// be: it has answered Shutdown, or has said that it opens none, or the connection is closed.
func (c *Conn) Settled() bool {
	return c.err != nil || c.goneAway || c.shutting && c.lastTaken != lastOfAllIDs
}

// Ping asks for an answer, OnPong.
func (c *Conn) Ping() {
	c.begin(8, framePing, 0, 0)
	c.out = append(c.out, "carrick?"...)
}

// Close ends the connection: it puts out GOAWAY with that code.
func (c *Conn) Close(code Code) {
	if c.err == nil {
		c.err = &ConnError{code, "closed"}
		c.goAway(code, "")
	}
}

// CanOpen reports whether a client may open another stream now.
func (c *Conn) CanOpen() bool {
	return c.err == nil && !c.goneAway && !c.shutting && c.open < c.peerStreams && c.nextID < maxStreamID
}

// MaxStreams returns how many streams the server allows; 100 before it has said so.
func (c *Conn) MaxStreams() uint32 { return c.peerStreams }

// GoneAway reports whether the peer takes no new streams, or has no numbers left for them.
func (c *Conn) GoneAway() bool { return c.goneAway || c.err != nil || c.nextID >= maxStreamID }

// ConnectAllowed reports whether the server takes extended CONNECT.
func (c *Conn) ConnectAllowed() bool { return c.peerConnect }

// Open opens a stream at a client; nil if CanOpen is false. Its head must be the next that is sent on
// the connection.
func (c *Conn) Open(user any) *Stream {
	if !c.CanOpen() {
		return nil
	}
	s := c.newStream(c.nextID)
	s.User = user
	c.nextID += 2
	return s
}

func (c *Conn) newStream(id uint32) *Stream {
	s := &Stream{c: c, id: id, sendWindow: c.peerWindow, recvWindow: c.ownWindow, left: -1}
	c.streams[id] = s
	c.open++
	return s
}
