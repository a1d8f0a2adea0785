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

// serveSockets serves Envoy its secrets and its configuration on unix sockets in dir, SDS and
// XDS, until ctx ends.
func serveSockets(ctx context.Context, dir string, s *secrets, r *relay, ready func()) error {
	sdsServer := grpc.NewServer()
	sds.RegisterSecretDiscoveryServiceServer(sdsServer, s)
	xdsServer := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(r.serve), grpc.MaxRecvMsgSize(maxMessage))
	servers := map[string]*grpc.Server{"SDS": sdsServer, "XDS": xdsServer}
	listeners := map[string]net.Listener{}
	for name := range servers {
		l, err := listenUnix(filepath.Join(dir, name))
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

// listenUnix listens on a path that only this user can connect to, in place of a dead socket there.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing an old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
