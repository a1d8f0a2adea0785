package differential

import (
	"crypto/tls"
	"fmt"
	"strings"
	"time"
)

// tlsChains are filter chains of one listener, told apart by what the client sends first.
func tlsChains() string {
	chain := func(match, text, cert string) string {
		l := listen{routes: "- match: {prefix: /}\n  direct_response: {status: 200, body: {inline_string: \"" + text + "\"}}"}
		if cert != "" {
			l.socket = downstreamTLS("common_tls_context: {" + certificate(cert) + ", alpn_protocols: [h2, http/1.1]}")
		}
		return l.chain("name: " + text + "\n  filter_chain_match: {" + match + "}")
	}
	return chain("server_names: [a.example]", "exact", "server") + chain("server_names: [b.example]", "other", "serverb") + chain(`server_names: ["*.wild.example"]`, "wild", "server") +
		chain("server_names: [exact.wild.example]", "exactwild", "server") + chain(`server_names: ["*.deep.wild.example"]`, "deep", "server") + chain("transport_protocol: raw_buffer, application_protocols: [http/1.1]", "plain", "")
}

func upstreamTLSRoutes() string {
	var pairs []string
	for _, c := range tlsClusters {
		pairs = append(pairs, "/"+c+"/", route("cluster: "+c))
	}
	return to(pairs...)
}

var tlsClusters = []string{"tls", "tls-plain-server", "tls-no-validation", "tls-auto", "tls-stranger", "tls-san", "tls-san-wrong", "tls-spki", "tls-spki-wrong", "tls-hash", "tls-hash-wrong", "tls-crl", "tls-crl-revoked", "tls-crl-empty", "tls-crl-other", "mtls", "mtls-without"}

func tlsCases() (cs []*test) {
	plain := "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
	add := func(name, on string, h hello) {
		cs = append(cs, &test{name: "tls: " + name, on: on, tls: &h, send: []string{plain}})
	}
	for _, sni := range []string{"a.example", "b.example", "x.wild.example", "x.y.wild.example", "wild.example", "exact.wild.example", "z.deep.wild.example", "no.example", "", "A.EXAMPLE", "a.example."} {
		add("chain for "+sni, "chains", hello{sni: sni})
		add("chain and ALPN for "+sni, "chains", hello{sni: sni, alpn: []string{"http/1.1"}})
	}
	cs = append(cs, one("tls: chain for plaintext", "chains", plain), &test{name: "tls: chain for another protocol", on: "chains", send: []string{"SSH-2.0-x\r\n"}, raw: true, want: -1},
		&test{name: "tls: plaintext where TLS is", on: "tls", send: []string{plain}, raw: true})
	for _, on := range []string{"tls", "tls12", "tls13", "tls-https"} {
		for _, max := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
			add(fmt.Sprintf("%s with at most %s", on, tls.VersionName(max)), on, hello{sni: "a.example", max: max})
		}
		for _, alpn := range [][]string{{"http/1.1", "h2"}, {"foo"}, {"http/1.0"}, {"http/1.1"}} {
			if on == "tls" && alpn[0] == "http/1.1" && len(alpn) > 1 {
				continue // HTTP/2 it is, which has a case of its own
			}
			add(on+" ALPN "+strings.Join(alpn, " "), on, hello{sni: "a.example", alpn: alpn})
		}
	}
	cs = append(cs, &test{name: "tls: HTTP/2", on: "tls", tls: &hello{sni: "a.example", alpn: []string{"h2"}}, h2: true, send: []string{head(1, endStream, ":method: GET", ":scheme: https", ":authority: h", ":path: /")}},
		&test{name: "tls: HTTP/2, scheme http", on: "tls", tls: &hello{sni: "a.example", alpn: []string{"h2"}}, h2: true, send: []string{h2get(1, "/")}},
		&test{name: "tls: http/1.1 chosen, HTTP/2 spoken", on: "tls", tls: &hello{sni: "a.example", alpn: []string{"http/1.1"}}, h2: true, send: []string{h2get(1, "/")}},
		&test{name: "tls: absolute http target", on: "tls-https", tls: &hello{sni: "a.example"}, send: []string{"GET http://h/p HTTP/1.1\r\nHost: h\r\n\r\n"}},
		&test{name: "tls: x-forwarded-proto http", on: "tls-https", tls: &hello{sni: "a.example"}, send: []string{req("GET /p", "X-Forwarded-Proto: http")}})
	add("server name required and sent", "tls-sni", hello{sni: "a.example"})
	add("server name required, not sent", "tls-sni", hello{})
	for _, on := range []string{"mutual", "mutual-san", "mutual-crl", "mutual-crl-other", "mutual-spki", "mutual-hash", "mutual-either", "optional", "xfcc", "xfcc-append"} {
		for _, cert := range []string{"", "client", "revoked", "stranger", "server"} {
			add(on+" with certificate "+cert, on, hello{sni: "a.example", cert: cert})
			add(on+" in TLS 1.2 with certificate "+cert, on, hello{sni: "a.example", cert: cert, max: tls.VersionTLS12})
		}
		cs = append(cs, &test{name: "tls: " + on + " with a forwarded certificate", on: on, tls: &hello{sni: "a.example", cert: "client"}, send: []string{req("GET /", "X-Forwarded-Client-Cert: By=z;Hash=1")}})
	}
	for _, c := range tlsClusters {
		for _, host := range []string{"a.example", "z.example", "b.example:80"} {
			if host != "a.example" && c != "tls-auto" {
				continue
			}
			cs = append(cs, one("upstream tls: "+c+" "+host, "upstream-tls", "GET /"+c+"/ HTTP/1.1\r\nHost: "+host+"\r\n\r\n"))
		}
	}
	cs = append(cs, &test{name: "upstream tls: hosts one after the other", on: "upstream-tls", want: 4, gap: 150 * time.Millisecond, send: []string{
		"GET /tls-auto/1 HTTP/1.1\r\nHost: a.example\r\n\r\n", "GET /tls-auto/2 HTTP/1.1\r\nHost: z.example\r\n\r\n", "GET /tls-auto/3 HTTP/1.1\r\nHost: b.example\r\n\r\n", "GET /tls-auto/4 HTTP/1.1\r\nHost: x.wild.example\r\n\r\n"}})
	return cs
}

func tcpCases() (cs []*test) {
	raw := func(name, on string, half bool, send ...string) {
		cs = append(cs, &test{name: "tcp: " + name, on: on, send: send, raw: true, half: half, want: -1})
	}
	raw("client half-closes", "tcp-echo", true, "hello")
	raw("nothing sent", "tcp-echo", true, "")
	raw("100 KB", "tcp-echo", true, strings.Repeat("x", 100<<10))
	raw("in parts", "tcp-echo", true, "a", "b", "c")
	raw("server speaks first", "tcp-first", true, "EHLO")
	raw("server resets", "tcp-rst", false, "x")
	raw("refused", "tcp-closed", false, "x")
	raw("no host", "tcp-empty", false, "x")
	raw("idle", "tcp-idle", false, "x")
	raw("maximum duration", "tcp-max", false, "x")
	for name, sni := range map[string]string{"plain": "a.example", "line feed": "x\nFORGED=y", "quote": `x"y`, "NUL": "x\x00y", "blank": "x y", "upper case": "A.Example", "underscore": "a_b", "non-ASCII": "\xc3\xa4.example", "300 bytes": strings.Repeat("a", 300), "255 bytes": strings.Repeat("a", 255), "empty": "", "address": "127.0.0.1", "percent": "a%b", "wildcard": "*.a", "tab": "a\tb"} {
		raw("SNI with "+name, "sni-tcp", false, clientHello(sni))
	}
	return cs
}

// clientHello is a ClientHello record with this server name, whatever it is.
func clientHello(sni string) string {
	be := func(n, v int) string {
		b := make([]byte, n)
		for i := range b {
			b[n-1-i] = byte(v >> (8 * i))
		}
		return string(b)
	}
	name := "\x00" + be(2, len(sni)) + sni
	list := be(2, len(name)) + name
	ext := "\x00\x00" + be(2, len(list)) + list
	ext += "\x00\x0a" + be(2, 4) + be(2, 2) + "\x00\x1d" + "\x00\x0d" + be(2, 4) + be(2, 2) + "\x04\x03"
	body := "\x03\x03" + strings.Repeat("r", 32) + "\x00" + be(2, 2) + "\xc0\x2f" + "\x01\x00" + be(2, len(ext)) + ext
	msg := "\x01" + be(3, len(body)) + body
	return "\x16\x03\x01" + be(2, len(msg)) + msg
}
