package proxy

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

func TestParseProxyHeader(t *testing.T) {
	v2 := func(command, family byte, body string) string {
		return string(proxyV2) + string([]byte{command, family, 0, byte(len(body))}) + body
	}
	for _, c := range []struct {
		in       string
		n        int
		from, to string
		err      error
	}{
		{"PROXY TCP4 192.0.2.1 198.51.100.2 5555 443\r\nGET", 44, "192.0.2.1:5555", "198.51.100.2:443", nil},
		{"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", 40, "[2001:db8::1]:1", "[2001:db8::2]:2", nil},
		{"PROXY UNKNOWN whatever\r\n", 24, "invalid AddrPort", "invalid AddrPort", nil},
		{v2(0x21, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x02\x15\xb3\x01\xbb") + "x", 28, "192.0.2.1:5555", "198.51.100.2:443", nil},
		{v2(0x20, 0, ""), 16, "invalid AddrPort", "invalid AddrPort", nil},
		{"PROXY TCP4 192.0.2.1", 0, "", "", errShortHeader},
		{"PR", 0, "", "", errShortHeader},
		{"", 0, "", "", errShortHeader},
		{"\r\n\r\n", 0, "", "", errShortHeader},
		{v2(0x21, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x02\x15\xb3\x01\xbb")[:20], 0, "", "", errShortHeader},
		{"GET / HTTP/1.1\r\n", 0, "", "", errNoHeader},
		{"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", 0, "", "", errNoHeader},
		{"PROXY TCP4 192.0.2.1 198.51.100.2 70000 443\r\n", 0, "", "", errNoHeader},
		{"PROXY " + strings.Repeat("a", 200), 0, "", "", errNoHeader},
		{v2(0x21, 0x11, "short"), 0, "", "", errNoHeader},
		{v2(0x31, 0x11, ""), 0, "", "", errNoHeader},
	} {
		n, from, to, err := parseProxyHeader([]byte(c.in))
		if err != c.err || err == nil && (n != c.n || from.String() != c.from || to.String() != c.to) {
			t.Errorf("%q: %d %v %v %v, want %d %s %s %v", c.in, n, from, to, err, c.n, c.from, c.to, c.err)
		}
	}
}

func FuzzParseProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.2 5555 443\r\nGET"))
	f.Add(append([]byte(proxyV2), 0x21, 0x11, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, _, _, err := parseProxyHeader(b); err == nil && (n <= 0 || n > len(b)) {
			t.Errorf("%q: length %d", b, n)
		}
	})
}

// A listener that wants a PROXY header takes the client's address from it, in pieces too, and nothing without.
func TestProxyHeader(t *testing.T) { engines(t, testProxyHeader) }

func testProxyHeader(t *testing.T, run func(yaml string)) {
	app := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("X-Forwarded-For")) })
	port := freePort(t)
	_, appPort, _ := net.SplitHostPort(app)
	run(strings.NewReplacer("PORT", strconv.Itoa(port), "APP", appPort).Replace(`
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: PORT}}
    listener_filters:
    - name: envoy.filters.listener.proxy_protocol
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: l
          use_remote_address: true
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config: {virtual_hosts: [{name: a, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}
  clusters:
  - name: c
    load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: APP}}}}]}]}
`))
	const request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	for _, c := range []struct {
		pieces []string
		want   string // in the answer; "" for none
	}{
		{[]string{"PROXY TCP4 192.0.2.7 198.51.100.2 5555 443\r\n" + request}, "192.0.2.7"},
		{[]string{"PROXY TC", "P4 192.0.2.8 198.51.100.2 5555 443\r\n", request}, "192.0.2.8"},
		{[]string{"PROXY UNKNOWN\r\n" + request}, " 200 "},
		{[]string{request}, ""},
	} {
		conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.pieces {
			io.WriteString(conn, p)
		}
		b, _ := io.ReadAll(conn)
		conn.Close()
		if c.want == "" && len(b) > 0 || !strings.Contains(string(b), c.want) {
			t.Errorf("%q: answer %q, want %q in it", c.pieces, b, c.want)
		}
	}
}
