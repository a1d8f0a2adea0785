// Package xds serves lists of encoded resources over Envoy's aggregated discovery service (ADS),
// delta and state-of-the-world. It knows names, versions and bytes; who a client is and what it
// should hold is for others to say, and what the bytes mean it never looks at, with one contract:
// the ClusterLoadAssignment of a Cluster has that Cluster's name.
package xds

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
)

// Bundle is what a client should hold. Immutable, and shared by the clients that should hold
// the same.
type Bundle struct {
	Version string                    // names the snapshot that it was made from, for people
	Lists   map[string]*resource.List // by type URL; a type that is absent has no resources
}

// Config is what a Server asks of its owner.
type Config struct {
	// Authorize says who a new stream is, from its context (peer, TLS, gRPC metadata) and the
	// Node of its first request. The answer is kept as Client.Identity. An error ends the
	// stream; a gRPC status is passed on as it is, anything else becomes Unauthenticated.
	// Nil lets everybody in.
	Authorize func(ctx context.Context, node Node) (any, error)

	// Answer serves one-off questions: types that are no configuration, such as Istio's
	// "istio.io/debug/syncz". It reports false for a type that it does not know. Nil knows none.
	Answer func(ctx context.Context, c *Client, typeURL string, names []string) ([]*anypb.Any, bool)

	// Instance says in answers which server this is (control_plane.identifier).
	Instance string

	Log *slog.Logger
}

// Limits on what one client can make the server hold or wait for.
const (
	maxRequest   = 16 << 20 // bytes of one request
	maxNames     = 1 << 18  // names a stream may subscribe to, for each type
	maxTypes     = 64       // types a stream may ask for
	firstRequest = 30 * time.Second
)

// Server is an ADS server. Its methods may be called from any goroutine.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	config    Config
	metrics   *metrics
	connected chan []*Client
	stop      chan struct{}
	stopOnce  sync.Once

	mu      sync.Mutex
	clients map[*Client]struct{}
	views   map[*resource.List]*view // of what is published to some client
	nextID  uint64
}

// New returns a server that nobody is connected to.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		config:    c,
		metrics:   newMetrics(),
		connected: make(chan []*Client, 1),
		stop:      make(chan struct{}),
		clients:   map[*Client]struct{}{},
		views:     map[*resource.List]*view{},
	}
}

// Options returns what the grpc.Server that s is registered with must be made with: a codec
// that sends resources without copying them (and any other message as usual), keepalive that
// finds dead peers, and a bound on requests.
func Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(1 << 16),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// Register adds the service to g, which was made with Options.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// Connected yields the clients whenever some have come or gone: always the newest set, never
// one that is outdated already. One goroutine may read it.
func (s *Server) Connected() <-chan []*Client { return s.connected }

// Clients returns those that are connected, in no order.
func (s *Server) Clients() []*Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clientsLocked()
}

func (s *Server) clientsLocked() []*Client {
	cs := make([]*Client, 0, len(s.clients))
	for c := range s.clients {
		cs = append(cs, c)
	}
	return cs
}

// Publish says what clients should hold from now on. Clients that are not named keep what they
// have been told; clients that have gone are ignored. It does not wait for anything to be sent:
// a client that is slow goes from what it holds to the newest bundle, past those between.
func (s *Server) Publish(bundles map[*Client]*Bundle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	views := make(map[*resource.List]*view, len(s.views))
	keep := func(l *resource.List) *view {
		if l == nil {
			return nothing
		}
		v := views[l]
		if v == nil {
			if v = s.views[l]; v == nil {
				v = newView(l)
			}
			views[l] = v
		}
		return v
	}
	made := map[*Bundle]*published{}
	for c := range s.clients {
		b, named := bundles[c]
		if !named {
			if p := c.current.Load(); p != nil {
				for _, v := range p.views {
					keep(v.list)
				}
			}
			continue
		}
		p := made[b]
		if p == nil {
			p = &published{bundle: b, at: now, views: make(map[string]*view, len(b.Lists))}
			for t, l := range b.Lists {
				p.views[t] = keep(l)
			}
			made[b] = p
		}
		c.current.Store(p)
		select {
		case c.wake <- struct{}{}:
		default: // it is awake, and will see this one
		}
	}
	for l, v := range s.views {
		if views[l] == nil {
			v.retire()
		}
	}
	s.views = views
}

// Drain ends every stream with Unavailable, so that clients go to another server, and refuses
// new ones.
func (s *Server) Drain() { s.stopOnce.Do(func() { close(s.stop) }) }

func (s *Server) join(c *Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID++
	c.ConnectionID = c.Node.ID + "-" + itoa(s.nextID)
	s.clients[c] = struct{}{}
	s.metrics.connected(c, 1)
	s.announceLocked()
}

func (s *Server) leave(c *Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
	s.metrics.connected(c, -1)
	s.announceLocked()
}

func (s *Server) announceLocked() {
	select {
	case <-s.connected: // outdated
	default:
	}
	s.connected <- s.clientsLocked()
}

// published is a bundle with the views of its lists.
type published struct {
	bundle *Bundle
	at     time.Time
	views  map[string]*view
}

// view returns the list of a type, which may be the empty one.
func (p *published) view(typeURL string) *view {
	if v := p.views[typeURL]; v != nil {
		return v
	}
	return nothing
}

// StreamAggregatedResources serves ADS, state of the world.
func (s *Server) StreamAggregatedResources(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(stream, false, func() (*request, error) {
		r, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		return sotwRequest(r), nil
	})
}

// DeltaAggregatedResources serves ADS, incremental.
func (s *Server) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(stream, true, func() (*request, error) {
		r, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		return deltaRequest(r), nil
	})
}

// serve runs one stream. Requests are read by a goroutine that waits until each is handled, and
// answers are sent by this one, which waits for the client to take them: so what is under way
// for a client is one request, one message, and the name of the newest bundle.
func (s *Server) serve(stream grpc.ServerStream, delta bool, recv func() (*request, error)) error {
	ctx := stream.Context()
	requests := make(chan *request)
	failed := make(chan error, 1)
	go func() {
		for {
			r, err := recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()

	var first *request
	wait := time.NewTimer(firstRequest)
	defer wait.Stop()
	select {
	case first = <-requests:
	case err := <-failed:
		return ended(err)
	case <-wait.C:
		return status.Errorf(codes.DeadlineExceeded, "no request within %v", firstRequest)
	case <-s.stop:
		return errDraining
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	c, err := s.admit(ctx, first.node, delta)
	if err != nil {
		return err
	}
	session := &session{server: s, client: c, stream: stream, watches: map[string]*watch{}}

	// A question needs no configuration, and a client that only asks is not announced.
	for joined, r := false, first; ; {
		if r != nil {
			if asked, err := session.ask(ctx, r); err != nil {
				return err
			} else if !asked {
				if !joined {
					joined = true
					s.join(c)
					defer s.leave(c)
				}
				if err := session.handle(r); err != nil {
					return err
				}
			}
		}
		if joined {
			if err := session.push(); err != nil {
				return err
			}
		}
		r = nil
		var late <-chan time.Time
		if session.held() {
			late = time.After(time.Until(session.until))
		}
		select {
		case r = <-requests:
		case <-late:
		case <-c.wake:
		case err := <-failed:
			return ended(err)
		case <-c.cut:
			return errCut
		case <-s.stop:
			return errDraining
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

var errCut = status.Error(codes.Unavailable, "disconnected by the operator")

var errDraining = status.Error(codes.Unavailable, "the control plane is going away")

func (s *Server) admit(ctx context.Context, node Node, delta bool) (*Client, error) {
	c := &Client{Node: node, Peer: peerAddress(ctx), Delta: delta, ConnectedAt: time.Now(), wake: make(chan struct{}, 1), cut: make(chan struct{})}
	if s.config.Authorize != nil {
		id, err := s.config.Authorize(ctx, node)
		if err != nil {
			s.metrics.refused.Inc()
			if _, ok := status.FromError(err); !ok {
				err = status.Error(codes.Unauthenticated, err.Error())
			}
			return nil, err
		}
		c.Identity = id
	}
	return c, nil
}

// ended is the result of a stream whose client has closed it or gone.
func ended(err error) error {
	switch status.Code(err) {
	case codes.Canceled:
		return nil
	case codes.Unknown: // io.EOF
		return nil
	}
	return err
}

// Client is one connected stream.
type Client struct {
	ConnectionID string // unique while the server lives
	Node         Node
	Peer         string // its address
	Identity     any    // what Authorize answered
	Delta        bool
	ConnectedAt  time.Time

	current atomic.Pointer[published]
	wake    chan struct{}
	cut     chan struct{} // closed by Disconnect
	cutOnce sync.Once

	mu    sync.Mutex
	types map[string]TypeStatus
}

// Disconnect ends the stream. The client is free to come back.
func (c *Client) Disconnect() { c.cutOnce.Do(func() { close(c.cut) }) }

// Bundle returns what the client was last told to hold, nil if nothing yet.
func (c *Client) Bundle() *Bundle {
	if p := c.current.Load(); p != nil {
		return p.bundle
	}
	return nil
}

// TypeStatus is where a client stands with one type.
type TypeStatus struct {
	Version string // of the bundle last sent from
	Sent    string // nonce of the last message; empty if none was sent
	Acked   string // nonce of the last message that the client took
	SentAt  time.Time
	AckedAt time.Time
	Nack    string // the client's words when it refused the last message that it answered
	Names   int    // subscribed to by name
	// Refused is the resources that the client has refused and not taken since, with its words. Read only.
	Refused map[string]string
}

// Refusal returns the client's words about what it refuses; "" if it takes all.
func (t TypeStatus) Refusal() string {
	if t.Nack == "" && len(t.Refused) > 0 {
		return t.Refused[slices.Sorted(maps.Keys(t.Refused))[0]]
	}
	return t.Nack
}

// Synced reports whether the client has taken all that it was sent.
func (t TypeStatus) Synced() bool { return t.Sent != "" && t.Acked == t.Sent }

// Status returns where the client stands, by type URL.
func (c *Client) Status() map[string]TypeStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := make(map[string]TypeStatus, len(c.types))
	for k, v := range c.types {
		m[k] = v
	}
	return m
}

func (c *Client) note(typeURL string, f func(*TypeStatus)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.types[typeURL]
	f(&t)
	if c.types == nil {
		c.types = map[string]TypeStatus{}
	}
	c.types[typeURL] = t
}
