package proxy

import (
	"net/netip"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/header"
	"github.com/carrick-mesh/carrick/proxy/loop"
	"github.com/carrick-mesh/carrick/proxy/stats"
)

// client is the side of a stream towards who sent the request: an HTTP/1 connection or an HTTP/2
// stream. Its methods do not call back.
type client interface {
	// sendHead sends s.resp; end says that nothing follows.
	sendHead(s *stream, end bool)
	sendData(s *stream, b []byte)
	sendEnd(s *stream, trailers *header.Header) // nil: none
	// sendInformational sends a 1xx response.
	sendInformational(h *header.Header)
	// full reports whether the stream should wait for downWritable before it sends more.
	full() bool
	// resume says that the stream has room for more of the request's body.
	resume()
	// done says that the stream is over; complete is false if the response was cut short.
	done(s *stream, complete bool)
}

// upstream is the other side: a connection, or an HTTP/2 stream on one, to a host.
type upstream interface {
	open(s *stream)
	sendHead(s *stream, end bool)
	sendData(s *stream, b []byte)
	sendEnd(s *stream, trailers *header.Header)
	full() bool
	resume()
	// cancel ends the exchange; nothing is called back.
	cancel()
	// facts describe the connection.
	facts() (local netip.AddrPort, tls *tlsState, protocol string)
	// leadsTo returns the pod behind a gateway that answers; nil: the host does.
	leadsTo() *pod
}

// stream is one request with its response. It is reused.
type stream struct {
	w     *worker
	d     *downstream
	down  client
	snap  *snapshot
	hcm   *config.HTTPConnectionManager
	hstat *stats.HTTP

	req, resp       header.Header
	trailers        header.Header // of the response
	reqTrailers     header.Header
	hasReqTrailers  bool
	protocol        string // "HTTP/1.1"
	head            bool   // HEAD
	connect         bool   // CONNECT
	upgrade         bool   // the client asks for an upgrade that is allowed
	expect          bool   // the client waits for 100 Continue
	acceptsTrailers bool

	route       *config.Route
	weighted    *config.WeightedCluster
	cl          *cluster
	member      member
	clusterName string
	corsPolicy  *config.CORSPolicy // of an origin that is allowed
	cookie      string             // to be set, for the hash policy
	shadow      bool               // a mirrored copy: not logged
	size        int                // its part of the worker's account

	filter  int // index of the next filter
	up      upstream
	waits   *pool
	body    []byte // of the request, until it is sent and for retries
	keep    bool   // body still holds all that has come
	tried   []*host
	retries uint32 // left
	attempt int
	avoid   bool // the hosts tried, whatever the policy says
	fresh   bool // the next attempt over HTTP/1 goes over a new connection: it may be the request that ends them
	open    bool // counts in the breaker of requests

	reqDone   bool // the whole request has come
	responded bool // the head has gone to the client
	grpc      bool // of a request that is forwarded
	deadline  bool // timeout is what the gRPC client allows
	over      bool

	status    int
	flags     accesslog.Flags
	details   string
	transport string
	rx, tx    uint64
	start     time.Time
	reqEnd    time.Time // last byte of the request
	first     time.Time // first byte of the response
	active    time.Time // last sign of life
	random    uint64
	remote    netip.AddrPort // after X-Forwarded-For

	// Of the last attempt that got a connection.
	upLocal    netip.AddrPort
	upTLS      *tlsState
	upProtocol string
	pod        *pod

	timeout, perTry, idle, wait, maxTimer loop.Timer
	then                                  func() // when wait is over
	undo                                  func() // if the stream ends before
}

func (w *worker) newStream(d *downstream, c client) *stream {
	s, ok := w.streams.get()
	if !ok {
		s = &stream{w: w}
		s.timeout.Fire = s.guarded(s.onTimeout)
		s.perTry.Fire = s.guarded(s.onPerTry)
		s.idle.Fire = s.guarded(s.onIdle)
		s.maxTimer.Fire = s.guarded(s.onMaxDuration)
		s.wait.Fire = s.guarded(s.onWait)
	}
	s.d, s.down = d, c
	s.snap = w.snapshot()
	s.hcm = d.chain.HTTP
	s.start = w.loop.Now()
	s.active = s.start
	s.random = w.random()
	s.keep = true
	return s
}

// free makes s ready for its next use.
func (w *worker) freeStream(s *stream) {
	s.weigh(0)
	if w.crashing {
		return
	}
	w.recycle(s.body)
	s.req.Reset()
	s.resp.Reset()
	s.trailers.Reset()
	s.reqTrailers.Reset()
	clear(s.tried)
	old := *s
	*s = stream{
		w: w, req: old.req, resp: old.resp, trailers: old.trailers, reqTrailers: old.reqTrailers, tried: old.tried[:0],
		timeout: old.timeout, perTry: old.perTry, idle: old.idle, wait: old.wait, maxTimer: old.maxTimer,
	}
	w.streams.put(s)
}

// Header implements config.Request.
func (s *stream) Header(name string) (string, bool) { return s.req.Header(name) }

// Nth implements config.Request.
func (s *stream) Nth(name string, i int) (string, bool) { return s.req.Nth(name, i) }

// ClientCertificate implements config.TLSRequest.
func (s *stream) ClientCertificate() (presented, validated bool) {
	p := s.d.tls != nil && s.d.tls.peer != nil
	return p, p && s.d.chain.TLS.Validation != nil
}

func (s *stream) priority() uint8 {
	if s.route != nil && s.route.Action != nil {
		return s.route.Action.Priority
	}
	return 0
}

// begin handles the request in s.req; end says that it has no body. It may be over afterwards.
func (s *stream) begin(end bool) {
	s.countRequest()
	s.measure()
	s.reqDone = end
	if end {
		s.reqEnd = s.w.loop.Now()
	}
	s.awaitActivity()
	if t := s.hcm.RequestTimeout; t > 0 && !end {
		s.w.loop.Arm(&s.timeout, s.left(t))
	}
	if t := s.hcm.MaxStreamDuration; t > 0 {
		s.w.loop.Arm(&s.maxTimer, s.left(t))
	}
	if s.overloaded() || !s.admit() {
		return
	}
	table := s.snap.cfg.RouteTable(s.hcm)
	if table != nil {
		s.route = table.Match(s, s.random)
	}
	s.settleUpgrade(end)
	s.runFilters()
}

// runFilters runs the filters from where the chain stopped; the last is the router.
func (s *stream) runFilters() {
	for s.filter < len(s.hcm.Filters) {
		f := &s.hcm.Filters[s.filter]
		s.filter++
		cfg := s.filterConfig(f)
		if cfg == nil {
			continue
		}
		var v verdict
		switch c := cfg.(type) {
		case *config.CORSFilter:
			v = s.cors(nil)
		case *config.CORSPolicy:
			v = s.cors(c)
		case *config.FaultFilter:
			v = s.fault(c)
		case *config.RouterFilter:
			s.send()
			return
		}
		if v == stop {
			return
		}
	}
}

// verdict is what a filter says of a request.
type verdict uint8

const (
	next verdict = iota
	stop         // the filter has answered, or will call runFilters
)

// filterConfig returns what configures f for this request: the most specific; nil if it is off.
func (s *stream) filterConfig(f *config.HTTPFilter) config.FilterConfig {
	if s.route != nil && s.route.Filters != nil {
		if c, ok := s.route.Filters[f.Name]; ok {
			return c
		}
	}
	if f.Disabled {
		return nil
	}
	return f.Config
}

// reqData takes a part of the request's body.
func (s *stream) reqData(b []byte) {
	s.rx += uint64(len(b))
	s.active = s.w.loop.Now()
	if s.over {
		return
	}
	if n := len(s.body) + len(b); s.keep && s.up != nil && (n > s.bufferLimit() || n > highWater && s.d.c.laden()) {
		s.forgetBody()
	}
	if s.keep || s.up == nil {
		if s.body == nil {
			s.body = s.w.buf()
		}
		was := cap(s.body)
		if s.body = append(s.body, b...); cap(s.body) != was {
			s.measure()
		}
	}
	if s.up != nil {
		s.up.sendData(s, b)
	}
}

// wantsBody reports whether more of the request's body should be read now.
func (s *stream) wantsBody() bool {
	if s.up == nil {
		return len(s.body) < highWater
	}
	return !s.up.full()
}

// reqComplete says that all of the request has come; trailers may be nil.
func (s *stream) reqComplete(trailers bool) {
	if s.over || s.reqDone {
		return
	}
	s.reqDone, s.hasReqTrailers = true, trailers
	s.reqEnd = s.w.loop.Now()
	s.timeout.Stop() // RequestTimeout
	if s.up != nil {
		s.up.sendEnd(s, s.requestTrailers())
		s.armPerTry()
	}
	if s.cl != nil {
		s.mirror(s.route.Action)
	}
	s.armTimeout()
}

func (s *stream) requestTrailers() *header.Header {
	if s.hasReqTrailers {
		return &s.reqTrailers
	}
	return nil
}

// downWritable says that the client can take more.
func (s *stream) downWritable() {
	if s.up != nil {
		s.up.resume()
	}
}

// downReset says that the client is gone.
func (s *stream) downReset(details string) {
	s.resetFor(accesslog.DownstreamConnectionTermination, details)
}

// resetFor ends a stream whose client no longer wants it, or must not have it.
func (s *stream) resetFor(why accesslog.Flags, details string) {
	if s.over {
		return
	}
	s.flags |= why
	s.details = details
	s.end(false)
}

// attach gives s a connection to the host of the attempt.
func (s *stream) attach(u upstream) {
	s.up = u
	u.open(s)
	s.upLocal, s.upTLS, s.upProtocol = u.facts()
	s.pod = u.leadsTo()
	s.beforeAttempt()
	s.upgradeBy(u)
	end := s.reqDone && len(s.body) == 0 && !s.hasReqTrailers
	u.sendHead(s, end)
	if len(s.body) > 0 {
		u.sendData(s, s.body)
		if !s.keep {
			s.w.recycle(s.body)
			s.body = nil
		}
	}
	if !end && s.reqDone {
		u.sendEnd(s, s.requestTrailers())
	}
	s.armPerTry()
	if !s.reqDone {
		s.down.resume()
	}
}

// upWritable says that the upstream can take more.
func (s *stream) upWritable() {
	if !s.reqDone {
		s.down.resume()
	}
}

// upHead handles the response head in s.resp; if end is set, that is all and s.up is nil.
func (s *stream) upHead(status int, end bool) {
	s.perTry.Stop()
	if !s.reqDone {
		s.timeout.Stop() // RequestTimeout: it is answered
	}
	s.first = s.w.loop.Now()
	s.active = s.first
	s.status = status
	if s.retryResponse(status) {
		return
	}
	s.result(s.outlierStatus(status))
	s.closeAttempt()
	st := s.cl.stat(s.w)
	st.RqCompleted.Inc()
	st.RqCodes.Inc(status)
	st.RqTime.Observe(float64(s.first.Sub(s.start)) / float64(time.Millisecond))
	if s.attempt > 1 {
		st.RqRetrySuccess.Inc()
	}
	if status == 204 || status < 200 {
		s.resp.Remove("content-length") // RFC 9110, 8.6
	}
	s.finishResponseHead()
	s.responded = true
	s.measure()
	s.details, s.transport = "via_upstream", "" // whatever attempts before it came to
	s.down.sendHead(s, end)
	if end {
		s.end(true)
	}
}

// upData passes a part of the response's body on.
func (s *stream) upData(b []byte) {
	s.tx += uint64(len(b))
	s.active = s.w.loop.Now()
	if !s.head {
		s.down.sendData(s, b)
	}
}

// upEnd says that the response is complete; s.up is nil.
func (s *stream) upEnd(trailers *header.Header) {
	s.down.sendEnd(s, trailers)
	s.end(true)
}

// upReset says that the attempt ended without a complete response; s.up is nil. got says that
// part of a response has come, innocent that the request is not the cause: the connection had served
// before, or the host fell silent.
func (s *stream) upReset(f failure, got, innocent bool) {
	s.result(0)
	if s.responded {
		s.flags |= accesslog.UpstreamConnectionTermination
		if f.reason == protocolError {
			s.flags |= accesslog.UpstreamProtocolError
		}
		s.details = "upstream_reset_after_response_started{" + underscore(f.reason.text()) + "}"
		s.cutShort(grpcUnavailable, "the connection to the server ended before its answer did: "+f.reason.text())
		return
	}
	again := f.reason == refused || idempotent(s.req.Pseudo(header.Method)) // it was not looked at, or does no harm twice
	if innocent && !got && s.keep && s.attempt < maxAttempts && again {
		// The host closed an idle connection just as we used it, or the way to it is cut
		// (RFC 9110, 9.2.2), or it closes the connection (RFC 9113, 8.7): another host, if there is one.
		s.avoid, s.fresh = true, true
		s.tried = append(s.tried, s.member.host)
		s.closeAttempt()
		s.try()
		return
	}
	s.failed(f)
}

// end finishes s: complete is false if the response was cut short.
func (s *stream) end(complete bool) {
	if s.over {
		return
	}
	s.over = true
	for _, t := range [...]*loop.Timer{&s.timeout, &s.perTry, &s.idle, &s.wait, &s.maxTimer} {
		t.Stop()
	}
	if s.undo != nil {
		s.undo()
	}
	s.detach()
	s.closeAttempt()
	s.countEnd(complete)
	s.w.logStream(s)
	s.down.done(s, complete)
	s.w.freeStream(s)
}

// detach leaves the attempt: the connection or the place in the queue for one.
func (s *stream) detach() {
	if s.up != nil {
		u := s.up
		s.up = nil
		u.cancel()
	}
	if s.waits != nil {
		s.waits.cancel(s)
	}
}

// later calls then after d, or undo if the stream ends before.
func (s *stream) later(d time.Duration, then, undo func()) {
	s.then, s.undo = then, undo
	s.w.loop.Arm(&s.wait, d)
}

func (s *stream) onWait() {
	f := s.then
	s.then, s.undo = nil, nil
	f()
}
