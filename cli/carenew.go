package cli

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/certs"
	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// renewal is what ca renew is asked for.
type renewal struct {
	dir, key, rootKey, rootCert string
	days                        int
}

func (a *app) caRenew() *cobra.Command {
	var r renewal
	cmd := &cobra.Command{
		Use:   "renew [CLUSTER]",
		Short: "Makes a cluster's CA anew before it ends, under the same root, while the mesh runs",
		Long: `Makes the intermediate in Secret cacerts anew, with a new key and the same subject, signed by the same
root, writes its files to CLUSTER/ (what was there is kept as CLUSTER.SERIAL/) and replaces the Secret. The
control plane goes over to it without a restart and has every workload renew its certificate; nothing is
interrupted, and clusters of the same root go on trusting each other. CLUSTER is by default the locality
(L=) of the present intermediate.

Where the control plane signs with its self-signed istio-ca-secret, that root is made anew: old and new root
are trusted until the last certificate of the old one has ended.`,
		Example: "  carrick ca renew --root-key /media/safe/root-key.pem --context=cluster1",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.days <= 0 {
				return usagef("--days %d: is not above 0", r.days)
			}
			if r.key != "" {
				if _, err := keyFlag(r.key); err != nil {
					return err
				}
			}
			if len(args) == 1 && !isFileName(args[0]) {
				return usagef("%q is not a cluster's name", args[0])
			}
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			s, err := caSecret(cmd.Context(), c, a.target.istioNamespace)
			if err != nil {
				return c.wrong(err)
			}
			old, err := chainOf(s)
			if err != nil {
				return c.wrong(fmt.Errorf("secret %s/%s: %w", s.Namespace, s.Name, err))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Target cluster: %s\n", c)
			if s.Name == ca.SelfSignedSecret {
				err = r.selfSigned(cmd, c, s, len(args) == 1)
			} else {
				name := ""
				if len(args) == 1 {
					name = args[0]
				} else if l := old[0].Subject.Locality; len(l) == 1 && isFileName(l[0]) {
					name = l[0]
				}
				err = r.pluggedIn(cmd, c, s, old, name)
			}
			return c.wrong(err)
		},
	}
	cmd.Flags().StringVar(&r.dir, "dir", ".", "directory of the root, and to write CLUSTER/ to")
	cmd.Flags().StringVar(&r.rootKey, "root-key", "", "the root's key (default DIR/root-key.pem)")
	cmd.Flags().StringVar(&r.rootCert, "root-cert", "", "the root's certificate (default the one in the Secret)")
	cmd.Flags().IntVar(&r.days, "days", 730, "validity in days; never beyond the root's")
	cmd.Flags().StringVar(&r.key, "key", "", "rsa4096, rsa2048 or p256 (default as the present one)")
	return cmd
}

func isFileName(s string) bool {
	return s != "" && s == filepath.Base(s) && s != "." && s != ".."
}

// keyKind is the kind of key that a certificate has.
func keyKind(c *x509.Certificate) ca.KeyType {
	switch c.PublicKeyAlgorithm {
	case x509.ECDSA:
		return ca.P256
	case x509.RSA:
		if k, ok := c.PublicKey.(interface{ Size() int }); ok && k.Size() < 512 {
			return ca.RSA2048
		}
	}
	return ca.RSA4096
}

func (r *renewal) pluggedIn(cmd *cobra.Command, c *cluster, s *corev1.Secret, old []*x509.Certificate, name string) error {
	switch {
	case len(s.Data["ca-cert.pem"]) == 0:
		return fmt.Errorf("secret %s/cacerts is of the layout tls.crt, tls.key, ca.crt: what made it, such as cert-manager, has to renew it", s.Namespace)
	case len(old) == 1:
		return fmt.Errorf("secret %s/cacerts signs with the root itself (%s), so there is no intermediate to renew; make one, which is a change of the signer only: carrick ca intermediate CLUSTER, carrick ca install CLUSTER --replace", s.Namespace, old[0].Subject)
	case len(old) > 2:
		return fmt.Errorf("the intermediate of Secret %s/cacerts was issued by %s, which is no root: have its owner issue another, then carrick ca install CLUSTER --replace", s.Namespace, old[0].Issuer)
	case name == "":
		return usagef("the present intermediate (%s) does not name its cluster; give it: carrick ca renew CLUSTER", old[0].Subject)
	}
	if r.rootKey == "" {
		r.rootKey = filepath.Join(r.dir, "root-key.pem")
	}
	root := ca.Root{CertPEM: certs.Encode(old[1])}
	var err error
	if root.KeyPEM, err = os.ReadFile(r.rootKey); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is not there; name the key of root %s with --root-key", r.rootKey, old[1].Subject)
		}
		return err
	}
	if r.rootCert != "" {
		if root.CertPEM, err = os.ReadFile(r.rootCert); err != nil {
			return err
		}
		given, err := certs.Certificates(root.CertPEM)
		if err != nil {
			return fmt.Errorf("%s %w", r.rootCert, err)
		}
		if !given[0].Equal(old[1]) {
			return fmt.Errorf("%s is another root (%s, SHA-256 %s) than the one in use (%s, %s); a change of root is another thing: carrick ca intermediate %s, carrick ca install %[6]s --replace",
				r.rootCert, given[0].Subject, ca.Fingerprint(given[0]), old[1].Subject, ca.Fingerprint(old[1]), name)
		}
	}
	kind := keyKind(old[0])
	if r.key != "" {
		kind = ca.KeyType(r.key)
	}
	o := ca.IntermediateOptions{Cluster: name, CommonName: old[0].Subject.CommonName, Days: r.days, Key: kind, DNSNames: old[0].DNSNames}
	if org := old[0].Subject.Organization; len(org) > 0 {
		o.Organization = org[0]
	}
	im, err := ca.NewIntermediate(root, o)
	if err != nil {
		return fmt.Errorf("with the key of %s: %w", r.rootKey, err)
	}
	out := cmd.OutOrStdout()
	kept, err := replaceDir(filepath.Join(r.dir, name), im.Files(), old[0].SerialNumber.Text(16))
	if err != nil {
		return err
	}
	if kept != "" {
		fmt.Fprintf(out, "Kept what was in %s as %s.\n", filepath.Join(r.dir, name), kept)
	}
	if _, err := putCA(cmd.Context(), c, s.Namespace, im.Files(), true); err != nil {
		return err
	}
	now, err := certs.Certificates(im.CertPEM)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Secret %s/cacerts renewed: serial %s until %s, before %s until %s.\n", s.Namespace, now[0].SerialNumber.Text(16), now[0].NotAfter.UTC().Format(time.RFC3339),
		old[0].SerialNumber.Text(16), old[0].NotAfter.UTC().Format(time.RFC3339))
	for _, n := range ca.Notices(s.Name, old[1:], time.Now()) {
		fmt.Fprintln(out, "! "+n.String())
	}
	fmt.Fprintf(out, "The control plane takes it without a restart. Keep %s elsewhere.\nNext: carrick ca show --context=%s\n", r.rootKey, c.context)
	return nil
}

// selfSigned makes the control plane's own root anew.
func (r *renewal) selfSigned(cmd *cobra.Command, c *cluster, s *corev1.Secret, named bool) error {
	if named || r.rootKey != "" || r.rootCert != "" || r.key != "" || cmd.Flag("days").Changed {
		return usagef("there is no Secret %s/cacerts: the control plane's self-signed root is renewed as it is, so give neither CLUSTER nor --root-key, --root-cert, --key, --days", s.Namespace)
	}
	data, err := ca.RenewSelfSigned(s.Data)
	if err != nil {
		return fmt.Errorf("secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	s.Data = data
	if _, err := c.Kube.CoreV1().Secrets(s.Namespace).Update(cmd.Context(), s, metav1.UpdateOptions{FieldManager: install.Manager}); err != nil {
		return fmt.Errorf("replacing Secret %s: %w", s.Name, err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Secret %s/%s has a new root. The control plane takes it without a restart; the old root is trusted until its last certificate has ended.\nNext: carrick ca show --context=%s\n", s.Namespace, s.Name, c.context)
	return nil
}

// replaceDir writes a directory's files as a whole, and keeps what was there beside it, named by a
// serial number. It returns the name, "" if nothing was there.
func replaceDir(dir string, files map[string][]byte, serial string) (kept string, err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(filepath.Dir(dir), ".carrick-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(made)
	if err := os.Chmod(made, 0o755); err != nil {
		return "", err
	}
	for name, b := range files {
		mode := fs.FileMode(0o644)
		if name == "ca-key.pem" {
			mode = 0o600
		}
		if err := writeFile(filepath.Join(made, name), b, mode); err != nil {
			return "", err
		}
	}
	if _, err := os.Lstat(dir); err == nil {
		kept = dir + "." + serial
		if _, err := os.Lstat(kept); err == nil {
			return "", fmt.Errorf("%s is there already, from a renewal before; move it away first", kept)
		}
		if err := os.Rename(dir, kept); err != nil {
			return "", err
		}
	}
	return kept, os.Rename(made, dir)
}
