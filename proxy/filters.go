package proxy

import (
	"strconv"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/header"
)

// cors answers preflight requests as the route's policy says; p is nil if the route gives none to the filter.
func (s *stream) cors(p *config.CORSPolicy) verdict {
	if p == nil && s.route != nil && s.route.Action != nil {
		p = s.route.Action.CORS
	}
	origin := s.req.First("origin")
	if p == nil || origin == "" || p.Enabled != nil && !p.Enabled.Takes(s.w.random()) {
		return next
	}
	allowed := false
	for i := range p.Origins {
		allowed = allowed || p.Origins[i].Match(origin)
	}
	preflight := s.req.Pseudo(header.Method) == "OPTIONS" && s.req.First("access-control-request-method") != ""
	if !allowed {
		if preflight && !p.ForwardUnmatched {
			return next // Envoy lets the upstream answer, without CORS headers
		}
		return next
	}
	s.corsPolicy = p
	if !preflight {
		return next
	}
	private := p.PrivateNetwork && s.req.First("access-control-request-private-network") == "true"
	s.replyBody(200, nil, "", "cors_response", func(h *header.Header) {
		h.Add("access-control-allow-origin", origin)
		for _, f := range [...][2]string{
			{"access-control-allow-methods", p.Methods}, {"access-control-allow-headers", p.Headers}, {"access-control-max-age", p.MaxAge},
			{"access-control-expose-headers", p.Expose},
		} {
			if f[1] != "" {
				h.Add(f[0], f[1])
			}
		}
		if p.Credentials {
			h.Add("access-control-allow-credentials", "true")
		}
		if private {
			h.Add("access-control-allow-private-network", "true")
		}
	})
	return stop
}

func (s *stream) corsResponse() {
	p := s.corsPolicy
	if p == nil {
		return
	}
	s.resp.Set("access-control-allow-origin", s.req.First("origin"))
	if p.Credentials {
		s.resp.Set("access-control-allow-credentials", "true")
	}
	if p.Expose != "" {
		s.resp.Set("access-control-expose-headers", p.Expose)
	}
}

// fault delays or aborts the request as configured.
func (s *stream) fault(f *config.FaultFilter) verdict {
	if f.Upstream != "" && (s.route == nil || s.route.Action == nil || len(s.route.Action.Clusters) == 0 || s.route.Action.Clusters[0].Name != f.Upstream) {
		return next
	}
	for i := range f.Headers {
		if !f.Headers[i].Match(s) {
			return next
		}
	}
	delay := f.Delay
	percent := f.DelayPercent
	if f.DelayHeader {
		if ms, err := strconv.Atoi(s.req.First("x-envoy-fault-delay-request")); err == nil && ms > 0 {
			delay = time.Duration(ms) * time.Millisecond
		}
	}
	active := &s.w.p.faults
	if delay > 0 && percent.Denominator > 0 && percent.Takes(s.w.random()) && (f.MaxActive == 0 || active.Load() < int64(f.MaxActive)) {
		s.flags |= accesslog.DelayInjected
		active.Add(1)
		s.later(delay, func() {
			active.Add(-1)
			if !s.abort(f) {
				s.runFilters()
			}
		}, func() { active.Add(-1) })
		return stop
	}
	if s.abort(f) {
		return stop
	}
	return next
}

func (s *stream) abort(f *config.FaultFilter) bool {
	status := f.AbortStatus
	if f.AbortHeader {
		if n, err := strconv.Atoi(s.req.First("x-envoy-fault-abort-request")); err == nil && n >= 200 && n < 600 {
			status = n
		}
	}
	if f.AbortPercent.Denominator == 0 || !f.AbortPercent.Takes(s.w.random()) || status == 0 && f.AbortGRPC == nil {
		return false
	}
	s.flags |= accesslog.FaultInjected
	if f.AbortGRPC != nil && status == 0 {
		code := strconv.Itoa(int(*f.AbortGRPC))
		s.replyBody(200, nil, "", "fault_filter_abort", func(h *header.Header) {
			h.Remove("content-length")
			h.Set("content-type", "application/grpc")
			h.Set("grpc-status", code)
			h.Set("grpc-message", "fault filter abort")
		})
		return true
	}
	s.reply(status, "fault filter abort", "fault_filter_abort")
	return true
}

// shadow sends a copy of s to another cluster. Nobody hears the answer.
func (w *worker) shadow(s *stream, c *cluster, m *config.Mirror) {
	if w.account.busy() {
		c.stat(w).RepeatAbandoned.Inc()
		return
	}
	r := *s.route
	was := s.route.Action
	a := &config.RouteAction{Timeout: was.Timeout, IdleTimeout: was.IdleTimeout, GRPCTimeoutMax: -1, Priority: was.Priority}
	r.Action = a
	x := w.newStream(s.d, nobody{})
	x.snap, x.route, x.cl, x.clusterName = s.snap, &r, c, c.cfg.Name
	x.shadow, x.keep = true, false // once
	x.req.CopyFrom(&s.req)
	if !m.KeepHost {
		host, port, ok := splitPort(x.req.Pseudo(header.Authority))
		host += "-shadow"
		if ok {
			host += ":" + port
		}
		x.req.SetPseudo(header.Authority, strings.Clone(host))
	}
	x.head, x.remote, x.protocol = s.head, s.remote, s.protocol
	x.body = append(w.buf(), s.body...)
	x.measure()
	x.reqDone, x.reqEnd = true, w.loop.Now()
	if x.cl.breakers[a.Priority].requests.Load() >= int64(x.cl.cfg.Breakers[a.Priority].MaxRequests) {
		x.end(false)
		return
	}
	x.armTimeout()
	x.awaitActivity()
	x.try()
}

// nobody is the client of a shadow.
type nobody struct{}

func (nobody) sendHead(*stream, bool)           {}
func (nobody) sendData(*stream, []byte)         {}
func (nobody) sendEnd(*stream, *header.Header)  {}
func (nobody) sendInformational(*header.Header) {}
func (nobody) full() bool                       { return false }
func (nobody) resume()                          {}
func (nobody) done(*stream, bool)               {}
