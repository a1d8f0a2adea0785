package proxy

import (
	"crypto/tls"
	"errors"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/stats"
)

// Stats returns where the proxy counts.
func (p *Proxy) Stats() *stats.Store { return p.stats }

// keepStats forgets the statistics of what cfg does not have.
func (p *Proxy) keepStats(cfg *config.Config) {
	n := stats.Names{Clusters: map[string]bool{}, HTTP: map[string]bool{}, TCP: map[string]bool{}, Listeners: map[string]bool{}}
	for _, c := range cfg.Clusters {
		n.Clusters[c.StatName] = true
	}
	for _, l := range cfg.Listeners {
		n.Listeners[l.StatName] = true
		for _, c := range append(append([]*config.FilterChain(nil), l.Chains...), l.Default) {
			if c == nil {
				continue
			}
			if c.HTTP != nil {
				n.HTTP[c.HTTP.StatPrefix] = true
			}
			if c.TCP != nil {
				n.TCP[c.TCP.StatPrefix] = true
			}
		}
	}
	p.stats.Keep(n)
}

// stat returns w's statistics of a cluster.
func (c *cluster) stat(w *worker) *stats.Cluster { return c.stats.Shard(w.idx) }

// countMembers states how many hosts there are. c.mu is held.
func (c *cluster) countMembers() {
	s := c.stats.Shard(0)
	var healthy, all int
	for _, p := range c.set.Load().priorities {
		h, a := p.count(member.healthy)
		healthy, all = healthy+h, all+a
	}
	s.Members.Set(int64(all))
	s.MembersHealthy.Set(int64(healthy))
	s.EjectionsActive.Set(int64(c.ejected))
}

// countFailure counts a connection that could not be made.
func (c *cluster) countFailure(w *worker, err error) {
	s := c.stat(w)
	s.CxConnectFail.Inc()
	if errors.Is(err, errConnectTimeout) {
		s.CxConnectTimeout.Inc()
	}
	var t *tlsFailure
	if errors.As(err, &t) {
		s.TLSError.Inc()
		var trust *trustError
		var san *sanError
		switch {
		case errors.As(err, &trust):
			s.TLSVerifyError.Inc()
		case errors.As(err, &san):
			s.TLSVerifySAN.Inc()
		}
	}
}

// countHandshake counts a handshake with a client that failed.
func (d *downstream) countHandshake(err error) {
	s := d.lstat
	s.TLSError.Inc()
	var trust *trustError
	var san *sanError
	switch {
	case errors.As(err, &trust):
		s.TLSVerifyError.Inc()
	case errors.As(err, &san):
		s.TLSVerifySAN.Inc()
	}
}

// countConn counts a connection that an HTTP connection manager takes; call the result at its end.
func (d *downstream) countConn(h2 bool) (end func()) {
	w := d.c.w
	s := w.p.stats.HTTP(d.chain.HTTP.StatPrefix).Shard(w.idx)
	d.hstat = s
	s.CxTotal.Inc()
	s.CxActive.Inc()
	active := &s.CxHTTP1Active
	if h2 {
		s.CxHTTP2.Inc()
		active = &s.CxHTTP2Active
	} else {
		s.CxHTTP1.Inc()
	}
	active.Inc()
	if d.tls != nil {
		s.CxTLS.Inc()
	}
	done := false
	return func() {
		if !done {
			done = true
			s.CxActive.Dec()
			active.Dec()
			s.CxDestroy.Inc()
			s.CxLengthMS.Observe(float64(w.loop.Now().Sub(d.start).Milliseconds()))
		}
	}
}

// countRequest counts a request that begins.
func (s *stream) countRequest() {
	s.hstat = s.d.hstat
	h := s.hstat
	h.RqTotal.Inc()
	h.RqActive.Inc()
	if s.protocol == "HTTP/2" {
		h.RqHTTP2.Inc()
	} else {
		h.RqHTTP1.Inc()
	}
}

// countEnd counts a request that is over.
func (s *stream) countEnd(complete bool) {
	h := s.hstat
	if h == nil { // a shadow
		return
	}
	took := s.w.loop.Now().Sub(s.start)
	h.RqActive.Dec()
	h.CxRxBytes.Add(s.rx)
	h.CxTxBytes.Add(s.tx)
	if s.responded {
		h.RqCompleted.Inc()
		h.RqCodes.Inc(s.status)
		h.RqTime.Observe(float64(took) / float64(time.Millisecond))
	}
	switch {
	case s.flags&accesslog.NoRouteFound != 0:
		h.NoRoute.Inc()
	case s.flags&accesslog.NoClusterFound != 0:
		h.NoCluster.Inc()
	case s.flags&accesslog.DownstreamConnectionTermination != 0:
		h.RqRxReset.Inc()
	case s.flags&accesslog.StreamIdleTimeout != 0:
		h.RqIdleTimeout.Inc()
	case s.route != nil && s.route.Redirect != nil:
		h.Redirect.Inc()
	case s.route != nil && s.route.Direct != nil:
		h.DirectResponse.Inc()
	}
	if !complete && s.responded {
		h.RqTxReset.Inc()
	}
	if s.flags&accesslog.FaultInjected != 0 {
		h.FaultAborts.Inc()
	}
	if s.flags&accesslog.DelayInjected != 0 {
		h.FaultDelays.Inc()
	}
	s.countIstio(took)
}

// countIstio counts a request under Istio's names.
func (s *stream) countIstio(took time.Duration) {
	if s.d.listener.Direction == config.Unspecified || s.cl == nil && s.flags&accesslog.NoRouteFound == 0 {
		return
	}
	k := &s.w.istioKey
	*k = s.d.istioKey(s.cl, s.member, s.upTLS)
	k.Protocol, k.Status, k.Flags = "http", s.status, s.flags
	if isGRPC(&s.req) {
		k.Protocol = "grpc"
		k.GRPCStatus = s.resp.First("grpc-status")
		if v := s.trailers.First("grpc-status"); v != "" {
			k.GRPCStatus = v
		}
	}
	m := s.w.p.stats.Istio.Requests(s.w.idx, k)
	m.Total.Inc()
	m.Milliseconds.Observe(float64(took) / float64(time.Millisecond))
	m.RequestBytes.Observe(float64(s.rx))
	m.ResponseBytes.Observe(float64(s.tx))
}

// istioKey returns what Istio's metrics of a connection or request to m differ by.
func (d *downstream) istioKey(c *cluster, m member, up *tlsState) (k stats.Key) {
	if c != nil {
		k.Host, k.Name, k.Namespace = c.cfg.Service.Host, c.cfg.Service.Name, c.cfg.Service.Namespace
	}
	t := up
	k.Reporter = stats.Source
	if d.listener.Direction == config.Inbound {
		k.Reporter, t = stats.Destination, d.tls
		k.MTLS = t != nil && t.peer != nil
	} else if m.ep != nil {
		k.Peer = m.ep.Workload
	}
	if t != nil && t.peer != nil {
		k.PeerPrincipal = t.info.PeerURISAN
		k.OwnPrincipal = d.c.w.p.ownURI()
	}
	return k
}

// own is the identity in the workload's certificate.
type own struct {
	cert *tls.Certificate
	uri  string
}

// ownURI returns the URI by which the workload's certificate names us.
func (p *Proxy) ownURI() string {
	k := p.secrets.KeyPair("default")
	if k == nil {
		return ""
	}
	if o := p.own.Load(); o != nil && o.cert == k {
		return o.uri
	}
	o := &own{cert: k, uri: certificateURI(k)}
	p.own.Store(o)
	return o.uri
}

// countTCP counts a session that begins.
func (t *tcpSession) countTCP() {
	t.stat = t.w.p.stats.TCP(t.cfg.StatPrefix).Shard(t.w.idx)
	t.stat.CxTotal.Inc()
}

// countTCPEnd counts a session that is over.
func (t *tcpSession) countTCPEnd() {
	t.stat.CxRxBytes.Add(t.down.n)
	t.stat.CxTxBytes.Add(t.up.n)
	switch {
	case t.flags&(accesslog.NoClusterFound|accesslog.NoHealthyUpstream) != 0:
		t.stat.CxNoRoute.Inc()
	case t.detail == "idle_timeout":
		t.stat.IdleTimeout.Inc()
	case t.detail == "max_connection_duration_reached":
		t.stat.MaxDuration.Inc()
	}
	if t.d.listener.Direction == config.Unspecified || t.cl == nil {
		return
	}
	k := t.d.istioKey(t.cl, t.member, t.tls)
	k.Protocol, k.Flags = "tcp", t.flags
	m := t.w.p.stats.Istio.Connections(t.w.idx, &k)
	m.Opened.Inc()
	m.Closed.Inc()
	m.Received.Add(t.down.n)
	m.Sent.Add(t.up.n)
}
