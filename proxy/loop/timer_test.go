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
