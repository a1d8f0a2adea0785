package proxy

import (
	"strconv"

	"github.com/carrick-mesh/carrick/proxy/header"
	"github.com/carrick-mesh/carrick/proxy/http1"
	"github.com/carrick-mesh/carrick/proxy/loop"
)

// The methods below make downConn a client.

func (x *downConn) sendHead(s *stream, end bool) {
	h := &s.resp
	status, _ := strconv.Atoi(h.Pseudo(header.Status))
	f := http1.Framing{Minor0: x.msg.Minor == 0, Proper: s.hcm.HTTP1.ProperCase}
	if x.tunnel {
		if status == 101 || s.connect && status == 200 {
			f.Upgrade = status == 101
			x.c.setBuffer(http1.AppendResponse(x.c.buffer(), h, f))
			return
		}
		x.tunnel = false // refused
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
	if x.w.p.draining.Load() || !s.reqDone && !x.tunnel && end {
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

func (x *downConn) sendInformational(s *stream, status int) {
	if x.msg.Minor == 1 {
		x.c.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
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
	case x.tunnel, x.closeNow, !s.reqDone:
		x.timer.Stop()
		x.leave()
		x.free()
		x.c.linger()
	default:
		x.rest()
		if x.early || x.c.readable {
			x.c.again()
		}
	}
}
