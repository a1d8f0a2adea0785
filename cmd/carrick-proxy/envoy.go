package main

import (
	"context"
	"errors"
)

// runEnvoy is the verb envoy: the built-in proxy as a drop-in for the command of that name.
func runEnvoy(ctx context.Context, e environment, args []string) error {
	return errors.New("envoy: not in this build")
}
