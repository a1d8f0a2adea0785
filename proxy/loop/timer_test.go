package loop

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestTimersModel arms, stops and fires timers of many durations at random, beside a plain list of them.
func TestTimersModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	l := &Loop{now: time.Unix(1000, 0)}
	l.timers.init()
	type state struct {
		Timer
		due   time.Time
		armed bool
	}
	ts := make([]*state, 40)
	var arm func(s *state)
	arm = func(s *state) {
		d := time.Duration(1+r.IntN(100)) * time.Millisecond
		if r.IntN(3) == 0 {
			d = time.Second
		}
		l.Arm(&s.Timer, d)
		s.due, s.armed = l.now.Add(d), true
	}
	for i := range ts {
		s := &state{}
		s.Fire = func() {
			if !s.armed || s.due.After(l.now) {
				t.Fatalf("fires at %v, due %v, armed %v", l.now, s.due, s.armed)
			}
			s.armed = false
			if r.IntN(2) == 0 {
				arm(ts[r.IntN(len(ts))])
			}
			if r.IntN(4) == 0 {
				x := ts[r.IntN(len(ts))]
				x.Stop()
				x.armed = false
			}
		}
		ts[i] = s
	}
	for range 200000 {
		for range r.IntN(3) {
			arm(ts[r.IntN(len(ts))])
		}
		var want time.Time
		for _, s := range ts {
			if s.armed && (want.IsZero() || s.due.Before(want)) {
				want = s.due
			}
		}
		if at, ok := l.timers.next(); ok != !want.IsZero() || !at.Equal(want) {
			t.Fatalf("next at %v, want %v", at, want)
		}
		l.now = l.now.Add(time.Duration(r.IntN(20)) * time.Millisecond)
		l.timers.fire(l.now)
		for _, s := range ts {
			if s.armed && !s.due.After(l.now.Add(-time.Millisecond)) && s.due.Before(l.now.Add(-200*time.Millisecond)) {
				t.Fatalf("did not fire: due %v, now %v", s.due, l.now)
			}
		}
	}
}

// TestRequestDurations: durations that requests bring, as many as there are timers, do not make each turn
// of the loop look at more lists; they fire in their order among those of configuration.
func TestRequestDurations(t *testing.T) {
	l := &Loop{now: time.Unix(1000, 0)}
	l.timers.init()
	const n = 20_000
	r := rand.New(rand.NewPCG(3, 4))
	ts := make([]Timer, n)
	due := make([]time.Time, n)
	left, last := n, l.now
	arm := func(i int) {
		d := time.Duration(1+r.IntN(10*n)) * time.Millisecond
		due[i] = l.now.Add(d)
		l.Arm(&ts[i], d)
	}
	for i := range ts {
		ts[i].Fire = func() {
			if left--; due[i].After(l.now) || ts[i].Armed() {
				t.Fatalf("timer %d, due %v, fires at %v", i, due[i], l.now)
			}
		}
		arm(i)
	}
	for range n / 2 {
		arm(r.IntN(n))
	}
	if len(l.timers.lists) > maxLists || len(l.timers.byD) > maxLists {
		t.Fatalf("%d lists for %d durations", len(l.timers.lists), n)
	}
	ts[0].Stop()
	left--
	for left > 0 {
		at, ok := l.timers.next()
		if !ok || at.Before(last) {
			t.Fatalf("%d timers are left; next at %v after %v, %v", left, at, last, ok)
		}
		last, l.now = at, at
		l.timers.fire(at)
	}
	if _, ok := l.timers.next(); ok || len(l.timers.odd) > 0 {
		t.Error("a timer is left")
	}
	if a := testing.AllocsPerRun(1000, func() { l.Arm(&ts[1], time.Duration(r.IntN(1e9))*time.Millisecond); ts[1].Stop() }); a > 0 {
		t.Errorf("arming allocates %v times", a)
	}
}
