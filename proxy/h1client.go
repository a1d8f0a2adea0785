package proxy

import (
	"strconv"
	"time"

	"github.com/carrick-mesh/carrick/proxy/header"
	"github.com/carrick-mesh/carrick/proxy/http1"
	"github.com/carrick-mesh/carrick/proxy/loop"
)

const (
	// maxSkip bounds what is read and dropped of a request's body after its answer, so that the connection
	// can go on, in bytes; skipTime bounds how long that may take.
	maxSkip  = 64 << 10
	skipTime = 10 * time.Second
)

// skips reports whether the rest of the body can be dropped if the request is answered now, instead of
// ending the connection. A client that waits for 100 Continue may send the body or not: nobody knows
// what its next bytes are. One that was too slow is not waited for again.
func (x *downConn) skips(s *stream, status int) bool {
	return status != 408 && !s.expect && x.body.Left() <= maxSkip
}

// skip drops what is left of a body and returns what comes after it.
func (x *downConn) skip(b []byte) []byte {
	data, n, err := x.body.Next(b, nil)
	if x.rest -= len(data); err != nil || x.rest <= 0 && !x.body.Done() {
		x.shut()
		return nil
	}
	if x.body.Done() {
		x.rest = 0
		x.idle()
	}
	return b[n:]
}

// The methods below make downConn a client.

func (x *downConn) sendHead(s *stream, end bool) {
	h := &s.resp
	status, _ := strconv.Atoi(h.Pseudo(header.Status))
	f := http1.Framing{Minor0: x.msg.Minor == 0, Proper: s.hcm.HTTP1.ProperCase}
	switch {
	case s.upgrade && status == 101, s.connect && status/100 == 2:
		// What the client sends from here on goes to the other side, and what it sent before the answer.
		x.tunnel, f.Upgrade = true, status == 101
		x.body.UntilClose()
		x.c.setBuffer(http1.AppendResponse(x.c.buffer(), h, f))
		x.resume()
		return
	case s.upgrade, s.connect: // refused: what follows may be of the other protocol, so it is dropped
		x.closeNow = true
	}
	switch {
	case s.head || status == 204 || status == 304:
	case end && !h.Has("content-length"):
		h.Add("content-length", "0")
	case !end && !h.Has("content-length"):
		if f.Minor0 {
			x.closeNow = true // the end of the connection is the end of the body
		} else {
			f.Chunked, x.chunked = true, true
		}
	}
	if x.leaving || !s.reqDone && !x.skips(s, status) {
		x.closeNow = true
	}
	f.Close = x.closeNow
	x.c.setBuffer(http1.AppendResponse(x.c.buffer(), h, f))
}

func (x *downConn) sendData(s *stream, b []byte) {
	if len(b) == 0 {
		return
	}
	if !x.chunked {
		x.c.write(b)
		return
	}
	x.c.setBuffer(http1.AppendChunkHead(x.c.buffer(), len(b)))
	x.c.write(b)
	x.c.setBuffer(append(x.c.buffer(), http1.ChunkEnd...))
}

func (x *downConn) sendEnd(s *stream, t *header.Header) {
	if x.chunked {
		if t != nil && !x.d.chain.HTTP.HTTP1.Trailers {
			t = nil
		}
		x.c.setBuffer(http1.AppendLastChunk(x.c.buffer(), t))
	}
}

func (x *downConn) sendInformational(h *header.Header) {
	if x.msg.Minor == 1 {
		x.c.setBuffer(http1.AppendResponse(x.c.buffer(), h, http1.Framing{Proper: x.d.chain.HTTP.HTTP1.ProperCase}))
	}
}

func (x *downConn) full() bool { return x.c.isFull() }

func (x *downConn) resume() {
	if x.c.readable || x.early {
		x.c.again()
	}
}

// done ends the current request.
func (x *downConn) done(s *stream, complete bool) {
	x.s = nil
	if x.c.closed {
		return
	}
	switch {
	case !complete:
		// The client must see that the response was cut short, even if the end of the
		// connection would otherwise be the end of the body.
		x.timer.Stop()
		x.leave()
		x.free()
		if len(x.c.out)+len(x.c.wire) == 0 || !x.chunked {
			loop.ResetOnClose(x.c.fd)
		}
		x.c.closeAfter()
	case x.tunnel, x.closeNow:
		x.shut()
	default:
		if !s.reqDone && !x.body.Done() {
			x.rest = maxSkip
			x.w.loop.Arm(&x.timer, skipTime)
		} else {
			x.idle()
		}
		if x.early || x.c.readable {
			x.c.again()
		}
	}
}
