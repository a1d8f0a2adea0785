package proxy

import (
	"errors"
	"io"
	"time"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/proxy/loop"
	"github.com/carrick-mesh/carrick/proxy/stats"
)

const (
	pipeSize = 1 << 20 // bytes of a pipe for splice(2)
	// turns bounds what one direction may do before others have their turn.
	turns = 16
)

// pipe carries bytes between two sockets without copying them to user space.
type pipe struct{ r, w int }

// tcpSession forwards bytes between a downstream connection and a connection to a cluster.
type tcpSession struct {
	w    *worker
	d    *downstream
	cfg  *config.TCPProxy
	down flow // bytes from the client
	up   flow // bytes from the upstream

	name    string // of the cluster
	cl      *cluster
	member  member
	dial    *dialing
	tls     *tlsState // of the upstream
	tries   uint32
	counted bool

	idle   loop.Timer
	most   loop.Timer
	active time.Time
	flags  accesslog.Flags
	fail   string // transport failure
	detail string // CONNECTION_TERMINATION_DETAILS
	over   bool
	stat   *stats.TCP
}

// flow is one direction of a session: it reads from c and writes to the other flow's c.
type flow struct {
	t     *tcpSession
	c     *conn
	to    *flow
	n     uint64 // bytes forwarded
	eof   bool   // the end has come and was passed on
	bulk  int    // full reads in a row
	pipe  pipe
	piped int // bytes in the pipe
}

// serveTCP begins to forward d.
func (w *worker) serveTCP(d *downstream) {
	t := &tcpSession{w: w, d: d, cfg: d.chain.TCP, active: w.loop.Now()}
	t.down, t.up = flow{t: t, c: d.c}, flow{t: t}
	t.down.to, t.up.to = &t.up, &t.down
	d.c.user = &t.down
	w.addSession(t)
	t.idle.Fire = d.c.guarded(t.onIdle)
	t.most.Fire = d.c.guarded(func() { t.detail = "max_connection_duration_reached"; t.finish() })
	if m := t.cfg.MaxDuration; m > 0 {
		w.loop.Arm(&t.most, m)
	}
	t.countTCP()
	if w.account.busy() && !d.listener.Bypass {
		t.flags |= accesslog.OverloadManager
		d.lstat.CxOverload.Inc()
		t.finish()
		return
	}
	t.name = t.cfg.Cluster(w.random())
	if d.chain.SNICluster && d.match.SNI != "" {
		t.name = d.match.SNI
	}
	t.cl = w.snapshot().clusters[t.name]
	if t.cl == nil {
		t.flags |= accesslog.NoClusterFound
		t.finish()
		return
	}
	t.connect()
}

// connect makes an attempt to reach the cluster.
func (t *tcpSession) connect() {
	t.tries++
	var m member
	ok := true
	if t.cl.cfg.Type == config.OriginalDST {
		m = member{t.cl.original(t.d.match.Local), &noMetadata}
	} else {
		o := want{}
		if t.cfg.Hash {
			o.hash, o.hasHash = hashString(t.d.match.Remote.Addr().String()), true
		}
		m, ok = t.cl.choose(t.w, o)
	}
	if !ok {
		t.flags |= accesslog.NoHealthyUpstream
		t.finish()
		return
	}
	b := &t.cl.breakers[0]
	if b.connections.Load() >= int64(t.cl.cfg.Breakers[0].MaxConnections) {
		t.flags |= accesslog.UpstreamOverflow
		t.cl.stat(t.w).CxOverflow.Inc()
		t.finish()
		return
	}
	t.member = m
	m.host.active.Add(1)
	t.counted = true
	t.dial = t.w.dial(m.host, dialOptions{slow: t.elsewhere}, t.connected)
}

// elsewhere leaves a gateway that does not answer for another host, if there is one.
func (t *tcpSession) elsewhere() {
	if !t.cl.hasSpare() {
		return
	}
	t.dial.cancel()
	t.dial = nil
	t.uncount()
	t.tries--
	t.connect()
}

func (t *tcpSession) connected(c *conn, st *tlsState, err error) {
	t.dial = nil
	if err != nil {
		t.uncount()
		f := connectFailure(err)
		t.fail = f.transport
		t.flags |= accesslog.UpstreamConnectionFailure
		if t.tries < max(1, t.cfg.ConnectTries) && !t.over {
			t.connect()
			return
		}
		t.finish()
		return
	}
	t.flags &^= accesslog.UpstreamConnectionFailure
	t.fail = ""
	t.tls = st
	t.up.c = c
	c.user = &t.up
	t.member.host.counts.RqTotal.Add(1)
	t.member.host.result(200)
	if i := t.cfg.IdleTimeout; i > 0 {
		t.w.loop.Arm(&t.idle, i)
	}
	if len(t.d.first) > 0 {
		t.down.n += uint64(len(t.d.first))
		c.write(t.d.first)
		t.d.first = nil
	}
	if t.down.c.readable {
		t.down.c.again()
	}
	if c.readable {
		c.again()
	}
}

func (t *tcpSession) uncount() {
	if t.counted {
		t.counted = false
		t.member.host.active.Add(-1)
	}
}

func (t *tcpSession) onIdle() {
	if quiet := t.w.loop.Now().Sub(t.active); quiet < t.cfg.IdleTimeout {
		t.w.loop.Arm(&t.idle, t.cfg.IdleTimeout-quiet)
		return
	}
	t.detail = "idle_timeout"
	t.finish()
}

// drain implements session. A TCP connection cannot be told to end; it ends when its peers do.
func (t *tcpSession) drain() {}

func (t *tcpSession) listenerName() string { return t.d.listener.Name }

func (t *tcpSession) end() {
	t.detail = "proxy_stopped"
	t.finish()
}

// finish closes both sides and logs.
func (t *tcpSession) finish() {
	if t.over {
		return
	}
	t.over = true
	t.idle.Stop()
	t.most.Stop()
	if t.dial != nil {
		t.dial.cancel()
		t.dial = nil
	}
	t.uncount()
	for _, f := range [...]*flow{&t.down, &t.up} {
		if f.c == nil {
			continue
		}
		f.returnPipe()
		if len(f.c.out)+len(f.c.wire) > 0 && !f.c.closed {
			f.c.closeAfter()
		} else {
			f.c.close()
		}
	}
	t.w.removeSession(t)
	t.countTCPEnd()
	t.d.closed()
	t.log()
}

func (t *tcpSession) log() {
	if len(t.cfg.AccessLogs) == 0 {
		return
	}
	e := t.w.connEntry(t.d)
	e.BytesReceived, e.BytesSent = t.down.n, t.up.n
	e.Flags, e.UpstreamFailure, e.TerminationDetails = t.flags, t.fail, t.detail
	e.UpstreamClusterRaw = t.name
	if t.cl != nil {
		e.UpstreamCluster = t.cl.cfg.StatName
	}
	if t.member.host != nil {
		e.UpstreamHost = t.member.host.addr
		e.UpstreamHostText = t.member.host.pipe
	}
	if t.up.c != nil {
		e.UpstreamLocal = t.up.c.local
	}
	if t.tls != nil {
		e.UpstreamTLS = &t.tls.info
	}
	e.UpstreamAttempts = int(t.tries)
	t.w.log(t.cfg.AccessLogs, e)
}

// onRead forwards what has come.
func (f *flow) onRead() {
	t := f.t
	if f.to.c == nil || t.over {
		return // not connected yet: the bytes wait in the kernel
	}
	t.active = t.w.loop.Now()
	for i := 0; (f.c.readable || f.piped > 0) && !t.over; i++ {
		if f.to.c.isFull() {
			return // onWrite of the other side goes on
		}
		if i == turns {
			f.c.again()
			return
		}
		if f.bulk >= 2 && f.canSplice() {
			if !f.splice() {
				return
			}
			continue
		}
		b, err := f.c.read()
		if len(b) == plainSize {
			f.bulk++
		} else {
			f.bulk = 0
		}
		if len(b) > 0 {
			f.n += uint64(len(b))
			f.to.c.write(b)
			continue
		}
		if err != nil {
			f.ended(err)
			return
		}
	}
}

// ended passes the end of the stream on, or ends the session.
func (f *flow) ended(err error) {
	t := f.t
	f.returnPipe()
	if !errors.Is(err, io.EOF) {
		f.onFail(err)
		return
	}
	f.eof = true
	if f.to.eof {
		t.finish()
		return
	}
	f.to.c.closeWrite()
}

// onWrite goes on reading for the side that has room again.
func (f *flow) onWrite() {
	if f.to.c == nil || f.t.over {
		return
	}
	if f.to.piped > 0 {
		f.to.onRead()
		return
	}
	if f.to.c.readable {
		f.to.c.again()
	}
}

func (f *flow) onFail(err error) {
	t := f.t
	if f == &t.up {
		t.flags |= accesslog.UpstreamConnectionTermination
		t.fail = err.Error()
	} else {
		t.flags |= accesslog.DownstreamConnectionTermination
	}
	if !f.to.eof && f.to.c != nil {
		loop.ResetOnClose(f.to.c.fd) // a reset is not an end
	}
	t.finish()
}

// canSplice reports whether bytes can go from socket to socket.
func (f *flow) canSplice() bool {
	if f.c.tls != nil || f.to.c.tls != nil || !f.to.c.idle() {
		return false
	}
	if f.pipe != (pipe{}) {
		return true
	}
	w := f.t.w
	if n := len(w.pipes); n > 0 {
		f.pipe = w.pipes[n-1]
		w.pipes = w.pipes[:n-1]
		return true
	}
	r, wr, err := loop.Pipe(pipeSize)
	if err != nil {
		f.bulk = -1 << 30 // no descriptors: copy
		return false
	}
	f.pipe = pipe{r, wr}
	return true
}

// splice moves bytes through the pipe; false if it has to wait.
func (f *flow) splice() bool {
	if f.piped == 0 {
		n, e := loop.Splice(f.c.fd, f.pipe.w, pipeSize)
		switch {
		case e == loop.Again:
			f.c.readable = false
			f.returnPipe()
			f.bulk = 0
			return false
		case e != 0:
			f.onFail(e)
			return false
		case n == 0:
			f.c.readable = false
			f.ended(io.EOF)
			return false
		}
		f.piped = n
		if n < 16<<10 {
			f.bulk = 0 // back to copying, once the pipe is empty
		}
	}
	for f.piped > 0 {
		n, e := loop.Splice(f.pipe.r, f.to.c.fd, f.piped)
		if e == loop.Again {
			f.to.c.blocked, f.to.c.full = true, true // onWrite will come
			f.bulk = max(f.bulk, 2)
			return false
		}
		if e != 0 {
			f.to.onFail(e)
			return false
		}
		f.piped -= n
		f.n += uint64(n)
	}
	return true
}

func (f *flow) returnPipe() {
	if f.pipe == (pipe{}) {
		return
	}
	if f.piped == 0 && len(f.t.w.pipes) < 64 {
		f.t.w.pipes = append(f.t.w.pipes, f.pipe)
	} else {
		loop.CloseFD(f.pipe.r)
		loop.CloseFD(f.pipe.w)
	}
	f.pipe, f.piped = pipe{}, 0
}
