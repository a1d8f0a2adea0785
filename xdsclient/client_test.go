package xdsclient

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/xds"
)

const cds, eds, lds, rds = resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType

// decode reads test resources: "bad" cannot be used; a cluster's or listener's text is the names of
// the endpoints or routes that it needs.
func decode(typeURL string, r *resource.Resource) ([]Name, error) {
	text := string(r.Bytes())
	if strings.HasPrefix(text, "bad") {
		return nil, errors.New(r.Name + ": is bad")
	}
	need := map[string]string{cds: eds, lds: rds}[typeURL]
	var out []Name
	for _, n := range strings.Fields(text) {
		if need != "" {
			out = append(out, Name{need, n})
		}
	}
	return out, nil
}

// show writes a set as text.
func show(set []Resource) string {
	var out []string
	for _, r := range set {
		kind := map[string]string{cds: "c", eds: "e", lds: "l", rds: "r"}[r.Type]
		out = append(out, kind+":"+r.Name+"="+string(r.Bytes()))
	}
	return strings.Join(out, " ")
}

// response is a delta response from text: "name=content@version" items and "-name" removals.
func response(typeURL, items string) *discovery.DeltaDiscoveryResponse {
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: "n"}
	for _, it := range strings.Split(items, ",") {
		if it = strings.TrimSpace(it); it == "" {
			continue
		}
		if name, ok := strings.CutPrefix(it, "-"); ok {
			r.RemovedResources = append(r.RemovedResources, name)
			continue
		}
		name, content, _ := strings.Cut(it, "=")
		content, version, _ := strings.Cut(content, "@")
		r.Resources = append(r.Resources, &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte(content)}})
	}
	return r
}

// requests writes requests as text.
func requests(rs []*discovery.DeltaDiscoveryRequest) string {
	var out []string
	for _, r := range rs {
		kind := map[string]string{cds: "c", eds: "e", lds: "l", rds: "r"}[r.TypeUrl]
		s := kind
		for _, n := range r.ResourceNamesSubscribe {
			s += " +" + n
		}
		for _, n := range r.ResourceNamesUnsubscribe {
			s += " -" + n
		}
		if len(r.InitialResourceVersions) > 0 {
			for _, n := range slices.Sorted(maps.Keys(r.InitialResourceVersions)) {
				s += " " + n + "@" + r.InitialResourceVersions[n]
			}
		}
		if r.ErrorDetail != nil {
			s += " !" + r.ErrorDetail.Message
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

// TestState goes through a history step by step: what comes, what is asked for then, and whether the
// set is complete.
func TestState(t *testing.T) {
	c := New(Options{Decode: decode, Timeout: 15 * time.Second})
	s := c.state
	now := time.Unix(1000, 0)
	if got, want := requests(s.open(now)), "c; l"; got != want {
		t.Fatalf("first requests %q, want %q", got, want)
	}
	for i, step := range []struct {
		typeURL, items string
		after          time.Duration
		asks           string // the answer and what follows
		complete       bool
		set            string
	}{
		{cds, "a=a@1, b=b@1", 0, "c; e +a +b", false, "c:a=a c:b=b"},
		{eds, "a=x@1", 0, "e", false, "c:a=a c:b=b e:a=x"},
		{lds, "web=80@1", 0, "l; r +80", false, "c:a=a c:b=b l:web=80 e:a=x"},
		{rds, "80=x@1", 0, "r", false, "c:a=a c:b=b l:web=80 e:a=x r:80=x"},
		// b's endpoints do not exist: that counts as come.
		{eds, "-b", 0, "e", true, "c:a=a c:b=b l:web=80 e:a=x r:80=x"},
		// A bad update is refused, the last good one stays, what comes with it is taken.
		{cds, "a=bad@2, c=c@1", 0, "c !a: is bad; e +c", false, "c:a=a c:b=b c:c=c l:web=80 e:a=x r:80=x"},
		// c's endpoints never come.
		{"", "", 16 * time.Second, "", true, "c:a=a c:b=b c:c=c l:web=80 e:a=x r:80=x"},
		// They come after all.
		{eds, "c=y@1", 0, "e", true, "c:a=a c:b=b c:c=c l:web=80 e:a=x e:c=y r:80=x"},
		// Gone clusters take their endpoints along; unsolicited endpoints are not kept.
		{cds, "-a", 0, "c; e -a", true, "c:b=b c:c=c l:web=80 e:c=y r:80=x"},
		{eds, "a=z@3", 0, "e", true, "c:b=b c:c=c l:web=80 e:c=y r:80=x"},
		// A listener moves to another table: incomplete until that has come.
		{lds, "web=81@2", 0, "l; r +81 -80", false, "c:b=b c:c=c l:web=81 e:c=y"},
		{rds, "81=bad@1", 0, "r !81: is bad", true, "c:b=b c:c=c l:web=81 e:c=y"},
	} {
		now = now.Add(step.after)
		if step.typeURL != "" {
			answer, more := s.take(response(step.typeURL, step.items), now)
			if got := requests(append([]*discovery.DeltaDiscoveryRequest{answer}, more...)); got != step.asks {
				t.Errorf("step %d: asks %q, want %q", i, got, step.asks)
			}
			if answer.ResponseNonce != "n" {
				t.Errorf("step %d: no nonce", i)
			}
		}
		s.expire(now)
		if got := s.complete(); got != step.complete {
			t.Errorf("step %d: complete is %v", i, got)
		}
		if got := show(s.set()); got != step.set {
			t.Errorf("step %d: set\n got %s\nwant %s", i, got, step.set)
		}
	}
	// A new stream asks only for what has changed, and for what was refused in full.
	if got, want := requests(s.open(now)), "c b@1 c@1; l web@2; e +b +c c@1; r +81"; got != want {
		t.Errorf("requests of the second stream %q, want %q", got, want)
	}
}

// Time runs only while there is a stream.
func TestNoStreamNoTimeout(t *testing.T) {
	s := New(Options{Decode: decode, Timeout: time.Second}).state
	now := time.Unix(1000, 0)
	s.open(now)
	s.take(response(cds, "a=a@1"), now)
	s.closed()
	if got := s.expire(now.Add(time.Hour)); got != nil {
		t.Errorf("gave up on %v without a stream", got)
	}
	s.open(now.Add(time.Hour))
	if got := s.expire(now.Add(time.Hour + time.Second/2)); got != nil {
		t.Errorf("gave up on %v too early", got)
	}
	if got := s.expire(now.Add(time.Hour + time.Second)); len(got) != 1 {
		t.Errorf("gave up on %v, want one", got)
	}
}

// The same content under another version is no change.
func TestSameContent(t *testing.T) {
	s := New(Options{Decode: decode}).state
	now := time.Unix(1000, 0)
	s.open(now)
	s.take(response(cds, "a=@1"), now)
	s.changed = false
	s.take(response(cds, "a=@2"), now)
	if s.changed {
		t.Error("a resource with the same content is a change")
	}
	if got, want := requests(s.open(now)), "c a@2; l"; got != want {
		t.Errorf("requests %q, want %q", got, want)
	}
}

func TestAlso(t *testing.T) {
	var roots string
	s := New(Options{
		Also: []Name{{resource.SecretType, "ROOTCA"}},
		Decode: func(typeURL string, r *resource.Resource) ([]Name, error) {
			if typeURL == resource.SecretType {
				roots = string(r.Bytes())
				return nil, nil
			}
			return decode(typeURL, r)
		},
	}).state
	now := time.Unix(1000, 0)
	if got, want := requests(s.open(now)), "c; l;  +ROOTCA"; got != want {
		t.Errorf("requests %q, want %q", got, want)
	}
	s.take(response(cds, "a=@1"), now)
	s.take(response(lds, ""), now)
	if !s.complete() {
		t.Error("a resource beside holds the set up")
	}
	s.changed = false
	s.take(response(resource.SecretType, "ROOTCA=pem@1"), now)
	if roots != "pem" || s.changed || show(s.set()) != "c:a=" {
		t.Errorf("roots %q, changed %v, set %s", roots, s.changed, show(s.set()))
	}
}

// sets collects what a client publishes.
type sets struct {
	mu  sync.Mutex
	got []string
}

func (s *sets) publish(set []Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, show(set))
}

func (s *sets) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

func (s *sets) waitLast(t *testing.T, want string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if got := s.all(); len(got) > 0 && got[len(got)-1] == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("last set is not\n%s\nall:\n%s", want, strings.Join(s.all(), "\n"))
}

// server is Carrick's own xDS server, with the same lists for every client.
type server struct {
	t     *testing.T
	addr  string
	xds   *xds.Server
	grpc  *grpc.Server
	lists map[string]*resource.List
	mu    sync.Mutex
}

func startServer(t *testing.T, addr string) *server {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, addr: ln.Addr().String(), xds: xds.New(xds.Config{}), grpc: grpc.NewServer(xds.Options()...)}
	s.xds.Register(s.grpc)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go s.grpc.Serve(ln)
	go func() {
		defer close(done)
		for {
			select {
			case <-s.xds.Connected():
				s.publish()
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { s.grpc.Stop(); cancel(); <-done })
	return s
}

func (s *server) set(lists map[string]*resource.List) {
	s.mu.Lock()
	s.lists = lists
	s.mu.Unlock()
	s.publish()
}

func (s *server) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lists == nil {
		return
	}
	b := &xds.Bundle{Version: "v", Lists: s.lists}
	all := map[*xds.Client]*xds.Bundle{}
	for _, c := range s.xds.Clients() {
		all[c] = b
	}
	s.xds.Publish(all)
}

func lists(c, e, l, r string) map[string]*resource.List {
	of := func(items string) *resource.List {
		var rs []*resource.Resource
		for _, it := range strings.Fields(items) {
			name, content, _ := strings.Cut(it, "=")
			rs = append(rs, resource.New(name, []byte(content)))
		}
		return resource.Of(rs...)
	}
	return map[string]*resource.List{cds: of(c), eds: of(e), lds: of(l), rds: of(r)}
}

func TestAgainstOwnServer(t *testing.T) {
	srv := startServer(t, "127.0.0.1:0")
	srv.set(lists("a=a b=b", "a=x b=y", "web=80", "80=r"))
	var got sets
	c := New(Options{
		Dial: func() (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+srv.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		},
		Decode: decode, Publish: got.publish, Backoff: 300 * time.Millisecond, Timeout: 5 * time.Second,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	got.waitLast(t, "c:a=a c:b=b l:web=80 e:a=x e:b=y r:80=r")
	if n := len(got.all()); n != 1 {
		t.Errorf("%d sets were published before all had come: %q", n, got.all())
	}
	srv.set(lists("a=a", "a=x2", "web=80", "80=r"))
	got.waitLast(t, "c:a=a l:web=80 e:a=x2 r:80=r")

	// The server goes and comes back with something else; what was held is kept until then.
	srv.grpc.Stop()
	srv2 := startServer(t, srv.addr)
	srv2.set(lists("a=a n=n", "a=x2 n=z", "web=81", "81=r"))
	got.waitLast(t, "c:a=a c:n=n l:web=81 e:a=x2 e:n=z r:81=r")
	for _, s := range got.all() {
		if s == "" {
			t.Error("an empty set was published")
		}
	}
	// A table that does not exist holds nothing up.
	srv2.set(lists("a=a", "a=x2", "web=99", ""))
	got.waitLast(t, "c:a=a l:web=99 e:a=x2")
}
