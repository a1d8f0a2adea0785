// Command carrick is the mesh's command line and its control plane: what a user types in
// place of istioctl, and the roles discovery, speaker and lb-controller that run in the clusters.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/carrick-mesh/carrick/cli"
)

// version is set by the build: -ldflags "-X main.version=0.1.0".
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := cli.New(version)
	root.AddCommand(discoveryCommand(), speakerCommand(), lbControllerCommand(), requestCommand())
	if filepath.Base(os.Args[0]) == "pilot-discovery" { // istioctl runs this name in the control plane's pods
		root.Use = "pilot-discovery"
	}
	os.Exit(cli.Execute(ctx, root))
}
