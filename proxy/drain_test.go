package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestDrainLosesNothing: a request on a connection that was idle when the drain began is answered, and the
// answer says that the connection ends; so is the one under way.
func TestDrainLosesNothing(t *testing.T) {
	for _, how := range []string{"drain", "removed listener", "old connection"} {
		t.Run(how, func(t *testing.T) {
			release := make(chan struct{})
			app := backend(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
					<-release
				}
				io.WriteString(w, "done")
			})
			free := sync.OnceFunc(func() { close(release) })
			t.Cleanup(free) // before the server's
			port := freePort(t)
			more := ""
			if how == "old connection" {
				more = "common_http_protocol_options: {max_connection_duration: 0.2s}"
			}
			r := start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), more), clusterYAML("c", "", app)), nil)
			read := func(br *bufio.Reader) *http.Response {
				t.Helper()
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "done" {
					t.Fatalf("%q %v", b, err)
				}
				return resp
			}
			type client struct {
				c net.Conn
				r *bufio.Reader
			}
			var clients []client
			for range 40 {
				c := connect(t, port)
				x := client{c, bufio.NewReader(c)}
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				read(x.r)
				clients = append(clients, x)
			}
			slow := connect(t, port)
			slowly := bufio.NewReader(slow)
			io.WriteString(slow, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
			under, err := http.ReadResponse(slowly, nil) // its head has said nothing of an end
			if err != nil || under.Close {
				t.Fatal(under, err)
			}
			idle, settled := framer(t, port), make(chan struct{})
			if fr, err := idle.ReadFrame(); err != nil || fr.Header().Type != http2.FrameSettings {
				t.Fatal(fr, err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			switch how {
			case "drain":
				go func() { r.Drain(ctx); close(settled) }()
			case "removed listener":
				r.apply(bootstrap("", clusterYAML("c", "", app)))
			}
			// The client of HTTP/2 sends a request after it was told, before it says so.
			var ping http2.PingFrame
			answered, gone := false, 0
			for ping.FrameHeader.Type != http2.FramePing || !answered {
				fr, err := idle.ReadFrame()
				if err != nil {
					t.Fatalf("HTTP/2: %v", err)
				}
				switch fr := fr.(type) {
				case *http2.GoAwayFrame:
					gone++
					var block strings.Builder
					enc := hpack.NewEncoder(&block)
					for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}} {
						enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
					}
					idle.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: true})
				case *http2.PingFrame:
					ping = *fr
				case *http2.DataFrame:
					answered = answered || fr.StreamEnded()
				}
			}
			idle.WritePing(true, ping.Data)
			for {
				fr, err := idle.ReadFrame()
				if err != nil {
					break
				}
				if g, ok := fr.(*http2.GoAwayFrame); ok {
					gone++
					if g.LastStreamID != 1 {
						t.Errorf("the last stream is %d", g.LastStreamID)
					}
				}
			}
			if gone != 2 {
				t.Errorf("%d times GOAWAY", gone)
			}
			for i, x := range clients {
				io.WriteString(x.c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if resp := read(x.r); !resp.Close {
					t.Fatalf("client %d is not told that the connection ends", i)
				}
			}
			free()
			if b, err := io.ReadAll(under.Body); err != nil || string(b) != "done" {
				t.Errorf("the answer under way: %q %v", b, err)
			}
			io.WriteString(slow, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp := read(slowly); !resp.Close {
				t.Error("the client of the answer under way is not told that the connection ends")
			}
			if how == "drain" {
				<-settled
			}
			eventually(t, "no connection is left", func() bool { return r.Connections() == 0 })
		})
	}
}

// TestGoneAway: a request that a server says it did not look at, as it ends its connection, is sent again,
// whatever its method is.
func TestGoneAway(t *testing.T) {
	var conns atomic.Int64
	app := tcpServer(t, func(c net.Conn) {
		n := conns.Add(1)
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := http2.NewFramer(c, c)
		f.WriteSettings()
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				return
			}
			if h := fr.Header(); h.Flags.Has(http2.FlagDataEndStream) && (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) {
				if n == 1 {
					f.WriteGoAway(0, http2.ErrCodeNo, nil)
					return
				}
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: h.StreamID, EndHeaders: true, EndStream: true, BlockFragment: block(":status", "200")})
			}
		}
	})
	port := freePort(t)
	start(t, bootstrap(httpListener(port, fmt.Sprintf(allTo, "c"), ""), clusterYAML("c", speaking(speakH2), app)), nil)
	if got := tally(t, "POST", port, 3); got["200 "] != 3 {
		t.Errorf("%v", got)
	}
}
