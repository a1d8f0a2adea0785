package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// fromYAML reads a message written as Envoy's YAML.
func fromYAML[M proto.Message](t testing.TB, text string, m M) M {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(j, m); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return m
}

// request is a map of headers.
type request map[string]string

func (r request) Header(name string) (string, bool) { v, ok := r[name]; return v, ok }

// Nth takes what stands between bars for fields of one name.
func (r request) Nth(name string, i int) (string, bool) {
	v, ok := r[name]
	vs := strings.Split(v, "|")
	if !ok || i >= len(vs) {
		return "", false
	}
	return vs[i], true
}

// req makes a request of "HOST PATH [NAME=VALUE]…".
func req(s string) request {
	f := strings.Fields(s)
	r := request{":authority": f[0], ":path": f[1], ":method": "GET"}
	for _, h := range f[2:] {
		k, v, _ := strings.Cut(h, "=")
		r[k] = v
	}
	return r
}

func table(t testing.TB, text string) *RouteTable {
	t.Helper()
	m := fromYAML(t, text, &route.RouteConfiguration{})
	if err := check(m); err != nil {
		t.Fatal(err)
	}
	x, err := compileRoutes(m)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestVirtualHosts(t *testing.T) {
	text := `
name: r
ignore_port_in_host_matching: %v
virtual_hosts:
- {name: exact, domains: [helloworld.sample.svc.cluster.local, "helloworld.sample:5000", "10.96.0.1", "[fd00::1]"]}
- {name: suffix, domains: ["*.example.com"]}
- {name: longsuffix, domains: ["*.a.example.com", "*-b.example.com"]}
- {name: prefix, domains: ["foo.*"]}
- {name: longprefix, domains: ["foo.bar.*"]}
- {name: any, domains: ["*"]}`
	keep, ignore := table(t, fmt.Sprintf(text, false)), table(t, fmt.Sprintf(text, true))
	for host, want := range map[string][2]string{ // keeping and ignoring ports
		"helloworld.sample.svc.cluster.local":      {"exact", "exact"},
		"HelloWorld.sample.SVC.cluster.local":      {"exact", "exact"},
		"helloworld.sample.svc.cluster.local:5000": {"any", "exact"},
		"helloworld.sample:5000":                   {"exact", "any"},
		"10.96.0.1:80":                             {"any", "exact"},
		"[fd00::1]:80":                             {"any", "exact"},
		"[fd00::1]":                                {"exact", "exact"},
		"x.example.com":                            {"suffix", "suffix"},
		"x.a.example.com":                          {"longsuffix", "longsuffix"},
		"x-b.example.com":                          {"longsuffix", "longsuffix"},
		".example.com":                             {"any", "any"},
		"foo.x":                                    {"prefix", "prefix"},
		"foo.bar.x":                                {"longprefix", "longprefix"},
		"foo.bar.example.com":                      {"suffix", "suffix"},
		"":                                         {"any", "any"},
		":80":                                      {"any", "any"},
	} {
		if got := keep.VirtualHost(host).Name; got != want[0] {
			t.Errorf("%q: %s, want %s", host, got, want[0])
		}
		if got := ignore.VirtualHost(host).Name; got != want[1] {
			t.Errorf("%q without port: %s, want %s", host, got, want[1])
		}
	}
	if h := table(t, "virtual_hosts: [{name: a, domains: [a]}]").VirtualHost("b"); h != nil {
		t.Errorf("b is in %s", h.Name)
	}
}

func TestRoutes(t *testing.T) {
	rt := table(t, `
virtual_hosts:
- name: v
  domains: ["*"]
  routes:
  - {name: exact, match: {path: /exact}, route: {cluster: c}}
  - {name: folded, match: {path: /Folded, case_sensitive: false}, route: {cluster: c}}
  - {name: separated, match: {path_separated_prefix: /sep}, route: {cluster: c}}
  - {name: regex, match: {safe_regex: {regex: "/re/[0-9]+"}}, route: {cluster: c}}
  - {name: header, match: {prefix: /h, headers: [{name: X-User, string_match: {exact: jason}}]}, route: {cluster: c}}
  - {name: noheader, match: {prefix: /h, headers: [{name: x-user, present_match: true, invert_match: true}, {name: x-absent, present_match: false}]}, route: {cluster: c}}
  - {name: range, match: {prefix: /h, headers: [{name: x-user, range_match: {start: 10, end: 20}}]}, route: {cluster: c}}
  - {name: empty, match: {prefix: /h, headers: [{name: x-none, string_match: {exact: ""}, treat_missing_header_as_empty: true}]}, route: {cluster: c}}
  - {name: query, match: {prefix: /q, query_parameters: [{name: a, string_match: {exact: "1"}}, {name: b, present_match: true}]}, route: {cluster: c}}
  - {name: cookie, match: {prefix: /c, cookies: [{name: user, string_match: {prefix: ja}}]}, route: {cluster: c}}
  - {name: grpc, match: {prefix: /g, grpc: {}}, route: {cluster: c}}
  - {name: half, match: {prefix: /f, runtime_fraction: {default_value: {numerator: 50}}}, route: {cluster: c}}
  - {name: method, match: {prefix: /, headers: [{name: ":method", string_match: {exact: POST}}]}, route: {cluster: c}}
  - {name: connect, match: {connect_matcher: {}}, route: {cluster: c}}
  - {name: prefix, match: {prefix: /p}, route: {cluster: c}}`)
	for in, want := range map[string]string{
		"h /exact": "exact", "h /exact?x=1": "exact", "h /exact#f": "exact", "h /exact/": "",
		"h /fOLDED": "folded",
		"h /sep":    "separated", "h /sep/x": "separated", "h /sepx": "", "h /sep?x": "separated",
		"h /re/12": "regex", "h /re/12a": "", "h /x/re/12": "",
		"h /h x-user=jason": "header", "h /h": "noheader", "h /h x-user=15": "range", "h /h x-user=20": "empty", "h /h x-user=1x x-none=y": "",
		"h /q?b&a=1": "query", "h /q?a=1": "", "h /q?a=2&b": "", "h /q?aa=1&b=": "",
		"h /c cookie=x=y;user=jason": "cookie", "h /c cookie=user=bob": "", "h /c": "",
		"h /g content-type=application/grpc+proto": "grpc", "h /g content-type=application/grpcx": "",
		"h /p/x": "prefix", "h /p :method=POST": "method", "h /none": "",
	} {
		got := ""
		if r := rt.Match(req(in), 0); r != nil {
			got = r.Name
		}
		if got != want {
			t.Errorf("%s: route %q, want %q", in, got, want)
		}
	}
	if rt.Match(req("h /f"), 49) == nil || rt.Match(req("h /f"), 50) != nil {
		t.Error("runtime_fraction does not divide at 50")
	}
	if r := rt.Match(request{":authority": "h", ":method": "CONNECT"}, 0); r == nil || r.Name != "connect" {
		t.Errorf("CONNECT: %v", r)
	}
}

func TestWeights(t *testing.T) {
	rt := table(t, `
virtual_hosts:
- name: v
  domains: ["*"]
  routes:
  - match: {prefix: /}
    route: {weighted_clusters: {clusters: [{name: a, weight: 1}, {name: none, weight: 0}, {name: b, weight: 3}]}}`)
	got := map[string]int{}
	for i := range uint64(400) {
		got[rt.Match(req("h /"), 0).Action.Pick(i).Name]++
	}
	if got["a"] != 100 || got["b"] != 300 || got["none"] != 0 {
		t.Errorf("picked %v", got)
	}
}

// Header mutations are applied from the most specific level to the least, or the other way round.
func TestHeaderOrder(t *testing.T) {
	for specific, want := range map[bool]string{false: "route vhost table", true: "table vhost route"} {
		rt := table(t, fmt.Sprintf(`
most_specific_header_mutations_wins: %v
request_headers_to_add: [{header: {key: X, value: table}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
virtual_hosts:
- name: v
  domains: ["*"]
  request_headers_to_add: [{header: {key: X, value: vhost}, append: false}]
  routes:
  - match: {prefix: /}
    request_headers_to_add: [{header: {key: X, value: route}}]
    response_headers_to_remove: [Server]
    route: {cluster: c}`, specific))
		r := rt.Match(req("h /"), 0)
		var got []string
		for _, m := range r.RequestHeaders {
			got = append(got, m.Value)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("most specific wins %v: %v", specific, got)
		}
		if m := r.ResponseHeaders; len(m) != 1 || !m[0].Remove || m[0].Name != "server" {
			t.Errorf("response headers %+v", m)
		}
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	rt := table(t, `
ignore_port_in_host_matching: true
virtual_hosts:
- name: v
  domains: [helloworld.sample]
  routes:
  - {name: r, match: {prefix: /x, headers: [{name: x-user, string_match: {exact: jason}}]}, route: {cluster: c}}
  - {name: s, match: {prefix: /}, route: {cluster: c}}`)
	r := req("helloworld.sample:5000 /hello?x=1")
	var q Request = r
	if n := testing.AllocsPerRun(100, func() {
		if rt.Match(q, 0) == nil {
			t.Fatal("no route")
		}
	}); n != 0 {
		t.Errorf("matching allocates %v times", n)
	}
}

// chains compiles the filter_chain_match of each chain, which is named as it is.
func chains(t testing.TB, matches map[string]string, order ...string) *Listener {
	t.Helper()
	l := &Listener{Default: &FilterChain{Name: "default"}}
	for _, name := range order {
		m := fromYAML(t, matches[name], &listener.FilterChainMatch{})
		if err := l.chains.add(m, &FilterChain{Name: name}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return l
}

func TestChains(t *testing.T) {
	l := chains(t, map[string]string{
		"port":     "{destination_port: 5000}",
		"porttls":  "{destination_port: 5000, transport_protocol: tls, application_protocols: [istio, istio-http/1.1]}",
		"net":      "{prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}",
		"subnet":   "{prefix_ranges: [{address_prefix: 10.1.0.0, prefix_len: 16}]}",
		"sni":      "{server_names: [outbound_.5000_._.helloworld.sample.svc.cluster.local]}",
		"wild":     "{server_names: ['*.example.com']}",
		"deepwild": "{server_names: ['*.a.example.com']}",
		"raw":      "{transport_protocol: raw_buffer, application_protocols: [http/1.1]}",
		"external": "{destination_port: 7000, source_type: EXTERNAL}",
		"fromnet":  "{destination_port: 7000, source_prefix_ranges: [{address_prefix: 192.168.0.0, prefix_len: 16}], source_ports: [1234]}",
	}, "port", "porttls", "net", "subnet", "sni", "wild", "deepwild", "raw", "external", "fromnet")
	conn := func(local, remote, sni, transport string, alpn ...string) *Conn {
		return &Conn{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote), SNI: sni, Transport: transport, ALPN: alpn}
	}
	for i, c := range []struct {
		conn *Conn
		want string
	}{
		{conn("1.1.1.1:5000", "2.2.2.2:1", "", "raw_buffer"), "port"},
		{conn("1.1.1.1:5000", "2.2.2.2:1", "", "tls", "h2", "istio"), "porttls"},
		// tls is more specific than no transport protocol; there is no way back when ALPN does not match.
		{conn("1.1.1.1:5000", "2.2.2.2:1", "", "tls", "h2"), "default"},
		{conn("10.2.0.1:80", "2.2.2.2:1", "", "raw_buffer"), "net"},
		{conn("10.1.0.1:80", "2.2.2.2:1", "", "raw_buffer"), "subnet"},
		{conn("[::ffff:10.1.0.1]:80", "2.2.2.2:1", "", "raw_buffer"), "subnet"},
		{conn("1.1.1.1:80", "2.2.2.2:1", "outbound_.5000_._.helloworld.sample.svc.cluster.local", "tls"), "sni"},
		{conn("1.1.1.1:80", "2.2.2.2:1", "x.example.com", "tls"), "wild"},
		{conn("1.1.1.1:80", "2.2.2.2:1", "x.a.example.com", "tls"), "deepwild"},
		{conn("1.1.1.1:80", "2.2.2.2:1", "example.com", "tls"), "default"},
		{conn("1.1.1.1:80", "2.2.2.2:1", "", "raw_buffer", "http/1.1"), "raw"},
		{conn("1.1.1.1:80", "2.2.2.2:1", "", "raw_buffer"), "default"},
		{conn("1.1.1.1:7000", "2.2.2.2:1", "", "raw_buffer"), "external"},
		{conn("1.1.1.1:7000", "127.0.0.1:1", "", "raw_buffer"), "default"},
		{conn("1.1.1.1:7000", "192.168.1.1:1234", "", "raw_buffer"), "external"},
		{conn("192.168.1.1:7000", "192.168.1.1:1234", "", "raw_buffer"), "fromnet"},
	} {
		if got := l.Match(c.conn); got.Name != c.want {
			t.Errorf("%d: %+v: chain %s, want %s", i, c.conn, got.Name, c.want)
		}
	}
	err := l.chains.add(fromYAML(t, "{destination_port: 5000}", &listener.FilterChainMatch{}), &FilterChain{Name: "again"})
	if err == nil || !strings.Contains(err.Error(), `"port"`) {
		t.Errorf("two chains with one match: %v", err)
	}
}

func TestPortSet(t *testing.T) {
	p := fromYAML(t, `
not_match:
  or_match:
    rules:
    - {destination_port_range: {start: 80, end: 81}}
    - {and_match: {rules: [{destination_port_range: {start: 100, end: 200}}, {destination_port_range: {start: 150, end: 300}}]}}`, &listener.ListenerFilterChainMatchPredicate{})
	s, err := compilePredicate(p)
	if err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]bool{0: true, 79: true, 80: false, 81: true, 149: true, 150: false, 199: false, 200: true, 65535: true} {
		if s.Holds(port) != want {
			t.Errorf("%d: %v, want %v", port, !want, want)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	var text strings.Builder
	text.WriteString("virtual_hosts:\n")
	for i := range 100 {
		fmt.Fprintf(&text, "- {name: v%d, domains: [s%d.ns, 's%d.ns:80'], routes: [{match: {prefix: /}, route: {cluster: c}}]}\n", i, i, i)
	}
	rt := table(b, text.String())
	var r Request = req("s57.ns:80 /hello")
	b.ReportAllocs()
	for b.Loop() {
		rt.Match(r, 0)
	}
}
