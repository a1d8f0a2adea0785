package http2

import (
	"bytes"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// keeper holds on to all heads, as requests under way do, and answers those whose path is not /k.
type keeper struct {
	heads  []header.Header
	events int
	body   []byte
}

func (k *keeper) OnHead(s *Stream, h *header.Header, _ bool) {
	k.heads = append(k.heads, header.Header{})
	last := &k.heads[len(k.heads)-1]
	*h, *last = *last, *h
	if path, _ := last.Header(":path"); path != "/k" && !s.c.client {
		var resp header.Header
		resp.SetPseudo(header.Status, "404")
		resp.Add("set-cookie", "a="+strings.Repeat("b", 300)) // not kept in the table
		s.SendHead(&resp, false)
		s.SendData(k.body)
		s.SendEnd(nil)
	}
}

func (k *keeper) OnInformational(*Stream, *header.Header) { k.events++ }
func (k *keeper) OnData(s *Stream, b []byte)              { s.Consumed(len(b)) }
func (k *keeper) OnEnd(*Stream, *header.Header)           { k.events++ }
func (k *keeper) OnReset(*Stream, Code, bool)             { k.events++ }
func (k *keeper) OnWritable(*Stream)                      { k.events++ }
func (k *keeper) OnGoAway(Code, string)                   { k.events++ }
func (k *keeper) OnPong()                                 { k.events++ }
func (k *keeper) OnRefused(*header.Header, string)        { k.events++ }

// cpu returns the processor time of this thread. A busy machine does not change it, so it may be
// asserted, unlike the time on the clock.
func cpu(t *testing.T) time.Duration {
	var u syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fed feeds b to c and checks what it costs: memory in proportion to the input and to the heads that may
// be as large as the options allow, processor time in proportion to the input, and what c holds at the end
// within the bound of a connection whose peer does not read.
func fed(t *testing.T, c *Conn, k *keeper, b []byte) (err error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, had, size := cpu(t), len(k.heads), len(b)
	took := allocated(func() {
		for len(b) > 0 && !c.Paused() && err == nil {
			n := min(len(b), 64<<10)
			err = c.Feed(b[:n])
			b = b[n:]
		}
	})
	spent := cpu(t) - began
	for i := had; i < len(k.heads); i++ {
		size += 1000 + k.heads[i].Size()
	}
	if most := 2<<20 + 8*int64(size); took > most {
		t.Errorf("input and heads of %d bytes: %d bytes were allocated, more than %d", size, took, most)
	}
	if most := 300*time.Millisecond + time.Duration(size)*200*time.Nanosecond; spent > most {
		t.Errorf("input and heads of %d bytes: %v of processor time, more than %v", size, spent, most)
	}
	if most := 4*maxOut + maxBlock*2*int(c.o.MaxHeaderBytes) + 512*len(c.streams) + 64<<10; c.Size()-c.held > most {
		t.Errorf("%d bytes are held, more than %d", c.Size()-c.held, most)
	}
	return err
}

func FuzzServer(f *testing.F) {
	cl := NewClient(Options{}, &client{})
	s := cl.Open(&exchange{})
	s.SendHead(get("POST", "/"), false)
	s.SendData([]byte("hello"))
	s.SendEnd(nil)
	f.Add(cl.Take(nil)[len(Preface):])
	f.Fuzz(func(t *testing.T, b []byte) {
		k := &keeper{body: make([]byte, 10)}
		srv := NewServer(Options{MaxStreams: 1000}, k)
		if srv.Feed([]byte(Preface)) != nil {
			t.Fatal("preface")
		}
		fed(t, srv, k, b)
		for len(srv.Take(nil)) > 0 {
		}
		srv.Drained()
		srv.Resume()
	})
}

// TestKnownAttacks are inputs that once went beyond the bounds of the fuzz target.
func TestKnownAttacks(t *testing.T) {
	settings := appendFrame(nil, 0, frameSettings, 0, 0)
	many := func(n int, path string, more ...byte) (b []byte) {
		for i := range uint32(n) {
			b = append(b, headers(3+2*i, path, more...)...)
		}
		return b
	}
	// A cookie in crumbs of a byte each.
	crumb := append(appendInteger([]byte{0x40}, 0, 7, 6), "cookie"...)
	crumb = append(appendInteger(crumb, 0, 7, 560), strings.Repeat("v", 560)...)
	crumbs := bytes.Join([][]byte{settings, headers(1, "/", crumb...), many(20, "/k", bytes.Repeat([]byte{0xbe}, 92)...)}, nil)
	// Requests whose answers nobody reads.
	unread := append(settings, many(5000, "/")...)
	// Settings that change the windows of many streams, again and again.
	var p []byte
	for i := range 2700 {
		p = appendSetting(p, settingWindow, uint32(1000+i%2))
	}
	change := append(appendFrame(nil, len(p), frameSettings, 0, 0), p...)
	windows := append(append(settings, many(900, "/k")...), bytes.Repeat(change, 30)...)
	for name, c := range map[string]struct {
		in   []byte
		ends bool
	}{"a cookie in crumbs": {crumbs, false}, "unread answers": {unread, false}, "changes of windows": {windows, true}} {
		t.Run(name, func(t *testing.T) {
			k := &keeper{body: make([]byte, 10)}
			srv := NewServer(Options{MaxStreams: 1000}, k)
			if srv.Feed([]byte(Preface)) != nil {
				t.Fatal("preface")
			}
			if err := fed(t, srv, k, c.in); (err != nil) != c.ends {
				t.Error(err)
			}
		})
	}
}

func FuzzClient(f *testing.F) {
	srv := NewServer(Options{}, &echo{})
	cl := NewClient(Options{}, &client{})
	cl.Open(&exchange{}).SendHead(get("GET", "/"), true)
	srv.Feed(cl.Take(nil))
	f.Add(srv.Take(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := &keeper{}
		cl := NewClient(Options{}, k)
		for range 3 {
			s := cl.Open(nil)
			s.SendHead(get("POST", "/"), false)
			s.SendData(make([]byte, 100_000))
		}
		fed(t, cl, k, b)
		cl.Take(nil)
	})
}
