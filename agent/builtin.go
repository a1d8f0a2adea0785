package agent

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
)

// startBuiltin runs the built-in proxy, in g.
func startBuiltin(life context.Context, g *errgroup.Group, o Options, certs *Certificates) (dataPlane, error) {
	return nil, errors.New("the built-in proxy is not in this build; choose the engine envoy")
}
