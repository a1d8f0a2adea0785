package diagnose

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestGuideLines: log lines captured in the lab are those that the guide shows, and are understood: of a
// request that the other cluster answers, at both ends and at the gateway between, and of one that is
// answered here. What one end says of a connection, the other says, too.
func TestGuideLines(t *testing.T) {
	variable := map[string]string{
		"{TIME}": `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`, "{MS}": `\d+`, "{AGENT}": `curl/[0-9.]+`, "{ID}": `[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`,
		"{GATEWAY2}": `10\.29\.8\.\d+`, "{IP}": `10\.\d+\.\d+\.\d+`, "{PORT}": `\d+`,
		"{BYTES}": `[1-9]\d*`,
	}
	lines := map[string]*Line{}
	var patterns []*regexp.Regexp
	for name, side := range map[string]Side{"source-remote": Source, "destination-remote": Destination, "gateway-remote": Passthrough, "source-local": Source, "destination-local": Destination} {
		pattern, line := strings.TrimSpace(string(read(t, "guide/"+name+".pattern"))), strings.TrimSpace(string(read(t, "guide/"+name+".log")))
		for k, v := range variable {
			pattern = strings.ReplaceAll(pattern, k, v)
		}
		patterns = append(patterns, regexp.MustCompile("^"+pattern+"$"))
		if !patterns[len(patterns)-1].MatchString(line) {
			t.Errorf("%s: %s does not match", name, line)
		}
		l, err := ParseLine(line)
		if err != nil {
			t.Fatal(err)
		}
		if l.Side() != side {
			t.Errorf("%s: side is %v, want %v", name, l.Side(), side)
		}
		lines[name] = l
	}
	for _, file := range []string{"README.md", "README.zh-CN.md"} {
		b, err := os.ReadFile("../" + file)
		if err != nil {
			t.Fatal(err)
		}
		shown := 0
		for line := range strings.Lines(string(b)) {
			line, ok := strings.CutPrefix(strings.TrimSpace(line), "[20")
			if !ok {
				continue
			}
			shown++
			if !slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString("[20" + line) }) {
				t.Errorf("%s shows a line that is none of the guide's: [20%s", file, line)
			}
		}
		if shown != 3 {
			t.Errorf("%s shows %d lines, want those of source, destination and gateway", file, shown)
		}
	}
	if !SameRequest(lines["source-remote"].RequestID, lines["destination-remote"].RequestID) || SameRequest(lines["source-remote"].RequestID, lines["source-local"].RequestID) {
		t.Error("the request ids do not tell which lines belong together")
	}
	if !SameRequest(lines["source-local"].RequestID, lines["destination-local"].RequestID) {
		t.Error("the ends of the local request have different request ids")
	}
	here, there, gateway := lines["destination-local"], lines["destination-remote"], lines["gateway-remote"]
	for what, same := range map[string][2]string{
		"the pod that answered here":       {lines["source-local"].UpstreamHost, here.DownstreamLocal},
		"the caller, here":                 {lines["source-local"].UpstreamLocal, here.DownstreamRemote},
		"the pod that the gateway chose":   {gateway.UpstreamHost, there.DownstreamLocal},
		"the gateway, to that pod":         {gateway.UpstreamLocal, there.DownstreamRemote},
		"the name that the gateway saw":    {gateway.ServerName, there.ServerName},
		"the name that the gateway routed": {gateway.UpstreamCluster, there.ServerName},
	} {
		if same[0] != same[1] || same[0] == "" || same[0] == "-" {
			t.Errorf("%s is %s at one end, %s at the other", what, same[0], same[1])
		}
	}
	atLeast, atMost, ok := Skew(lines["source-remote"], lines["destination-remote"])
	if !ok || atLeast > 0 || atMost < 0 {
		t.Errorf("skew of two good clocks: %v to %v, %v", atLeast, atMost, ok)
	}
}

func TestSkew(t *testing.T) {
	caller := &Line{StartTime: "2026-01-01T00:00:00.000Z", Duration: "10"}
	for start, want := range map[string]string{
		"2026-01-01T00:00:05.000Z": "b's clock is at least 4.988s ahead of a's",
		"2026-01-01T00:00:00.004Z": "the clocks of a and b agree",
		"2025-12-31T23:59:55.000Z": "b's clock is at least 4.999s behind a's",
	} {
		lo, hi, ok := Skew(caller, &Line{StartTime: start, Duration: "0"})
		say, warn := ClockNote("a", "b", lo, hi, time.Second)
		if !ok || !strings.HasPrefix(say, want) || warn == strings.Contains(say, "agree") {
			t.Errorf("%s: %q, %v, want %q", start, say, warn, want)
		}
	}
	if _, _, ok := Skew(caller, &Line{StartTime: "-"}); ok {
		t.Error("a line without a time has a skew")
	}
}

func TestWay(t *testing.T) {
	d, err := ParseDump(read(t, "sleep.dump.json"))
	if err != nil {
		t.Fatal(err)
	}
	const hello = "outbound|5000||helloworld.sample.svc.cluster.local"
	for _, tt := range []struct {
		address, authority string
		want               Way
	}{
		{"10.96.0.99:5000", "helloworld.sample:5000", Way{"0.0.0.0_5000", "5000", "helloworld.sample.svc.cluster.local:5000", "default", hello}},
		{"10.96.0.99:5000", "other.example:5000", Way{"0.0.0.0_5000", "5000", "allow_any", "allow_any", "PassthroughCluster"}},
		{"10.96.0.1:443", "kubernetes.default", Way{"10.96.0.1_443", "", "", "", "outbound|443||kubernetes.default.svc.cluster.local"}},
		{"192.0.2.1:9999", "192.0.2.1", Way{"virtualOutbound", "", "", "", "PassthroughCluster"}},
	} {
		if got := d.Way(tt.address, tt.authority, "/hello"); got != tt.want {
			t.Errorf("Way(%s, %s) = %+v, want %+v", tt.address, tt.authority, got, tt.want)
		}
	}
	if !d.LogsAccess() {
		t.Error("the dump's access log is not seen")
	}
}

func TestRemedy(t *testing.T) {
	for _, tt := range []struct {
		line     Line
		why, fix string
	}{
		{Line{Flags: "-"}, "", ""},
		{Line{Flags: "UF,URX", TransportFailure: "TLS_error: CERTIFICATE_VERIFY_FAILED"}, "not signed by a root", "compare the roots"},
		{Line{Flags: "UH"}, "no healthy host", "carrick mesh check"},
		{Line{Flags: "NR"}, "no route", "proxy-config route"},
		{Line{Flags: "-", CodeDetails: "rbac_access_denied_matched_policy[none]"}, "AuthorizationPolicy", "allow the caller"},
	} {
		why, fix, bad := Remedy(&tt.line)
		if bad != (tt.why != "") || !strings.Contains(why, tt.why) || !strings.Contains(fix, tt.fix) {
			t.Errorf("%+v: %q, %q, %v", tt.line, why, fix, bad)
		}
	}
}
