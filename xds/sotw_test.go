package xds

import (
	"context"
	"slices"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/carrick-mesh/carrick/resource"
)

// sotwClient is a raw state-of-the-world stream. It sees the content of resources, not names.
type sotwClient struct {
	t testing.TB
	discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient
}

func sotw(t testing.TB, c discovery.AggregatedDiscoveryServiceClient) *sotwClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	st, err := c.StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &sotwClient{t, st}
}

func (c *sotwClient) ask(r *discovery.DiscoveryRequest) {
	c.t.Helper()
	r.Node = &core.Node{Id: "sidecar~10.0.0.1~a.ns~ns.svc.cluster.local"}
	if err := c.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *sotwClient) want(typeURL string, contents ...string) *discovery.DiscoveryResponse {
	c.t.Helper()
	r, err := c.Recv()
	if err != nil {
		c.t.Fatalf("want %s %v: %v", short(typeURL), contents, err)
	}
	got := []string{short(r.TypeUrl)}
	for _, x := range r.Resources {
		got = append(got, string(x.Value))
	}
	slices.Sort(got[1:])
	if d := cmp.Diff(append([]string{short(typeURL)}, contents...), got); d != "" {
		c.t.Fatalf("message (-want +got):\n%s", d)
	}
	return r
}

func (c *sotwClient) ack(r *discovery.DiscoveryResponse, names ...string) {
	c.t.Helper()
	c.ask(&discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce, ResourceNames: names})
}

func TestStateOfTheWorld(t *testing.T) {
	s := New(Config{})
	p := &publisher{t: t, s: s, lists: map[string]*resource.List{
		cds: list("a", "b"), eds: list("a", "b"), lds: list("l"), rds: list("80", "81"),
	}}
	conn := dial(t, serve(t, s))
	c := sotw(t, conn)
	c.ask(&discovery.DiscoveryRequest{TypeUrl: cds})
	p.joined()
	clusters := c.want(cds, "a", "b")
	c.ack(clusters)
	c.ask(&discovery.DiscoveryRequest{TypeUrl: eds, ResourceNames: []string{"a", "b"}})
	e := c.want(eds, "a", "b")
	c.ack(e, "a", "b")
	c.ask(&discovery.DiscoveryRequest{TypeUrl: lds})
	c.ack(c.want(lds, "l"))
	c.ask(&discovery.DiscoveryRequest{TypeUrl: rds, ResourceNames: []string{"80"}})
	r := c.want(rds, "80")
	c.ack(r, "80")
	eventually(t, "synced", func() bool {
		st := s.Clients()[0].Status()
		return st[cds].Synced() && st[eds].Synced() && st[lds].Synced() && st[rds].Synced()
	})

	// Endpoints: what changed. Clusters: all, and endpoints of the changed ones follow.
	p.set(map[string]*resource.List{eds: list("a=2", "b")})
	e = c.want(eds, "a2")
	c.ack(e, "a", "b")
	p.set(map[string]*resource.List{cds: list("a", "b=2")})
	c.ack(c.want(cds, "a", "b2"))
	e = c.want(eds, "b")
	// A stale request is ignored, more names are answered, an ACK is not.
	c.ask(&discovery.DiscoveryRequest{TypeUrl: rds, ResourceNames: []string{"80", "81"}, ResponseNonce: "stale"})
	c.ask(&discovery.DiscoveryRequest{TypeUrl: rds, ResourceNames: []string{"80", "81"}, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce})
	c.want(rds, "81")
	p.set(map[string]*resource.List{cds: list("b=2")})
	clusters = c.want(cds, "b2")
	c.ack(clusters)
	p.set(map[string]*resource.List{lds: list()})
	c.want(lds)

	// A client that comes back with the version that is current has all it needs.
	again := sotw(t, conn)
	again.ask(&discovery.DiscoveryRequest{TypeUrl: cds, VersionInfo: clusters.VersionInfo})
	again.ask(&discovery.DiscoveryRequest{TypeUrl: rds, ResourceNames: []string{"80"}})
	p.joined()
	again.want(rds, "80")
}

// TestByName is how gRPC asks for listeners and clusters.
func TestByName(t *testing.T) {
	s := New(Config{})
	p := &publisher{t: t, s: s, lists: map[string]*resource.List{lds: list("a", "b", "c")}}
	c := sotw(t, dial(t, serve(t, s)))
	c.ask(&discovery.DiscoveryRequest{TypeUrl: lds, ResourceNames: []string{"a", "absent"}})
	p.joined()
	r := c.want(lds, "a")
	c.ack(r, "a", "absent")
	p.set(map[string]*resource.List{lds: list("a", "b=2", "c")}) // not its business
	c.ask(&discovery.DiscoveryRequest{TypeUrl: lds, ResourceNames: []string{"a", "c", "absent"}, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce})
	r = c.want(lds, "a", "c")
	p.set(map[string]*resource.List{lds: list("c", "absent")})
	c.want(lds, "absent", "c")
}
