package cli

import (
	"encoding/json"
	"fmt"
	"sort"

	"github.com/spf13/cobra"
)

// clusterState is one entry of the control plane's /debug/clusterz.
type clusterState struct {
	ID         string `json:"id"`
	SecretName string `json:"secretName"`
	SyncStatus string `json:"syncStatus"` // synced, syncing, timeout, closed, error
	Message    string `json:"message"`    // what is wrong, and what to do
}

func (a *app) remoteClusters() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "remote-clusters",
		Short: "Lists the clusters that each control plane watches",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.target.each(cmd, all, func(c *cluster) error { return showClusters(cmd, c, a.target.istioNamespace) })
		},
	}
	cmd.Flags().BoolVar(&all, "all-contexts", false, "ask the control planes of every cluster of the kubeconfig")
	cmd.Flags().StringP("revision", "r", "", "accepted for istioctl's sake")
	return cmd
}

func showClusters(cmd *cobra.Command, c *cluster, namespace string) error {
	names, answers, err := c.debug(cmd.Context(), namespace, "/debug/clusterz")
	if err != nil {
		return err
	}
	rows, notes, err := clusterRows(names, answers)
	if err != nil {
		return c.wrong(err)
	}
	out := cmd.OutOrStdout()
	if err := table(out, "NAME\tSECRET\tSTATUS\tISTIOD", rows); err != nil {
		return err
	}
	for _, n := range notes {
		fmt.Fprintln(out, n)
	}
	return nil
}

func clusterRows(names []string, answers [][]byte) (rows [][]string, notes []string, err error) {
	for i, b := range answers {
		var all []clusterState
		if err := json.Unmarshal(b, &all); err != nil {
			return nil, nil, fmt.Errorf("%s's answer about clusters is not understood: %w", names[i], err)
		}
		sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
		for _, s := range all {
			secret := s.SecretName
			if secret == "" {
				secret = "-"
			}
			rows = append(rows, []string{s.ID, secret, s.SyncStatus, names[i]})
			if s.Message != "" {
				notes = append(notes, fmt.Sprintf("%s: %s", s.ID, s.Message))
			}
		}
	}
	return rows, notes, nil
}
