package proxy

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// rawCodec passes messages as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }
func (rawCodec) Name() string                       { return "raw" }

// Large messages both ways, at once over one connection of the client and through two proxies, all come through:
// what one of them takes of the windows is given back.
func TestLargeMessages(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echo := func(_ any, stream grpc.ServerStream) error {
		var m []byte
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		return stream.SendMsg(&m)
	}
	g := grpc.NewServer(grpc.UnknownServiceHandler(echo), grpc.ForceServerCodec(rawCodec{}), grpc.MaxRecvMsgSize(8<<20))
	go g.Serve(l)
	t.Cleanup(g.Stop)
	ca := newAuthority(t, "Root CA")
	s := &testSecrets{key: ca.issue("spiffe://cluster.local/ns/sample/sa/default"), roots: ca.roots()}
	in, out := freePort(t), freePort(t)
	app := l.Addr().String()
	start(t, bootstrap(inbound(in, app, filepath.Join(t.TempDir(), "log")), clusterYAML("inbound", speaking(speakDownstream), app)), s)
	start(t, bootstrap(httpListener(out, `
- name: all
  domains: ["*"]
  routes:
  - {match: {prefix: /}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: "connect-failure,refused-stream,unavailable", num_retries: 2}}}
`, ""), clusterYAML("c", speaking(speakH2)+"\n"+mutualTLS("Upstream", "istio-h2, istio, h2", peerSAN, "sni: a"), fmt.Sprintf("127.0.0.1:%d", in))), s)
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", out), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for range 3 {
		var wait sync.WaitGroup
		for n := range 6 {
			wait.Go(func() {
				sent, got := bytes.Repeat([]byte{byte(n)}, 4<<20), []byte(nil)
				if err := conn.Invoke(ctx, "/test.Echo/Call", &sent, &got); err != nil || !bytes.Equal(sent, got) {
					t.Errorf("call %d: %d bytes came back, %v", n, len(got), err)
				}
			})
		}
		wait.Wait()
	}
}
