package proxy

import (
	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/header"
)

// logBuffer returns the worker's buffer for a file; nil if it cannot be opened, which is logged once.
func (w *worker) logBuffer(path string) *accesslog.Buffer {
	b, ok := w.logs[path]
	if !ok {
		f, err := w.p.logs.Open(path)
		if err != nil {
			w.p.log.Error("requests are not logged", "error", err)
		} else {
			b = f.NewBuffer()
		}
		w.logs[path] = b
	}
	return b
}

func (w *worker) flushLogs() {
	for _, b := range w.logs {
		if b != nil {
			b.Flush()
		}
	}
}

// log writes e to the logs that take it.
func (w *worker) log(logs []*config.AccessLog, e *accesslog.Entry) {
	for _, l := range logs {
		if l.Filter.Takes(e, w.random()) {
			if b := w.logBuffer(l.Path); b != nil {
				b.Append(l.Format, e)
			}
		}
	}
}

// connEntry fills the worker's entry with what is known of a downstream connection.
func (w *worker) connEntry(d *downstream) *accesslog.Entry {
	e := &w.entry
	*e = accesslog.Entry{
		Start: d.start, Duration: w.loop.Now().Sub(d.start),
		RequestDuration: -1, RequestTx: -1, ResponseDuration: -1, ResponseTx: -1,
		DownstreamLocal: d.match.Local, DownstreamRemote: d.match.Remote, DownstreamDirectRemote: d.match.Direct,
		ServerName: d.sniText, ConnectionID: d.id,
	}
	if d.chain != nil {
		e.FilterChain = d.chain.Name
	}
	if d.tls != nil {
		e.TLS = &d.tls.info
	}
	return e
}

// entry fills the worker's entry with what is known of s now.
func (s *stream) entry() *accesslog.Entry {
	w := s.w
	e := w.connEntry(s.d)
	now := w.loop.Now()
	e.Start, e.Duration = s.start, now.Sub(s.start)
	e.Method, e.Path = s.req.Pseudo(header.Method), s.req.Pseudo(header.Path)
	e.Authority, e.Scheme = s.req.Pseudo(header.Authority), s.req.Pseudo(header.Scheme)
	e.Protocol = s.protocol
	e.Header, e.Response, e.Trailer = &s.req, &s.resp, &s.trailers
	e.ResponseCode, e.ResponseCodeDetails, e.Flags = s.status, s.details, s.flags
	e.BytesReceived, e.BytesSent = s.rx, s.tx
	if !s.reqEnd.IsZero() {
		e.RequestDuration = s.reqEnd.Sub(s.start)
		e.RequestTx = e.RequestDuration
	}
	if !s.first.IsZero() {
		e.ResponseDuration = s.first.Sub(s.start)
		e.ResponseTx = e.Duration
	}
	if h := s.member.host; h != nil {
		e.UpstreamHost = h.addr
		if h.pipe != "" {
			e.UpstreamHostText = h.pipe
		}
	}
	e.UpstreamLocal, e.UpstreamProtocol = s.upLocal, s.upProtocol
	if s.upTLS != nil {
		e.UpstreamTLS = &s.upTLS.info
	}
	e.UpstreamClusterRaw = s.clusterName
	if s.cl != nil {
		e.UpstreamCluster = s.cl.cfg.StatName
	}
	e.UpstreamFailure, e.UpstreamAttempts = underscore(s.transport), s.attempt
	if s.remote.IsValid() {
		e.DownstreamRemote = s.remote
	}
	if r := s.route; r != nil {
		e.RouteName = r.Name
		if r.VirtualHost != nil {
			e.VirtualHost = r.VirtualHost.Name
		}
	}
	return e
}

// logStream logs a request that is over.
func (w *worker) logStream(s *stream) {
	if s.shadow {
		return
	}
	if len(s.hcm.AccessLogs) > 0 {
		w.log(s.hcm.AccessLogs, s.entry())
	}
}

// logConn writes the listener's log of a connection that is over.
func (w *worker) logConn(d *downstream) {
	if len(d.listener.AccessLogs) == 0 {
		return
	}
	e := w.connEntry(d)
	e.Flags, e.ResponseCodeDetails, e.DownstreamFailure = d.flags, d.details, d.failure
	w.log(d.listener.AccessLogs, e)
}
