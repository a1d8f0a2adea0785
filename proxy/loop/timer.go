package loop

import (
	"container/heap"
	"time"
)

// Timer fires once, unless stopped before. The zero value with Fire set is ready for Loop.Arm.
// It is embedded in what it times; arming and stopping do not allocate.
type Timer struct {
	// Fire is called on the loop's goroutine. It may arm or stop any timer.
	Fire func()

	prev, next *Timer // in list
	list       *fifo
	odd        *oddTimers // that it is in instead
	place      int        // in odd
	at         time.Time
}

// Armed reports whether the timer will fire.
func (t *Timer) Armed() bool { return t.next != nil || t.odd != nil }

// Stop keeps the timer from firing.
func (t *Timer) Stop() {
	switch {
	case t.next != nil:
		t.prev.next, t.next.prev = t.next, t.prev
		t.prev, t.next = nil, nil
	case t.odd != nil:
		heap.Remove(t.odd, t.place)
	}
}

// Arm lets t fire after d, rounded up to a millisecond, counted from Now. A timer that was armed
// is armed from now on for d.
func (l *Loop) Arm(t *Timer, d time.Duration) {
	t.Stop()
	d = max(time.Millisecond, (d + time.Millisecond - 1).Truncate(time.Millisecond))
	t.at = l.now.Add(d)
	f := t.list
	if f == nil || f.d != d || f.dead {
		f = l.timers.list(d)
		t.list = f
	}
	if f == nil {
		heap.Push(&l.timers.odd, t)
		return
	}
	t.prev, t.next = f.head.prev, &f.head
	t.prev.next, f.head.prev = t, t
}

// timers holds the armed timers: a first-in first-out list for each duration, for timers of one
// duration expire in the order in which they were armed. That costs nothing for the few durations that
// come from configuration. Those that requests bring (grpc-timeout) are as many as there are requests:
// what finds no list goes into a heap.
type timers struct {
	lists []*fifo
	byD   map[time.Duration]*fifo
	odd   oddTimers
}

type fifo struct {
	d    time.Duration
	dead bool  // no longer among the lists
	head Timer // sentinel
}

// maxLists bounds the lists, all of which are looked at in each turn of the loop.
const maxLists = 32

func (ts *timers) init() { ts.byD = map[time.Duration]*fifo{} }

// list returns the list of a duration; nil if there are enough lists.
func (ts *timers) list(d time.Duration) *fifo {
	f := ts.byD[d]
	if f == nil && len(ts.lists) < maxLists {
		f = &fifo{d: d}
		f.head.prev, f.head.next = &f.head, &f.head
		ts.byD[d] = f
		ts.lists = append(ts.lists, f)
	}
	return f
}

// next returns when the first timer fires.
func (ts *timers) next() (at time.Time, ok bool) {
	if len(ts.odd) > 0 {
		at, ok = ts.odd[0].at, true
	}
	for _, f := range ts.lists {
		if t := f.head.next; t != &f.head && (!ok || t.at.Before(at)) {
			at, ok = t.at, true
		}
	}
	return at, ok
}

func (ts *timers) fire(now time.Time) {
	for len(ts.odd) > 0 && !ts.odd[0].at.After(now) {
		t := ts.odd[0]
		t.Stop()
		t.Fire()
	}
	for i := 0; i < len(ts.lists); i++ {
		f := ts.lists[i]
		for t := f.head.next; t != &f.head && !t.at.After(now); t = f.head.next {
			t.Stop()
			t.Fire()
		}
		if f.head.next == &f.head && len(ts.lists) == maxLists { // a duration in use has a timer here
			last := len(ts.lists) - 1
			ts.lists[i] = ts.lists[last]
			ts.lists[last] = nil
			ts.lists = ts.lists[:last]
			delete(ts.byD, f.d)
			f.dead = true
			i--
		}
	}
}

// oddTimers is a heap.Interface, the first to fire on top.
type oddTimers []*Timer

func (o oddTimers) Len() int           { return len(o) }
func (o oddTimers) Less(i, k int) bool { return o[i].at.Before(o[k].at) }

func (o oddTimers) Swap(i, k int) {
	o[i], o[k] = o[k], o[i]
	o[i].place, o[k].place = i, k
}

// Push implements heap.Interface.
func (o *oddTimers) Push(x any) {
	t := x.(*Timer)
	t.odd, t.place = o, len(*o)
	*o = append(*o, t)
}

// Pop implements heap.Interface.
func (o *oddTimers) Pop() any {
	n := len(*o) - 1
	t := (*o)[n]
	(*o)[n], *o = nil, (*o)[:n]
	t.odd = nil
	return t
}
