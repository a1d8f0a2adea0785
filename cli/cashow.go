package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/certs"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// caView is what ca show says of one cluster.
type caView struct {
	Context string   `json:"context"`
	Secret  string   `json:"secret"`
	Chain   []caCert `json:"chain"` // from the certificate that signs up to the root
	Notices []string `json:"notices,omitempty"`
}

// caCert is one certificate of a CA.
type caCert struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"` // hexadecimal
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	SHA256    string    `json:"sha256"` // as openssl prints fingerprints
}

// caViews is what ca show says.
type caViews struct {
	Clusters []caView `json:"clusters"`
	SameRoot bool     `json:"sameRoot"`
}

func (a *app) caShow() *cobra.Command {
	var contexts []string
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Shows the CA of each cluster, and whether they have the same root",
		Long: `Shows the certificates of each cluster's CA, from the one that signs up to the root, and whether the
clusters have the same root; the exit code is 1 if not. It warns 30, 7 and 1 days before one of them ends.`,
		Example: "  carrick ca show --context=cluster1 --context=cluster2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "table", "json", "yaml", ""); err != nil {
				return err
			}
			contexts, err := a.target.several(cmd, contexts, all)
			if err != nil {
				return err
			}
			v := caViews{SameRoot: true}
			for _, name := range contexts {
				c, err := a.target.connectTo(name)
				if err != nil {
					return err
				}
				secret, chain, err := clusterCA(cmd.Context(), c, a.target.istioNamespace)
				if err != nil {
					return c.wrong(err)
				}
				v.Clusters = append(v.Clusters, viewCA(c.context, secret, chain, time.Now()))
				v.SameRoot = v.SameRoot && v.Clusters[0].root() == v.Clusters[len(v.Clusters)-1].root()
			}
			if structured(output) {
				err = printValue(cmd.OutOrStdout(), v, output)
			} else {
				err = v.print(cmd.OutOrStdout())
			}
			if err == nil && !v.SameRoot {
				err = silent{errors.New("different roots")}
			}
			return err
		},
	}
	cmd.Flags().StringArrayVar(&contexts, "context", nil, "context of the kubeconfig; repeat it for each cluster")
	cmd.Flags().BoolVar(&all, "all-contexts", false, "every cluster of the kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return cmd
}

// several returns the contexts of a repeated --context or of --all-contexts; without them the
// current one, as "".
func (t *targetFlags) several(cmd *cobra.Command, contexts []string, all bool) ([]string, error) {
	if all {
		return t.everyContext(cmd)
	}
	for _, name := range contexts {
		if name == "" {
			names, _ := t.contexts()
			return nil, emptyContext(names)
		}
	}
	if len(contexts) == 0 {
		contexts = []string{""}
	}
	return contexts, nil
}

func viewCA(context, secret string, chain []*x509.Certificate, now time.Time) caView {
	v := caView{Context: context, Secret: secret}
	for _, c := range chain {
		v.Chain = append(v.Chain, caCert{c.Subject.String(), c.Issuer.String(), c.SerialNumber.Text(16), c.NotBefore.UTC(), c.NotAfter.UTC(), ca.Fingerprint(c)})
	}
	for _, n := range ca.Notices(secret, chain, now) {
		v.Notices = append(v.Notices, notice(context, n))
	}
	return v
}

func (v caView) root() string { return v.Chain[len(v.Chain)-1].SHA256 }

func (v caViews) print(out io.Writer) error {
	var rows [][]string
	roots := map[string]bool{}
	for _, c := range v.Clusters {
		for _, cert := range c.Chain {
			rows = append(rows, []string{c.Context, c.Secret, cert.Subject, cert.Issuer, cert.Serial, cert.NotAfter.Format(time.RFC3339), cert.SHA256})
		}
		roots[c.root()] = true
	}
	if err := table(out, "CONTEXT\tSECRET\tSUBJECT\tISSUER\tSERIAL\tNOT AFTER\tSHA-256", rows); err != nil {
		return err
	}
	for _, c := range v.Clusters {
		for _, n := range c.Notices {
			fmt.Fprintf(out, "! %s: %s\n", c.Context, n)
		}
	}
	switch {
	case len(v.Clusters) == 1:
	case v.SameRoot:
		fmt.Fprintln(out, "✔ The clusters have the same root.")
	default:
		fmt.Fprintf(out, "✘ The clusters have %d different roots, so their workloads do not trust each other. Give them intermediates of one root: carrick ca root, carrick ca intermediate CLUSTER, carrick ca install CLUSTER --replace\n", len(roots))
	}
	return nil
}

// clusterCA returns the Secret that the control plane signs with, and its chain down to the root.
func clusterCA(ctx context.Context, c *cluster, namespace string) (string, []*x509.Certificate, error) {
	s, err := caSecret(ctx, c, namespace)
	if err != nil {
		return "", nil, err
	}
	chain, err := chainOf(s)
	if err != nil {
		return "", nil, fmt.Errorf("secret %s/%s: %w", namespace, s.Name, err)
	}
	return s.Name, chain, nil
}

// caSecret reads the Secret that the control plane signs with.
func caSecret(ctx context.Context, c *cluster, namespace string) (*corev1.Secret, error) {
	for _, name := range []string{ca.PluggedInSecret, ca.SelfSignedSecret} {
		s, err := c.Kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return s, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("reading Secret %s/%s: %w", namespace, name, err)
		}
	}
	return nil, fmt.Errorf("namespace %s has neither Secret cacerts nor istio-ca-secret; install a control plane or make a CA: carrick ca root", namespace)
}

// chainOf returns the certificates of a CA's Secret from the one that signs up to its root. The
// Secret need not be one that a control plane would take.
func chainOf(s *corev1.Secret) ([]*x509.Certificate, error) {
	key := "ca-cert.pem"
	if len(s.Data[key]) == 0 {
		key = "tls.crt"
	}
	var all []*x509.Certificate
	seen := map[string]bool{}
	for _, k := range []string{key, "cert-chain.pem", "root-cert.pem", "ca.crt"} {
		if len(bytes.TrimSpace(s.Data[k])) == 0 {
			continue
		}
		found, err := certs.Certificates(s.Data[k])
		if err != nil {
			return nil, fmt.Errorf("data.%s %w", k, err)
		}
		for _, cert := range found {
			if fp := ca.Fingerprint(cert); !seen[fp] {
				seen[fp] = true
				all = append(all, cert)
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("data.%s holds no certificate", key)
	}
	chain := all[:1]
	for last := all[0]; !bytes.Equal(last.RawIssuer, last.RawSubject) && len(chain) < len(all); {
		next := issuerOf(last, all)
		if next == nil && isAnchor(s, last) {
			return chain, nil
		}
		if next == nil {
			return nil, fmt.Errorf("no certificate of %s is there, which issued %s: data.root-cert.pem and data.cert-chain.pem must hold those up to the root", last.Issuer, last.Subject)
		}
		chain, last = append(chain[:len(chain):len(chain)], next), next
	}
	return chain, nil
}

// isAnchor reports whether a certificate is among the Secret's roots: it need not be self-signed.
func isAnchor(s *corev1.Secret, cert *x509.Certificate) bool {
	for _, k := range []string{"root-cert.pem", "ca.crt"} {
		roots, _ := certs.Certificates(s.Data[k])
		if slices.ContainsFunc(roots, cert.Equal) {
			return true
		}
	}
	return false
}

func issuerOf(cert *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, c := range among {
		if bytes.Equal(c.RawSubject, cert.RawIssuer) && c != cert && cert.CheckSignatureFrom(c) == nil {
			return c
		}
	}
	return nil
}
