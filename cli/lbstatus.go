package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/lb"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// lbView is what lb status says of a cluster.
type lbView struct {
	Pools    []lbPool    `json:"pools"`
	Speakers []lbSpeaker `json:"speakers"`
	Services []lbService `json:"services"`
}

type lbPool struct {
	Name       string   `json:"name"`
	Addresses  []string `json:"addresses"`
	AutoAssign bool     `json:"autoAssign"`
	Problem    string   `json:"problem,omitempty"` // why it gives out nothing
}

type lbSpeaker struct {
	Node  string `json:"node"`
	State string `json:"state"` // alive, or for how long it is silent
}

type lbService struct {
	Service   string   `json:"service"` // NAMESPACE/NAME
	Addresses []string `json:"addresses"`
	Event     string   `json:"lastEvent,omitempty"`
}

func (a *app) lbStatus() *cobra.Command {
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Shows pools, speakers, and the Services of type LoadBalancer with their addresses",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "table", "json", "yaml", ""); err != nil {
				return err
			}
			ask := func(c *cluster) (*lbView, error) {
				v := &lbView{Pools: []lbPool{}, Speakers: []lbSpeaker{}, Services: []lbService{}}
				for _, read := range []func(context.Context, *cluster) error{v.readPools, v.readSpeakers, v.readServices} {
					if err := read(cmd.Context(), c); err != nil {
						return nil, c.wrong(err)
					}
				}
				return v, nil
			}
			return survey(&a.target, cmd, all, output, ask, func(v *lbView) error { return v.print(cmd.OutOrStdout()) })
		},
	}
	cmd.Flags().BoolVar(&all, "all-contexts", false, "every cluster of the kubeconfig")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func (v *lbView) readPools(ctx context.Context, c *cluster) error {
	pools, err := c.Dynamic.Resource(lb.PoolResource).Namespace(install.LBNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing IPAddressPools: %w (is the load balancer installed? carrick lb install)", err)
	}
	problems := lb.Problems(pools.Items)
	for _, p := range pools.Items {
		addresses, _, _ := unstructured.NestedStringSlice(p.Object, "spec", "addresses")
		auto, given, _ := unstructured.NestedBool(p.Object, "spec", "autoAssign")
		pool := lbPool{Name: p.GetName(), Addresses: addresses, AutoAssign: auto || !given}
		if err := problems[pool.Name]; err != nil {
			pool.Problem = err.Error()
		}
		v.Pools = append(v.Pools, pool)
	}
	return nil
}

// readSpeakers lists the nodes that may answer, by the Leases that their speakers keep.
func (v *lbView) readSpeakers(ctx context.Context, c *cluster) error {
	leases, err := c.Kube.CoordinationV1().Leases(install.LBNamespace).List(ctx, metav1.ListOptions{LabelSelector: "carrick.dev/speaker"})
	if err != nil {
		return fmt.Errorf("listing the speakers' Leases: %w", err)
	}
	for _, l := range leases.Items {
		if l.Spec.HolderIdentity == nil || l.Spec.RenewTime == nil || l.Spec.LeaseDurationSeconds == nil {
			continue
		}
		age, state := time.Since(l.Spec.RenewTime.Time), "alive"
		if age > time.Duration(*l.Spec.LeaseDurationSeconds)*time.Second {
			state = "silent for " + age.Round(time.Second).String()
		}
		v.Speakers = append(v.Speakers, lbSpeaker{*l.Spec.HolderIdentity, state})
	}
	return nil
}

// readServices lists Services with their addresses, and what the load balancer last said of each.
func (v *lbView) readServices(ctx context.Context, c *cluster) error {
	svcs, err := c.Kube.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing Services: %w", err)
	}
	events, err := c.Kube.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Service"})
	if err != nil {
		return fmt.Errorf("listing Events: %w", err)
	}
	said := map[string]corev1.Event{}
	for _, e := range events.Items {
		key := e.InvolvedObject.Namespace + "/" + e.InvolvedObject.Name
		if old, ok := said[key]; !ok || e.LastTimestamp.After(old.LastTimestamp.Time) {
			said[key] = e
		}
	}
	for _, s := range svcs.Items {
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		addresses := []string{}
		for _, in := range s.Status.LoadBalancer.Ingress {
			addresses = append(addresses, in.IP+in.Hostname)
		}
		name := s.Namespace + "/" + s.Name
		v.Services = append(v.Services, lbService{name, addresses, said[name].Message})
	}
	return nil
}

func (v *lbView) print(out io.Writer) error {
	var pools, speakers, services [][]string
	for _, p := range v.Pools {
		state := "in use"
		if p.Problem != "" {
			state = "refused: " + p.Problem
		}
		pools = append(pools, []string{p.Name, strings.Join(p.Addresses, ","), fmt.Sprint(p.AutoAssign), state})
	}
	for _, s := range v.Speakers {
		speakers = append(speakers, []string{s.Node, s.State})
	}
	for _, s := range v.Services {
		address := strings.Join(s.Addresses, ",")
		if address == "" {
			address = "<pending>"
		}
		services = append(services, []string{s.Service, address, s.Event})
	}
	if err := table(out, "POOL\tADDRESSES\tAUTO ASSIGN\tSTATE", pools); err != nil {
		return err
	}
	if len(pools) == 0 {
		fmt.Fprintf(out, "No address can be given: apply an IPAddressPool and an L2Advertisement in namespace %s.\n", install.LBNamespace)
	}
	fmt.Fprintln(out)
	if err := table(out, "SPEAKER\tSTATE", speakers); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return table(out, "SERVICE\tADDRESS\tLAST EVENT", services)
}
