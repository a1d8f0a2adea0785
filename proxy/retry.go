package proxy

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
)

func (s *stream) retryPolicy() *config.RetryPolicy {
	if s.route == nil || s.route.Action == nil {
		return nil
	}
	return s.route.Action.Retry
}

// retryReset tries again after an attempt that got no response, if the policy says so.
func (s *stream) retryReset(r reason) bool {
	p := s.retryPolicy()
	if p == nil {
		return false
	}
	on := config.Retry5xx | config.RetryGatewayError | config.RetryReset
	switch r {
	case connectFailed, connectTimeout:
		on |= config.RetryConnectFailure | config.RetryResetBeforeRequest
	case refused:
		on |= config.RetryRefusedStream
	case overflow, noHost:
		return false
	}
	return p.On&on != 0 && s.retry(p)
}

// retryTimeout tries again after an attempt that took too long.
func (s *stream) retryTimeout() bool {
	p := s.retryPolicy()
	return p != nil && p.On&(config.Retry5xx|config.RetryGatewayError|config.RetryReset) != 0 && s.retry(p)
}

// retryResponse tries again after a response that the policy does not like; s.up may be nil.
func (s *stream) retryResponse(status int) bool {
	p := s.retryPolicy()
	if p == nil || !s.retriable(p, status) || !s.mayRetry(p) {
		return false
	}
	s.result(s.outlierStatus(status))
	s.detach()
	s.closeAttempt()
	s.scheduleRetry(p)
	return true
}

func (s *stream) retriable(p *config.RetryPolicy, status int) bool {
	switch {
	case p.On&config.Retry5xx != 0 && status >= 500,
		p.On&config.RetryGatewayError != 0 && status >= 502 && status <= 504,
		p.On&config.RetryRetriable4xx != 0 && status == 409,
		p.On&config.RetryRetriableStatusCodes != 0 && slices.Contains(p.StatusCodes, status),
		p.On&config.RetryEnvoyRateLimited != 0 && s.resp.Has("x-envoy-ratelimited"):
		return true
	}
	if p.On&config.RetryRetriableHeaders != 0 {
		for i := range p.Headers {
			if p.Headers[i].Match(&s.resp) {
				return true
			}
		}
	}
	const grpc = config.RetryGRPCCancelled | config.RetryGRPCDeadlineExceeded | config.RetryGRPCInternal | config.RetryGRPCResourceExhausted | config.RetryGRPCUnavailable
	if p.On&grpc == 0 {
		return false
	}
	switch s.resp.First("grpc-status") {
	case "1":
		return p.On&config.RetryGRPCCancelled != 0
	case "4":
		return p.On&config.RetryGRPCDeadlineExceeded != 0
	case "8":
		return p.On&config.RetryGRPCResourceExhausted != 0
	case "13":
		return p.On&config.RetryGRPCInternal != 0
	case "14":
		return p.On&config.RetryGRPCUnavailable != 0
	}
	return false
}

// outlierStatus is the status that outlier detection takes a response for.
func (s *stream) outlierStatus(status int) int {
	if status == 200 && isGRPC(&s.req) {
		if g := s.resp.First("grpc-status"); g != "" && g != "0" {
			if n, err := strconv.Atoi(g); err == nil && (n == 2 || n == 4 || n == 8 || n == 13 || n == 14 || n == 15) {
				return 503
			}
		}
	}
	return status
}

func (s *stream) retriesExhausted(p *config.RetryPolicy) bool {
	if s.retries == 0 {
		if p.Num > 0 {
			s.cl.stat(s.w).RqRetryLimit.Inc()
			s.flags |= accesslog.UpstreamRetryLimitExceeded
		}
		return true
	}
	return !s.keep
}

// retry schedules another attempt; false if there must be none. The attempt before is closed.
func (s *stream) retry(p *config.RetryPolicy) bool {
	if !s.mayRetry(p) {
		return false
	}
	s.scheduleRetry(p)
	return true
}

// mayRetry reports whether there may be another attempt. While it has not agreed, what has come of an
// answer may have to be passed on.
func (s *stream) mayRetry(p *config.RetryPolicy) bool {
	if s.retriesExhausted(p) || s.attempt >= maxAttempts || s.responded {
		return false
	}
	for i := range p.RequestHeaders {
		if !p.RequestHeaders[i].Match(&s.req) {
			return false
		}
	}
	b, t := &s.cl.breakers[s.priority()], &s.cl.cfg.Breakers[s.priority()]
	most := int64(t.MaxRetries)
	if t.RetryBudget > 0 {
		active := b.requests.Load() + b.pending.Load()
		most = max(int64(t.RetryMinimum), int64(float64(active)*t.RetryBudget/100))
	}
	if b.retries.Load() >= most {
		s.flags |= accesslog.UpstreamOverflow
		s.cl.stat(s.w).RqRetryOverflow.Inc()
		return false
	}
	return true
}

func (s *stream) scheduleRetry(p *config.RetryPolicy) {
	b := &s.cl.breakers[s.priority()]
	s.retries--
	s.perTry.Stop()
	s.cl.stat(s.w).RqRetry.Inc()
	b.retries.Add(1)
	give := func() { b.retries.Add(-1) }
	s.later(s.backoff(p), func() { give(); s.try() }, give)
}

// backoff is fully jittered exponential (Envoy's), in whole milliseconds.
func (s *stream) backoff(p *config.RetryPolicy) time.Duration {
	base := p.BackoffBase
	if base <= 0 {
		base = 25 * time.Millisecond
	}
	most := p.BackoffMax
	if most <= 0 {
		most = 10 * base
	}
	if r := p.RateLimited; r != nil {
		for _, h := range r.Headers {
			v, err := strconv.ParseInt(strings.TrimSpace(s.resp.First(h.Name)), 10, 64)
			if err != nil || v < 0 {
				continue
			}
			d := time.Duration(min(v, 1<<32)) * time.Second
			if h.Unix {
				d = time.Unix(v, 0).Sub(s.w.loop.Now())
			}
			if d > 0 && d <= r.Max {
				return d
			}
		}
	}
	d := min(base<<min(s.attempt-1, 20), most)
	return time.Duration(s.w.random() % uint64(max(d, time.Millisecond)))
}
