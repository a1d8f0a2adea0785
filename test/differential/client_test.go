package differential

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// test is one case: bytes for a listener. Both proxies get the same.
type test struct {
	name string
	on   string        // the listener
	send []string      // written one after the other
	gap  time.Duration // between them; 0: 20 ms
	want int           // answers to wait for; 0: one; less: wait for the end or silence
	half bool          // the client ends its side after sending
	raw  bool          // the answer is not HTTP
	h2   bool          // send is HTTP/2 frames; the preface and SETTINGS are written first
	tls  *hello        // TLS first
	slow time.Duration // an answer may take this long beyond the usual
}

// hello is a TLS client.
type hello struct {
	sni  string
	alpn []string
	cert string // a leaf of the pki
	max  uint16
}

// patience is how long the client waits for the first byte or the next answer, and for the end after
// the last.
type patience struct{ answer, end time.Duration }

var (
	hasty   = patience{700 * time.Millisecond, 120 * time.Millisecond}
	careful = patience{2500 * time.Millisecond, 500 * time.Millisecond}
)

func dialFrom(client, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
	return d.Dial("tcp", addr)
}

// run plays the case against an engine and returns what the client saw.
func (c *test) run(e *engine, p *pki, client string, wait patience) facts {
	f := facts{}
	wait.answer += c.slow
	conn, err := dialFrom(client, fmt.Sprintf("%s:%d", e.addr, portOf(c.on)))
	if err != nil {
		f["client"] = "cannot connect"
		return f
	}
	defer conn.Close()
	if c.tls != nil {
		if conn = c.handshake(conn, p, f); conn == nil {
			return f
		}
	}
	send := c.send
	if c.h2 {
		send = append([]string{h2Preface}, send...)
	}
	gap := c.gap
	if gap == 0 {
		gap = 20 * time.Millisecond
	}
	go func() {
		for i, s := range send {
			if i > 0 && s != "" {
				time.Sleep(gap)
			}
			if _, err := io.WriteString(conn, s); err != nil {
				return
			}
		}
		if h, ok := conn.(interface{ CloseWrite() error }); ok && c.half {
			h.CloseWrite()
		}
	}()
	got, ended := c.read(conn, wait.answer+gap*time.Duration(len(send)), wait.end)
	switch {
	case c.raw:
		f["answer"] = strconv.Quote(string(got))
		f["end"] = ended
	case c.h2:
		frameFacts(got, ended, f)
	default:
		c.answerFacts(got, ended, f)
	}
	return f
}

func (c *test) handshake(conn net.Conn, p *pki, f facts) net.Conn {
	cfg := &tls.Config{ServerName: c.tls.sni, NextProtos: c.tls.alpn, InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: c.tls.max}
	if c.tls.cert != "" {
		leaf := p.leaf(c.tls.cert)
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf, nil }
	}
	t := tls.Client(conn, cfg)
	t.SetDeadline(time.Now().Add(10 * time.Second))
	if err := t.Handshake(); err != nil {
		f["tls"] = "refused"
		return nil
	}
	t.SetDeadline(time.Time{})
	s := t.ConnectionState()
	f["tls"] = tls.VersionName(s.Version)
	f["tls.alpn"] = s.NegotiatedProtocol
	f["tls.certificate"] = s.PeerCertificates[0].Subject.CommonName
	return t
}

// read reads until all answers are there and their end is known, or nothing comes any more.
func (c *test) read(conn net.Conn, answer, end time.Duration) (got []byte, ended string) {
	buf := make([]byte, 32<<10)
	for {
		wait := answer
		if c.complete(got) {
			wait = end
		}
		conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		var timeout net.Error
		switch {
		case err == nil:
		case errors.As(err, &timeout) && timeout.Timeout():
			return got, "open"
		default:
			return got, "closed"
		}
	}
}

func (c *test) complete(got []byte) bool {
	want := max(c.want, 1)
	switch {
	case c.want < 0 || c.raw:
		return false
	case c.h2:
		return endedStreams(got) >= want
	}
	rs, _ := answers(got, c.methods())
	n := 0
	for _, r := range rs {
		if r.status >= 200 && !r.cut {
			n++
		}
	}
	return n >= want
}

var requestLine = regexp.MustCompile(`(?m)^([A-Z]+) \S+ HTTP/1\.[01]\r?$`)

// methods are those of the requests, in order: an answer to HEAD has no body.
func (c *test) methods() (ms []string) {
	for _, m := range requestLine.FindAllStringSubmatch(strings.Join(c.send, ""), -1) {
		ms = append(ms, m[1])
	}
	return ms
}

// answer is an HTTP/1 response.
type answer struct {
	line     string
	status   int
	headers  []string
	body     []byte
	trailers []string
	cut      bool // not all of it came
}

// answers takes a stream of responses apart.
func answers(b []byte, methods []string) (rs []answer, rest []byte) {
	final := 0
	for len(b) > 0 {
		head, after, ok := bytes.Cut(b, []byte("\r\n\r\n"))
		if !ok || !bytes.HasPrefix(b, []byte("HTTP/1.")) {
			return rs, b
		}
		lines := strings.Split(string(head), "\r\n")
		r := answer{line: lines[0], headers: lines[1:]}
		if f := strings.SplitN(lines[0], " ", 3); len(f) > 1 {
			r.status, _ = strconv.Atoi(f[1])
		}
		b = after
		head1 := final < len(methods) && methods[final] == "HEAD"
		length, hasLength := r.get("content-length")
		te, _ := r.get("transfer-encoding")
		switch {
		case r.status < 200 || r.status == 204 || r.status == 304 || head1:
		case te != "":
			b = r.chunks(b)
		case hasLength:
			n, _ := strconv.Atoi(length)
			r.cut = len(b) < n
			n = min(n, len(b))
			r.body, b = b[:n], b[n:]
		default:
			r.body, b = b, nil
		}
		if r.status >= 200 {
			final++
		}
		rs = append(rs, r)
	}
	return rs, nil
}

func (r *answer) get(name string) (string, bool) {
	for _, h := range r.headers {
		if k, v, _ := strings.Cut(h, ":"); strings.EqualFold(k, name) {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}

func (r *answer) chunks(b []byte) []byte {
	for {
		line, rest, ok := bytes.Cut(b, []byte("\r\n"))
		n, err := strconv.ParseUint(string(line), 16, 31)
		if !ok || err != nil || len(rest) < int(n)+2 && n > 0 {
			r.cut = true
			return nil
		}
		b = rest
		if n > 0 {
			r.body = append(r.body, b[:n]...)
			b = b[n+2:]
			continue
		}
		for {
			line, rest, ok := bytes.Cut(b, []byte("\r\n"))
			if !ok {
				r.cut = true
				return nil
			}
			b = rest
			if len(line) == 0 {
				return b
			}
			r.trailers = append(r.trailers, string(line))
		}
	}
}

// answerFacts notes the HTTP/1 answers.
func (c *test) answerFacts(got []byte, ended string, f facts) {
	rs, rest := answers(got, c.methods())
	f["answers"] = strconv.Itoa(len(rs))
	says := false
	for i, r := range rs {
		at := fmt.Sprintf("answer %d ", i+1)
		f[at+"line"] = r.line
		for _, h := range r.headers {
			f.add(at, h)
		}
		f[at+"body"] = string(r.body)
		for _, h := range r.trailers {
			f.add(at+"trailer ", h)
		}
		if r.cut {
			f[at+"cut"] = "yes"
		}
		v, _ := r.get("connection")
		says = strings.EqualFold(v, "close")
	}
	if len(rest) > 0 {
		f["rest"] = strconv.Quote(string(rest))
	}
	if says { // when the end comes after that is each proxy's own affair
		ended = "closed"
	}
	f["end"] = ended
}
