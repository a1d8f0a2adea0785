package loop

import "time"

// Timer fires once, unless stopped before. The zero value with Fire set is ready for Loop.Arm.
// It is embedded in what it times; arming and stopping do not allocate.
type Timer struct {
	// Fire is called on the loop's goroutine. It may arm or stop any timer.
	Fire func()

	prev, next *Timer
	list       *fifo
	at         time.Time
}

// Armed reports whether the timer will fire.
func (t *Timer) Armed() bool { return t.next != nil }

// Stop keeps the timer from firing.
func (t *Timer) Stop() {
	if t.next == nil {
		return
	}
	t.prev.next, t.next.prev = t.next, t.prev
	t.prev, t.next = nil, nil
}

// Arm lets t fire after d, rounded up to a millisecond, counted from Now. A timer that was armed is armed anew.
func (l *Loop) Arm(t *Timer, d time.Duration) {
	t.Stop()
	d = max(time.Millisecond, (d + time.Millisecond - 1).Truncate(time.Millisecond))
	f := t.list
	if f == nil || f.d != d || f.dead {
		f = l.timers.list(d)
		t.list = f
	}
	t.at = l.now.Add(d)
	t.prev, t.next = f.head.prev, &f.head
	t.prev.next, f.head.prev = t, t
}

// timers holds the armed timers: a first-in first-out list for each duration, for timers of
// one duration expire in the order in which they were armed. Durations are few: they come from configuration.
type timers struct {
	lists []*fifo
	byD   map[time.Duration]*fifo
}

type fifo struct {
	d    time.Duration
	dead bool  // no longer among the lists
	head Timer // sentinel
}

func (ts *timers) init() { ts.byD = map[time.Duration]*fifo{} }

func (ts *timers) list(d time.Duration) *fifo {
	f := ts.byD[d]
	if f == nil {
		f = &fifo{d: d}
		f.head.prev, f.head.next = &f.head, &f.head
		ts.byD[d] = f
		ts.lists = append(ts.lists, f)
	}
	return f
}

// next returns when the first timer fires.
func (ts *timers) next() (at time.Time, ok bool) {
	for _, f := range ts.lists {
		if t := f.head.next; t != &f.head && (!ok || t.at.Before(at)) {
			at, ok = t.at, true
		}
	}
	return at, ok
}

// maxLists bounds the durations that are remembered without a timer in them.
const maxLists = 32

func (ts *timers) fire(now time.Time) {
	for i := 0; i < len(ts.lists); i++ {
		f := ts.lists[i]
		for t := f.head.next; t != &f.head && !t.at.After(now); t = f.head.next {
			t.Stop()
			t.Fire()
		}
		if f.head.next == &f.head && len(ts.lists) > maxLists {
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
