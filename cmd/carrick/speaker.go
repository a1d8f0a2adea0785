package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// speakerCommand is the role that answers for load-balancer addresses, one on each node.
func speakerCommand() *cobra.Command {
	var o lbOptions
	node := os.Getenv("NODE_NAME")
	cmd := &cobra.Command{
		Use:    "speaker",
		Short:  "Answer for load-balancer addresses on this node's network (runs in DaemonSet speaker)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if node == "" {
				return errors.New("--node is empty: name the node this runs on, or set NODE_NAME")
			}
			k, d, err := o.clients()
			if err != nil {
				return err
			}
			if err := runSpeaker(cmd.Context(), k, d, node, &o, o.logger()); err != nil {
				return fmt.Errorf("speaker: %w", err)
			}
			return nil
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&node, "node", strings.TrimSpace(node), "name of the node this runs on")
	return cmd
}

// lbControllerCommand is the role that assigns load-balancer addresses, one in a cluster.
func lbControllerCommand() *cobra.Command {
	var o lbOptions
	cmd := &cobra.Command{
		Use:    "lb-controller",
		Short:  "Assign load-balancer addresses to Services (runs in Deployment controller)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, d, err := o.clients()
			if err != nil {
				return err
			}
			if err := runController(cmd.Context(), k, d, &o, o.logger()); err != nil {
				return fmt.Errorf("lb-controller: %w", err)
			}
			return nil
		},
	}
	o.flags(cmd)
	return cmd
}
