package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/spf13/cobra"
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
	var output, file string
	var everywhere bool
	cmd := &cobra.Command{
		Use:     "proxy-status [POD.NAMESPACE]",
		Aliases: []string{"ps"},
		Short:   "Shows whether each proxy has acknowledged what it was sent",
		Long: `Shows whether each proxy has acknowledged what it was sent. With a pod, what the control plane sent its
proxy is compared with what the proxy runs on, or with a config dump in a file (--file, - is standard
input); the exit code is 1 if they differ.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, "table", "json", "yaml", "short", ""); err != nil {
				return err
			}
			if len(args) == 1 && !structured(output) {
				if everywhere {
					return usagef("a pod is in one cluster: leave --all-contexts out, and give --context")
				}
				c, err := a.target.connect(cmd)
				if err != nil {
					return err
				}
				return a.compareProxy(cmd, c, args[0], file)
			}
			if file != "" {
				return usagef("--file is compared with what a proxy was sent: give the POD.NAMESPACE that it is of")
			}
			ask := func(c *cluster) ([]syncState, error) { return a.states(cmd, c, args) }
			return survey(&a.target, cmd, everywhere, output, ask, func(all []syncState) error { return printStates(cmd, all) })
		},
	}
	cmd.Flags().BoolVar(&everywhere, "all-contexts", false, "ask the control planes of every cluster of the kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().StringVarP(&file, "file", "f", "", "config dump to compare, instead of asking the proxy")
	cmd.Flags().StringP("revision", "r", "", "accepted for istioctl's sake")
	return cmd
}

// states asks the control planes of a cluster for their proxies, or for one.
func (a *app) states(cmd *cobra.Command, c *cluster, args []string) ([]syncState, error) {
	names, answers, err := c.debug(cmd.Context(), a.target.istioNamespace, "/debug/syncz")
	if err != nil {
		return nil, err
	}
	all, err := syncStates(names, answers)
	if err != nil {
		return nil, c.wrong(err)
	}
	if len(args) == 1 {
		namespace, pod, err := c.pod(cmd.Context(), args[0])
		if err != nil {
			return nil, err
		}
		if all = only(all, pod+"."+namespace); len(all) == 0 {
			return nil, c.notConnected(namespace, pod)
		}
	}
	return all, nil
}

func (c *cluster) notConnected(namespace, pod string) error {
	return c.wrong(fmt.Errorf("%s.%s is connected to no control plane; see its log: kubectl --context=%s -n %[2]s logs %[1]s -c istio-proxy", pod, namespace, c.context))
}

// compareProxy compares what a proxy was sent with what it has.
func (a *app) compareProxy(cmd *cobra.Command, c *cluster, arg, file string) error {
	ctx := cmd.Context()
	namespace, pod, err := c.pod(ctx, arg)
	if err != nil {
		return err
	}
	_, answers, err := c.debug(ctx, a.target.istioNamespace, "/debug/config_dump?proxyID="+pod+"."+namespace)
	if err != nil && strings.Contains(err.Error(), "404") {
		return c.notConnected(namespace, pod)
	}
	if err != nil {
		return err
	}
	sent, err := diagnose.ParseDump(answers[0])
	if err != nil {
		return c.wrong(fmt.Errorf("the control plane's answer: %w", err))
	}
	var b []byte
	if file != "" {
		b, err = readFile(cmd, file, maxAnswer)
	} else {
		b, err = c.fetch(ctx, namespace, pod, 15000, "config_dump")
	}
	if err != nil {
		return c.wrong(fmt.Errorf("asking the proxy of %s/%s (has it one?): %w", namespace, pod, err))
	}
	has, err := diagnose.ParseDump(b)
	if err != nil {
		return err
	}
	same := true
	out := cmd.OutOrStdout()
	for _, d := range diagnose.Compare(sent, has) {
		if len(d.Lines) == 0 {
			fmt.Fprintf(out, "%s Match\n", d.Kind)
			continue
		}
		same = false
		fmt.Fprintf(out, "%s Don't Match\n", d.Kind)
		for _, l := range d.Lines {
			fmt.Fprintln(out, "  "+l)
		}
	}
	if !same {
		return silent{errors.New("the proxy runs on another configuration than it was sent")}
	}
	return nil
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

func printStates(cmd *cobra.Command, all []syncState) error {
	out := cmd.OutOrStdout()
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
