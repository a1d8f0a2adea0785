package diagnose

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	sourceLine      = `[2022-10-21T08:02:45.681Z] "GET /hello HTTP/1.1" 200 - via_upstream - "-" 0 60 148 147 "-" "curl/7.85.0" "b1f6c0b6-1d1f-9f6c-8b1e-5c8a3d9b7a11" "helloworld.sample:5000" "10.29.8.78:15443" outbound|5000||helloworld.sample.svc.cluster.local 10.39.0.24:53310 10.96.233.60:5000 10.39.0.24:41012 - default`
	destinationLine = `[2022-10-21T08:02:45.700Z] "GET /hello HTTP/1.1" 200 - via_upstream - "-" 0 60 120 119 "-" "curl/7.85.0" "b1f6c0b6-1d1f-9f6c-8b1e-5c8a3d9b7a11" "helloworld.sample:5000" "10.39.0.31:5000" inbound|5000|| 127.0.0.6:44213 10.39.0.31:5000 10.39.0.22:38844 outbound_.5000_._.helloworld.sample.svc.cluster.local default`
	gatewayLine     = `[2022-10-21T08:02:45.690Z] "- - -" 0 - - - "-" 1840 2210 10015 - "-" "-" "-" "-" "10.39.0.31:5000" outbound_.5000_._.helloworld.sample.svc.cluster.local 10.39.0.22:38844 10.39.0.22:15443 10.10.50.10:53310 outbound_.5000_._.helloworld.sample.svc.cluster.local -`
	failedLine      = `[2022-10-21T08:02:45.681Z] "GET /hello HTTP/1.1" 503 UF,URX upstream_reset_before_response_started{connection_failure,TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED} - "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED" 0 152 30 - "-" "curl/7.85.0" "b1f6c0b6-1d1f-9f6c-8b1e-5c8a3d9b7a11" "helloworld.sample:5000" "10.29.8.78:15443" outbound|5000|v2|helloworld.sample.svc.cluster.local - 10.96.233.60:5000 10.39.0.24:41012 - default`
)

func places(address string) string {
	return map[string]string{
		"10.29.8.78:15443":  "gateway of cluster2, network network2",
		"10.96.233.60:5000": "Service sample/helloworld",
		"10.39.0.24:41012":  "pod sample/sleep-1",
		"10.39.0.31:5000":   "pod sample/helloworld-v2-1",
	}[address]
}

func TestExplain(t *testing.T) {
	var b strings.Builder
	for _, line := range []string{sourceLine, gatewayLine, destinationLine, failedLine} {
		l, err := ParseLine(line)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range l.Explain(places) {
			fmt.Fprintf(&b, "%s | %s | %s\n", f.Field, f.Value, f.Meaning)
		}
		b.WriteString("\n")
	}
	golden(t, "explain.golden", b.String())
}

func TestParseLine(t *testing.T) {
	l, err := ParseLine("[pod/sleep-1/istio-proxy] " + sourceLine + "\n")
	if err != nil {
		t.Fatal(err)
	}
	want := &Line{
		StartTime: "2022-10-21T08:02:45.681Z", Method: "GET", Path: "/hello", Protocol: "HTTP/1.1", Code: "200", Flags: "-",
		CodeDetails: "via_upstream", TerminationDetails: "-", TransportFailure: "-", BytesReceived: "0", BytesSent: "60",
		Duration: "148", UpstreamServiceTime: "147", ForwardedFor: "-", UserAgent: "curl/7.85.0",
		RequestID: "b1f6c0b6-1d1f-9f6c-8b1e-5c8a3d9b7a11", Authority: "helloworld.sample:5000", UpstreamHost: "10.29.8.78:15443",
		UpstreamCluster: "outbound|5000||helloworld.sample.svc.cluster.local", UpstreamLocal: "10.39.0.24:53310",
		DownstreamLocal: "10.96.233.60:5000", DownstreamRemote: "10.39.0.24:41012", ServerName: "-", RouteName: "default",
	}
	if d := cmp.Diff(want, l); d != "" {
		t.Error(d)
	}
	j, err := ParseLine(`{"response_code":200,"duration":148,"authority":"helloworld.sample:5000","upstream_cluster":"inbound|5000||","response_flags":null}`)
	if err != nil || j.Code != "200" || j.Duration != "148" || j.Side() != Destination {
		t.Errorf("JSON line: %+v, %v", j, err)
	}
	v6, err := ParseLine(strings.ReplaceAll(destinationLine, "127.0.0.6:44213", "[::6]:44213"))
	if err != nil || v6.UpstreamLocal != "[::6]:44213" {
		t.Errorf("IPv6 line: %+v, %v", v6, err)
	}
	for _, in := range []string{"", "hello", `[2022-10-21T08:02:45.681Z "`, "{}x", "2024-10-10T10:43:58Z\tinfo\txdsproxy\tconnected"} {
		if _, err := ParseLine(in); err == nil || !strings.Contains(err.Error(), "not in Istio's default format") {
			t.Errorf("ParseLine(%q): error is %v", in, err)
		}
	}
}

// A client's path and agent may hold quotes and blanks: the fields after them stay what they are.
func TestParseQuotes(t *testing.T) {
	const rest = `" 503 UF,URX upstream_reset_before_response_started{connection_failure} - "delayed_connect_error:_111" 0 152 3 - ` +
		`"10.0.0.1, 10.0.0.2" "%s" "-" "a:80" "[2001:db8::1]:15443" outbound|80|v1|a.b.svc.cluster.local - [2001:db8::2]:80 [2001:db8::3]:5000 - -`
	for _, tt := range []struct {
		path, agent string
		ambiguous   bool
	}{
		{`/a?x="b c"`, `Mozilla/5.0 (X11; Linux) \"quoted\" UA`, false},
		{`/a" HTTP/1.1`, `x`, false},
		{`/`, `x" "y`, true}, // where x-forwarded-for ends, only the client knows
	} {
		l, err := ParseLine(`[2023-11-11T13:22:15.729Z] "GET ` + tt.path + ` HTTP/1.1` + fmt.Sprintf(rest, tt.agent))
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		if l.Code != "503" || l.Flags != "UF,URX" || l.Authority != "a:80" || l.DownstreamRemote != "[2001:db8::3]:5000" ||
			l.Ambiguous != tt.ambiguous || l.Path != tt.path || !tt.ambiguous && l.UserAgent != tt.agent {
			t.Errorf("%+v: %+v", tt, l)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	for _, l := range []string{sourceLine, gatewayLine, destinationLine, failedLine, `{"response_code":1}`} {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := ParseLine(s); err == nil {
			l.Explain(func(string) string { return "" })
		}
	})
}
