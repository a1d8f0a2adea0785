package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/diagnose"
)

func TestTraceVerdict(t *testing.T) {
	const cluster = "outbound|5000||helloworld.sample.svc.cluster.local"
	place := func(address string) string {
		return map[string]string{"10.29.8.78:15443": "gateway of c2, network n2"}[address]
	}
	away := &diagnose.Line{UpstreamCluster: cluster, UpstreamHost: "10.29.8.78:15443", Code: "200", Flags: "-", RouteName: "default"}
	failed := &diagnose.Line{UpstreamCluster: cluster, UpstreamHost: "10.29.8.78:15443", Code: "503", Flags: "UF", TransportFailure: "x509: certificate signed by unknown authority"}
	took := &diagnose.Line{UpstreamCluster: "inbound|5000||", ServerName: "outbound_.5000_._.helloworld.sample.svc.cluster.local", Code: "200", Flags: "-"}
	pod := func(cluster, name string, l *diagnose.Line) *diagnose.Point {
		return &diagnose.Point{Cluster: cluster, Namespace: "sample", Pod: name, Proxy: true, Account: name, Line: l}
	}
	gateway := &diagnose.Point{Cluster: "c2", Namespace: "istio-system", Pod: "gateway", Proxy: true, Gateway: true}
	for name, tt := range map[string]struct {
		points []*diagnose.Point
		ok     bool // what curl said
		want   []string
		fails  bool
	}{
		"remote": {[]*diagnose.Point{pod("c1", "sleep", away), gateway, pod("c2", "hello", took)}, true,
			[]string{"1. sample/sleep in c1: ✔ sent it to gateway of c2, network n2", "2. istio-system/gateway in c2: ✔ passed", "3. sample/hello in c2: ✔ took it by mutual TLS", "✔ answered by c2, through its gateway."}, false},
		"not logged": {[]*diagnose.Point{pod("c1", "sleep", nil)}, true, []string{"has no log line", "logged no such request"}, true},
		"roots": {[]*diagnose.Point{pod("c1", "sleep", failed)}, false,
			[]string{"✘ the connection to the upstream host failed", "not signed by a root that this proxy trusts", "compare the roots: carrick mesh check", "✘ the request failed at sample/sleep in c1"}, true},
		"application": {[]*diagnose.Point{pod("c1", "sleep", away), pod("c2", "hello", took)}, false, []string{"it is the application's own"}, true},
		"outside":     {[]*diagnose.Point{pod("c1", "sleep", away)}, true, []string{"the answering side logged nothing"}, false},
		"plain": {[]*diagnose.Point{pod("c1", "sleep", away), {Cluster: "c1", Namespace: "sample", Pod: "bare"}}, true,
			[]string{"has no sidecar: the request came to it as it is", "answered in the caller's own cluster, c1"}, false},
	} {
		f := &traced{URL: "http://helloworld.sample:5000/hello", Answer: "-", OK: tt.ok}
		for _, p := range tt.points {
			f.Hops = append(f.Hops, p.Hop("helloworld.sample:5000", place))
		}
		f.judge(tt.points[0], tt.points[len(tt.points)-1])
		var out bytes.Buffer
		err := f.print(&out, "")
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: lacks %q:\n%s", name, want, out.String())
			}
		}
		if (err != nil) != tt.fails {
			t.Errorf("%s: error is %v", name, err)
		}
		out.Reset()
		if _ = f.print(&out, "json"); !strings.Contains(out.String(), `"verdict"`) {
			t.Errorf("%s: JSON is %s", name, out.String())
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
