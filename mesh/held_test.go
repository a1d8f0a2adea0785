package mesh

import "testing"

// Held endpoints count only where a Service has no ready one in their cluster.
func TestHeldEndpoints(t *testing.T) {
	list := []Endpoint{
		{ServicePort: 80, Cluster: "a", Held: true}, {ServicePort: 80, Cluster: "a", Ready: true}, {ServicePort: 80, Cluster: "a"},
		{ServicePort: 80, Cluster: "b", Held: true}, {ServicePort: 80, Cluster: "b"},
		{ServicePort: 81, Cluster: "b", Held: true},
	}
	stay(list)
	for i, want := range []struct{ ready, held bool }{{false, false}, {true, false}, {false, false}, {true, true}, {false, false}, {true, true}} {
		if list[i].Ready != want.ready || list[i].Held != want.held {
			t.Errorf("%d: %+v", i, list[i])
		}
	}
}
