// Package loop is an event loop over Linux epoll: it tells handlers when their file descriptors
// are ready, fires timers and runs functions posted from other goroutines. It is the only
// package that knows epoll; it knows nothing of protocols, buffers or configuration.
//
// A Loop and everything registered with it belong to the goroutine in Run: handlers, timers and
// posted functions run there and must not block. Only Post may be called from elsewhere.
package loop

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Events are the readiness bits of epoll_ctl(2).
type Events uint32

// The events that handlers see. Err and Hup are always reported.
const (
	In    Events = syscall.EPOLLIN
	Out   Events = syscall.EPOLLOUT
	RdHup Events = syscall.EPOLLRDHUP
	Err   Events = syscall.EPOLLERR
	Hup   Events = syscall.EPOLLHUP

	edge      = 1 << 31 // EPOLLET, which package syscall has as a negative constant
	exclusive = 1 << 28 // EPOLLEXCLUSIVE
)

// Handler is told when its descriptor is ready. Ready with no events is a turn asked for by Again.
type Handler interface{ Ready(ev Events) }

const (
	// batch bounds the events handled between two calls of BatchDone, and so how long output waits.
	batch = 64
	// spin is how long the loop waits in a raw epoll_wait, which keeps its P, before it parks in
	// Go's poller. An ordinary blocking syscall would wake the runtime's monitor thread each time.
	spin = 2 * time.Millisecond
)

// Loop is one event loop. Make it with New, start it with Run.
type Loop struct {
	// BatchDone, if set before Run, is called after each batch of events: the place to flush output.
	BatchDone func()

	ep    int
	park  syscall.RawConn // the epoll descriptor as seen by Go's poller
	file  *os.File
	wake  int // eventfd
	table []slot
	gen   int32
	again []slot
	turn  []slot

	evs    [batch]syscall.EpollEvent
	parked func(uintptr) bool // polls; made once, for a closure is an allocation
	n      int                // what parked found
	errno  syscall.Errno

	now     time.Time
	timers  timers
	stopped bool

	mu     sync.Mutex
	posted []func()
	closed bool
}

type slot struct {
	h   Handler
	fd  int
	gen int32
}

// New returns a loop that is not yet running.
func New() (*Loop, error) {
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	// Non-blocking, or os.NewFile would not register it with Go's poller.
	if err := syscall.SetNonblock(ep, true); err != nil {
		syscall.Close(ep)
		return nil, fmt.Errorf("setting epoll descriptor non-blocking: %w", err)
	}
	l := &Loop{ep: ep, file: os.NewFile(uintptr(ep), "epoll"), now: time.Now()}
	l.timers.init()
	l.parked = func(uintptr) bool {
		l.n, l.errno = l.poll(0)
		return l.n > 0 || l.errno != 0
	}
	if l.park, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, fmt.Errorf("registering epoll descriptor with the runtime: %w", err)
	}
	w, _, e := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if e != 0 {
		l.file.Close()
		return nil, fmt.Errorf("eventfd: %w", e)
	}
	l.wake = int(w)
	if err := l.control(l.wake, uint32(In)|edge, (*waker)(l)); err != nil {
		l.file.Close()
		syscall.Close(l.wake)
		return nil, err
	}
	return l, nil
}

// Now returns the time of the current batch of events.
func (l *Loop) Now() time.Time { return l.now }

// Watch reports edges of readiness of fd to h until Forget. All of In, Out and RdHup are
// watched: with edge triggering that costs nothing and needs no further system call.
func (l *Loop) Watch(fd int, h Handler) error {
	return l.control(fd, uint32(In|Out|RdHup)|edge, h)
}

// WatchListener reports a listening socket to h while connections wait on it (level-triggered).
// Several loops may watch the same socket; about one of them is woken for a connection.
func (l *Loop) WatchListener(fd int, h Handler) error {
	return l.control(fd, uint32(In)|exclusive, h)
}

func (l *Loop) control(fd int, events uint32, h Handler) error {
	for fd >= len(l.table) {
		l.table = append(l.table, make([]slot, 64+len(l.table))...)
	}
	l.gen++
	// Fd and Pad together are the 64 bits of user data; syscall.EpollEvent has the layout of
	// each architecture (packed on amd64 only).
	ev := syscall.EpollEvent{Events: events, Fd: int32(fd), Pad: l.gen}
	_, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(l.ep), syscall.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	if e != 0 {
		return fmt.Errorf("epoll_ctl add: %w", e)
	}
	l.table[fd] = slot{h: h, fd: fd, gen: l.gen}
	return nil
}

// Handle gives the events of a watched fd to another handler from now on.
func (l *Loop) Handle(fd int, h Handler) { l.table[fd].h = h }

// Forget stops watching fd and leaves it open.
func (l *Loop) Forget(fd int) {
	if fd < len(l.table) && l.table[fd].h != nil {
		l.table[fd] = slot{}
		syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(l.ep), syscall.EPOLL_CTL_DEL, uintptr(fd), 0, 0, 0)
	}
}

// Close stops watching fd and closes it; closing takes it out of the epoll set.
func (l *Loop) Close(fd int) {
	if fd < len(l.table) {
		l.table[fd] = slot{}
	}
	syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0)
}

// Again gives the handler of fd another turn after all others have had theirs.
func (l *Loop) Again(fd int) {
	if l.table[fd].h != nil {
		l.again = append(l.again, l.table[fd])
	}
}

// Post runs f on the loop's goroutine, soon, and reports whether it will: false once Run has
// ended. It may be called from any goroutine.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, f)
	first := len(l.posted) == 1
	if first { // under the lock: Run closes the eventfd under it
		one := uint64(1)
		syscall.RawSyscall(syscall.SYS_WRITE, uintptr(l.wake), uintptr(unsafe.Pointer(&one)), 8)
	}
	l.mu.Unlock()
	return true
}

// waker is the loop as the handler of its own eventfd.
type waker Loop

func (w *waker) Ready(Events) {
	l := (*Loop)(w)
	var n uint64
	syscall.RawSyscall(syscall.SYS_READ, uintptr(l.wake), uintptr(unsafe.Pointer(&n)), 8)
	l.mu.Lock()
	fs := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// Run handles events until ctx ends. Descriptors still watched then are the callers' to close.
func (l *Loop) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.Post(func() { l.stopped = true }) })
	defer stop()
	defer l.close()
	for !l.stopped {
		n, err := l.wait()
		if err != nil {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		l.now = time.Now()
		if len(l.again) > 0 {
			l.turn, l.again = l.again, l.turn[:0]
			for _, s := range l.turn {
				if l.table[s.fd].gen == s.gen {
					l.table[s.fd].h.Ready(0)
				}
			}
		}
		for i := range l.evs[:n] {
			e := &l.evs[i]
			// The generation tells events of a closed descriptor from those of its successor.
			if s := &l.table[e.Fd]; s.gen == e.Pad && s.h != nil {
				s.h.Ready(Events(e.Events))
			}
		}
		l.timers.fire(l.now)
		if l.BatchDone != nil {
			l.BatchDone()
		}
	}
	return nil
}

func (l *Loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	syscall.Close(l.wake)
	l.file.Close()
}

// wait returns the next events, or none when a timer is due, somebody wants another turn or the
// runtime needs a safepoint.
func (l *Loop) wait() (int, error) {
	next, ok := l.timers.next()
	d := spin
	if ok {
		d = min(d, max(0, next.Sub(l.now)))
	}
	if len(l.again) > 0 {
		d = 0
	}
	n, e := l.poll(int((d + time.Millisecond - 1) / time.Millisecond))
	if e == syscall.EINTR {
		// The runtime preempts by signal. Without a safepoint here the loop would go straight
		// back into the kernel and hold up stop-the-world until the next event.
		runtime.Gosched()
		return 0, nil
	}
	if e != 0 {
		return 0, e
	}
	if n > 0 || d < spin {
		return n, nil
	}
	// Idle: park without holding a P or a thread.
	var deadline time.Time
	if ok {
		deadline = next
	}
	if err := l.file.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	l.n, l.errno = 0, 0
	if err := l.park.Read(l.parked); err != nil && !os.IsTimeout(err) {
		return 0, err
	}
	if l.errno != 0 && l.errno != syscall.EINTR {
		return 0, l.errno
	}
	return l.n, nil
}

func (l *Loop) poll(ms int) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(l.ep), uintptr(unsafe.Pointer(&l.evs)), batch, uintptr(ms), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}
