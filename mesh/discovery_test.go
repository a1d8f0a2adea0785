package mesh

import (
	"slices"
	"testing"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// Only Services of namespaces that MeshConfig selects are hosts, in each cluster by its own labels.
func TestDiscoverySelectors(t *testing.T) {
	m := &MeshConfig{Cluster: "c1", Spec: &meshconfig.MeshConfig{}}
	fromYAML(t, "discoverySelectors: [{matchLabels: {mesh: in}}, {matchExpressions: [{key: team, operator: In, values: [a, b]}, {key: out, operator: DoesNotExist}]}]", m.Spec)
	ns := func(cluster, name string, labels map[string]string) *Namespace {
		return &Namespace{Cluster: cluster, Name: name, Labels: labels}
	}
	s := New(Settings{Cluster: "c1"}).Apply(set(m,
		ns("c1", "in", map[string]string{"mesh": "in"}), svc("c1", "in", "a"),
		ns("c1", "team", map[string]string{"team": "b"}), svc("c1", "team", "a"),
		ns("c1", "left", map[string]string{"team": "b", "out": ""}), svc("c1", "left", "a"),
		ns("c1", "none", nil), svc("c1", "none", "a"),
		ns("c1", "istio-system", nil), svc("c1", "istio-system", "gw"),
		ns("c2", "in", nil), svc("c2", "in", "a"),
	)...)
	hosts := func(s *Snapshot) (names []string) {
		for h := range s.Hosts() {
			if h.Service != nil {
				names = append(names, h.Name)
			}
		}
		slices.Sort(names)
		return names
	}
	want := []string{"a.in.svc.cluster.local", "a.team.svc.cluster.local", "gw.istio-system.svc.cluster.local"}
	if got := hosts(s); !slices.Equal(got, want) {
		t.Errorf("hosts %q, want %q", got, want)
	}
	if n := len(s.Host("a.in.svc.cluster.local").Service.Parts); n != 1 {
		t.Errorf("%d parts of a host, of which one cluster's namespace is selected", n)
	}
	// A label brings a namespace in, and taking it away takes the namespace out.
	s = s.Apply(set(ns("c1", "none", map[string]string{"mesh": "in"}), ns("c1", "in", nil))...)
	want = []string{"a.none.svc.cluster.local", "a.team.svc.cluster.local", "gw.istio-system.svc.cluster.local"}
	if got := hosts(s); !slices.Equal(got, want) {
		t.Errorf("hosts %q, want %q", got, want)
	}
	// Without selectors all are hosts.
	if got := hosts(s.Apply(set(&MeshConfig{Cluster: "c1", Spec: &meshconfig.MeshConfig{}})...)); len(got) != 5 {
		t.Errorf("hosts %q", got)
	}
}
