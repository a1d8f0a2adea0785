package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/spf13/cobra"
)

func (a *app) dashboard() *cobra.Command {
	parent := &cobra.Command{Use: "dashboard", Aliases: []string{"dash", "d"}, Short: "Makes a proxy's or the control plane's pages reachable on this machine"}
	var address string
	var port int
	proxy := &cobra.Command{
		Use:     "proxy POD.NAMESPACE",
		Aliases: []string{"envoy"},
		Short:   "The administration pages of a proxy",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			namespace, pod, err := c.pod(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.serve(cmd, address, port, namespace, pod, 15000, "/")
		},
	}
	control := &cobra.Command{
		Use:   "istiod-debug",
		Short: "The debug pages of the control plane",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			pods, err := c.controlPlanes(cmd.Context(), a.target.istioNamespace)
			if err != nil {
				return err
			}
			return c.serve(cmd, address, port, pods[0].Namespace, pods[0].Name, 8080, "/debug")
		},
	}
	parent.PersistentFlags().StringVar(&address, "address", "127.0.0.1", "address of this machine to listen on")
	parent.PersistentFlags().IntVarP(&port, "port", "p", 0, "port of this machine to listen on (default a free one)")
	parent.PersistentFlags().Bool("browser", false, "accepted for istioctl's sake; the address is printed")
	parent.AddCommand(proxy, control)
	return parent
}

// serve forwards connections to a pod's port until the command is interrupted.
func (c *cluster) serve(cmd *cobra.Command, address string, port int, namespace, pod string, target int, path string) error {
	ctx := cmd.Context()
	l, err := net.Listen("tcp", net.JoinHostPort(address, fmt.Sprint(port)))
	if err != nil {
		return fmt.Errorf("listening: %w; choose another --port", err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	fmt.Fprintf(cmd.OutOrStdout(), "http://%s%s is port %d of pod %s/%s. Ctrl-C ends it.\n", l.Addr(), path, target, namespace, pod)
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		in, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("listening: %w", err)
		}
		wait.Go(func() {
			defer in.Close()
			out, err := c.forward(namespace, pod, target)
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "Note:", oneLine(c.wrong(err)))
				return
			}
			end := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
			defer end()
			wait.Go(func() { _, _ = io.Copy(out, in); _ = out.CloseWrite() })
			_, _ = io.Copy(in, out)
			in.Close()
			out.Close()
		})
	}
}
