package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// peerSecrets lists the other clusters of the kubeconfig that hold a remote secret for this one,
// and with remove takes it away there: what watches a cluster that goes is an error for ever.
func (a *app) peerSecrets(cmd *cobra.Command, c *cluster, remove, yes bool) error {
	s, err := c.LoadState(cmd.Context(), a.target.istioNamespace, install.ControlPlane)
	if err != nil {
		return c.wrong(err)
	}
	if s == nil {
		return nil
	}
	cfg, err := s.Config(a.version)
	if err != nil {
		return c.wrong(err)
	}
	contexts, err := a.target.contexts()
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	for _, name := range contexts {
		if name == c.context {
			continue
		}
		peer, err := a.target.connectTo(name)
		if err != nil || peer.server == c.server {
			continue // not a peer that can be asked
		}
		holds, err := holdsSecret(cmd.Context(), peer, a.target.istioNamespace, cfg.Cluster)
		switch {
		case err != nil:
			fmt.Fprintf(out, "  note:     whether %s still watches this cluster is not known: %s\n", peer, oneLine(err))
		case !holds:
		case !remove:
			fmt.Fprintf(out, "  note:     %s still watches this cluster by Secret istio-remote-secret-%s; --peers removes it there\n", peer, cfg.Cluster)
		default:
			fmt.Fprintf(out, "  removed:  Secret %s/istio-remote-secret-%s of %s\n", a.target.istioNamespace, cfg.Cluster, peer)
			if !yes {
				if err := ask(cmd); err != nil {
					return err
				}
			}
			err := peer.Kube.CoreV1().Secrets(a.target.istioNamespace).Delete(cmd.Context(), "istio-remote-secret-"+cfg.Cluster, metav1.DeleteOptions{})
			if err != nil {
				return peer.wrong(fmt.Errorf("deleting the remote secret: %w", err))
			}
		}
	}
	return nil
}

// holdsSecret looks for the remote secret of a cluster; not long, for a peer may be gone.
func holdsSecret(ctx context.Context, peer *cluster, namespace, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l, err := peer.Kube.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "istio/multiCluster=true", FieldSelector: "metadata.name=istio-remote-secret-" + name,
	})
	if err != nil {
		return false, err
	}
	return len(l.Items) > 0, nil
}
