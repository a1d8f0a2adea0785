package proxy

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/carrick-mesh/carrick/proxy/loop"
)

// A panic in the handling of a connection's event, or of a timer of the connection or its requests, is a
// fault that some input reaches: it ends that connection, and through it its requests, and not the
// process with everybody else's. That is safe because what it leaves half-changed is the connection's:
// it is closed and never used again, and while it is, no buffer and no stream goes back to a free list,
// where another connection would find it. What may stay behind is a count that is one too high.
//
// A panic elsewhere ends the process: in what Apply, Drain and the tick post, in accepting, and in
// resolving names, the change may be half done in clusters, pools and tables that all connections share.
// Nothing could be trusted after it; a restart can.

// errPanic ends a connection whose handling has panicked.
var errPanic = errors.New("a fault of the proxy")

// guard, deferred, ends c if its handling panics.
func (w *worker) guard(c *conn) {
	if v := recover(); v != nil {
		w.panicked(c, v)
	}
}

func (w *worker) panicked(c *conn, v any) {
	w.p.reportPanic(v, "local", c.local.String(), "remote", c.remote.String())
	w.crashing = true
	defer func() {
		w.crashing = false
		if again := recover(); again != nil { // what the connection was used for cannot even end
			w.p.reportPanic(again, "remote", c.remote.String())
		}
	}()
	if c.closed {
		return
	}
	loop.ResetOnClose(c.fd)
	c.close()
	c.user.onFail(errPanic)
}

// reportPanic counts a panic and logs it with its stack; at most one a second is logged.
func (p *Proxy) reportPanic(v any, about ...any) {
	p.stats.Process.Panics.Inc()
	now := time.Now().Unix()
	if p.lastPanic.Swap(now) == now {
		return
	}
	p.log.Error("a fault of the proxy ended a connection", append(about, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))...)
}

// guarded returns f for a timer of c.
func (c *conn) guarded(f func()) func() {
	return func() {
		defer c.w.guard(c)
		f()
	}
}

// guarded returns f for a timer of s.
func (s *stream) guarded(f func()) func() {
	return func() {
		defer s.w.guard(s.d.c)
		f()
	}
}

// calm runs f, which is on a goroutine of its own for a connection, and makes a panic its error.
func (p *Proxy) calm(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p.reportPanic(v)
			err = errPanic
		}
	}()
	return f()
}
