package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/loop"
	"github.com/carrick-mesh/carrick/proxy/stats"
	"github.com/carrick-mesh/carrick/proxy/tlsconn"
)

// socket is one listening socket. All workers watch it. It outlives configurations: a listener
// that comes back in a changed form at the same address finds it open, its queue unharmed.
type socket struct {
	key      socketKey
	addr     netip.AddrPort
	fd       int
	listener string        // name
	closed   chan struct{} // closed after fd
}

type socketKey struct {
	addr                  netip.AddrPort
	pipe                  string // a unix socket's path, instead of addr
	transparent, freebind bool
}

func (s *socket) close() {
	loop.CloseFD(s.fd)
	close(s.closed)
}

// bind opens the sockets that s needs and closes those that it does not. p.mu is held.
func (p *Proxy) bind(s *snapshot) (errs []error) {
	want := map[socketKey]*config.Listener{}
	for _, l := range s.cfg.Listeners {
		if !l.Bind || l.API != nil {
			continue
		}
		for _, a := range l.Addresses {
			if s.byAddr[a] == l {
				want[socketKey{a, "", l.Transparent, l.Freebind}] = l
			}
		}
		if l.Pipe != "" {
			want[socketKey{pipe: l.Pipe}] = l
		}
	}
	p.leaving = slices.DeleteFunc(p.leaving, func(sk *socket) bool {
		select {
		case <-sk.closed:
			return true
		default:
			return false
		}
	})
	for k, sk := range p.sockets {
		if want[k] == nil {
			delete(p.sockets, k)
			p.unwatch(sk)
		}
	}
	for k, l := range want {
		if sk := p.sockets[k]; sk != nil {
			sk.listener = l.Name
			continue
		}
		p.vacate(k)
		fd, err := listen(k, l)
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %q: %w", l.Name, err))
			continue
		}
		sk := &socket{key: k, addr: loop.LocalAddr(fd), fd: fd, listener: l.Name, closed: make(chan struct{})}
		if k.addr.Port() != 0 {
			sk.addr = k.addr
		}
		p.sockets[k] = sk
		for _, w := range p.workers {
			w.loop.Post(func() { w.watch(sk, k) })
		}
	}
	return errs
}

func listen(k socketKey, l *config.Listener) (int, error) {
	if k.pipe != "" {
		fd, err := loop.ListenUnix(k.pipe, l.Backlog)
		if err != nil {
			return -1, fmt.Errorf("binding %s: %w", k.pipe, err)
		}
		if l.PipeMode != 0 {
			if err := os.Chmod(k.pipe, os.FileMode(l.PipeMode)); err != nil {
				loop.CloseFD(fd)
				return -1, fmt.Errorf("setting the mode of a socket: %w", err)
			}
		}
		return fd, nil
	}
	fd, err := loop.Listen(k.addr, loop.ListenOptions{Backlog: l.Backlog, Transparent: l.Transparent, Freebind: l.Freebind})
	if err != nil {
		return -1, fmt.Errorf("binding %s: %w", k.addr, err)
	}
	return fd, nil
}

// Addr returns the address that the first socket of a listener is bound to: with port 0 in the
// configuration, the one that the system chose.
func (p *Proxy) Addr(listener string) (netip.AddrPort, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, sk := range p.sockets {
		if sk.listener == listener {
			return sk.addr, true
		}
	}
	return netip.AddrPort{}, false
}

// unwatch closes a socket once every worker has taken what waits on it and has let go of it.
func (p *Proxy) unwatch(sk *socket) {
	p.leaving = append(p.leaving, sk)
	var holding atomic.Int32
	holding.Store(int32(len(p.workers)))
	free := make(chan struct{})
	letGo := func() {
		if holding.Add(-1) == 0 {
			close(free)
		}
	}
	for _, w := range p.workers {
		ok := w.loop.Post(func() {
			if a := w.acceptors[sk]; a != nil {
				delete(w.acceptors, sk)
				w.loop.Forget(sk.fd)
			}
			letGo()
		})
		if !ok {
			letGo()
		}
	}
	wait := func(ctx context.Context) {
		select {
		case <-free:
		case <-ctx.Done():
		}
		sk.close()
	}
	if !p.spawn(wait) {
		sk.close()
	}
}

// vacate waits until a socket that was taken out of the configuration has left an address. p.mu is
// held, which no worker waits for.
func (p *Proxy) vacate(k socketKey) {
	for _, sk := range p.leaving {
		if sk.key.addr == k.addr && sk.key.pipe == k.pipe {
			<-sk.closed
		}
	}
}

// acceptor is a worker's view of a socket.
type acceptor struct {
	w    *worker
	sk   *socket
	key  socketKey
	wait loop.Timer
}

func (w *worker) watch(sk *socket, key socketKey) {
	a := &acceptor{w: w, sk: sk, key: key}
	a.wait.Fire = func() { w.listen(a) }
	w.acceptors[sk] = a
	w.listen(a)
}

func (w *worker) listen(a *acceptor) {
	if w.acceptors[a.sk] != a {
		return
	}
	if err := w.loop.WatchListener(a.sk.fd, a); err != nil {
		w.p.log.Error("cannot watch listening socket", "address", a.sk.addr, "error", err)
	}
}

// Ready accepts the connections that wait.
func (a *acceptor) Ready(loop.Events) {
	w := a.w
	snap := w.snapshot()
	l := snap.byAddr[a.key.addr]
	if a.key.pipe != "" {
		l = snap.byPipe[a.key.pipe]
	}
	n := 64
	if l != nil && l.MaxAccepts > 0 {
		n = l.MaxAccepts
	}
	for range n {
		fd, peer, e := loop.Accept(a.sk.fd)
		switch {
		case e == loop.Again:
			return
		case e == syscall.ECONNABORTED || e == syscall.EINTR || e == syscall.EPROTO:
			continue
		case e != 0:
			// Out of descriptors or memory: look away for a while instead of turning in circles.
			w.p.log.Error("cannot accept", "address", a.sk.addr, "error", e)
			w.loop.Forget(a.sk.fd)
			w.loop.Arm(&a.wait, 100*time.Millisecond)
			return
		}
		if l == nil {
			loop.CloseFD(fd)
			continue
		}
		if a.key.pipe == "" {
			loop.NoDelay(fd)
		}
		if k := l.Keepalive; k != nil {
			loop.Keepalive(fd, k.Idle, k.Interval, int(k.Probes), k.UserTimeout)
		}
		to := w.p.lightest(w)
		if to == w || !to.loop.Post(func() { to.open(fd, peer, l) }) {
			w.open(fd, peer, l)
		}
	}
}

// lightest returns the worker with the fewest connections; w if it is among them.
func (p *Proxy) lightest(w *worker) *worker {
	best, n := w, p.load[w.idx].Load()
	for i := range p.load {
		if k := p.load[i].Load(); k < n {
			best, n = p.workers[i], k
		}
	}
	return best
}

// downstream is a connection that was accepted, with what is known of it.
type downstream struct {
	c        *conn
	id       uint64
	listener *config.Listener // the one whose chains apply
	chain    *config.FilterChain
	match    config.Conn
	sniText  string // match.SNI for logs
	start    time.Time
	tls      *tlsState // nil: plaintext
	first    []byte    // what the inspectors read
	// unwrapped tells that the PROXY header, if the listener wants one, has been taken off.
	unwrapped bool
	timer     loop.Timer
	h2        bool
	lstat     *stats.Listener
	hstat     *stats.HTTP // once HTTP has it
	ended     bool

	// For the listener's log.
	flags            accesslog.Flags
	details, failure string
}

// open begins a connection.
func (w *worker) open(fd int, peer netip.AddrPort, l *config.Listener) {
	if w.refuses(l) {
		loop.CloseFD(fd)
		return
	}
	d := &downstream{id: w.p.connID.Add(1), start: w.loop.Now()}
	c, err := w.newConn(fd, peer, d)
	if err != nil {
		w.p.log.Error("cannot watch connection", "error", err)
		return
	}
	d.c = c
	defer w.guard(c)
	c.connected = true
	c.local = loop.LocalAddr(fd)
	if l.OriginalDst || l.UseOriginalDst {
		if dst, ok := loop.OriginalDst(fd, c.local.Addr().Is6()); ok {
			c.local = dst
		}
	}
	if l.UseOriginalDst {
		l = w.snapshot().find(l, c.local)
	}
	d.listener = l
	c.limit(l.BufferLimit)
	d.lstat = w.p.stats.Listener(l.StatName).Shard(w.idx)
	d.lstat.CxTotal.Inc()
	d.lstat.CxActive.Inc()
	d.match = config.Conn{Local: c.local, Remote: peer, Direct: peer, Transport: "raw_buffer"}
	w.addSession(d)
	if d.inspects() {
		d.timer.Fire = c.guarded(d.timeout)
		if l.FilterTimeout > 0 {
			w.loop.Arm(&d.timer, l.FilterTimeout)
		}
		return // bytes that are there already make an edge
	}
	d.serve()
}

func (d *downstream) inspects() bool {
	return d.listener.ProxyHeader || d.wants(d.listener.TLSInspector) || d.wants(d.listener.HTTPInspector)
}

func (d *downstream) wants(i *config.Inspector) bool {
	return i != nil && !i.Disabled.Holds(d.match.Local.Port())
}

func (d *downstream) drain() {} // still being inspected

func (d *downstream) listenerName() string { return d.listener.Name }

func (d *downstream) end() {
	d.timer.Stop()
	d.c.w.removeSession(d)
	d.c.close()
	d.closed()
}

// closed counts the end of the connection.
func (d *downstream) closed() {
	if d.ended {
		return
	}
	d.ended = true
	d.lstat.CxActive.Dec()
	d.lstat.CxDestroy.Inc()
	d.lstat.CxLengthMS.Observe(float64(d.c.w.loop.Now().Sub(d.start).Milliseconds()))
	d.c.w.logConn(d)
}

func (d *downstream) onWrite() {}

func (d *downstream) onFail(error) {
	d.timer.Stop()
	d.c.w.removeSession(d)
	d.closed()
}

func (d *downstream) timeout() {
	d.lstat.PreCxTimeout.Inc()
	if d.listener.ContinueOnTimeout && (d.unwrapped || !d.listener.ProxyHeader) {
		d.serve()
		return
	}
	d.end()
}

// serve chooses the filter chain and begins its work.
func (d *downstream) serve() {
	d.timer.Stop()
	w := d.c.w
	d.chain = d.listener.Match(&d.match)
	if d.chain == nil {
		d.lstat.NoFilterChain.Inc()
		d.flags, d.details = accesslog.NoRouteFound, "filter_chain_not_found"
		d.end()
		return
	}
	if d.chain.TLS == nil {
		d.dispatch()
		return
	}
	cfg := w.p.tls.server(w.p, d.chain.TLS)
	d.timer.Fire = d.c.guarded(d.end)
	if t := d.chain.HandshakeTimeout; t > 0 {
		w.loop.Arm(&d.timer, t)
	} else {
		w.loop.Arm(&d.timer, 15*time.Second)
	}
	first := d.first
	d.first = nil
	d.c.handshake(tlsconn.Server(cfg), first, d.secured)
}

// secured goes on after the TLS handshake.
func (d *downstream) secured(err error) {
	d.timer.Stop()
	w := d.c.w
	if err != nil {
		w.p.tls.report(w.p, "downstream", d.match.Remote.String(), err)
		d.countHandshake(err)
		d.failure = (&tlsFailure{err}).Error()
		w.removeSession(d)
		d.closed()
		d.c.closeAfter()
		return
	}
	d.lstat.TLSHandshake.Inc()
	d.tls = newTLSState(d.c.tls.State())
	d.tls.info.LocalURISAN = w.p.tls.localURI(d.chain.TLS)
	d.h2 = d.tls.info.ALPN == "h2"
	d.dispatch()
}

// current returns the listener and chain that would take the connection now; false if the
// connection cannot go on in the same way, so that its next request should be its last.
func (d *downstream) current(s *snapshot) (*config.Listener, *config.FilterChain, bool) {
	l := s.listeners[d.listener.Name]
	if l == d.listener {
		return l, d.chain, true
	}
	if l == nil {
		return d.listener, d.chain, false
	}
	c := l.Match(&d.match)
	if c == nil || c.HTTP == nil || d.tls == nil && c.TLS != nil || d.tls != nil && c.TLS != d.chain.TLS {
		return d.listener, d.chain, false
	}
	return l, c, true
}

// dispatch gives the connection to the chain's filter.
func (d *downstream) dispatch() {
	w := d.c.w
	w.removeSession(d)
	switch {
	case d.chain.HTTP != nil:
		w.serveHTTP(d)
	case d.chain.TCP != nil:
		w.serveTCP(d)
	default:
		d.c.close()
		d.closed()
	}
}
