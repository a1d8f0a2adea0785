package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (a *app) versionCommand() *cobra.Command {
	var short, remote, all bool
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Prints the versions of the command, the control planes and the proxies",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "", "short", "json", "yaml"); err != nil {
				return err
			}
			must := cmd.Flag("remote").Changed || cmd.Flag("context").Changed || all
			if !remote || !must && a.withoutCluster() {
				// Without a cluster, or without a control plane in it, there is only the client.
				v := &versions{Client: a.version}
				if structured(output) {
					return printValue(cmd.OutOrStdout(), v, output)
				}
				return v.print(cmd)
			}
			ask := func(c *cluster) (*versions, error) {
				v := &versions{Client: a.version}
				if err := v.ask(cmd.Context(), c, a.target.istioNamespace); err != nil && must {
					return nil, err
				}
				v.Notices = caNotices(cmd.Context(), c, a.target.istioNamespace)
				return v, nil
			}
			return survey(&a.target, cmd, all, output, ask, func(v *versions) error { return v.print(cmd) })
		},
	}
	cmd.Flags().BoolVarP(&short, "short", "s", true, "accepted for istioctl's sake; the answer is short")
	cmd.Flags().BoolVar(&remote, "remote", true, "ask the cluster, too")
	cmd.Flags().BoolVar(&all, "all-contexts", false, "ask every cluster of the kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	return cmd
}

type versions struct {
	Client       string         `json:"clientVersion"`
	ControlPlane []string       `json:"meshVersion,omitempty"`
	Proxies      map[string]int `json:"dataPlaneVersion,omitempty"`
	Notices      []string       `json:"notices,omitempty"` // of a CA that ends soon
}

// withoutCluster reports whether there is no cluster to be asked.
func (a *app) withoutCluster() bool {
	_, err := a.target.connectTo("")
	return err != nil
}

// caNotices says what of a cluster's CA ends soon, and which command renews it, if the user may read it.
func caNotices(ctx context.Context, c *cluster, namespace string) (all []string) {
	secret, chain, err := clusterCA(ctx, c, namespace)
	if err != nil {
		return nil
	}
	for _, n := range ca.Notices(secret, chain, time.Now()) {
		all = append(all, notice(c.context, n))
	}
	return all
}

// notice is a notice of a cluster's CA, whose last command names the cluster.
func notice(context string, n ca.Notice) string { return n.String() + " --context=" + context }

// warnCA ends a command that has installed something: with what of the cluster's CA ends soon.
func warnCA(ctx context.Context, out io.Writer, c *cluster, namespace string) {
	for _, n := range caNotices(ctx, c, namespace) {
		fmt.Fprintf(out, "! %s: %s\n", c.context, n)
	}
}

func (v *versions) ask(ctx context.Context, c *cluster, namespace string) error {
	_, answers, err := c.debug(ctx, namespace, "/version")
	if err != nil {
		return err
	}
	for _, b := range answers {
		s := strings.TrimSpace(string(b))
		var info struct {
			Version string `json:"version"`
		}
		if json.Unmarshal(b, &info) == nil && info.Version != "" {
			s = info.Version
		}
		if !slices.Contains(v.ControlPlane, s) {
			v.ControlPlane = append(v.ControlPlane, s)
		}
	}
	names, answers, err := c.debug(ctx, namespace, "/debug/syncz")
	if err != nil {
		return err
	}
	all, err := syncStates(names, answers)
	if err != nil {
		return c.wrong(err)
	}
	v.Proxies = map[string]int{}
	for _, s := range all {
		v.Proxies[s.Version]++
	}
	return nil
}

func (v *versions) print(cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	fmt.Fprintln(out, "client version:", v.Client)
	for _, s := range v.ControlPlane {
		fmt.Fprintln(out, "control plane version:", s)
	}
	var parts []string
	for _, s := range slices.Sorted(maps.Keys(v.Proxies)) {
		plural := "proxies"
		if v.Proxies[s] == 1 {
			plural = "proxy"
		}
		parts = append(parts, fmt.Sprintf("%s (%d %s)", s, v.Proxies[s], plural))
	}
	if len(parts) > 0 {
		fmt.Fprintln(out, "data plane version:", strings.Join(parts, ", "))
	}
	for _, n := range v.Notices {
		fmt.Fprintln(out, "! "+n)
	}
	return nil
}

// podsWithProxy returns NAMESPACE/NAME of the pods that the injector of a revision, any if "", gave a
// sidecar.
func podsWithProxy(ctx context.Context, c *cluster, revision string) (names []string, err error) {
	opts := metav1.ListOptions{LabelSelector: "security.istio.io/tlsMode=istio", Limit: 500}
	for {
		l, err := c.Kube.CoreV1().Pods("").List(ctx, opts)
		if err != nil {
			return nil, fmt.Errorf("listing pods with sidecars: %w", err)
		}
		for _, p := range l.Items {
			if p.Annotations["inject.istio.io/templates"] == "gateway" {
				continue // goes with its Deployment
			}
			if revision != "" && cmp.Or(p.Annotations["istio.io/rev"], install.DefaultRevision) != revision {
				continue
			}
			names = append(names, p.Namespace+"/"+p.Name)
		}
		if opts.Continue = l.Continue; opts.Continue == "" {
			return names, nil
		}
	}
}
