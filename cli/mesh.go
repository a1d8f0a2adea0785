package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

func (a *app) mesh() *cobra.Command {
	parent := &cobra.Command{Use: "mesh", Short: "Verbs for all clusters of a mesh together"}
	kubeconfig := &cobra.Command{Use: "kubeconfig", Short: "Works on kubeconfig files"}
	kubeconfig.AddCommand(mergeKubeconfigs())
	parent.AddCommand(kubeconfig, a.meshApply(), a.meshCheck())
	return parent
}

func mergeKubeconfigs() *cobra.Command {
	var names []string
	var output string
	cmd := &cobra.Command{
		Use:   "merge FILE FILE...",
		Short: "Joins kubeconfig files into one, with a context for each cluster",
		Long: `Joins the current contexts of kubeconfig files into one file: cluster, user and context get the names
of --names, certificates and keys are embedded, the file is written with mode 0600, and a file that was
there before is kept as FILE.bak.`,
		Example: `  carrick mesh kubeconfig merge c1.conf c2.conf --names cluster1,cluster2 -o ~/.kube/config`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(names) != len(args) {
				return usagef("--names has %d names for %d files; give one for each", len(names), len(args))
			}
			out := clientcmdapi.NewConfig()
			for i, file := range args {
				if err := addKubeconfig(out, file, names[i]); err != nil {
					return err
				}
			}
			out.CurrentContext = names[0]
			b, err := clientcmd.Write(*out)
			if err != nil {
				return fmt.Errorf("encoding the kubeconfig: %w", err)
			}
			if output == "" || output == "-" {
				_, err = cmd.OutOrStdout().Write(b)
				return err
			}
			old, err := os.ReadFile(output)
			if err == nil {
				if err := writeFile(output+".bak", old, 0o600); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Kept the file that was there as %s.bak\n", output)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := writeFile(output, b, 0o600); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Wrote %s with contexts %s. Next: kubectl --context=%s get nodes\n", output, strings.Join(names, ", "), names[0])
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&names, "names", nil, "names of the contexts, one for each file")
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write (default standard output)")
	return cmd
}

// addKubeconfig adds the current context of a file under a name.
func addKubeconfig(out *clientcmdapi.Config, file, name string) error {
	if name == "" {
		return usagef("--names has an empty name")
	}
	if out.Contexts[name] != nil {
		return usagef("--names has %q twice", name)
	}
	in, err := clientcmd.LoadFromFile(file)
	if err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	if len(in.Contexts) == 0 {
		return fmt.Errorf("%s holds no context; is it a kubeconfig?", file)
	}
	current := in.CurrentContext
	if current == "" && len(in.Contexts) == 1 {
		for current = range in.Contexts {
		}
	}
	c := in.Contexts[current]
	if c == nil {
		return fmt.Errorf("%s: its current context %q is not in it; set it: kubectl --kubeconfig=%s config use-context NAME", file, current, file)
	}
	cluster, user := in.Clusters[c.Cluster], in.AuthInfos[c.AuthInfo]
	if cluster == nil || user == nil {
		return fmt.Errorf("%s: context %s names cluster %q and user %q, and one of them is not in the file", file, current, c.Cluster, c.AuthInfo)
	}
	one := clientcmdapi.NewConfig()
	one.Clusters[name], one.AuthInfos[name] = cluster, user
	one.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: c.Namespace}
	if err := clientcmdapi.FlattenConfig(one); err != nil {
		return fmt.Errorf("%s: embedding its certificates: %w", file, err)
	}
	out.Clusters[name], out.AuthInfos[name], out.Contexts[name] = one.Clusters[name], one.AuthInfos[name], one.Contexts[name]
	return nil
}
