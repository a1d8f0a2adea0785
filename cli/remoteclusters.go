package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// clusterState is one entry of the control plane's /debug/clusterz, and whose answer it is.
type clusterState struct {
	ID         string `json:"id"`
	SecretName string `json:"secretName"`
	SyncStatus string `json:"syncStatus"` // synced, syncing, timeout, closed, stale, error
	Server     string `json:"server,omitempty"`
	Network    string `json:"network,omitempty"`
	Message    string `json:"message,omitempty"` // what is wrong, and what to do
	Note       string `json:"note,omitempty"`    // what is worth knowing
	Istiod     string `json:"istiod"`            // the control plane's pod
	Context    string `json:"context,omitempty"` // of the kubeconfig, with --all-contexts
}

func (a *app) remoteClusters() *cobra.Command {
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "remote-clusters",
		Short: "Lists the clusters that each control plane watches",
		Long: `Lists the clusters that each control plane watches, and what is wrong with each below the table: credentials,
connection, or roots that have no certificate in common. The exit code is 0 if the control planes answer.`,
		Example: "  carrick remote-clusters --context=cluster1\n  carrick remote-clusters --all-contexts -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "short" && !structured(output) {
				return usagef("-o %s: is not table, json or yaml", output)
			}
			found := []clusterState{}
			err := a.target.each(cmd, all, func(c *cluster) error {
				pods, answers, err := c.debug(cmd.Context(), a.target.istioNamespace, "/debug/clusterz")
				if err != nil {
					return err
				}
				states, err := clusterStates(pods, answers)
				if err != nil {
					return c.wrong(err)
				}
				if !structured(output) {
					return printClusters(cmd.OutOrStdout(), states)
				}
				for i := range states {
					if all {
						states[i].Context = c.context
					}
				}
				found = append(found, states...)
				return nil
			})
			if !structured(output) || err != nil && len(found) == 0 {
				return err
			}
			if bad := printValue(cmd.OutOrStdout(), found, output); bad != nil {
				return bad
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all-contexts", false, "ask the control planes of every cluster of the kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().StringP("revision", "r", "", "accepted for istioctl's sake")
	return cmd
}

// clusterStates reads what control planes answered, by cluster and then by control plane.
func clusterStates(pods []string, answers [][]byte) (states []clusterState, err error) {
	for i, b := range answers {
		var all []clusterState
		if err := json.Unmarshal(b, &all); err != nil {
			return nil, fmt.Errorf("%s's answer about clusters is not understood: %w", pods[i], err)
		}
		for j := range all {
			all[j].Istiod = pods[i]
		}
		states = append(states, all...)
	}
	slices.SortStableFunc(states, func(a, b clusterState) int {
		return cmp.Or(strings.Compare(a.Istiod, b.Istiod), strings.Compare(a.ID, b.ID))
	})
	return states, nil
}

func printClusters(out io.Writer, states []clusterState) error {
	var rows [][]string
	var lines []string
	for _, s := range states {
		rows = append(rows, []string{s.ID, cmp.Or(s.SecretName, "-"), s.SyncStatus, s.Istiod})
		for _, text := range []string{s.Message, s.Note} {
			if line := s.ID + ": " + text; text != "" && !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	if err := table(out, "NAME\tSECRET\tSTATUS\tISTIOD", rows); err != nil {
		return err
	}
	for _, l := range lines {
		fmt.Fprintln(out, l)
	}
	return nil
}
