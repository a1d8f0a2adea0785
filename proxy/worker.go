package proxy

import (
	"context"
	"math/rand/v2"
	"net/http"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
	"github.com/carrick-mesh/carrick/proxy/loop"
	"github.com/carrick-mesh/carrick/proxy/stats"
)

const (
	plainSize  = 64 << 10 // of a read, in bytes
	cipherSize = 32 << 10 // of a read of ciphertext; tlsconn.MaxPlain of it fits into plainSize
	bufSize    = 4 << 10
	maxKeep    = 128 << 10 // larger buffers are left to the garbage collector
	maxFree    = 256       // of each free list
)

// worker is one event loop with what its connections share. All of it belongs to the loop's
// goroutine; other goroutines reach it by loop.Post.
type worker struct {
	p    *Proxy
	idx  int
	loop *loop.Loop

	in   []byte // scratch: plaintext just read
	cin  []byte // ciphertext just read
	cout []byte // ciphertext about to be written
	// scratch is for building header values.
	scratch []byte
	today   string // the Date header
	second  int64  // that it is of

	dirty     []*conn
	account   account
	published int64 // of account, in the statistics
	crashing  bool  // a panic is being dealt with: nothing is to be used again

	bufs     freeList[[]byte]
	spare    int // bytes of bufs
	streams  freeList[*stream]
	pipes    []pipe
	entry    accesslog.Entry // of the line being logged
	istioKey stats.Key       // of the request being counted
	logs     map[string]*accesslog.Buffer

	acceptors map[*socket]*acceptor
	// sessions are the downstream connections, for draining and the end.
	sessions map[session]struct{}
	h2ups    map[*h2Up]struct{}
	conns    map[*conn]struct{}   // all of them
	far      map[*conn]struct{}   // those to other networks' gateways
	suspects map[*host]*suspicion // of all loops; the first worker rechecks for all
}

// session is what a downstream connection is used for.
type session interface {
	// drain ends the session soon without breaking what it does now.
	drain()
	// end closes it at once.
	end()
	// listenerName names the listener that it came by.
	listenerName() string
}

func newWorker(p *Proxy, idx int) (*worker, error) {
	l, err := loop.New()
	if err != nil {
		return nil, err
	}
	w := &worker{
		p: p, idx: idx, loop: l,
		in: make([]byte, plainSize), cin: make([]byte, cipherSize), cout: make([]byte, 0, cipherSize), scratch: make([]byte, 0, 1024),
		acceptors: map[*socket]*acceptor{}, sessions: map[session]struct{}{}, h2ups: map[*h2Up]struct{}{}, conns: map[*conn]struct{}{}, far: map[*conn]struct{}{}, suspects: map[*host]*suspicion{}, logs: map[string]*accesslog.Buffer{},
	}
	w.account.limit = p.memory / len(p.load)
	l.BatchDone = w.flush
	return w, nil
}

func (w *worker) run(ctx context.Context) error {
	err := w.loop.Run(ctx)
	for s := range w.sessions {
		s.end()
	}
	for c := range w.conns {
		c.flush()
		c.close()
	}
	w.flushLogs()
	return err
}

// flush writes the output of all connections that a batch of events touched.
func (w *worker) flush() {
	for i := 0; i < len(w.dirty); i++ {
		c := w.dirty[i]
		c.dirty = false
		w.dirty[i] = nil
		if !c.closed {
			w.flushConn(c)
		}
	}
	w.dirty = w.dirty[:0]
}

func (w *worker) flushConn(c *conn) {
	defer w.guard(c)
	c.flush()
	c.measure()
}

func (w *worker) snapshot() *snapshot { return w.p.snap.Load() }

// tick is called once a second.
func (w *worker) tick() {
	w.flushLogs()
	for s := range w.sessions {
		if x, ok := s.(*h2Down); ok {
			x.tick()
		}
	}
	for u := range w.h2ups {
		u.tick()
	}
	w.listenToGateways()
	w.bufs.trim()
	w.streams.trim()
	w.spare = 0
	for _, b := range w.bufs.items {
		w.spare += cap(b)
	}
	w.publish()
}

// date returns the time in the form of the Date header.
func (w *worker) date() string {
	if t := w.loop.Now(); t.Unix() != w.second {
		w.second, w.today = t.Unix(), t.UTC().Format(http.TimeFormat)
	}
	return w.today
}

// random returns a random number; the runtime's generator needs no lock.
func (w *worker) random() uint64 { return rand.Uint64() }

// buf returns an empty buffer.
func (w *worker) buf() []byte {
	if b, ok := w.bufs.get(); ok {
		w.spare -= cap(b)
		return b
	}
	return make([]byte, 0, bufSize)
}

// recycle takes a buffer back.
func (w *worker) recycle(b []byte) {
	if cap(b) >= bufSize && cap(b) <= maxKeep && w.spare+cap(b) <= maxSpare && !w.crashing {
		if w.bufs.put(b[:0]) {
			w.spare += cap(b)
		}
	}
}

// session is counted to even out connections between workers.
func (w *worker) addSession(s session) {
	w.sessions[s] = struct{}{}
	w.p.load[w.idx].Add(1)
}

func (w *worker) removeSession(s session) {
	if _, ok := w.sessions[s]; ok {
		delete(w.sessions, s)
		w.p.load[w.idx].Add(-1)
	}
}

// freeList keeps what is used again. Its zero value is empty.
type freeList[T any] struct {
	items []T
	least int // how many there were at least since the last trim
}

func (f *freeList[T]) get() (x T, ok bool) {
	n := len(f.items) - 1
	if n < 0 {
		return x, false
	}
	x, f.items[n] = f.items[n], x
	f.items = f.items[:n]
	f.least = min(f.least, n)
	return x, true
}

// put leaves x to the garbage collector if there is enough already; it reports whether it does not.
func (f *freeList[T]) put(x T) bool {
	if len(f.items) >= maxFree {
		return false
	}
	f.items = append(f.items, x)
	return true
}

// trim lets go of half of what nobody has needed since the last time, so that a burst is forgotten
// within seconds and steady work loses nothing.
func (f *freeList[T]) trim() {
	keep := len(f.items) - (f.least+1)/2
	clear(f.items[keep:])
	f.items = f.items[:keep]
	f.least = keep
}
