package loop

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// run runs a loop and returns a function that runs f on it and waits.
func run(t testing.TB) (*Loop, func(f func())) {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if l.Post(func() {}) {
			t.Error("Post after the end of Run")
		}
	})
	return l, func(f func()) {
		ch := make(chan struct{})
		if !l.Post(func() { f(); close(ch) }) {
			t.Fatal("not running")
		}
		<-ch
	}
}

func TestTimers(t *testing.T) {
	l, do := run(t)
	var mu sync.Mutex
	var fired []int
	all := make(chan struct{})
	timers := make([]Timer, 6)
	do(func() {
		for i := range timers {
			timers[i].Fire = func() {
				mu.Lock()
				fired = append(fired, i)
				mu.Unlock()
				if i == 5 {
					close(all)
				}
			}
		}
		l.Arm(&timers[0], 30*time.Millisecond)
		l.Arm(&timers[1], 10*time.Millisecond)
		l.Arm(&timers[2], 10*time.Millisecond)
		l.Arm(&timers[3], 20*time.Millisecond)
		l.Arm(&timers[4], 5*time.Millisecond)
		l.Arm(&timers[5], 60*time.Millisecond) // long enough for the loop to park
		timers[3].Stop()
		l.Arm(&timers[4], 15*time.Millisecond)
		if timers[3].Armed() || !timers[4].Armed() {
			t.Error("Armed")
		}
	})
	<-all
	mu.Lock()
	defer mu.Unlock()
	want := []int{1, 2, 4, 0, 5}
	if len(fired) != len(want) {
		t.Fatalf("fired %v, want %v", fired, want)
	}
	for i := range want {
		if fired[i] != want[i] {
			t.Fatalf("fired %v, want %v", fired, want)
		}
	}
}

// TestManyDurations: lists of durations that are used no more do not pile up.
func TestManyDurations(t *testing.T) {
	l, do := run(t)
	var n int
	done := make(chan struct{})
	do(func() {
		for i := range 500 {
			tm := &Timer{}
			tm.Fire = func() {
				if n++; n == 500 {
					close(done)
				}
			}
			l.Arm(tm, time.Duration(i)*100*time.Microsecond)
		}
	})
	<-done
	// The next firing clears up.
	again := make(chan struct{})
	do(func() {
		tm := &Timer{}
		tm.Fire = func() { close(again) }
		l.Arm(tm, time.Millisecond)
	})
	<-again
	do(func() {
		if len(l.timers.lists) > maxLists+2 || len(l.timers.byD) != len(l.timers.lists) {
			t.Errorf("%d lists, %d in the map", len(l.timers.lists), len(l.timers.byD))
		}
	})
}

type handler func(Events)

func (h handler) Ready(ev Events) { h(ev) }

// TestEcho accepts, reads, writes and closes with everything that the package has for it.
func TestEcho(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, do := run(t)
		addr := netip.AddrPortFrom(netip.MustParseAddr(host), 0)
		fd, err := Listen(addr, ListenOptions{})
		if err != nil {
			t.Logf("%s: %v", host, err)
			continue
		}
		defer CloseFD(fd)
		at := LocalAddr(fd)
		buf := make([]byte, 64)
		do(func() {
			err := l.WatchListener(fd, handler(func(Events) {
				for {
					c, peer, e := Accept(fd)
					if e == Again {
						return
					}
					if e != 0 || peer.Addr() != addr.Addr() {
						t.Errorf("accept: %v from %v", e, peer)
						return
					}
					l.Watch(c, handler(func(ev Events) {
						for {
							n, e := Read(c, buf)
							if e == Again {
								return
							}
							if n == 0 || e != 0 {
								l.Close(c)
								return
							}
							Write(c, buf[:n])
						}
					}))
				}
			}))
			if err != nil {
				t.Error(err)
			}
		})
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		msg := bytes.Repeat([]byte("0123456789abcdef"), 1000)
		go func() {
			c.Write(msg)
			c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, msg) {
			t.Errorf("%s: %d bytes, %v", host, len(got), err)
		}
		c.Close()
		do(func() { l.Forget(fd) })
	}
}

func TestConnect(t *testing.T) {
	l, do := run(t)
	s, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	result := make(chan error, 1)
	connect := func(to netip.AddrPort) error {
		do(func() {
			fd, err := Connect(to, ConnectOptions{Source: netip.MustParseAddr("127.0.0.6")})
			if err != nil {
				result <- err
				return
			}
			err = l.Watch(fd, handler(func(ev Events) {
				err := Failure(fd)
				if err == nil && LocalAddr(fd).Addr() != netip.MustParseAddr("127.0.0.6") {
					t.Errorf("bound to %v", LocalAddr(fd))
				}
				l.Close(fd)
				result <- err
			}))
			if err != nil {
				result <- err
			}
		})
		return <-result
	}
	if err := connect(s.Addr().(*net.TCPAddr).AddrPort()); err != nil {
		t.Error(err)
	}
	s.Close()
	if err := connect(s.Addr().(*net.TCPAddr).AddrPort()); err == nil {
		t.Error("connected to nobody")
	}
}

// TestStaleEvents: a handler does not get the events of a descriptor that was closed in the same batch,
// nor a turn after it.
func TestStaleEvents(t *testing.T) {
	l, do := run(t)
	r1, w1, err := Pipe(4096)
	if err != nil {
		t.Fatal(err)
	}
	r2, w2, err := Pipe(4096)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	closeBoth := func(Events) {
		calls++
		l.Again(r1)
		l.Again(r2)
		l.Close(r1)
		l.Close(r2)
	}
	do(func() {
		l.Watch(r1, handler(closeBoth))
		l.Watch(r2, handler(closeBoth))
		Write(w1, []byte("x"))
		Write(w2, []byte("x"))
	})
	for range 3 {
		do(func() {})
	}
	do(func() {
		if calls != 1 {
			t.Errorf("%d calls", calls)
		}
	})
	CloseFD(w1)
	CloseFD(w2)
}

func BenchmarkTimer(b *testing.B) {
	l, err := New()
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	tm := Timer{Fire: func() {}}
	b.ReportAllocs()
	for b.Loop() {
		l.Arm(&tm, time.Second)
		tm.Stop()
	}
}
