package cli

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// syncState is one entry of the control plane's /debug/syncz: nonces sent and acknowledged.
type syncState struct {
	ClusterID     string `json:"cluster_id"`
	Proxy         string `json:"proxy"` // POD.NAMESPACE
	ProxyType     string `json:"proxy_type"`
	Version       string `json:"istio_version"`
	ClusterSent   string `json:"cluster_sent"`
	ClusterAcked  string `json:"cluster_acked"`
	ListenerSent  string `json:"listener_sent"`
	ListenerAcked string `json:"listener_acked"`
	RouteSent     string `json:"route_sent"`
	RouteAcked    string `json:"route_acked"`
	EndpointSent  string `json:"endpoint_sent"`
	EndpointAcked string `json:"endpoint_acked"`
	ECDSSent      string `json:"extensionconfig_sent"`
	ECDSAcked     string `json:"extensionconfig_acked"`
	Error         string `json:"error"` // the proxy's last refusal, if it is still refused
	istiod        string
}

func (a *app) proxyStatus() *cobra.Command {
	var output string
	var everywhere bool
	cmd := &cobra.Command{
		Use:     "proxy-status [POD.NAMESPACE]",
		Aliases: []string{"ps"},
		Short:   "Shows whether each proxy has acknowledged what it was sent",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.target.each(cmd, everywhere, func(c *cluster) error { return a.showStates(cmd, c, args, output) })
		},
	}
	cmd.Flags().BoolVar(&everywhere, "all-contexts", false, "ask the control planes of every cluster of the kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().StringP("revision", "r", "", "accepted for istioctl's sake")
	return cmd
}

func (a *app) showStates(cmd *cobra.Command, c *cluster, args []string, output string) error {
	names, answers, err := c.debug(cmd.Context(), a.target.istioNamespace, "/debug/syncz")
	if err != nil {
		return err
	}
	all, err := syncStates(names, answers)
	if err != nil {
		return c.wrong(err)
	}
	if len(args) == 1 {
		namespace, pod, err := c.pod(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		all = only(all, pod+"."+namespace)
		if len(all) == 0 {
			return c.wrong(fmt.Errorf("%s.%s is connected to no control plane; see its log: kubectl -n %[2]s logs %[1]s -c istio-proxy", pod, namespace))
		}
	}
	return printStates(cmd, all, output)
}

func syncStates(names []string, answers [][]byte) (all []syncState, err error) {
	for i, b := range answers {
		var some []syncState
		if err := json.Unmarshal(b, &some); err != nil {
			return nil, fmt.Errorf("%s's answer about proxies is not understood: %w", names[i], err)
		}
		for _, s := range some {
			s.istiod = names[i]
			all = append(all, s)
		}
	}
	sort.Slice(all, func(i, j int) bool {
		if all[i].ClusterID != all[j].ClusterID {
			return all[i].ClusterID < all[j].ClusterID
		}
		return all[i].Proxy < all[j].Proxy
	})
	return all, nil
}

func only(all []syncState, proxy string) (some []syncState) {
	for _, s := range all {
		if s.Proxy == proxy {
			some = append(some, s)
		}
	}
	return some
}

func printStates(cmd *cobra.Command, all []syncState, output string) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json", "yaml":
		b, err := json.MarshalIndent(all, "", "  ")
		if err == nil && output == "yaml" {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(out, strings.TrimSpace(string(b)))
		return nil
	case "table", "short", "":
	default:
		return usagef("-o %s: is not table, json or yaml", output)
	}
	var rows [][]string
	for _, s := range all {
		rows = append(rows, []string{
			s.Proxy, s.ClusterID,
			state(s.ClusterSent, s.ClusterAcked), state(s.ListenerSent, s.ListenerAcked),
			state(s.EndpointSent, s.EndpointAcked), state(s.RouteSent, s.RouteAcked), state(s.ECDSSent, s.ECDSAcked),
			s.istiod, s.Version,
		})
	}
	if err := table(out, "NAME\tCLUSTER\tCDS\tLDS\tEDS\tRDS\tECDS\tISTIOD\tVERSION", rows); err != nil {
		return err
	}
	for _, s := range all {
		if s.Error != "" {
			fmt.Fprintf(out, "%s refused: %s\n", s.Proxy, s.Error)
		}
	}
	return nil
}

// state compares the nonce that was sent last with the one acknowledged last.
func state(sent, acked string) string {
	switch {
	case sent == "":
		return "NOT SENT"
	case sent == acked:
		return "SYNCED"
	case acked == "":
		return "STALE (Never Acknowledged)"
	}
	return "STALE"
}
