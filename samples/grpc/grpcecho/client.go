package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds" // the resolver of xds:///
)

// client is what the flags say.
type client struct {
	out      io.Writer
	n        int           // calls, or messages of the stream
	size     int           // bytes of each message, both ways
	deadline time.Duration // of each call, or of the stream
	pause    time.Duration // between the messages of the stream
	code     int
	metadata metadata.MD
}

func runClient(ctx context.Context, verb string, args []string, out io.Writer) error {
	c := client{out: out}
	f := flag.NewFlagSet("grpcecho "+verb, flag.ContinueOnError)
	f.IntVar(&c.n, "n", 1, "calls, or messages of the stream; 0: without end")
	f.IntVar(&c.size, "size", 0, "bytes of each message, both ways")
	f.DurationVar(&c.deadline, "deadline", 15*time.Second, "of each call, or of the stream")
	f.DurationVar(&c.pause, "pause", 0, "between the messages of a stream")
	f.IntVar(&c.code, "code", 0, "status code to ask for")
	f.Func("H", "KEY=VALUE of metadata; the server reads fail-attempts and delay", func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want KEY=VALUE")
		}
		c.metadata = metadata.Join(c.metadata, metadata.Pairs(k, v))
		return nil
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 || c.size < 0 || c.size > maxMessage {
		return fmt.Errorf("want one TARGET, and a size of at most %d", maxMessage)
	}
	creds := insecure.NewCredentials()
	if strings.HasPrefix(f.Arg(0), "xds:") {
		var err error // as the control plane says; without its word, plaintext
		if creds, err = xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: creds}); err != nil {
			return err
		}
	}
	conn, err := grpc.NewClient(f.Arg(0), grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage), grpc.WaitForReady(strings.HasPrefix(f.Arg(0), "xds:"))))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx = metadata.NewOutgoingContext(ctx, c.metadata)
	if verb == "stream" {
		return c.stream(ctx, testpb.NewTestServiceClient(conn))
	}
	for i := 0; (i < c.n || c.n == 0) && ctx.Err() == nil; i++ {
		c.call(ctx, testpb.NewTestServiceClient(conn))
	}
	return nil
}

// call prints "CODE VERSION HOST PROTECTION LEFT BYTES MILLISECONDS" and, of a status that is not OK,
// its message. What is not known is "-".
func (c *client) call(ctx context.Context, s testpb.TestServiceClient) {
	ctx, cancel := context.WithTimeout(ctx, c.deadline)
	defer cancel()
	var header, trailer metadata.MD
	var from peer.Peer
	r := &testpb.SimpleRequest{ResponseSize: int32(c.size), Payload: &testpb.Payload{Body: make([]byte, c.size)}, ResponseStatus: c.ask()}
	began := time.Now()
	resp, err := s.UnaryCall(ctx, r, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&from))
	c.print(header, trailer, &from, len(resp.GetPayload().GetBody()), time.Since(began), err)
}

func (c *client) ask() *testpb.EchoStatus {
	if c.code == 0 {
		return nil
	}
	return &testpb.EchoStatus{Code: int32(c.code), Message: "as asked"}
}

// stream sends messages and awaits the answer to each. It prints "begun VERSION HOST", and at the end
// what call prints, with the bytes of all answers.
func (c *client) stream(ctx context.Context, s testpb.TestServiceClient) error {
	ctx, cancel := context.WithTimeout(ctx, c.deadline)
	defer cancel()
	var from peer.Peer
	began := time.Now()
	st, err := s.FullDuplexCall(ctx, grpc.Peer(&from))
	if err != nil {
		c.print(nil, nil, &from, 0, time.Since(began), err)
		return nil
	}
	header, err := st.Header()
	if err == nil {
		fmt.Fprintln(c.out, "begun", instance(header, nil))
	}
	got := 0
	for i := 0; (i < c.n || c.n == 0) && err == nil; i++ {
		r := &testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: make([]byte, c.size)},
			ResponseParameters: []*testpb.ResponseParameters{{Size: int32(c.size), IntervalUs: int32(c.pause.Microseconds())}}}
		if i == c.n-1 {
			r.ResponseStatus = c.ask()
		}
		if err = st.Send(r); err != nil && !errors.Is(err, io.EOF) {
			break
		}
		var resp *testpb.StreamingOutputCallResponse
		resp, err = st.Recv()
		got += len(resp.GetPayload().GetBody())
	}
	if err == nil {
		st.CloseSend()
		if _, err = st.Recv(); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	c.print(header, st.Trailer(), &from, got, time.Since(began), err)
	return nil
}

func (c *client) print(header, trailer metadata.MD, from *peer.Peer, size int, took time.Duration, err error) {
	protection := "-"
	if t, ok := from.AuthInfo.(credentials.TLSInfo); ok {
		protection = "TLS"
		if t.SPIFFEID != nil {
			protection = "mTLS"
		}
	}
	left := "-"
	if v := header.Get(keyLeft); len(v) > 0 {
		left = v[0]
	}
	s := status.Convert(err)
	line := fmt.Sprintf("%s %s %s %s %d %d", name(s.Code()), instance(header, trailer), protection, left, size, took.Milliseconds())
	if s.Code() != codes.OK {
		line += " " + s.Message()
	}
	fmt.Fprintln(c.out, line)
}

// instance is "VERSION HOST" of the server, from the trailer if there is one, else from the header.
func instance(header, trailer metadata.MD) string {
	for _, md := range []metadata.MD{trailer, header} {
		if v := md.Get(keyFrom); len(v) > 0 {
			return v[0]
		}
	}
	return "- -"
}

// name is a status code's as in the specification: DEADLINE_EXCEEDED.
func name(c codes.Code) string {
	var b strings.Builder
	for i, r := range c.String() {
		if i > 0 && r >= 'A' && r <= 'Z' && c != codes.OK {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}
