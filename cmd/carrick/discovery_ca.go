package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
)

// startCA makes the CA. The API server may not answer yet; it is asked again for a while.
func (d *discovery) startCA(ctx context.Context, client *kube.Client) (*ca.Authority, error) {
	usual, longest := lives(d.options, d.log)
	give := time.Now().Add(time.Minute)
	for {
		a, err := ca.New(ctx, ca.Config{
			Store: caStore{client, d.options.namespace}, Publisher: caPublisher{d}, Log: d.scopes.Logger("ca"),
			DefaultTTL: usual, MaxTTL: longest,
			Report: func(secret string, wrong []string) {
				d.findings.fromCA(mesh.Key{Cluster: d.options.cluster, Kind: "Secret", Namespace: d.options.namespace, Name: secret}, wrong)
			},
		})
		if err == nil || ctx.Err() != nil || time.Now().After(give) {
			return a, err
		}
		d.log.Warn("the CA cannot start yet", "error", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

// lives returns how long workloads' certificates live by default and at most. A default that is
// longer than the bound raises the bound only where nobody set it.
func lives(o discoveryOptions, log *slog.Logger) (usual, longest time.Duration) {
	read := func(variable, value string) time.Duration {
		t, err := time.ParseDuration(value)
		if value != "" && (err != nil || t < time.Minute) {
			log.Error("a variable of the control plane is not a duration of at least 1m; the default is used", "variable", variable, "value", value)
			return 0
		}
		return t
	}
	usual, longest = read("DEFAULT_WORKLOAD_CERT_TTL", o.defaultTTL), read("MAX_WORKLOAD_CERT_TTL", o.maxTTL)
	if longest == 0 {
		longest = max(usual, 24*time.Hour)
	}
	return usual, longest
}
