package announce

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

func TestOwner(t *testing.T) {
	if got := Owner(netip.MustParseAddr("10.0.0.1"), nil); got != "" {
		t.Errorf("owner %q of no nodes", got)
	}
	nodes := []string{"a", "b", "c", "d"}
	count := map[string]int{}
	for i := range 256 {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		owner := Owner(addr, nodes)
		count[owner]++
		reversed := slices.Clone(nodes)
		slices.Reverse(reversed)
		if Owner(addr, reversed) != owner {
			t.Fatal("the order of the nodes matters")
		}
		// The loss of another node does not move it.
		rest := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == "a" })
		if owner != "a" && Owner(addr, rest) != owner {
			t.Fatal("an address moved that need not")
		}
	}
	for _, n := range nodes {
		if count[n] < 40 {
			t.Errorf("uneven: %v", count)
		}
	}
	// printf NODE#10.10.50.75 | sha256sum; the least wins.
	if got := Owner(netip.MustParseAddr("10.10.50.75"), []string{"cluster1", "cluster1-w1"}); got != "cluster1-w1" {
		t.Error(got)
	}
}

func BenchmarkOwner(b *testing.B) {
	var nodes []string
	for i := range 100 {
		nodes = append(nodes, fmt.Sprintf("node-%d", i))
	}
	addr := netip.MustParseAddr("10.0.0.1")
	for b.Loop() {
		Owner(addr, nodes)
	}
}
