package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// member is what mesh check knows of one cluster.
type member struct {
	*cluster
	cfg       *install.Config
	root      string // subject and fingerprint
	watched   map[string]clusterState
	addresses []string // of the east-west gateway
	exposed   bool     // a Gateway of mode AUTO_PASSTHROUGH is there
}

func (a *app) meshCheck() *cobra.Command {
	var contexts []string
	var p probe
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Checks that the clusters of a mesh fit together: roots, names, networks, secrets, gateways",
		Example: `  carrick mesh check --context=cluster1 --context=cluster2
  carrick mesh check --url http://helloworld.sample:5000/hello`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.requests < 1 || p.requests > 200 {
				return usagef("--requests %d: want 1 to 200", p.requests)
			}
			contexts, err := a.target.several(cmd, contexts, len(contexts) == 0)
			if err != nil {
				return err
			}
			var ms []*member
			var bad findings
			for _, name := range contexts {
				c, err := a.target.connectTo(name)
				if err != nil {
					return err
				}
				m, err := a.member(cmd.Context(), c)
				if err != nil {
					bad.add("%s", oneLine(err))
					continue
				}
				ms = append(ms, m)
			}
			bad = append(bad, compare(ms)...)
			for _, m := range ms {
				bad = append(bad, a.health(cmd.Context(), m)...)
			}
			if p.url != "" {
				found, err := p.run(cmd, a, ms)
				if err != nil {
					return err
				}
				bad = append(bad, found...)
			}
			return bad.print(cmd.OutOrStdout(), ms)
		},
	}
	cmd.Flags().StringArrayVar(&contexts, "context", nil, "context of the kubeconfig; repeat it for each cluster (default all)")
	cmd.Flags().StringVar(&p.url, "url", "", "send requests to this Service, which every cluster has, from each cluster, and count who answers")
	cmd.Flags().StringVar(&p.from, "from", "deploy/sleep.sample", "with --url: what to send from, in each cluster; it needs curl and a sidecar")
	cmd.Flags().IntVar(&p.requests, "requests", 20, "with --url: how many requests from each cluster")
	return cmd
}

// member asks one cluster.
func (a *app) member(ctx context.Context, c *cluster) (*member, error) {
	ns := a.target.istioNamespace
	cfg, err := installed(ctx, c, ns, a.version)
	if err != nil {
		return nil, err
	}
	m := &member{cluster: c, cfg: cfg, watched: map[string]clusterState{}}
	_, chain, err := clusterCA(ctx, c, ns)
	if err != nil {
		return nil, c.wrong(err)
	}
	root := chain[len(chain)-1]
	m.root = root.Subject.String() + " (SHA-256 " + ca.Fingerprint(root) + ")"
	_, answers, err := c.debug(ctx, ns, "/debug/clusterz")
	if err != nil {
		return nil, err
	}
	for _, b := range answers {
		var all []clusterState
		if err := json.Unmarshal(b, &all); err != nil {
			return nil, c.wrong(fmt.Errorf("the control plane's answer about clusters is not understood: %w", err))
		}
		for _, s := range all {
			m.watched[s.ID] = s
		}
	}
	svcs, err := c.Kube.CoreV1().Services(ns).List(ctx, metav1.ListOptions{LabelSelector: "topology.istio.io/network"})
	if err != nil {
		return nil, c.wrong(fmt.Errorf("listing gateways: %w", err))
	}
	for _, s := range svcs.Items {
		for _, in := range s.Status.LoadBalancer.Ingress {
			m.addresses = append(m.addresses, in.IP+in.Hostname)
		}
	}
	m.exposed, err = exposesServices(ctx, c)
	return m, err
}

// exposesServices reports whether a Gateway lets services be reached from other networks.
func exposesServices(ctx context.Context, c *cluster) (bool, error) {
	gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1alpha3", Resource: "gateways"}
	l, err := c.Dynamic.Resource(gvr).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, c.wrong(fmt.Errorf("listing Gateways: %w", err))
	}
	for _, g := range l.Items {
		b, err := json.Marshal(g.Object["spec"])
		if err == nil && strings.Contains(string(b), `"AUTO_PASSTHROUGH"`) {
			return true, nil
		}
	}
	return false, nil
}

// findings are what is wrong, each with its object and the fix.
type findings []string

func (f *findings) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

// compare cross-checks the clusters.
func compare(ms []*member) (bad findings) {
	networks := map[string]bool{}
	for _, m := range ms {
		networks[m.cfg.Network] = true
	}
	for i, m := range ms {
		for _, o := range ms[:i] {
			if m.cfg.Cluster == o.cfg.Cluster {
				bad.add("%s and %s are both called %s; install one again with another values.global.multiCluster.clusterName", o.context, m.context, m.cfg.Cluster)
			}
			if m.cfg.MeshID != o.cfg.MeshID {
				bad.add("%s is of mesh %q, %s of mesh %q; install one again with the same values.global.meshID", o.context, o.cfg.MeshID, m.context, m.cfg.MeshID)
			}
			if m.root != o.root {
				bad.add("%s has root %s, %s has root %s; give both intermediates of one root: carrick ca intermediate, carrick ca install --replace", o.context, o.root, m.context, m.root)
			}
		}
		for _, o := range ms {
			if o == m || m.cfg.Cluster == o.cfg.Cluster {
				continue
			}
			s, ok := m.watched[o.cfg.Cluster]
			switch {
			case !ok:
				bad.add("%s does not watch %s; carrick create-remote-secret --context=%[2]s --name=%s | kubectl apply --context=%[1]s -f -", m.context, o.context, o.cfg.Cluster)
			case s.SyncStatus != "synced":
				bad.add("%s watches %s, but is %s %s (Secret %s)", m.context, o.context, s.SyncStatus, s.Message, s.SecretName)
			}
		}
		if len(networks) < 2 {
			continue
		}
		if m.cfg.Network == "" {
			bad.add("%s has no network; kubectl --context=%[1]s label namespace %s topology.istio.io/network=NAME", m.context, m.cfg.Namespace)
		}
		if len(m.addresses) == 0 {
			bad.add("%s has no east-west gateway with an address; carrick eastwest --context=%[1]s --install, and see carrick lb status --context=%[1]s", m.context)
		}
		if !m.exposed {
			bad.add("%s exposes no services to other networks; kubectl --context=%[1]s apply -n %s -f samples/multicluster/expose-services.yaml", m.context, m.cfg.Namespace)
		}
	}
	return bad
}

func (f findings) print(out io.Writer, ms []*member) error {
	var rows [][]string
	for _, m := range ms {
		watched := make([]string, 0, len(m.watched))
		for id := range m.watched {
			if id != m.cfg.Cluster {
				watched = append(watched, id)
			}
		}
		slices.Sort(watched)
		rows = append(rows, []string{m.context, m.cfg.Cluster, m.cfg.MeshID, m.cfg.Network, strings.Join(m.addresses, ","), strings.Join(watched, ",")})
	}
	if err := table(out, "CONTEXT\tCLUSTER\tMESH\tNETWORK\tGATEWAY\tWATCHES", rows); err != nil {
		return err
	}
	for _, s := range f {
		fmt.Fprintln(out, "✘ "+s)
	}
	if len(f) > 0 {
		return silent{errors.New("the mesh does not fit together")}
	}
	fmt.Fprintf(out, "✔ %d clusters fit together: roots, names, networks, secrets, gateways.\n", len(ms))
	return nil
}
