package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// maxMessage bounds a message, in bytes.
const maxMessage = 16 << 20

// Metadata of requests and responses, beside what the messages of TestService say.
const (
	askFail  = "fail-attempts" // request: attempts up to this one, as proxies count them, fail with UNAVAILABLE
	askDelay = "delay"         // request: a Go duration to wait before the answer
	keyFrom  = "instance"      // header and trailer: who answers, "VERSION HOST"
	keyLeft  = "time-left-ms"  // header: what is left of the caller's deadline; absent without one
)

// server is the TestService of one instance.
type server struct {
	testpb.UnimplementedTestServiceServer
	version, host string
}

// serve serves until ctx ends. SERVICE_VERSION (v1) is the version to answer with, PORT (7070) is where
// gRPC is, HTTP_PORTS (8080,8081) are where HTTP is.
func serve(ctx context.Context, getenv func(string) string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	s := &server{version: cmp.Or(getenv("SERVICE_VERSION"), "v1"), host: host}
	l, err := net.Listen("tcp", ":"+cmp.Or(getenv("PORT"), "7070"))
	if err != nil {
		return err
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	testpb.RegisterTestServiceServer(g, s)
	hs := health.NewServer()
	healthpb.RegisterHealthServer(g, hs)
	reflection.Register(g)
	h := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetUnencryptedHTTP2(true)
	group, life := errgroup.WithContext(ctx)
	group.Go(func() error { return g.Serve(l) })
	for port := range strings.SplitSeq(cmp.Or(getenv("HTTP_PORTS"), "8080,8081"), ",") {
		group.Go(func() error {
			l, err := net.Listen("tcp", ":"+port)
			if err != nil {
				return err
			}
			if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	group.Go(func() error {
		<-life.Done()
		hs.Shutdown()
		force := time.AfterFunc(5*time.Second, g.Stop)
		defer force.Stop()
		g.GracefulStop()
		bound, cancel := context.WithTimeout(context.WithoutCancel(life), time.Second)
		defer cancel()
		return h.Shutdown(bound)
	})
	return group.Wait()
}

// ServeHTTP says who answers and in which protocol it was asked.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxMessage))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	fmt.Fprintf(w, "version: %s, instance: %s, protocol: %s, received: %d\n", s.version, s.host, r.Proto, n)
}

// begin does what the request's metadata asks for, and sends the header.
func (s *server) begin(ctx context.Context, header, trailer func(metadata.MD)) error {
	from := s.version + " " + s.host
	trailer(metadata.Pairs(keyFrom, from))
	in, _ := metadata.FromIncomingContext(ctx)
	one := func(key string) string { return strings.Join(in.Get(key), ",") }
	if v := one(askFail); v != "" {
		fail, err := strconv.Atoi(v)
		attempt, _ := strconv.Atoi(one("x-envoy-attempt-count"))
		if err != nil || attempt == 0 {
			return status.Errorf(codes.InvalidArgument, "metadata %s: %q, on attempt %d", askFail, v, attempt)
		}
		if attempt <= fail {
			return status.Errorf(codes.Unavailable, "attempt %d, as asked", attempt)
		}
	}
	if v := one(askDelay); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "metadata %s: %v", askDelay, err)
		}
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	// Last, for an answer without a header is what proxies retry.
	md := metadata.Pairs(keyFrom, from)
	if at, ok := ctx.Deadline(); ok {
		md.Set(keyLeft, strconv.FormatInt(time.Until(at).Milliseconds(), 10))
	}
	header(md)
	return nil
}

// EmptyCall answers with nothing.
func (s *server) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

// UnaryCall answers with as many bytes as asked for, or with the status asked for.
func (s *server) UnaryCall(ctx context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	err := s.begin(ctx, func(md metadata.MD) { grpc.SetHeader(ctx, md) }, func(md metadata.MD) { grpc.SetTrailer(ctx, md) })
	if err == nil {
		err = asked(r.ResponseStatus)
	}
	if err != nil {
		return nil, err
	}
	body, err := zeroes(r.ResponseSize)
	if err != nil {
		return nil, err
	}
	return &testpb.SimpleResponse{ServerId: s.version, Hostname: s.host, Payload: body}, nil
}

// StreamingOutputCall sends a message for each that is asked for.
func (s *server) StreamingOutputCall(r *testpb.StreamingOutputCallRequest, st grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse]) error {
	if err := s.begin(st.Context(), func(md metadata.MD) { st.SetHeader(md) }, st.SetTrailer); err != nil {
		return err
	}
	if err := answer(st.Context(), r, st.Send); err != nil {
		return err
	}
	return asked(r.ResponseStatus)
}

// StreamingInputCall counts the bytes that come.
func (s *server) StreamingInputCall(st grpc.ClientStreamingServer[testpb.StreamingInputCallRequest, testpb.StreamingInputCallResponse]) error {
	if err := s.begin(st.Context(), func(md metadata.MD) { st.SetHeader(md) }, st.SetTrailer); err != nil {
		return err
	}
	n := 0
	for {
		r, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return st.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: int32(n)})
		}
		if err != nil {
			return err
		}
		n += len(r.Payload.GetBody())
	}
}

// FullDuplexCall answers each message as it comes. A status that a message asks for ends the stream.
func (s *server) FullDuplexCall(st grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	if err := s.begin(st.Context(), func(md metadata.MD) { st.SendHeader(md) }, st.SetTrailer); err != nil {
		return err
	}
	for {
		r, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := answer(st.Context(), r, st.Send); err != nil {
			return err
		}
		if err := asked(r.ResponseStatus); err != nil {
			return err
		}
	}
}

func answer(ctx context.Context, r *testpb.StreamingOutputCallRequest, send func(*testpb.StreamingOutputCallResponse) error) error {
	for _, p := range r.ResponseParameters {
		if p.IntervalUs > 0 {
			t := time.NewTimer(time.Duration(p.IntervalUs) * time.Microsecond)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return status.FromContextError(ctx.Err()).Err()
			}
		}
		body, err := zeroes(p.Size)
		if err != nil {
			return err
		}
		if err := send(&testpb.StreamingOutputCallResponse{Payload: body}); err != nil {
			return err
		}
	}
	return nil
}

func asked(s *testpb.EchoStatus) error {
	if s == nil || s.Code == 0 {
		return nil
	}
	return status.Error(codes.Code(s.Code), s.Message)
}

func zeroes(n int32) (*testpb.Payload, error) {
	if n < 0 || n > maxMessage {
		return nil, status.Errorf(codes.InvalidArgument, "a response of %d bytes: want 0 to %d", n, maxMessage)
	}
	return &testpb.Payload{Body: make([]byte, n)}, nil
}
