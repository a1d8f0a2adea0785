package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (a *app) caShow() *cobra.Command {
	var contexts []string
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Shows the CA of each cluster, and whether they have the same root",
		Example: "  carrick ca show --context=cluster1 --context=cluster2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(contexts) == 0 {
				contexts = []string{""}
			}
			var rows [][]string
			roots := map[string]string{}
			for _, name := range contexts {
				if name == "" && cmd.Flag("context").Changed {
					return usagef("--context is empty; give a context's name")
				}
				c, err := a.target.connectTo(name)
				if err != nil {
					return err
				}
				secret, chain, err := clusterCA(cmd.Context(), c, a.target.istioNamespace)
				if err != nil {
					return c.wrong(err)
				}
				for _, cert := range chain {
					rows = append(rows, []string{c.context, secret, cert.Subject.String(), cert.Issuer.String(),
						cert.SerialNumber.Text(16), cert.NotAfter.UTC().Format(time.RFC3339), ca.Fingerprint(cert)})
				}
				root := chain[len(chain)-1]
				roots[ca.Fingerprint(root)] = root.Subject.String()
			}
			out := cmd.OutOrStdout()
			if err := table(out, "CONTEXT\tSECRET\tSUBJECT\tISSUER\tSERIAL\tNOT AFTER\tSHA-256", rows); err != nil {
				return err
			}
			switch {
			case len(contexts) == 1:
			case len(roots) == 1:
				fmt.Fprintln(out, "✔ The clusters have the same root.")
			default:
				fmt.Fprintf(out, "✘ The clusters have %d different roots, so their workloads do not trust each other. Give them intermediates of one root: carrick ca root, carrick ca intermediate CLUSTER\n", len(roots))
				return silent{errors.New("different roots")}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&contexts, "context", nil, "context of the kubeconfig; repeat it for each cluster")
	return cmd
}

// clusterCA returns the Secret that the control plane signs with, and its chain down to the root.
func clusterCA(ctx context.Context, c *cluster, namespace string) (string, []*x509.Certificate, error) {
	for _, name := range []string{"cacerts", "istio-ca-secret"} {
		s, err := c.Kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("reading Secret %s/%s: %w", namespace, name, err)
		}
		chain, err := chainOf(s)
		if err != nil {
			return "", nil, fmt.Errorf("secret %s/%s: %w", namespace, name, err)
		}
		return name, chain, nil
	}
	return "", nil, fmt.Errorf("namespace %s has neither Secret cacerts nor istio-ca-secret; install a control plane or make a CA: carrick ca root", namespace)
}

func chainOf(s *corev1.Secret) ([]*x509.Certificate, error) {
	key := "ca-cert.pem"
	if len(s.Data[key]) == 0 {
		key = "tls.crt"
	}
	var chain []*x509.Certificate
	seen := map[string]bool{}
	for _, k := range []string{key, "cert-chain.pem", "root-cert.pem", "ca.crt"} {
		rest := s.Data[k]
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("data.%s holds a certificate that cannot be read: %w", k, err)
			}
			if fp := ca.Fingerprint(cert); !seen[fp] {
				seen[fp] = true
				chain = append(chain, cert)
			}
		}
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("data.%s holds no certificate", key)
	}
	return chain, nil
}
