// Command grpcecho is a gRPC server and client for trying a mesh: the server is gRPC's interop
// TestService (unary calls, streams both ways), its health and reflection services, and an HTTP
// server beside; the client says which instance answered. It is a program of its own, so that the
// other samples do not carry gRPC.
//
//	grpcecho server              gRPC on :7070, HTTP/1.1 and HTTP/2 without TLS on :8080 and :8081
//	grpcecho call [flags] TARGET  unary calls over one connection; a line for each
//	grpcecho stream [flags] TARGET  one stream both ways; a line when it begins, one when it ends
//	grpcecho sleep               nothing, until SIGTERM
//
// TARGET is HOST:PORT, or xds:///HOST:PORT where GRPC_XDS_BOOTSTRAP names a bootstrap file.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var verb string
	if len(os.Args) > 1 {
		verb = os.Args[1]
	}
	var err error
	switch verb {
	case "server":
		err = serve(ctx, os.Getenv)
	case "call", "stream":
		err = runClient(ctx, verb, os.Args[2:], os.Stdout)
	case "sleep":
		<-ctx.Done()
	default:
		fmt.Fprintln(os.Stderr, "usage: grpcecho server | call [flags] TARGET | stream [flags] TARGET | sleep")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpcecho:", err)
		os.Exit(1)
	}
}
