package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func (a *app) eastwest() *cobra.Command {
	var mesh, clusterName, network, revision string
	var sets []string
	var yes, doInstall, single bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "eastwest",
		Short: "Prints or installs the gateway through which other clusters reach this one",
		Long: `Prints the IstioOperator file of an east-west gateway, after a check of mesh, cluster and network
against what is installed; with --install, installs it. The same file comes from Istio's
gen-eastwest-gateway.sh, whose output install -f - takes as it is.`,
		Example: `  carrick eastwest --context=cluster1 --network network1 | carrick install --context=cluster1 -y -f -
  carrick eastwest --context=cluster1 --network network1 --install -y`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			have, err := installed(cmd.Context(), c, a.target.istioNamespace, a.version)
			if err != nil {
				return err
			}
			for _, f := range []struct{ flag, field, have string }{
				{"mesh", "values.global.meshID", have.MeshID},
				{"cluster", "values.global.multiCluster.clusterName", have.Cluster},
				{"network", "values.global.network", have.Network},
			} {
				fl := cmd.Flag(f.flag)
				if !fl.Changed {
					if err := fl.Value.Set(f.have); err != nil {
						return err
					}
				} else if f.have != "" && f.have != fl.Value.String() {
					return c.wrong(fmt.Errorf("--%s is %s, but the control plane was installed with %s=%s; give the same, or install the control plane again", f.flag, fl.Value, f.field, f.have))
				}
			}
			if network == "" {
				return c.wrong(usagef("the network is not known; give --network"))
			}
			op := eastwestOperator(mesh, clusterName, network, revision)
			if !doInstall {
				b, err := yaml.Marshal(op)
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(b)
				return err
			}
			cfg, err := install.Resolve([]map[string]any{op}, sets, a.version)
			if err != nil {
				return err
			}
			if err := runInstall(cmd, c, cfg, installOptions{yes: yes, timeout: timeout}); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Next: kubectl --context=%s -n %s get svc istio-eastwestgateway, until it has an EXTERNAL-IP\n", c.context, a.target.istioNamespace)
			return nil
		},
	}
	cmd.Flags().StringVar(&mesh, "mesh", "", "mesh ID (default as installed)")
	cmd.Flags().StringVar(&clusterName, "cluster", "", "name of the cluster (default as installed)")
	cmd.Flags().StringVar(&network, "network", "", "network of the cluster (default as installed)")
	cmd.Flags().StringVar(&revision, "revision", "", "revision of the control plane")
	cmd.Flags().StringArrayVarP(&sets, "set", "s", nil, "PATH=VALUE, as of install")
	cmd.Flags().BoolVar(&single, "single-cluster", false, "accepted for the script's sake")
	cmd.Flags().BoolVar(&doInstall, "install", false, "install instead of printing")
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	cmd.Flags().DurationVar(&timeout, "readiness-timeout", 5*time.Minute, "how long to wait until all is ready")
	return cmd
}

// installed returns the settings of the control plane that runs in a cluster: those that the installer
// stored, or, where it was installed in another way, those that can be found.
func installed(ctx context.Context, c *cluster, namespace, version string) (*install.Config, error) {
	s, err := c.LoadState(ctx, namespace, install.ControlPlane)
	if err != nil {
		return nil, c.wrong(err)
	}
	var cfg *install.Config
	if s != nil {
		cfg, err = s.Config(version)
	} else {
		cfg, err = c.Found(ctx, namespace, version)
	}
	if err != nil {
		return nil, c.wrong(err)
	}
	if cfg == nil {
		return nil, c.wrong(fmt.Errorf("no control plane is installed in namespace %s; install it first: carrick install --context=%s", namespace, c.context))
	}
	if cfg.Network == "" {
		ns, err := c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		if err != nil {
			return nil, c.wrong(fmt.Errorf("reading namespace %s: %w", namespace, err))
		}
		cfg.Network = ns.Labels["topology.istio.io/network"]
	}
	return cfg, nil
}

// eastwestOperator is what Istio 1.15's script prints.
func eastwestOperator(mesh, clusterName, network, revision string) map[string]any {
	port := func(name string, n int64) any {
		return map[string]any{"name": name, "port": n, "targetPort": n}
	}
	global := map[string]any{"network": network}
	if mesh != "" {
		global["meshID"] = mesh
	}
	if clusterName != "" && clusterName != install.DefaultCluster {
		global["multiCluster"] = map[string]any{"clusterName": clusterName}
	}
	return map[string]any{
		"apiVersion": "install.istio.io/v1alpha1",
		"kind":       "IstioOperator",
		"metadata":   map[string]any{"name": "eastwest"},
		"spec": map[string]any{
			"revision": revision,
			"profile":  "empty",
			"components": map[string]any{"ingressGateways": []any{map[string]any{
				"name":    "istio-eastwestgateway",
				"enabled": true,
				"label":   map[string]any{"istio": "eastwestgateway", "app": "istio-eastwestgateway", "topology.istio.io/network": network},
				"k8s": map[string]any{
					"env": []any{map[string]any{"name": "ISTIO_META_REQUESTED_NETWORK_VIEW", "value": network}},
					"service": map[string]any{"ports": []any{
						port("status-port", 15021), port("tls", 15443), port("tls-istiod", 15012), port("tls-webhook", 15017),
					}},
				},
			}}},
			"values": map[string]any{
				"gateways": map[string]any{"istio-ingressgateway": map[string]any{"injectionTemplate": "gateway"}},
				"global":   global,
			},
		},
	}
}
