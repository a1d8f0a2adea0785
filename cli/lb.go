package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/lb"
	"github.com/spf13/cobra"
)

// lbFlags says which images the load balancer runs.
type lbFlags struct {
	sets []string
}

func (l *lbFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&l.sets, "set", "s", nil, "hub=, tag=, values.global.imagePullPolicy= or values.global.imagePullSecrets=, as of install")
}

// config takes of install's settings those that concern the load balancer, so that one list of
// arguments serves both.
func (l *lbFlags) config(version string) (install.LBConfig, error) {
	lc := install.LBConfig{Tag: version}
	for _, s := range l.sets {
		path, value, ok := strings.Cut(s, "=")
		if !ok {
			return lc, usagef("--set %s: want PATH=VALUE", s)
		}
		switch lbSetting(path) {
		case "hub":
			lc.Hub = strings.TrimSuffix(value, "/")
		case "tag":
			lc.Tag = value
		case "imagePullPolicy":
			lc.PullPolicy = value
		case "imagePullSecrets":
			lc.Pull = append(lc.Pull, strings.Trim(value, `[]"`))
		default:
			return lc, usagef("--set %s: the load balancer has hub, tag, values.global.imagePullPolicy and values.global.imagePullSecrets", s)
		}
	}
	return lc, nil
}

// lbSetting names the setting that a path of install's stands for: "values.global.imagePullSecrets[1]" is "imagePullSecrets".
func lbSetting(path string) string {
	name := strings.TrimPrefix(strings.TrimPrefix(path, "spec."), "values.global.")
	if list, index, ok := strings.Cut(name, "["); ok && strings.HasSuffix(index, "]") {
		return list
	}
	return name
}

func (a *app) loadBalancer() *cobra.Command {
	parent := &cobra.Command{
		Use:   "lb",
		Short: "The load balancer for bare metal, which takes MetalLB's pools",
	}
	parent.AddCommand(a.lbInstall(), a.lbManifest(), a.lbStatus(), a.lbUninstall())
	return parent
}

func (a *app) lbInstall() *cobra.Command {
	var l lbFlags
	var dryRun, adopt, yes bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Installs the load balancer into namespace " + install.LBNamespace,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lc, err := l.config(a.version)
			if err != nil {
				return err
			}
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			where, err := lb.MetalLB(cmd.Context(), c.Kube)
			if err != nil {
				return c.wrong(err)
			}
			if where != "" && !adopt {
				fmt.Fprintf(cmd.OutOrStdout(), "Target cluster: %s\nMetalLB serves this cluster: %s. Nothing is installed; its pools and addresses work with Carrick as they are. (--adopt puts Carrick's load balancer in its place.)\n", c, where)
				return nil
			}
			m, err := install.LoadBalancer(lc)
			if err != nil {
				return err
			}
			m.Sets = l.sets
			intro := fmt.Sprintf("This will install Carrick's load balancer %s into %s", m.Version, c)
			// Installing it disturbs nothing, so nobody is asked, as with the manifest it stands for.
			if err := carryOut(cmd, c, m, intro, installOptions{yes: true, dryRun: dryRun, adopt: adopt, timeout: timeout}); err != nil {
				return err
			}
			if !dryRun {
				fmt.Fprintf(cmd.OutOrStdout(), "Next: apply an IPAddressPool and an L2Advertisement (metallb.io/v1beta1, namespace %s), then check: carrick lb status --context=%s\n", install.LBNamespace, c.context)
			}
			return nil
		},
	}
	l.add(cmd)
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "accepted; nothing is asked")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would change, and change nothing")
	cmd.Flags().BoolVar(&adopt, "adopt", false, "take over objects of the same names that MetalLB's own manifest made")
	cmd.Flags().DurationVar(&timeout, "readiness-timeout", 5*time.Minute, "how long to wait until all is ready")
	return cmd
}

func (a *app) lbManifest() *cobra.Command {
	var l lbFlags
	cmd := &cobra.Command{
		Use:   "manifest",
		Short: "Prints the load balancer's manifest, for kubectl apply -f -",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lc, err := l.config(a.version)
			if err != nil {
				return err
			}
			m, err := install.LoadBalancer(lc)
			if err != nil {
				return err
			}
			return printManifest(cmd, m)
		},
	}
	l.add(cmd)
	return cmd
}

func (a *app) lbUninstall() *cobra.Command {
	var yes, purge bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Removes the load balancer; --purge also its CRDs and pools",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			if !yes {
				if err := canAsk(cmd, false); err != nil {
					return err
				}
			}
			ctx, out := cmd.Context(), cmd.OutOrStdout()
			refs, err := c.Left(ctx, install.Removal{Installs: []string{install.LBName}, Purge: purge})
			if err != nil {
				return c.wrong(err)
			}
			fmt.Fprintf(out, "Target cluster: %s\n", c)
			for _, r := range refs {
				fmt.Fprintf(out, "  removed:  %s\n", r)
			}
			if !yes {
				if err := ask(cmd); err != nil {
					return err
				}
			}
			rep, flush := reporter(out)
			err = c.Uninstall(ctx, refs, timeout, rep)
			flush()
			return c.wrong(err)
		},
	}
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the CRDs with all pools, too")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for the end of what is removed")
	return cmd
}
