package topo

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func plan(t *testing.T, o Options) *Topology {
	t.Helper()
	if o.RunID == "" {
		o.RunID = "x"
	}
	if o.Proxy == "" {
		o.Proxy = "nftables"
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAddresses(t *testing.T) {
	p := plan(t, Options{Clusters: 3, Nodes: 2})
	var got []string
	for _, c := range p.Clusters {
		got = append(got, strings.Join([]string{c.Name, c.LAN.String(), c.Gateway.String(), c.Server(),
			c.Pool[0].String(), c.Pool[1].String(), c.Client.Name, c.Client.Address.String(), c.PodNet.String()}, " "))
		for _, n := range c.Nodes {
			got = append(got, strings.Join([]string{n.Name, n.Address.String(), n.MAC(), n.Pods[0].String()}, " "))
		}
	}
	want := []string{
		"cluster1 10.10.50.0/24 10.10.50.1 https://10.10.50.10:6443 10.10.50.75 10.10.50.90 client1 10.10.50.200 10.39.0.0/16",
		"cluster1 10.10.50.10 02:00:0a:0a:32:0a 10.39.0.0/24",
		"cluster1-w1 10.10.50.11 02:00:0a:0a:32:0b 10.39.1.0/24",
		"cluster2 10.29.8.0/24 10.29.8.1 https://10.29.8.10:6443 10.29.8.75 10.29.8.90 client2 10.29.8.200 10.39.0.0/16",
		"cluster2 10.29.8.10 02:00:0a:1d:08:0a 10.39.0.0/24",
		"cluster2-w1 10.29.8.11 02:00:0a:1d:08:0b 10.39.1.0/24",
		"cluster3 10.31.3.0/24 10.31.3.1 https://10.31.3.10:6443 10.31.3.75 10.31.3.90 client3 10.31.3.200 10.39.0.0/16",
		"cluster3 10.31.3.10 02:00:0a:1f:03:0a 10.39.0.0/24",
		"cluster3-w1 10.31.3.11 02:00:0a:1f:03:0b 10.39.1.0/24",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"cluster1", "cluster1-w1", "cluster2", "cluster2-w1", "cluster3", "cluster3-w1",
		"client1", "client2", "client3", "router"}, p.Hosts()); d != "" {
		t.Error(d)
	}
}

// Nothing may overlap: not in the largest plan, not in any mode.
func TestNoOverlap(t *testing.T) {
	for _, o := range []Options{
		{Clusters: MaxClusters, Nodes: MaxNodes},
		{Clusters: MaxClusters, Nodes: MaxNodes, Distinct: true},
		{Clusters: MaxClusters, Nodes: MaxNodes, Distinct: true, Overlay: true},
	} {
		p := plan(t, o)
		var nets []netip.Prefix
		for i, c := range p.Clusters {
			nets = append(nets, c.LAN)
			if o.Distinct || i == 0 {
				nets = append(nets, c.PodNet)
			}
			var blocks []netip.Prefix
			seen := map[netip.Addr]string{c.Gateway: "router", c.Client.Address: c.Client.Name}
			for _, n := range c.Nodes {
				if who, ok := seen[n.Address]; ok {
					t.Errorf("%s and %s are both at %s", who, n.Name, n.Address)
				}
				seen[n.Address] = n.Name
				if !n.Address.Less(c.Pool[0]) || !c.LAN.Contains(n.Address) {
					t.Errorf("%s at %s is not below %s of %s", n.Name, n.Address, c.Pool[0], c.LAN)
				}
				for _, b := range n.Pods {
					if !c.PodNet.Contains(b.Addr()) || b != b.Masked() {
						t.Errorf("%s: block %s is not one of %s", n.Name, b, c.PodNet)
					}
				}
				blocks = append(blocks, n.Pods...)
			}
			apart(t, blocks)
		}
		nets = append(nets, p.Clusters[0].ServiceNet)
		apart(t, nets)
	}
}

func apart(t *testing.T, ps []netip.Prefix) {
	t.Helper()
	for i, a := range ps {
		for _, b := range ps[:i] {
			if a.Overlaps(b) {
				t.Fatalf("%s overlaps %s", a, b)
			}
		}
	}
}

func TestOverlay(t *testing.T) {
	p := plan(t, Options{Clusters: 1, Nodes: 1, Overlay: true})
	for _, b := range p.Clusters[0].Nodes[0].Pods {
		if b.Bits() != 26 {
			t.Errorf("block %s is no /26", b)
		}
	}
	if p.PodMTU != 1480 || p.LANMTU < p.PodMTU+50 {
		t.Errorf("MTU %d of pods, %d of the LAN", p.PodMTU, p.LANMTU)
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		o    Options
		want string
	}{
		{Options{RunID: "", Clusters: 1, Nodes: 1, Proxy: "nftables"}, `run id ""`},
		{Options{RunID: "../x", Clusters: 1, Nodes: 1, Proxy: "nftables"}, `run id "../x"`},
		{Options{RunID: "a.b", Clusters: 1, Nodes: 1, Proxy: "nftables"}, `run id "a.b"`},
		{Options{RunID: "x", Clusters: 0, Nodes: 1, Proxy: "nftables"}, "0 clusters: want 1 to 50"},
		{Options{RunID: "x", Clusters: 1, Nodes: 61, Proxy: "nftables"}, "61 nodes: want 1 to 60"},
		{Options{RunID: "x", Clusters: 1, Nodes: 1, Proxy: "ipvs"}, `mode "ipvs": want nftables or iptables`},
	} {
		if _, err := New(tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.o, err, tc.want)
		}
	}
}

// One lab's names must not be taken for another's.
func TestRunIDsDoNotMeet(t *testing.T) {
	a, b := NetnsPrefix("dev"), plan(t, Options{RunID: "dev-2", Clusters: 1, Nodes: 1}).Netns("router")
	if strings.HasPrefix(b, a) {
		t.Errorf("%s begins with %s", b, a)
	}
}
