package cli

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (a *app) caInstall() *cobra.Command {
	var dir string
	var replace bool
	cmd := &cobra.Command{
		Use:     "install CLUSTER",
		Short:   "Puts a cluster's CA from CLUSTER/*.pem into Secret cacerts, with its namespace",
		Example: "  carrick ca install cluster1 --context=cluster1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			data := map[string][]byte{}
			for _, name := range []string{"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"} {
				b, err := os.ReadFile(filepath.Join(dir, args[0], name))
				if err != nil {
					return fmt.Errorf("%w; make the CA first: carrick ca intermediate %s", err, args[0])
				}
				data[name] = b
			}
			if _, err := ca.ParsePluggedIn(data, time.Now()); err != nil {
				return fmt.Errorf("%s is not a CA that signs: %s", filepath.Join(dir, args[0]), strings.TrimPrefix(err.Error(), "Secret cacerts: "))
			}
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Target cluster: %s\n", c)
			done, err := putCA(cmd.Context(), c, a.target.istioNamespace, data, replace)
			if err != nil {
				return c.wrong(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Secret %s/cacerts %s. Next: carrick ca show --context=%s\n", a.target.istioNamespace, done, c.context)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "directory that holds CLUSTER/")
	cmd.Flags().BoolVar(&replace, "replace", false, "replace a Secret cacerts that has another content: the control plane changes over without a restart")
	return cmd
}

// putCA makes the Secret, and says what it did: created, unchanged or replaced.
func putCA(ctx context.Context, c *cluster, namespace string, data map[string][]byte, replace bool) (string, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if _, err := c.Kube.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{FieldManager: install.Manager}); err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("making namespace %s: %w", namespace, err)
	}
	secrets := c.Kube.CoreV1().Secrets(namespace)
	have, err := secrets.Get(ctx, "cacerts", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "cacerts"}, Type: corev1.SecretTypeOpaque, Data: data}
		if _, err := secrets.Create(ctx, s, metav1.CreateOptions{FieldManager: install.Manager}); err != nil {
			return "", fmt.Errorf("making Secret cacerts: %w", err)
		}
		return "created", nil
	case err != nil:
		return "", fmt.Errorf("reading Secret cacerts: %w", err)
	case maps.EqualFunc(have.Data, data, bytes.Equal):
		return "unchanged", nil
	case !replace:
		return "", fmt.Errorf("secret %s/cacerts is there with another CA; to change it, give --replace", namespace)
	}
	have.Data = data
	if _, err := secrets.Update(ctx, have, metav1.UpdateOptions{FieldManager: install.Manager}); err != nil {
		return "", fmt.Errorf("replacing Secret cacerts: %w", err)
	}
	return "replaced", nil
}
