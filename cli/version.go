package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func (a *app) versionCommand() *cobra.Command {
	var short, remote bool
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Prints the versions of the command, the control planes and the proxies",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: a.version}
			if remote {
				// Without a cluster, or without a control plane in it, there is only the client.
				if c, err := a.target.connect(cmd); err == nil {
					err = v.ask(cmd.Context(), c, a.target.istioNamespace)
					if err != nil && cmd.Flag("remote").Changed {
						return err
					}
				} else if cmd.Flag("remote").Changed || cmd.Flag("context").Changed {
					return err
				}
			}
			return v.print(cmd, output)
		},
	}
	cmd.Flags().BoolVarP(&short, "short", "s", true, "accepted for istioctl's sake; the answer is short")
	cmd.Flags().BoolVar(&remote, "remote", true, "ask the cluster, too")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	return cmd
}

type versions struct {
	Client       string         `json:"clientVersion"`
	ControlPlane []string       `json:"meshVersion,omitempty"`
	Proxies      map[string]int `json:"dataPlaneVersion,omitempty"`
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

func (v *versions) print(cmd *cobra.Command, output string) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json", "yaml":
		b, err := json.MarshalIndent(v, "", "  ")
		if err == nil && output == "yaml" {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(out, strings.TrimSpace(string(b)))
		return nil
	case "":
	default:
		return usagef("-o %s: is not json or yaml", output)
	}
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
	return nil
}

// podsWithProxy returns NAMESPACE/NAME of the pods that the injector gave a sidecar.
func podsWithProxy(ctx context.Context, c *cluster) (names []string, err error) {
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
			names = append(names, p.Namespace+"/"+p.Name)
		}
		if opts.Continue = l.Continue; opts.Continue == "" {
			return names, nil
		}
	}
}
