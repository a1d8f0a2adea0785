package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/certs"
	"github.com/spf13/cobra"
)

func (a *app) authority() *cobra.Command {
	parent := &cobra.Command{Use: "ca", Short: "Makes certificate authorities and compares those in use"}
	parent.AddCommand(caRoot(), caIntermediate(), a.caInstall(), a.caRenew(), a.caShow())
	return parent
}

// keyFlag reads --key.
func keyFlag(s string) (ca.KeyType, error) {
	switch k := ca.KeyType(s); k {
	case ca.RSA4096, ca.RSA2048, ca.P256:
		return k, nil
	}
	return "", usagef("--key %s: is not rsa4096, rsa2048 or p256", s)
}

func caRoot() *cobra.Command {
	var dir, key, org string
	var days int
	cmd := &cobra.Command{
		Use:     "root",
		Short:   "Makes a root CA: root-key.pem and root-cert.pem",
		Example: "  carrick ca root && carrick ca intermediate cluster1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kind, err := keyFlag(key)
			if err != nil {
				return err
			}
			if days <= 0 {
				return usagef("--days %d: is not above 0", days)
			}
			if err := absent(dir, "root-key.pem", "root-cert.pem"); err != nil {
				return err
			}
			root, err := ca.NewRoot(ca.RootOptions{Organization: org, Days: days, Key: kind})
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("making directory %s: %w", dir, err)
			}
			if err := writeFile(filepath.Join(dir, "root-key.pem"), root.KeyPEM, 0o600); err != nil {
				return err
			}
			if err := writeFile(filepath.Join(dir, "root-cert.pem"), root.CertPEM, 0o644); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Wrote %s and %s, valid for %d days.\nWhoever has root-key.pem can be anyone in the mesh: once all intermediates are made, keep it elsewhere.\nNext: carrick ca intermediate CLUSTER, for each cluster\n",
				filepath.Join(dir, "root-key.pem"), filepath.Join(dir, "root-cert.pem"), days)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "directory to write to")
	cmd.Flags().IntVar(&days, "days", 3650, "validity in days")
	cmd.Flags().StringVar(&key, "key", string(ca.RSA4096), "rsa4096, rsa2048 or p256")
	cmd.Flags().StringVar(&org, "org", "Istio", "organization in the subject")
	return cmd
}

func caIntermediate() *cobra.Command {
	var dir, key, org, rootKey, rootCert string
	var days int
	cmd := &cobra.Command{
		Use:   "intermediate CLUSTER",
		Short: "Makes a cluster's CA, signed by the root: CLUSTER/{ca-cert,ca-key,cert-chain,root-cert}.pem",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if !isFileName(name) {
				return usagef("%q is not a cluster's name", name)
			}
			kind, err := keyFlag(key)
			if err != nil {
				return err
			}
			if days <= 0 {
				return usagef("--days %d: is not above 0", days)
			}
			if rootKey == "" {
				rootKey = filepath.Join(dir, "root-key.pem")
			}
			if rootCert == "" {
				rootCert = filepath.Join(dir, "root-cert.pem")
			}
			root, err := readRoot(rootKey, rootCert)
			if err != nil {
				return err
			}
			out := filepath.Join(dir, name)
			if err := absent(out, "ca-key.pem", "ca-cert.pem"); err != nil {
				return err
			}
			im, err := ca.NewIntermediate(root, ca.IntermediateOptions{Cluster: name, Organization: org, Days: days, Key: kind})
			if err != nil {
				return err
			}
			if err := os.MkdirAll(out, 0o755); err != nil {
				return fmt.Errorf("making directory %s: %w", out, err)
			}
			for file, b := range im.Files() {
				mode := fs.FileMode(0o644)
				if file == "ca-key.pem" {
					mode = 0o600
				}
				if err := writeFile(filepath.Join(out, file), b, mode); err != nil {
					return err
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), `Wrote %[1]s/{ca-cert,ca-key,cert-chain,root-cert}.pem, valid for %[2]d days.
Next: carrick ca install %[3]s --context=%[3]s%[4]s, or by hand
      kubectl --context=%[3]s create namespace istio-system
      kubectl --context=%[3]s create secret generic cacerts -n istio-system --from-file=%[1]s/ca-cert.pem --from-file=%[1]s/ca-key.pem --from-file=%[1]s/root-cert.pem --from-file=%[1]s/cert-chain.pem
When all clusters have theirs, keep %[5]s elsewhere.
`, out, validDays(im, days), name, map[bool]string{true: " --dir=" + dir}[dir != "."], rootKey)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "directory of the root, and to write to")
	cmd.Flags().StringVar(&rootKey, "root-key", "", "the root's key (default DIR/root-key.pem)")
	cmd.Flags().StringVar(&rootCert, "root-cert", "", "the root's certificate (default DIR/root-cert.pem)")
	cmd.Flags().IntVar(&days, "days", 730, "validity in days; never beyond the root's")
	cmd.Flags().StringVar(&key, "key", string(ca.RSA4096), "rsa4096, rsa2048 or p256")
	cmd.Flags().StringVar(&org, "org", "Istio", "organization in the subject")
	return cmd
}

// validDays returns for how many days an intermediate is valid: the root may end before.
func validDays(im *ca.Intermediate, asked int) int {
	if list, err := certs.Certificates(im.CertPEM); err == nil {
		return min(asked, int(time.Until(list[0].NotAfter).Hours()+1)/24)
	}
	return asked
}

func readRoot(keyFile, certFile string) (ca.Root, error) {
	var r ca.Root
	for file, into := range map[string]*[]byte{keyFile: &r.KeyPEM, certFile: &r.CertPEM} {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return r, fmt.Errorf("%s is not there; make a root first (carrick ca root), or name its files with --root-key and --root-cert", file)
		}
		if err != nil {
			return r, err
		}
		*into = b
	}
	return r, nil
}

// absent refuses to write over keys that may be in use.
func absent(dir string, names ...string) error {
	for _, n := range names {
		p := filepath.Join(dir, n)
		if _, err := os.Stat(p); err == nil {
			return fmt.Errorf("%s exists and may be in use; move it away first", p)
		}
	}
	return nil
}

// writeFile writes beside the file and renames, so that it is never half there.
func writeFile(path string, b []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".carrick-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("writing %s: %w", path, err)
		}
	}()
	if err = f.Chmod(mode); err == nil {
		_, err = f.Write(b)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
