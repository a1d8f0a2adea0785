package differential

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Ports of the upstreams, at the engine's address.
const (
	portUp     = 9001 // HTTP/1
	portH2     = 9002 // HTTP/2 with prior knowledge
	portTLS    = 9003 // HTTP/1 over TLS
	portUpToo  = 9004 // HTTP/1, a second host
	portEcho   = 9005 // TCP: answers what came, when the client has ended
	portFirst  = 9006 // TCP: speaks first
	portRST    = 9007 // TCP: resets
	portMTLS   = 9008 // HTTP/1 over TLS, wants a client certificate
	portClosed = 9009 // nobody listens
)

// upstream records what reaches it, by client, and answers by script.
type upstream struct {
	mu   sync.Mutex
	seen map[string][]request
}

// request is what an upstream saw.
type request struct {
	line    string
	headers []string // "name: value", as they came
	body    string
	note    string // what is odd about it
}

func newUpstream(t *testing.T, addr string, p *pki) *upstream {
	t.Helper()
	u := &upstream{seen: map[string][]request{}}
	listen := func(port int) net.Listener {
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", addr, port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	accept := func(l net.Listener, serve func(net.Conn)) {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); serve(c) }()
			}
		}()
	}
	accept(listen(portUp), u.serveHTTP1)
	accept(listen(portUpToo), u.serveHTTP1)
	server := &tls.Config{GetConfigForClient: p.server}
	accept(tls.NewListener(listen(portTLS), server), u.serveHTTP1)
	mutual := &tls.Config{Certificates: []tls.Certificate{p.leaf("server")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.pool("root"), MaxVersion: tls.VersionTLS12}
	accept(tls.NewListener(listen(portMTLS), mutual), u.serveHTTP1)
	accept(listen(portEcho), func(c net.Conn) {
		b, err := io.ReadAll(c)
		if err == nil {
			fmt.Fprintf(c, "%d bytes: %s", len(b), b)
		}
	})
	accept(listen(portFirst), func(c net.Conn) {
		io.WriteString(c, "220 hello\r\n")
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %q", b)
	})
	accept(listen(portRST), func(c net.Conn) {
		c.Read(make([]byte, 10))
		c.(*net.TCPConn).SetLinger(0)
	})
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	h2 := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(u.serveHTTP2)}
	l := listen(portH2)
	go h2.Serve(l)
	t.Cleanup(func() { h2.Close() })
	return u
}

func (u *upstream) record(client string, r request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.seen[client] = append(u.seen[client], r)
}

func (u *upstream) of(client string) []request {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]request(nil), u.seen[client]...)
}

// clientHeader is what the bootstrap adds to each request: the client's address.
const clientHeader = "x-client"

// serveHTTP1 reads requests strictly enough to see what a careless server would. What follows a
// request and is none itself belongs to the client of that request.
func (u *upstream) serveHTTP1(c net.Conn) {
	b := bufio.NewReader(c)
	client := ""
	for {
		r, from, name, err := readRequest(b)
		if from != "" {
			client = from
		} else if r.line != "" {
			r.note = "did not pass a route"
		}
		if r.line != "" && client != "" {
			if r.note == "" && err != nil {
				r.note = "cut off"
			}
			u.record(client, r)
		}
		if err != nil {
			return
		}
		s, ok := scripts[name]
		if !ok {
			s = scripts[""]
		}
		if s.fails > 0 && u.count(client) <= s.fails {
			s = script{parts: []string{s.failure}}
		}
		if err := s.play(c, b, r); err != nil {
			return
		}
	}
}

func (u *upstream) count(client string) int { return len(u.of(client)) }

// readRequest reads a request with its body. name is the script that it asks for.
func readRequest(b *bufio.Reader) (r request, client, name string, err error) {
	length, chunked := 0, false
	for {
		line, err := b.ReadString('\n')
		if err != nil { // a head that is cut off is nobody's request
			return request{}, "", "", err
		}
		line = strings.TrimRight(line, "\r\n")
		if r.line == "" {
			r.line = line
			continue
		}
		if line == "" {
			break
		}
		k, v, _ := strings.Cut(line, ":")
		v = strings.TrimSpace(v)
		switch strings.ToLower(k) {
		case clientHeader:
			client = v
			continue
		case "x-script":
			name = v
		case "content-length":
			if length, _ = strconv.Atoi(v); length < 0 || length > 1<<20 {
				return r, client, name, fmt.Errorf("a length of %s", v)
			}
		case "transfer-encoding":
			chunked = true
		}
		r.headers = append(r.headers, line)
	}
	if s := scripts[name]; s.early {
		return r, client, name, nil
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(b, body); err != nil {
		return r, client, name, err
	}
	r.body = string(body)
	for chunked {
		line, err := b.ReadString('\n')
		if err != nil {
			return r, client, name, err
		}
		n, err := strconv.ParseUint(strings.TrimRight(line, "\r\n"), 16, 31)
		if err != nil {
			return r, client, name, err
		}
		if n == 0 {
			break
		}
		chunk := make([]byte, n+2)
		if _, err := io.ReadFull(b, chunk); err != nil {
			return r, client, name, err
		}
		r.body += string(chunk[:n])
	}
	for chunked {
		line, err := b.ReadString('\n')
		if err != nil {
			return r, client, name, err
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			break
		}
		r.headers = append(r.headers, "trailer "+line)
	}
	return r, client, name, nil
}

// script is how the upstream answers a request that names it in x-script.
type script struct {
	parts   []string // written one after the other
	gap     time.Duration
	then    ending
	early   bool   // does not wait for the body
	tunnel  bool   // then echoes
	fails   int    // this many requests of a client get
	failure string // this
}

type ending int

const (
	keeps ending = iota
	closes
	resets
	hangs // answers nothing more
)

var errEnd = errors.New("the script ends the connection")

func (s script) play(c net.Conn, b *bufio.Reader, r request) error {
	for i, p := range s.parts {
		if i > 0 {
			time.Sleep(s.gap)
		}
		if strings.HasPrefix(r.line, "HEAD ") && len(s.parts) == 1 && s.then == keeps {
			head, _, _ := strings.Cut(p, "\r\n\r\n")
			p = head + "\r\n\r\n"
		}
		if _, err := io.WriteString(c, p); err != nil {
			return err
		}
	}
	switch {
	case s.tunnel:
		buf := make([]byte, 4096)
		for {
			n, err := b.Read(buf)
			if err != nil {
				return err
			}
			c.Write(append([]byte("echo:"), buf[:n]...))
		}
	case s.then == hangs:
		io.Copy(io.Discard, b)
		return errEnd
	case s.then == resets:
		if t, ok := c.(*net.TCPConn); ok {
			t.SetLinger(0)
		}
		return errEnd
	case s.then == closes:
		return errEnd
	}
	return nil
}

// serveHTTP2 answers requests over HTTP/2 by what x-h2 asks for.
func (u *upstream) serveHTTP2(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	q := request{line: r.Method + " " + r.RequestURI + " HTTP/2", body: string(body), headers: []string{"host: " + r.Host}}
	if err != nil {
		q.note = "cut off"
	}
	for k, vs := range r.Header {
		for _, v := range vs {
			if k = strings.ToLower(k); k != clientHeader {
				q.headers = append(q.headers, k+": "+v)
			}
		}
	}
	for k, vs := range r.Trailer {
		q.headers = append(q.headers, "trailer "+strings.ToLower(k)+": "+strings.Join(vs, ","))
	}
	u.record(r.Header.Get(clientHeader), q)
	switch r.Header.Get("X-H2") {
	case "trailers":
		w.Header().Set("Trailer", "X-T")
		io.WriteString(w, "ok")
		w.Header().Set("X-T", "1")
	case "grpc":
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Write([]byte{0, 0, 0, 0, 0})
		w.Header().Set("Grpc-Status", "0")
	case "grpc-error":
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "14")
		w.Header().Set("Grpc-Message", "not now")
	case "500":
		w.WriteHeader(500)
	case "204":
		w.WriteHeader(204)
	case "reset":
		panic(http.ErrAbortHandler)
	case "hang":
		<-r.Context().Done()
	default:
		io.WriteString(w, "ok")
	}
}
