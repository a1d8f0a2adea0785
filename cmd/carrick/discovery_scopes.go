package main

import (
	"io"
	"log/slog"

	"github.com/carrick-mesh/carrick/log"
)

// newScopes returns the parts of the control plane's log. Those that Istio also has, have its names.
// client-go's own log says no less than warn unless it is named.
func newScopes(out io.Writer, level string) (*log.Scopes, error) {
	return log.NewScopes(out, level,
		&log.Scope{Name: "ads", Description: "the clusters that are watched, what is compiled, and xDS"},
		&log.Scope{Name: "ca", Description: "certificates: the control plane's own, and those it signs"},
		&log.Scope{Name: "default", Description: "start, end, and what belongs to no other scope"},
		&log.Scope{Name: "injection", Description: "the webhook that adds sidecars"},
		&log.Scope{Name: "validation", Description: "the webhook that refuses wrong objects"},
		&log.Scope{Name: "klog", Description: "Kubernetes' client library", Least: slog.LevelWarn},
		&log.Scope{Name: "kube", Description: "what the control plane writes into its cluster"},
	)
}
