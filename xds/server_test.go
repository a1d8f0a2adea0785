package xds

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
)

const patience = 10 * time.Second

// serve starts s on loopback and returns its address.
func serve(t testing.TB, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(Options()...)
	s.Register(g)
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String()
}

func dial(t testing.TB, addr string) discovery.AggregatedDiscoveryServiceClient {
	t.Helper()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return discovery.NewAggregatedDiscoveryServiceClient(c)
}

// deltaClient is a raw delta stream.
type deltaClient struct {
	t testing.TB
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel context.CancelFunc
}

func delta(t testing.TB, c discovery.AggregatedDiscoveryServiceClient) *deltaClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	st, err := c.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &deltaClient{t, st, cancel}
}

func (c *deltaClient) ask(r *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if r.Node == nil {
		r.Node = &core.Node{Id: "sidecar~10.0.0.1~a.ns~ns.svc.cluster.local"}
	}
	if err := c.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// want takes the next message and compares its type and names: "+a" sent, "-b" removed.
func (c *deltaClient) want(typeURL string, names ...string) *discovery.DeltaDiscoveryResponse {
	c.t.Helper()
	r, err := c.Recv()
	if err != nil {
		c.t.Fatalf("want %s %v: %v", short(typeURL), names, err)
	}
	var got []string
	for _, x := range r.Resources {
		got = append(got, "+"+x.Name)
	}
	for _, n := range r.RemovedResources {
		got = append(got, "-"+n)
	}
	slices.Sort(got)
	slices.Sort(names)
	if d := cmp.Diff(append([]string{short(typeURL)}, names...), append([]string{short(r.TypeUrl)}, got...)); d != "" {
		c.t.Fatalf("message (-want +got):\n%s", d)
	}
	return r
}

func (c *deltaClient) ack(r *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
}

// quiet asserts that nothing is under way: a question that needs an answer comes back next.
func (c *deltaClient) quiet() {
	c.t.Helper()
	probe := "type.googleapis.com/probe" + fmt.Sprint(time.Now().UnixNano())
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: probe})
	r, err := c.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	if r.TypeUrl != probe {
		c.t.Fatalf("unexpected message of %s: %d resources, removed %v", short(r.TypeUrl), len(r.Resources), r.RemovedResources)
	}
}

// quietNow is quiet for a client whose clusters wait for an answer.
func (c *deltaClient) quietNow() {
	c.t.Helper()
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"probe"}})
	c.want(eds, "-probe")
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesUnsubscribe: []string{"probe"}})
}

func res(name, content string) *resource.Resource { return resource.New(name, []byte(content)) }

func list(names ...string) *resource.List {
	var rs []*resource.Resource
	for _, n := range names {
		name, content, _ := strings.Cut(n, "=")
		rs = append(rs, res(name, name+content))
	}
	return resource.Of(rs...)
}

// publisher publishes the same bundle to all clients, as they come.
type publisher struct {
	t       testing.TB
	s       *Server
	version int
	lists   map[string]*resource.List
}

// set publishes lists ("cds", names...) to everybody; types not named stay.
func (p *publisher) set(lists map[string]*resource.List) {
	next := map[string]*resource.List{}
	for k, v := range p.lists {
		next[k] = v
	}
	for k, v := range lists {
		next[k] = v
	}
	p.lists = next
	p.version++
	p.publish()
}

func (p *publisher) publish() {
	b := &Bundle{Version: fmt.Sprint(p.version), Lists: p.lists}
	m := map[*Client]*Bundle{}
	for _, c := range p.s.Clients() {
		m[c] = b
	}
	p.s.Publish(m)
}

// joined waits for the next change of clients and publishes to them.
func (p *publisher) joined() {
	p.t.Helper()
	select {
	case <-p.s.Connected():
		p.publish()
	case <-time.After(patience):
		p.t.Fatal("no client came or went")
	}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

const (
	cds = resource.ClusterType
	eds = resource.EndpointType
	lds = resource.ListenerType
	rds = resource.RouteType
)

func TestDelta(t *testing.T) {
	s := New(Config{})
	p := &publisher{t: t, s: s, lists: map[string]*resource.List{
		cds: list("a", "b"), eds: list("a", "b"), lds: list("l"), rds: list("80"),
	}}
	c := delta(t, dial(t, serve(t, s)))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds})
	p.joined()
	r := c.want(cds, "+a", "+b")
	if r.Resources[0].Version == "" || string(r.Resources[0].Resource.Value) != "a" || r.Resources[0].Resource.TypeUrl != cds {
		t.Errorf("resource %v", r.Resources[0])
	}
	c.ack(r)
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"a", "b", "absent"}})
	c.ack(c.want(eds, "+a", "+b", "-absent"))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: lds})
	c.ack(c.want(lds, "+l"))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: rds, ResourceNamesSubscribe: []string{"80"}})
	c.ack(c.want(rds, "+80"))
	c.quiet()

	// Only what changed, only what is subscribed to.
	p.set(map[string]*resource.List{eds: list("a=2", "b", "c"), rds: list("80", "81")})
	c.ack(c.want(eds, "+a"))
	c.quiet()
	// The same content again is no change.
	p.set(map[string]*resource.List{eds: list("a=2", "b", "c")})
	c.quiet()
	// A cluster that is sent is followed by its endpoints, changed or not; a route's cluster
	// comes before it, and a cluster goes after the route.
	p.set(map[string]*resource.List{cds: list("a=2", "c"), rds: list("80=2", "81"), eds: list("a=2", "c")})
	r = c.want(cds, "+a", "+c")
	c.want(eds, "+a")
	c.quietNow() // the client may yet ask for endpoints of c
	c.ack(r)
	c.want(rds, "+80")
	c.want(cds, "-b")
	c.want(eds, "-b")
	c.quiet()
	// A new subscription is answered from what is published; an old one, again.
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"c"}, ResourceNamesUnsubscribe: []string{"b"}})
	c.want(eds, "+c")
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"c"}})
	c.want(eds, "+c")
	// On demand, a name that is not there yet.
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: rds, ResourceNamesSubscribe: []string{"90"}})
	c.want(rds, "-90")
	p.set(map[string]*resource.List{rds: list("80=2", "90")})
	c.want(rds, "+90")
	c.quiet()
}

func TestDeltaReconnect(t *testing.T) {
	s := New(Config{})
	p := &publisher{t: t, s: s, lists: map[string]*resource.List{
		cds: list("a", "b=2", "static"), eds: list("a", "b"), rds: list("80"),
	}}
	v := func(typeURL, name string) string {
		for r := range p.lists[typeURL].All() {
			if r.Name == name {
				return r.Version
			}
		}
		t.Fatalf("no %s", name)
		return ""
	}
	c := delta(t, dial(t, serve(t, s)))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds, InitialResourceVersions: map[string]string{
		"a": v(cds, "a"), "b": "older", "gone": "x", "static": v(cds, "static")}})
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"a", "b", "gone"},
		InitialResourceVersions: map[string]string{"a": v(eds, "a"), "b": v(eds, "b"), "gone": "x"}})
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: rds, ResourceNamesSubscribe: []string{"80"},
		InitialResourceVersions: map[string]string{"80": v(rds, "80")}})
	p.joined()
	r := c.want(cds, "+b", "-gone")
	c.want(eds, "+b", "-gone") // b has not changed, but its cluster was sent
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds, ResponseNonce: r.Nonce, ErrorDetail: &rpc.Status{Message: "no"}})
	r = c.want(rds) // nothing new, and it says so
	c.ack(r)
	c.quiet()
	eventually(t, "routes synced", func() bool { return s.Clients()[0].Status()[rds].Synced() })
	if s.Clients()[0].Status()[cds].Synced() {
		t.Error("clusters were never acknowledged and count as synced")
	}
}

func TestDeltaWildcardAndNames(t *testing.T) {
	s := New(Config{})
	p := &publisher{t: t, s: s, lists: map[string]*resource.List{cds: list("a", "b")}}
	c := delta(t, dial(t, serve(t, s)))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds, ResourceNamesSubscribe: []string{"b", "x"}})
	p.joined()
	c.want(cds, "+b", "-x")
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds, ResourceNamesSubscribe: []string{"*"}})
	c.ack(c.want(cds, "+a", "+b", "-x"))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds, ResourceNamesUnsubscribe: []string{"*"}})
	c.quiet()
	p.set(map[string]*resource.List{cds: list("a=2", "b=2")})
	c.ack(c.want(cds, "+b"))
	c.quiet()
}

func TestNack(t *testing.T) {
	s := New(Config{})
	p := &publisher{t: t, s: s, lists: map[string]*resource.List{cds: list("a")}}
	c := delta(t, dial(t, serve(t, s)))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds})
	p.joined()
	r := c.want(cds, "+a")
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds, ResponseNonce: r.Nonce, ErrorDetail: &rpc.Status{Message: "bad cluster a"}})
	status := func() TypeStatus { return s.Clients()[0].Status()[cds] }
	eventually(t, "the NACK is known", func() bool { return status().Nack == "bad cluster a" })
	if st := status(); st.Synced() || st.Acked != "" {
		t.Errorf("refused and synced: %+v", st)
	}
	c.quiet() // the same is not sent again
	p.set(map[string]*resource.List{cds: list("a=good")})
	r = c.want(cds, "+a")
	c.ack(r)
	eventually(t, "synced", func() bool { return status().Synced() && status().Nack == "" })
	if v := status().Version; v != "1" {
		t.Errorf("version %q, want 1", v)
	}
}

func TestSlowClientSkipsToTheNewest(t *testing.T) {
	s := New(Config{})
	p := &publisher{t: t, s: s, lists: map[string]*resource.List{cds: list("a")}}
	c := delta(t, dial(t, serve(t, s)))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds})
	p.joined()
	c.want(cds, "+a")
	// Nobody reads; each list is larger than HTTP/2's window.
	big := strings.Repeat("x", 1<<20)
	const n = 50
	for i := range n {
		p.set(map[string]*resource.List{cds: list(fmt.Sprintf("a=%s%d", big, i))})
	}
	got := 0
	for last := ""; !strings.HasSuffix(last, fmt.Sprint(big[:1], n-1)); got++ {
		r, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		last = string(r.Resources[0].Resource.Value)
	}
	if got > n/2 {
		t.Errorf("%d messages for %d bundles: they queue up", got, n)
	}
}

func TestAuthorize(t *testing.T) {
	s := New(Config{Authorize: func(ctx context.Context, n Node) (any, error) {
		if n.ID == "good" {
			return "somebody", nil
		}
		return nil, fmt.Errorf("node %q is nobody", n.ID)
	}})
	addr := serve(t, s)
	bad := delta(t, dial(t, addr))
	bad.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds, Node: &core.Node{Id: "bad"}})
	if _, err := bad.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), `node "bad" is nobody`) {
		t.Errorf("bad node: %v", err)
	}
	good := delta(t, dial(t, addr))
	good.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds, Node: &core.Node{Id: "good"}})
	if cs := <-s.Connected(); len(cs) != 1 || cs[0].Identity != "somebody" {
		t.Errorf("clients %v", cs)
	}
	good.cancel()
	if cs := <-s.Connected(); len(cs) != 0 {
		t.Errorf("clients after it has gone: %v", cs)
	}
}

func TestDrain(t *testing.T) {
	s := New(Config{})
	c := delta(t, dial(t, serve(t, s)))
	c.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: cds})
	<-s.Connected()
	s.Drain()
	if _, err := c.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("drained stream: %v", err)
	}
}

func TestAnswer(t *testing.T) {
	s := New(Config{Instance: "here", Answer: func(ctx context.Context, c *Client, typeURL string, names []string) ([]*anypb.Any, bool) {
		if typeURL != "istio.io/debug/syncz" {
			return nil, false
		}
		return []*anypb.Any{{TypeUrl: "t", Value: []byte("v")}, {TypeUrl: "u", Value: []byte(strings.Join(names, ","))}}, true
	}})
	st, err := dial(t, serve(t, s)).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st.Send(&discovery.DiscoveryRequest{TypeUrl: "istio.io/debug/syncz", ResourceNames: []string{"x"}, Node: &core.Node{Id: "istioctl"}, ResponseNonce: "istioctl's first request has one"})
	r, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Resources) != 2 || r.Resources[0].TypeUrl != "t" || string(r.Resources[1].Value) != "x" || r.TypeUrl != "istio.io/debug/syncz" || r.ControlPlane.GetIdentifier() != "here" {
		t.Errorf("answer %v", r)
	}
	// The ACK is no question: the next answer is of the next one.
	st.Send(&discovery.DiscoveryRequest{TypeUrl: "istio.io/debug/syncz", ResourceNames: []string{"x"}, ResponseNonce: r.Nonce})
	st.Send(&discovery.DiscoveryRequest{TypeUrl: "istio.io/debug/syncz", ResourceNames: []string{"y"}})
	if r, err = st.Recv(); err != nil || string(r.Resources[1].Value) != "y" {
		t.Errorf("answer %v, %v", r, err)
	}
	if len(s.Clients()) != 0 {
		t.Error("who only asks is taken for a proxy")
	}
}
