package http2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/proxy/header"
)

// allocated returns how many bytes f allocates.
func allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// opened is a server that has the peer's preface and settings.
func opened(t testing.TB, o Options, h Handler) *Conn {
	t.Helper()
	srv := NewServer(o, h)
	if err := srv.Feed(append([]byte(Preface), appendFrame(nil, 0, frameSettings, 0, 0)...)); err != nil {
		t.Fatal(err)
	}
	srv.Take(nil)
	return srv
}

// headers is a request in one frame; more is appended to its block.
func headers(id uint32, path string, more ...byte) []byte {
	enc := &encoder{} // whose table holds nothing, so that the decoder's is left to more
	var b []byte
	for _, f := range []entry{{":method", "GET"}, {":scheme", "http"}, {":authority", "x"}, {":path", path}} {
		b = enc.literal(b, 0, 4, static()[f.name], f.name, f.value)
	}
	b = append(b, more...)
	return append(appendFrame(nil, len(b), frameHeaders, flagEndHeaders|flagEnd, id), b...)
}

// sized keeps the sizes of heads and answers nothing.
type sized struct {
	echo
	cookies []int
	heads   []header.Header
}

func (z *sized) OnHead(_ *Stream, h *header.Header, _ bool) {
	z.cookies = append(z.cookies, len(h.First("cookie")))
	var mine header.Header
	*h, mine = mine, *h
	z.heads = append(z.heads, mine)
}

// TestCookieBomb: a cookie in many crumbs costs its length, not its square. Each crumb is a byte on the
// wire that names an entry of the table.
func TestCookieBomb(t *testing.T) {
	z := &sized{}
	srv := opened(t, Options{MaxHeaders: 1000}, z)
	crumb := append(appendInteger([]byte{0x40}, 0, 7, 6), "cookie"...)
	crumb = append(appendInteger(crumb, 0, 7, 560), strings.Repeat("v", 560)...)
	if err := srv.Feed(headers(1, "/", crumb...)); err != nil {
		t.Fatal(err)
	}
	const requests, crumbs = 20, 92
	var b []byte
	for i := range uint32(requests) {
		b = append(b, headers(3+2*i, "/", bytes.Repeat([]byte{0xbe}, crumbs)...)...)
	}
	n := allocated(func() {
		if err := srv.Feed(b); err != nil {
			t.Fatal(err)
		}
	})
	want := crumbs*562 - 2
	if last := z.cookies[len(z.cookies)-1]; len(z.cookies) != 1+requests || last != want {
		t.Fatalf("%d requests, the last with a cookie of %d bytes, want %d", len(z.cookies), last, want)
	}
	if most := int64(requests * 6 * want); n > most {
		t.Errorf("%d requests of %d bytes allocate %d bytes, more than %d", requests, len(b), n, most)
	}
}

// TestSettings: a SETTINGS frame may change the windows of all streams, so it does once, and not too often.
func TestSettings(t *testing.T) {
	entries := func(n int) []byte {
		var p []byte
		for i := range n {
			p = appendSetting(p, settingWindow, uint32(1000+i))
		}
		return append(appendFrame(nil, len(p), frameSettings, 0, 0), p...)
	}
	srv := opened(t, Options{}, &echo{})
	srv.Feed(headers(1, "/hold"))
	if err := srv.Feed(entries(maxEntries)); err != nil {
		t.Fatalf("%d settings: %v", maxEntries, err)
	}
	if got := srv.streams[1].sendWindow; got != 1000+maxEntries-1 {
		t.Errorf("the window is %d, not what the last entry says", got)
	}
	if err := srv.Feed(entries(maxEntries + 1)); err == nil {
		t.Error("no error for more settings in a frame than are ever needed")
	}
	srv = opened(t, Options{}, &echo{})
	for i := range maxChanges + 1 {
		err := srv.Feed(entries(1))
		srv.Take(nil)
		srv.Drained()                            // the peer reads
		if (err != nil) != (i == maxChanges-1) { // opened has sent one
			t.Fatalf("SETTINGS %d: %v", i+2, err)
		}
		if err != nil {
			break
		}
	}
	srv = opened(t, Options{}, &echo{})
	for range 3 {
		for range maxChanges - 1 {
			if err := srv.Feed(entries(1)); err != nil {
				t.Fatalf("after a second: %v", err)
			}
			srv.Take(nil)
			srv.Drained()
		}
		srv.Refill()
	}
}

// direct answers each request at once with a body.
type direct struct {
	echo
	body []byte
	n    int
}

func (d *direct) OnHead(s *Stream, _ *header.Header, _ bool) {
	d.n++
	var resp header.Header
	resp.SetPseudo(header.Status, "404")
	s.SendHead(&resp, false)
	s.SendData(d.body)
	s.SendEnd(nil)
}

// TestUnreadAnswers: a client that sends requests and reads no answers is not listened to once its
// answers fill the output; when it reads, it gets them all.
func TestUnreadAnswers(t *testing.T) {
	for _, size := range []int{10, 4000, 40_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			d := &direct{body: make([]byte, size)}
			srv := opened(t, Options{MaxStreams: 200}, d)
			srv.Feed(append(appendFrame(nil, 4, frameWindow, 0, 0), 0x7f, 0, 0, 0))
			const requests = 3000
			var b []byte
			for i := range uint32(requests) {
				b = append(b, headers(1+2*i, "/")...)
			}
			var fed, most int
			for fed < len(b) && !srv.Paused() {
				n := min(len(b)-fed, 16<<10)
				if err := srv.Feed(b[fed : fed+n]); err != nil {
					t.Fatal(err)
				}
				fed += n
				most = max(most, srv.Size())
			}
			if d.n == requests || !srv.Paused() {
				t.Fatalf("%d requests answered, paused %v", d.n, srv.Paused())
			}
			if limit := 2*maxOut + 4*size + 200*256 + 64<<10; most > limit {
				t.Errorf("%d bytes are held, more than %d", most, limit)
			}
			for d.n < requests {
				for len(srv.Take(nil)) > 0 {
				}
				srv.Drained()
				if err := srv.Resume(); err != nil {
					t.Fatal(err)
				}
				if n := min(len(b)-fed, 16<<10); !srv.Paused() {
					if err := srv.Feed(b[fed : fed+n]); err != nil {
						t.Fatal(err)
					}
					fed += n
				}
			}
			for len(srv.Take(nil)) > 0 {
			}
			if srv.Resume(); srv.Streams() != 0 || srv.held != 0 {
				t.Errorf("%d streams, %d bytes are left", srv.Streams(), srv.held)
			}
		})
	}
}

// TestExpire: the last bytes of an answer wait for the client's window, but not for ever.
func TestExpire(t *testing.T) {
	d := &direct{body: make([]byte, 50_000)}
	srv := opened(t, Options{}, d)
	grant := func(stream, n uint32) {
		if err := srv.Feed(binary.BigEndian.AppendUint32(appendFrame(nil, 4, frameWindow, 0, stream), n)); err != nil {
			t.Fatal(err)
		}
		for len(srv.Take(nil)) > 0 {
		}
	}
	for _, id := range []uint32{1, 3} {
		srv.Feed(headers(id, "/"))
	}
	if srv.Take(nil); srv.Streams() != 1 {
		t.Fatalf("%d streams wait", srv.Streams())
	}
	for range 3 {
		srv.Expire(3)
		grant(0, 10) // it still reads
	}
	srv.Expire(3) // sees the last of it
	for i := range 3 {
		if srv.Streams() != 1 {
			t.Fatalf("reset after %d calls without progress", i)
		}
		srv.Expire(3)
	}
	if f := parseFrame(srv.Take(nil)); srv.Streams() != 0 || srv.held != 0 || f.kind != frameReset || f.stream != 3 {
		t.Errorf("%d streams, %d bytes are left; the last frame is %d of stream %d", srv.Streams(), srv.held, f.kind, f.stream)
	}
}
