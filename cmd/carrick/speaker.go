package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/carrick-mesh/carrick/lb"
	"github.com/carrick-mesh/carrick/log"
)

// speakerCommand is the role that answers for load-balancer addresses, one on each node.
func speakerCommand() *cobra.Command {
	var o lbOptions
	cmd := &cobra.Command{
		Use:    "speaker",
		Short:  "Answer for load-balancer addresses on this node's network (runs in DaemonSet speaker)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Self == "" {
				return errors.New("--node is empty: name the node this runs on, or set NODE_NAME")
			}
			k, d, err := o.clients()
			if err != nil {
				return err
			}
			if err := lb.RunSpeaker(cmd.Context(), k, d, &o.Options, o.logger()); err != nil {
				return fmt.Errorf("speaker: %w", err)
			}
			return nil
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&o.Self, "node", strings.TrimSpace(os.Getenv("NODE_NAME")), "name of the node this runs on")
	return cmd
}

// lbControllerCommand is the role that assigns load-balancer addresses, one in a cluster.
func lbControllerCommand() *cobra.Command {
	var o lbOptions
	host, _ := os.Hostname()
	o.Self = envOr("POD_NAME", host)
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
			if err := lb.RunController(cmd.Context(), k, d, &o.Options, o.logger()); err != nil {
				return fmt.Errorf("lb-controller: %w", err)
			}
			return nil
		},
	}
	o.flags(cmd)
	return cmd
}

// lbOptions are the flags that the load balancer's two roles have in common.
type lbOptions struct {
	lb.Options
	kubeconfig, context string
	debug               bool
}

func (o *lbOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file; the pod's service account if empty")
	f.StringVar(&o.context, "context", "", "context in the kubeconfig file")
	f.StringVarP(&o.Namespace, "namespace", "n", envOr("POD_NAMESPACE", "metallb-system"), "namespace of pools, advertisements and leases")
	f.StringVar(&o.Class, "lb-class", "", "serve Services of this loadBalancerClass instead of those without one")
	f.BoolVar(&o.debug, "debug", false, "log more")
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// logger writes as the control plane does.
func (o *lbOptions) logger() *slog.Logger {
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	return log.New(os.Stdout, level)
}

// clients returns clients for the cluster.
func (o *lbOptions) clients() (kubernetes.Interface, dynamic.Interface, error) {
	var cfg *rest.Config
	var err error
	if o.kubeconfig != "" || o.context != "" {
		rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: o.kubeconfig}
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.context}).ClientConfig()
	} else {
		cfg, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("finding the API server: %w", err)
	}
	cfg.QPS, cfg.Burst = 50, 100
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("making a client: %w", err)
	}
	d, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("making a client: %w", err)
	}
	return k, d, nil
}
