package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (a *app) explain() *cobra.Command {
	var file string
	var offline bool
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Explains access-log lines: what each field says, and whose each address is",
		Long: `Reads access-log lines of sidecars and gateways and says of each field what it is, and of each address
which pod, Service or gateway has it. Addresses are looked up in the cluster of --context: take the one
that the line is from, for clusters may have equal pod addresses.`,
		Example: `  kubectl --context=cluster1 -n sample logs deploy/sleep -c istio-proxy | tail -1 | carrick explain --context=cluster1`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			at := &atlas{names: map[string]string{}}
			if !offline {
				c, err := a.target.connect(cmd)
				if err != nil {
					return fmt.Errorf("%w; or explain without names of addresses: --offline", err)
				}
				if err := at.read(cmd.Context(), c, a.target.istioNamespace); err != nil {
					return c.wrong(err)
				}
			}
			in := cmd.InOrStdin()
			if file != "" && file != "-" {
				f, err := openFile(file)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			lines := bufio.NewScanner(in)
			lines.Buffer(nil, 1<<20)
			n := 0
			for lines.Scan() {
				if strings.TrimSpace(lines.Text()) == "" {
					continue
				}
				l, err := diagnose.ParseLine(lines.Text())
				if err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "Note: a line is not explained: it %s\n", err)
					continue
				}
				if n++; n > 1 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				var rows [][]string
				for _, f := range l.Explain(at.place) {
					rows = append(rows, []string{f.Field, f.Value, f.Meaning})
				}
				if err := table(cmd.OutOrStdout(), "FIELD\tVALUE\tMEANING", rows); err != nil {
					return err
				}
			}
			if err := lines.Err(); err != nil {
				return fmt.Errorf("reading the log: %w", err)
			}
			if n == 0 {
				return fmt.Errorf("no access-log line came; is the access log on (meshConfig accessLogFile: /dev/stdout), and is it the log of container istio-proxy?")
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "file with log lines (default standard input)")
	cmd.Flags().BoolVar(&offline, "offline", false, "do not look addresses up")
	return cmd
}

// atlas says what addresses are.
type atlas struct {
	names map[string]string // by IP, or IP:PORT where only that is told
}

func (a *atlas) place(address string) string {
	if n := a.names[address]; n != "" {
		return n
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return a.names[host]
}

// read fills the atlas from a cluster. What the control plane knows of gateways of other networks
// comes first, then pods, which may not have the addresses of anything else.
func (a *atlas) read(ctx context.Context, c *cluster, namespace string) error {
	nodes, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing Nodes: %w", err)
	}
	for _, n := range nodes.Items {
		for _, ad := range n.Status.Addresses {
			if ad.Type != corev1.NodeHostName {
				a.names[ad.Address] = "node " + n.Name
			}
		}
	}
	svcs, err := c.Kube.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing Services: %w", err)
	}
	for _, s := range svcs.Items {
		for _, ip := range s.Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone {
				a.names[ip] = "Service " + s.Namespace + "/" + s.Name
			}
		}
		for _, in := range s.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				a.names[in.IP] = "load balancer of Service " + s.Namespace + "/" + s.Name
			}
		}
	}
	pods, err := c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing Pods: %w", err)
	}
	for _, p := range pods.Items {
		if p.Spec.HostNetwork || p.Status.Phase != corev1.PodRunning {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			a.names[ip.IP] = "pod " + p.Namespace + "/" + p.Name
		}
	}
	_, answers, err := c.debug(ctx, namespace, "/debug/networkz")
	if err != nil {
		return nil // without a control plane, the rest can still be named
	}
	for _, b := range answers {
		var all []networkz
		if err := json.Unmarshal(b, &all); err != nil {
			return fmt.Errorf("the control plane's answer about networks is not understood: %w", err)
		}
		for _, n := range all {
			if ad := n.hostPort(); a.names[ad] == "" {
				a.names[ad] = fmt.Sprintf("gateway of %s, network %s", n.Cluster, n.Network)
			}
		}
	}
	return nil
}
