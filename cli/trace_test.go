package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/spf13/cobra"
)

func TestVerdict(t *testing.T) {
	source := &diagnose.Line{UpstreamCluster: "outbound|5000||helloworld.sample.svc.cluster.local", UpstreamHost: "10.29.8.78:15443", Code: "200"}
	local := &diagnose.Line{UpstreamCluster: source.UpstreamCluster, UpstreamHost: "10.39.0.4:5000", Code: "503", Flags: "UF"}
	destination := &diagnose.Line{UpstreamCluster: "inbound|5000||"}
	for _, tt := range []struct {
		hops     []hop
		answered bool
		want     string
		fails    bool
	}{
		{nil, true, "No proxy logged the request", true},
		{[]hop{{line: source}, {line: destination}}, true, "✔ The request was answered by another network, through its gateway", false},
		{[]hop{{line: local}, {line: destination}}, true, "✔ The request was answered in its own network", false},
		{[]hop{{line: source}}, true, "The answering side logged nothing", false},
		{[]hop{{line: local}}, false, "✘ The request failed: response code 503, flags UF", true},
	} {
		cmd := &cobra.Command{}
		var out bytes.Buffer
		cmd.SetOut(&out)
		err := verdict(cmd, tt.hops, tt.answered)
		if !strings.Contains(out.String(), tt.want) || (err != nil) != tt.fails {
			t.Errorf("verdict is %q, %v; want %q", out.String(), err, tt.want)
		}
	}
}

func TestNamespaceOf(t *testing.T) {
	for name, want := range map[string]string{
		"outbound|5000||helloworld.sample.svc.cluster.local": "sample", "PassthroughCluster": "", "outbound|80||example.com": "",
	} {
		if got := namespaceOf(name); got != want {
			t.Errorf("namespaceOf(%q) = %q, want %q", name, got, want)
		}
	}
}
