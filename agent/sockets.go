package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	sds "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// The unix sockets, by the names of Istio's.
const (
	sdsSocket = "SDS"
	xdsSocket = "XDS"
)

// server serves secrets.
func (s *secrets) server() *grpc.Server {
	g := grpc.NewServer()
	sds.RegisterSecretDiscoveryServiceServer(g, s)
	return g
}

// server relays streams.
func (r *relay) server() *grpc.Server {
	return grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(r.serve), grpc.MaxRecvMsgSize(maxMessage))
}

// serveSockets serves on unix sockets of these names and that mode in dir until ctx ends. It calls ready
// when all listen.
func serveSockets(ctx context.Context, dir string, servers map[string]*grpc.Server, mode os.FileMode, ready func()) error {
	listeners := map[string]net.Listener{}
	for name := range servers {
		l, err := listenUnix(filepath.Join(dir, name), mode)
		if err != nil {
			return err
		}
		defer l.Close()
		listeners[name] = l
	}
	g, ctx := errgroup.WithContext(ctx)
	for name, server := range servers {
		g.Go(func() error { return server.Serve(listeners[name]) })
		g.Go(func() error { <-ctx.Done(); server.Stop(); return nil })
	}
	ready()
	return g.Wait()
}

// listenUnix listens on a path that those whom mode lets write can connect to, in place of a dead
// socket there.
func listenUnix(path string, mode os.FileMode) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing an old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
