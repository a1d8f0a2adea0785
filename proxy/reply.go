package proxy

import (
	"strconv"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/header"
	"github.com/carrick-mesh/carrick/proxy/http1"
)

// reply answers by itself: details are Envoy's response code details.
func (s *stream) reply(status int, body, details string) {
	s.replyBody(status, []byte(body), "text/plain", details, nil)
}

func (s *stream) replyBody(status int, body []byte, contentType, details string, more func(h *header.Header)) {
	s.status, s.details = status, details
	h := &s.resp
	h.Reset()
	h.SetPseudo(header.Status, strconv.Itoa(status))
	grpc := isGRPC(&s.req)
	switch {
	case grpc:
		s.status = 200 // also in the log
		h.SetPseudo(header.Status, "200")
		h.Add("content-type", "application/grpc")
		h.Add("grpc-status", strconv.Itoa(grpcStatus(status)))
		if len(body) > 0 {
			h.Add("grpc-message", percentEncode(string(body)))
		}
		body = nil
	case status == 204 || status == 304 || status < 200:
		body = nil
	case len(body) > 0:
		h.Add("content-length", strconv.Itoa(len(body)))
		h.Add("content-type", contentType)
	}
	if more != nil {
		more(h)
	}
	if s.route != nil {
		s.mutate(h, s.route.ResponseHeaders)
	}
	h.Set("date", s.w.date())
	h.Set("server", s.hcm.ServerName)
	s.responded = true
	end := len(body) == 0 || s.head
	if grpc && !end {
		end = true
	}
	s.down.sendHead(s, end)
	if !end {
		s.tx += uint64(len(body))
		s.down.sendData(s, body)
		s.down.sendEnd(s, nil)
	}
	s.end(true)
}

// cutShort ends a response that cannot go on. A gRPC client is told why, with a status in trailers; any
// other sees the end of its stream or connection.
func (s *stream) cutShort(status int, message string) {
	if _, ok := s.down.(*h2Request); !ok || !s.grpc {
		s.end(false)
		return
	}
	var t header.Header
	t.Add("grpc-status", strconv.Itoa(status))
	t.Add("grpc-message", percentEncode(message))
	s.detach()
	s.down.sendEnd(s, &t)
	s.end(true)
}

// pastDeadline ends a gRPC request whose client's time is over.
func (s *stream) pastDeadline() {
	const message, details = "downstream duration timeout", "max_duration_timeout" // Envoy's words
	if s.responded {
		s.details = details
		s.cutShort(grpcDeadlineExceeded, message)
		return
	}
	s.detach()
	s.replyBody(408, []byte(message), "", details, s.exceeded)
}

// exceeded makes an answer of the proxy's own to a gRPC request say that time is over.
func (s *stream) exceeded(h *header.Header) {
	if h.Has("grpc-status") {
		h.Set("grpc-status", strconv.Itoa(grpcDeadlineExceeded))
	}
}

// refuse answers a request that cannot be understood.
func (s *stream) refuse(e *http1.Error) {
	if e != http1.ErrNoHost {
		s.flags |= accesslog.DownstreamProtocolError
	}
	s.reply(e.Status, ownBody(e), e.Details)
}
