package cli

import (
	"context"
	"strings"
)

// analyzeProxies finds proxies that refuse what they are sent. A control plane that does not answer has said nothing.
func (a *app) analyzeProxies(ctx context.Context, c *cluster) (out []message) {
	names, answers, err := c.debug(ctx, a.target.istioNamespace, "/debug/syncz")
	if err != nil {
		return nil
	}
	all, err := syncStates(names, answers)
	if err != nil {
		return nil
	}
	for _, s := range all {
		if s.Error == "" {
			continue
		}
		pod, namespace, _ := strings.Cut(s.Proxy, ".")
		out = append(out, message{Level: "Error", Origin: "Pod " + namespace + "/" + pod, Cluster: s.ClusterID, Message: "its proxy refuses its configuration: " + s.Error,
			Fix: "correct the object whose condition Reconciled names the proxy; see carrick proxy-status " + s.Proxy})
	}
	return out
}
