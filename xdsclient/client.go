// Package xdsclient keeps one consistent set of resources from an xDS server over delta ADS. It knows
// the protocol, names and versions; what a resource says, and which others it needs, its caller
// tells it.
package xdsclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/carrick-mesh/carrick/resource"
)

// Name is a resource by type URL and name.
type Name = struct{ Type, Name string }

// Resource is a resource of a set.
type Resource struct {
	*resource.Resource
	Type    string
	Version string    // as the server gave it; Resource.Version is a hash of the content
	Updated time.Time // when it came
}

// Options are what a client is made with.
type Options struct {
	// Dial makes a connection with the credentials of the moment; it is called for each stream. The
	// connection should have keepalive and a bound on the size of messages.
	Dial func() (*grpc.ClientConn, error)
	// Authorize adds metadata (a token) to a stream's context; nil adds none.
	Authorize func(context.Context) (context.Context, error)
	// Node is the envoy.config.core.v3.Node to send.
	Node proto.Message
	// Decode is asked about each resource that comes, from Run's goroutine. It returns the resources
	// that this one cannot be used without, or why it cannot be used at all: then the server is
	// told, and the last good one stays.
	Decode func(typeURL string, r *resource.Resource) (needs []Name, err error)
	// Publish gets each complete set, from Run's goroutine: static types first as Types has them,
	// then what they need.
	Publish func(set []Resource)
	// Refused gets, before each set, the resources that are missing in it because Decode refused every version that
	// came; nil is not told.
	Refused func(missing []Name)
	// Types are wanted whole, in this order; default clusters and listeners.
	Types []string
	// Also are wanted beside; they go to Decode but are in no set and hold none up.
	Also []Name

	// Timeout is how long a resource is waited for before it counts as not existing; default 15 s.
	Timeout time.Duration
	// Settle is how long nothing must come before a set is published, because a server changes
	// several types in a row; default 10 ms, at most 50 times as long in total.
	Settle time.Duration
	// Backoff is the longest wait between streams; default 10 s.
	Backoff time.Duration
	Logger  *slog.Logger // nil: nothing is logged
}

// Client is a client of one server. Run runs it.
type Client struct {
	o     Options
	log   *slog.Logger
	state *state
}

// New returns a client.
func New(o Options) *Client {
	if o.Types == nil {
		o.Types = []string{resource.ClusterType, resource.ListenerType}
	}
	if o.Timeout == 0 {
		o.Timeout = 15 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 10 * time.Millisecond
	}
	if o.Backoff == 0 {
		o.Backoff = 10 * time.Second
	}
	if o.Authorize == nil {
		o.Authorize = func(ctx context.Context) (context.Context, error) { return ctx, nil }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{o: o, log: o.Logger, state: newState(o)}
}

const firstBackoff = 250 * time.Millisecond

// Run keeps a stream up until ctx ends. What was received stays when a stream ends, and the next one
// asks only for what has changed since.
func (c *Client) Run(ctx context.Context) error {
	t := newTimers(c.o.Settle)
	defer t.stop()
	wait := firstBackoff
	for {
		s, err := c.open(ctx)
		if err == nil {
			err = c.serve(ctx, s, t)
			s.close()
			c.state.closed()
			if s.answered {
				wait = firstBackoff
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, io.EOF) {
			c.log.Info("xDS stream was closed by the server; opening another")
		} else {
			c.log.Warn("xDS stream failed; opening another", "error", err, "wait", wait)
		}
		// Full jitter, so that the proxies of a server that went do not all come back at once.
		again := time.NewTimer(wait/4 + time.Duration(rand.Int64N(int64(wait))))
		for again != nil {
			select {
			case <-again.C:
				again = nil
			case now := <-t.C():
				c.tick(now, t)
			case <-ctx.Done():
				again.Stop()
				return nil
			}
		}
		wait = min(2*wait, c.o.Backoff)
	}
}

// stream is one ADS stream and its connection.
type stream struct {
	conn     *grpc.ClientConn
	ads      discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel   context.CancelFunc
	in       chan received
	answered bool // something came
	sentNode bool
}

type received struct {
	resp *discovery.DeltaDiscoveryResponse
	err  error
}

func (c *Client) open(ctx context.Context) (*stream, error) {
	conn, err := c.o.Dial()
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	sctx, cancel := context.WithCancel(ctx)
	s := &stream{conn: conn, cancel: cancel, in: make(chan received)}
	actx, err := c.o.Authorize(sctx)
	if err == nil {
		s.ads, err = discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(actx)
	}
	if err != nil {
		cancel()
		conn.Close() // the error that counts is err
		return nil, fmt.Errorf("opening stream: %w", err)
	}
	go func() { // ends with the stream
		for {
			resp, err := s.ads.Recv()
			select {
			case s.in <- received{resp, err}:
			case <-sctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return s, nil
}

func (s *stream) close() {
	s.cancel()
	s.conn.Close() // nothing is left to lose
}

// serve runs one stream: it asks for all that is wanted, and then answers what comes.
func (c *Client) serve(ctx context.Context, s *stream, t *timers) error {
	for _, req := range c.state.open(time.Now()) {
		if err := c.send(s, req); err != nil {
			return err
		}
	}
	t.deadline(c.state.deadline())
	for {
		select {
		case r := <-s.in:
			if r.err != nil {
				return r.err
			}
			s.answered = true
			if err := c.receive(s, r.resp, t); err != nil {
				return err
			}
		case now := <-t.C():
			c.tick(now, t)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Client) receive(s *stream, resp *discovery.DeltaDiscoveryResponse, t *timers) error {
	answer, requests := c.state.take(resp, time.Now())
	if answer.ErrorDetail != nil {
		c.log.Warn("refused xDS resources", "type", resp.TypeUrl, "error", answer.ErrorDetail.Message)
	}
	for _, req := range append([]*discovery.DeltaDiscoveryRequest{answer}, requests...) {
		if err := c.send(s, req); err != nil {
			return err
		}
	}
	if c.state.changed {
		t.hold(time.Now())
	}
	t.deadline(c.state.deadline())
	return nil
}

// tick gives up on what does not come, and publishes when nothing more is awaited.
func (c *Client) tick(now time.Time, t *timers) {
	for _, n := range c.state.expire(now) {
		c.log.Warn("xDS resource does not come; it counts as not existing", "type", n.Type, "name", n.Name, "after", c.o.Timeout)
	}
	t.deadline(c.state.deadline())
	if t.settled(now) && c.state.changed && c.state.complete() {
		if c.o.Refused != nil {
			c.o.Refused(c.state.missing())
		}
		c.o.Publish(c.state.set())
		c.state.changed = false
	}
}

func (c *Client) send(s *stream, req *discovery.DeltaDiscoveryRequest) error {
	if !s.sentNode {
		s.sentNode = true
		if c.o.Node != nil {
			// Set by reflection: this package does not know the configuration's types.
			m := req.ProtoReflect()
			fd := m.Descriptor().Fields().ByName("node")
			m.Set(fd, protoreflect.ValueOfMessage(c.o.Node.ProtoReflect()))
		}
	}
	if err := s.ads.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sending: %w", err)
	}
	return nil // EOF: the reason comes from Recv
}

// timers is one timer for two purposes: the settling of changes, and the first deadline of what is
// awaited.
type timers struct {
	t               *time.Timer
	settle          time.Duration
	held, limit, at time.Time // settling ends at held, at limit at the latest; at: first deadline
}

func newTimers(settle time.Duration) *timers {
	t := time.NewTimer(time.Hour)
	return &timers{t: t, settle: settle}
}

func (t *timers) C() <-chan time.Time { return t.t.C }
func (t *timers) stop()               { t.t.Stop() }

// hold notes that something has changed.
func (t *timers) hold(now time.Time) {
	if t.limit.IsZero() {
		t.limit = now.Add(50 * t.settle)
	}
	t.held = now.Add(t.settle)
	if t.held.After(t.limit) {
		t.held = t.limit
	}
	t.reset()
}

// settled reports whether changes have settled; then a new settling may begin.
func (t *timers) settled(now time.Time) bool {
	if now.Before(t.held) {
		return false
	}
	t.held, t.limit = time.Time{}, time.Time{}
	t.reset()
	return true
}

func (t *timers) deadline(at time.Time) {
	t.at = at
	t.reset()
}

func (t *timers) reset() {
	next := t.held
	if next.IsZero() || !t.at.IsZero() && t.at.Before(next) {
		next = t.at
	}
	if next.IsZero() {
		t.t.Stop()
		return
	}
	t.t.Reset(max(time.Until(next), 0))
}
