package proxy

import (
	"errors"
	"io"
	"slices"

	"github.com/carrick-mesh/carrick/proxy/clienthello"
)

// maxInspect bounds what inspectors look at.
const maxInspect = 16 << 10

func (d *downstream) onRead() {
	for d.c.readable {
		b, err := d.c.read()
		if err != nil && !(errors.Is(err, io.EOF) && len(d.first) > 0) {
			d.end()
			return
		}
		if len(b) > 0 {
			d.first = append(d.first, b...)
		}
		if d.listener.ProxyHeader && !d.unwrapped {
			switch why := d.unwrap(); {
			case why == errShortHeader && err == nil:
				continue
			case why != nil:
				d.end()
				return
			case !d.wants(d.listener.TLSInspector) && !d.wants(d.listener.HTTPInspector):
				d.serve()
				return
			}
		}
		if d.inspect(err != nil || len(d.first) > maxInspect) {
			d.serve()
			return
		}
		if err != nil {
			return
		}
	}
}

// inspect looks at what has come and reports whether it is enough; last says that no more comes.
func (d *downstream) inspect(last bool) (done bool) {
	if len(d.first) == 0 {
		return last
	}
	if d.wants(d.listener.TLSInspector) {
		var h clienthello.Hello
		switch err := clienthello.Parse(d.first, &h); err {
		case nil:
			d.match.Transport = "tls"
			d.match.SNI, d.sniText = serverName(h.ServerName)
			for _, a := range h.Protocols {
				d.match.ALPN = append(d.match.ALPN, string(a))
			}
			return true
		case clienthello.ErrShort:
			if !last {
				return false
			}
		}
	}
	if d.wants(d.listener.HTTPInspector) {
		proto, done := sniffHTTP(d.first)
		if !done && !last {
			return false
		}
		if proto != "" {
			d.match.ALPN = append(d.match.ALPN[:0], proto)
		}
	}
	return true
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniffHTTP tells HTTP from other protocols by the first bytes, as Envoy's http_inspector names it.
func sniffHTTP(b []byte) (proto string, done bool) {
	n := min(len(b), len(preface))
	if string(b[:n]) == preface[:n] {
		if n == len(preface) {
			return "h2c", true
		}
		return "", false
	}
	// A request line: method SP target SP HTTP/1.x CRLF.
	i := 0
	for i < len(b) && b[i] >= 'A' && b[i] <= 'Z' || i < len(b) && i > 0 && b[i] == '-' {
		i++
	}
	if i == 0 || i > 32 || i < len(b) && b[i] != ' ' {
		return "", true
	}
	for k := i; k < len(b); k++ {
		if b[k] == '\n' {
			line := b[:k]
			if len(line) > 0 && line[len(line)-1] == '\r' {
				line = line[:len(line)-1]
			}
			if v := len(line) - len(" HTTP/1.1"); v > i && string(line[v:v+8]) == " HTTP/1." {
				switch line[v+8] {
				case '1':
					return "http/1.1", true
				case '0':
					return "http/1.0", true
				}
			}
			return "", true
		}
		if b[k] < ' ' && b[k] != '\r' {
			return "", true
		}
	}
	return "", len(b) >= maxInspect
}

// serverName returns the SNI as it is matched, and as it goes into logs and headers: nobody has
// authenticated who sent it. One that can be no name counts as none.
func serverName(b []byte) (name, text string) {
	if len(b) > 255 || slices.Contains(b, 0) {
		return "", ""
	}
	name = lower(b)
	for i := range len(name) {
		if !inName(name[i]) {
			safe := []byte("invalid:" + name)
			for k := len("invalid:"); k < len(safe); k++ {
				if !inName(safe[k]) {
					safe[k] = '_'
				}
			}
			return name, string(safe)
		}
	}
	return name, name
}

func inName(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == ':'
}

// lower returns b in lower case.
func lower(b []byte) string {
	for _, c := range b {
		if 'A' <= c && c <= 'Z' {
			o := make([]byte, len(b))
			for i, c := range b {
				if 'A' <= c && c <= 'Z' {
					c |= 0x20
				}
				o[i] = c
			}
			return string(o)
		}
	}
	return string(b)
}
