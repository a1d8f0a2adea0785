package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/resource"
)

// settleTimeout bounds how long configuration waits for new roots.
const settleTimeout = 2 * time.Second

const (
	adsService  = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
	deltaMethod = adsService + "DeltaAggregatedResources"
)

// relay passes the streams of Envoy's aggregated discovery service on to the control plane, byte
// for byte, over connections that are authenticated as the workload. Each stream has a connection
// of its own, so a reconnecting Envoy gets the roots and token of the moment. It also subscribes to
// the secret ROOTCA for the agent, and keeps the answers from Envoy. (In the state-of-the-world form,
// which is gRPC's, only where the client subscribes to no secrets itself.)
type relay struct {
	upstream endpoint
	certs    *Certificates
	settle   func(context.Context) error // waits until Envoy has applied the roots
	log      *slog.Logger

	mu      sync.Mutex
	version string // of ROOTCA, as last taken
}

// serve passes one stream through until either side ends it. It is a grpc.StreamHandler.
func (r *relay) serve(_ any, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	if !strings.HasPrefix(method, adsService) {
		return grpcstatus.Errorf(codes.Unimplemented, "%s: the agent relays %s only", method, adsService)
	}
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	up, done, err := r.open(ctx, method)
	if err != nil {
		r.log.Warn("no stream to the control plane", "address", r.upstream.address, "error", err)
		return grpcstatus.Error(codes.Unavailable, err.Error())
	}
	defer done()
	s := &relayed{relay: r, up: up, down: down, delta: method == deltaMethod}
	requests := make(chan error, 1)
	go func() { requests <- s.requests() }()
	err = s.responses()
	cancel()
	if down.Context().Err() == nil {
		r.log.Info("the stream to the control plane has ended; the proxy opens another", "address", r.upstream.address, "reason", plain(err))
	}
	// The other direction ends when this function returns, with down's context.
	return err
}

func (r *relay) open(ctx context.Context, method string) (grpc.ClientStream, func(), error) {
	conn, err := r.upstream.dial()
	if err != nil {
		return nil, nil, err
	}
	ctx, err = r.upstream.authorize(ctx)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	up, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		conn.Close()
		return nil, nil, plain(err)
	}
	return up, func() { conn.Close() }, nil
}

// relayed is one stream that passes through.
type relayed struct {
	*relay
	down  grpc.ServerStream
	delta bool
	taken string // the last version of ROOTCA on this stream, if it is not delta; of responses' goroutine

	mu      sync.Mutex // of what follows: both directions send upstream
	up      grpc.ClientStream
	greeted bool // Envoy's first message, with the node, has passed
	secrets bool // Envoy itself subscribes to secrets on this stream
}

// requests passes Envoy's messages on. It ends with the stream.
func (s *relayed) requests() error {
	for {
		var m raw
		if err := s.down.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return s.up.CloseSend()
			}
			return err
		}
		if err := s.request(m); err != nil {
			return err
		}
	}
}

func (s *relayed) request(m raw) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	number := protowire.Number(4) // of type_url
	if s.delta {
		number = 2
	}
	if typeURL(m, number) == resource.SecretType {
		s.secrets = true
	}
	if err := s.up.SendMsg(&m); err != nil {
		return err
	}
	if !s.greeted && (s.delta || !s.secrets) {
		s.greeted = true
		return s.subscribe()
	}
	return nil
}

// subscribe asks for the roots on the agent's behalf. The caller holds mu.
func (s *relayed) subscribe() error {
	if !s.delta {
		return s.send(&discovery.DiscoveryRequest{TypeUrl: resource.SecretType, ResourceNames: []string{rootsName}})
	}
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResourceNamesSubscribe: []string{rootsName}}
	s.relay.mu.Lock()
	if v := s.version; v != "" {
		req.InitialResourceVersions = map[string]string{rootsName: v}
	}
	s.relay.mu.Unlock()
	return s.send(req)
}

func (s *relayed) send(req proto.Message) error {
	b, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	m := raw(b)
	return s.up.SendMsg(&m)
}

// responses passes the control plane's messages on. It ends with the stream.
func (s *relayed) responses() error {
	for {
		var m raw
		if err := s.up.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if typeURL(m, 4) == resource.SecretType {
			take := s.takeRoots
			if !s.delta {
				take = s.takeWhole
			}
			rest, err := take(m)
			if err != nil {
				return err
			}
			if rest == nil {
				continue
			}
			m = rest
		}
		if err := s.down.SendMsg(&m); err != nil {
			return err
		}
	}
}

// takeRoots takes the secret ROOTCA out of a response and answers it. It returns what is left for
// Envoy, nil if nothing.
func (s *relayed) takeRoots(m raw) (raw, error) {
	resp := &discovery.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(m, resp); err != nil {
		return nil, grpcstatus.Errorf(codes.Internal, "a response that is not a DeltaDiscoveryResponse: %v", err)
	}
	var refused error
	var others []*discovery.Resource
	found := false
	for _, res := range resp.Resources {
		if res.Name != rootsName {
			others = append(others, res)
			continue
		}
		found = true
		if refused = s.setRoots(res); refused != nil {
			s.log.Warn("the control plane sent roots that cannot be used; the last ones stay", "error", refused)
		}
	}
	var removed []string
	for _, n := range resp.RemovedResources {
		if n != rootsName {
			removed = append(removed, n)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secrets && (len(others) > 0 || len(removed) > 0 || !found && len(resp.RemovedResources) == 0) {
		// Envoy's answer to this nonce is the answer to all of it.
		if len(others) == len(resp.Resources) && len(removed) == len(resp.RemovedResources) {
			return m, nil
		}
		resp.Resources, resp.RemovedResources = others, removed
		return proto.Marshal(resp)
	}
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResponseNonce: resp.Nonce}
	if refused != nil {
		ack.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: refused.Error()}
	}
	return nil, s.send(ack)
}

// takeWhole does the same in the state-of-the-world form, where nothing is left for the client.
func (s *relayed) takeWhole(m raw) (raw, error) {
	resp := &discovery.DiscoveryResponse{}
	if err := proto.Unmarshal(m, resp); err != nil {
		return nil, grpcstatus.Errorf(codes.Internal, "a response that is not a DiscoveryResponse: %v", err)
	}
	s.mu.Lock()
	own := s.secrets
	s.mu.Unlock()
	if own {
		return m, nil
	}
	ack := &discovery.DiscoveryRequest{TypeUrl: resource.SecretType, ResourceNames: []string{rootsName}, ResponseNonce: resp.Nonce, VersionInfo: s.taken}
	for _, a := range resp.Resources {
		if err := s.setRoots(&discovery.Resource{Resource: a, Version: resp.VersionInfo}); err != nil {
			s.log.Warn("the control plane sent roots that cannot be used; the last ones stay", "error", err)
			ack.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
		}
	}
	if ack.ErrorDetail == nil {
		s.taken = resp.VersionInfo
		ack.VersionInfo = resp.VersionInfo
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return nil, s.send(ack)
}

func (s *relayed) setRoots(res *discovery.Resource) error {
	sec := &tls.Secret{}
	if err := res.GetResource().UnmarshalTo(sec); err != nil {
		return fmt.Errorf("secret %s: %w", rootsName, err)
	}
	if sec.Name != "" && sec.Name != rootsName {
		return fmt.Errorf("secret %s came in place of %s", sec.Name, rootsName)
	}
	if err := s.certs.setRootsSecret(sec); err != nil {
		return err
	}
	// The control plane takes the answer to mean that the roots are in force.
	ctx, cancel := context.WithTimeout(s.down.Context(), settleTimeout)
	defer cancel()
	if err := s.settle(ctx); err != nil {
		s.log.Warn("the proxy has not acknowledged the roots in time", "after", settleTimeout)
	}
	s.relay.mu.Lock()
	s.version = res.Version
	s.relay.mu.Unlock()
	return nil
}

// typeURL finds the string field of that number without decoding the message; empty if there is none.
func typeURL(m []byte, field protowire.Number) string {
	for len(m) > 0 {
		num, typ, n := protowire.ConsumeTag(m)
		if n < 0 {
			return ""
		}
		m = m[n:]
		if num == field && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(m)
			if n < 0 {
				return ""
			}
			return string(v)
		}
		if n = protowire.ConsumeFieldValue(num, typ, m); n < 0 {
			return ""
		}
		m = m[n:]
	}
	return ""
}

// raw is a message that is passed on as it is.
type raw []byte

// rawCodec is a gRPC codec of raw; all other messages are protobuf's.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *raw:
		return mem.BufferSlice{mem.SliceBuffer(*m)}, nil
	case proto.Message:
		b, err := proto.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, fmt.Errorf("cannot encode a %T", v)
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *raw:
		*m = data.Materialize()
		return nil
	case proto.Message:
		return proto.Unmarshal(data.Materialize(), m)
	}
	return fmt.Errorf("cannot decode a %T", v)
}
