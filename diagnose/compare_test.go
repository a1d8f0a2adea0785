package diagnose

import (
	"fmt"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	var ownCluster, ownListener string // of the bootstrap
	dump := func(clusters, listeners string) *Dump {
		d, err := ParseDump(fmt.Appendf(nil, `{"configs": [
{"@type": "x/envoy.admin.v3.ClustersConfigDump", "static_clusters": [%s], "dynamic_active_clusters": [%s]},
{"@type": "x/envoy.admin.v3.ListenersConfigDump", "static_listeners": [%s], "dynamic_listeners": [%s]}]}`, ownCluster, clusters, ownListener, listeners))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	cluster := func(name, timeout string) string {
		return fmt.Sprintf(`{"cluster": {"@type": "x/envoy.config.cluster.v3.Cluster", "name": %q, "connect_timeout": %q, "filters": [{"name": "a"}, {"name": "b"}]}}`, name, timeout)
	}
	const listener = `{"active_state": {"listener": {"name": "l", "address": {"port": 1}}}}`
	sent := dump(cluster("a", "10s")+","+cluster("b", "10s"), listener)
	ownCluster, ownListener = `{"cluster": {"name": "sds-grpc"}}`, `{"listener": {"name": "static-0"}}`
	for name, tt := range map[string]struct {
		has  *Dump
		want string
	}{
		"same":    {dump(cluster("b", "10s")+","+cluster("a", "10s"), listener), ""},
		"value":   {dump(cluster("a", "5s")+","+cluster("b", "10s"), listener), `a: connect_timeout: sent "10s", has "5s"`},
		"missing": {dump(cluster("a", "10s"), listener), "b: the control plane sent it, the proxy does not have it"},
		"more":    {dump(cluster("a", "10s")+","+cluster("b", "10s")+","+cluster("c", "1s"), listener), "c: the proxy has it, the control plane did not send it"},
		"list":    {dump(cluster("a", "10s")+","+strings.Replace(cluster("b", "10s"), `{"name": "b"}]`, `{"name": "c"}]`, 1), listener), `b: filters[1].name: sent "b", has "c"`},
		"shorter": {dump(cluster("a", "10s")+","+strings.Replace(cluster("b", "10s"), `, {"name": "b"}]`, `]`, 1), listener), `b: filters: sent [{"name":"a"},{"name":"b"}], has [{"name":"a"}]`},
		"field":   {dump(cluster("a", "10s")+","+cluster("b", "10s"), strings.Replace(listener, `"port": 1`, `"port": 1, "bind": true`, 1)), "l: address.bind: sent nothing, has true"},
	} {
		var got []string
		for _, d := range Compare(sent, tt.has) {
			got = append(got, d.Lines...)
		}
		if strings.Join(got, "\n") != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	many := ""
	for i := range 2 * maxLines {
		many += "," + cluster(fmt.Sprint("x", i), "1s")
	}
	if d := Compare(sent, dump(many[1:], listener)); len(d[0].Lines) != maxLines+1 || !strings.Contains(d[0].Lines[maxLines], "and 42 more") {
		t.Errorf("%d lines, the last %q", len(d[0].Lines), d[0].Lines[len(d[0].Lines)-1])
	}
}
