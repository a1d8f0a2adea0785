package cli

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/ca"
	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/clientcmd"
)

// member is what mesh check knows of one cluster.
type member struct {
	*cluster
	cfg       *install.Config
	root      string // subject and fingerprint
	watched   map[string]clusterState
	label     string              // of the control plane's namespace: its network
	gateways  []string            // NAME of Services that are gateways to the network
	addresses []string            // of the east-west gateway
	exposed   bool                // a Gateway of mode AUTO_PASSTHROUGH is there
	seen      map[string][]string // by cluster, the gateways that the control plane sends to
	reader    string              // UID of the account that remote secrets are of
	secrets   map[string]token    // by cluster, the remote secrets here
	inert     []message           // objects without effect
}

func (a *app) meshCheck() *cobra.Command {
	var contexts []string
	var p probe
	var keep bool
	var output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Checks that the clusters of a mesh fit together: roots, names, networks, secrets, gateways, requests",
		Long: `Compares the clusters of a mesh: roots, names, networks, remote secrets, gateways, versions, certificates
that end; then sends requests between each pair of clusters and counts the answers. For the requests it makes
a namespace carrick-check-… in every cluster, with a pod that may do nothing but listen and connect, and
removes it again; --requests 0 leaves them out and changes nothing. Each finding names the object and what
to do about it; the exit code is 1 if there is one.`,
		Example: `  carrick mesh check --context=cluster1 --context=cluster2
  carrick mesh check --url http://helloworld.sample:5000/hello`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.requests < 0 || p.requests > 200 || p.requests == 0 && p.url != "" {
				return usagef("--requests %d: want 1 to 200, or without --url 0 for none", p.requests)
			}
			if err := checkOutput(output, "table", "json", "yaml", ""); err != nil {
				return err
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
				bad.addInert(m)
				bad = append(bad, a.health(cmd.Context(), m)...)
			}
			progress := cmd.OutOrStdout()
			if structured(output) {
				progress = cmd.ErrOrStderr()
			}
			switch {
			case p.url == "" && p.requests > 0 && len(ms) > 0:
				for _, m := range ms {
					if err := removeStale(cmd.Context(), m.cluster, time.Now()); err != nil {
						bad.add("%s", oneLine(err))
					}
				}
				requests := pairs{app: a, members: ms, requests: p.requests, timeout: timeout}
				bad = append(bad, requests.run(cmd.Context(), progress, keep)...)
			case p.url != "":
				found, err := p.run(cmd, a, ms)
				if err != nil {
					return err
				}
				bad = append(bad, found...)
			}
			return bad.print(cmd.OutOrStdout(), ms, output)
		},
	}
	cmd.Flags().StringArrayVar(&contexts, "context", nil, "context of the kubeconfig; repeat it for each cluster (default all)")
	cmd.Flags().StringVar(&p.url, "url", "", "send requests to this Service, which every cluster has, from each cluster, and count who answers")
	cmd.Flags().StringVar(&p.from, "from", "deploy/sleep.sample", "with --url: what to send from, in each cluster; it needs curl and a sidecar")
	cmd.Flags().IntVar(&p.requests, "requests", 10, "how many requests between each pair of clusters, or with --url from each cluster; 0: none")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the pods that the requests are sent by, to look at")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for the pods")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
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
		m.gateways = append(m.gateways, s.Name)
		for _, in := range s.Status.LoadBalancer.Ingress {
			m.addresses = append(m.addresses, in.IP+in.Hostname)
		}
	}
	if m.exposed, err = exposesServices(ctx, c); err != nil {
		return nil, err
	}
	if m.inert, err = c.withoutEffect(ctx, ns); err != nil {
		return nil, c.wrong(err)
	}
	return m, a.memberSecrets(ctx, m)
}

// memberSecrets reads what the clusters know of each other.
func (a *app) memberSecrets(ctx context.Context, m *member) error {
	ns := a.target.istioNamespace
	space, err := m.Kube.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
	if err != nil {
		return m.wrong(fmt.Errorf("reading namespace %s: %w", ns, err))
	}
	m.label = space.Labels["topology.istio.io/network"]
	reader, err := m.Kube.CoreV1().ServiceAccounts(ns).Get(ctx, install.ReaderServiceAccount, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return m.wrong(fmt.Errorf("reading service account %s: %w", install.ReaderServiceAccount, err))
	}
	if err == nil {
		m.reader = string(reader.UID)
	}
	l, err := m.Kube.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{LabelSelector: "istio/multiCluster=true"})
	if err != nil {
		return m.wrong(fmt.Errorf("listing remote secrets: %w", err))
	}
	m.secrets = map[string]token{}
	for _, s := range l.Items {
		for id, kubeconfig := range s.Data {
			m.secrets[id] = tokenOf(s.Name, kubeconfig)
		}
	}
	m.seen = map[string][]string{}
	_, answers, err := m.debug(ctx, ns, "/debug/networkz")
	if err != nil {
		return err
	}
	for _, b := range answers {
		var all []networkz
		if err := json.Unmarshal(b, &all); err != nil {
			return m.wrong(fmt.Errorf("the control plane's answer about networks is not understood: %w", err))
		}
		for _, n := range all {
			m.seen[n.Cluster] = append(m.seen[n.Cluster], n.Addr)
		}
	}
	return nil
}

// token is what the bearer token of a remote secret says of itself.
type token struct {
	secret  string
	account string    // UID of the service account that it is of; "" if it does not say
	ends    time.Time // zero: never
}

// tokenOf reads the token of a remote secret's kubeconfig. One that is no service account's says
// nothing, and is for the control plane to try.
func tokenOf(secret string, kubeconfig []byte) token {
	t := token{secret: secret}
	cfg, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return t
	}
	for _, u := range cfg.AuthInfos {
		parts := strings.Split(u.Token, ".")
		if len(parts) != 3 {
			continue
		}
		b, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			continue
		}
		var claims struct {
			Expires int64  `json:"exp"`
			Account string `json:"kubernetes.io/serviceaccount/service-account.uid"`
			Bound   struct {
				Account struct {
					UID string `json:"uid"`
				} `json:"serviceaccount"`
			} `json:"kubernetes.io"`
		}
		if json.Unmarshal(b, &claims) != nil {
			continue
		}
		t.account = cmp.Or(claims.Account, claims.Bound.Account.UID)
		if claims.Expires > 0 {
			t.ends = time.Unix(claims.Expires, 0)
		}
	}
	return t
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
				bad.add("%s watches %s, but is %s: %s (Secret %s)", m.context, o.context, s.SyncStatus, cmp.Or(s.Message, "see its log"), s.SecretName)
			case s.Message != "":
				bad.add("%s watches %s: %s (Secret %s)", m.context, o.context, s.Message, s.SecretName)
			}
			bad.addToken(m, o, time.Now())
			if len(networks) > 1 {
				bad.addGateways(m, o)
			}
		}
		if len(networks) < 2 {
			continue
		}
		bad.addNetwork(m)
		if len(m.gateways) == 0 {
			bad.add("%s has no east-west gateway (a Service with label topology.istio.io/network); carrick eastwest --context=%[1]s --install", m.context)
		} else if len(m.addresses) == 0 {
			bad.add("%s: its east-west gateway, Service %s/%s, has no address: is there a load balancer, and a pool with a free address? carrick lb status --context=%[1]s, or carrick lb install --context=%[1]s", m.context, m.cfg.Namespace, m.gateways[0])
		}
		if !m.exposed {
			bad.add("%s exposes no services to other networks; kubectl --context=%[1]s apply -n %s -f samples/multicluster/expose-services.yaml", m.context, m.cfg.Namespace)
		}
	}
	return bad
}

// addNetwork compares the network of the installation with that of the namespace's label, and the
// gateway's addresses with those that the other control planes send to.
func (f *findings) addNetwork(m *member) {
	fix := fmt.Sprintf("kubectl --context=%s label namespace %s topology.istio.io/network=%s --overwrite", m.context, m.cfg.Namespace, cmp.Or(m.cfg.Network, "NAME"))
	switch {
	case m.cfg.Network == "" && m.label == "":
		f.add("%s has no network; %s", m.context, fix)
	case m.label == "":
		f.add("%s: namespace %s has no label topology.istio.io/network, but the control plane was installed with network %s; %s", m.context, m.cfg.Namespace, m.cfg.Network, fix)
	case m.cfg.Network != "" && m.label != m.cfg.Network:
		f.add("%s: namespace %s has label topology.istio.io/network=%s, but the control plane was installed with network %s; %s", m.context, m.cfg.Namespace, m.label, m.cfg.Network, fix)
	}
}

// addInert names the objects that protect nothing, though they are there for that.
func (f *findings) addInert(m *member) {
	for _, x := range m.inert {
		if x.Level == "Error" {
			f.add("%s: %s", m.context, x)
		}
	}
}

// addToken finds what is wrong with the remote secret that m has for o.
func (f *findings) addToken(m, o *member, now time.Time) {
	t, ok := m.secrets[o.cfg.Cluster]
	fix := fmt.Sprintf("make it anew: carrick create-remote-secret --context=%s --name=%s | kubectl apply --context=%s -f -", o.context, o.cfg.Cluster, m.context)
	switch {
	case !ok: // said already
	case t.account != "" && o.reader != "" && t.account != o.reader:
		f.add("%s: the token in Secret %s is not of %s's account %s: that was made anew, or the secret is of another cluster; %s", m.context, t.secret, o.context, install.ReaderServiceAccount, fix)
	case !t.ends.IsZero() && now.After(t.ends):
		f.add("%s: the token in Secret %s has ended, on %s; %s", m.context, t.secret, t.ends.UTC().Format(time.RFC3339), fix)
	case !t.ends.IsZero() && t.ends.Sub(now) < 7*24*time.Hour:
		f.add("%s: the token in Secret %s ends on %s; %s", m.context, t.secret, t.ends.UTC().Format(time.RFC3339), fix)
	}
}

// addGateways finds gateways that a control plane sends to, though they are not the other's.
func (f *findings) addGateways(m, o *member) {
	for _, address := range m.seen[o.cfg.Cluster] {
		if len(o.addresses) > 0 && !slices.Contains(o.addresses, address) && net.ParseIP(address) != nil {
			f.add("%s sends to %s for %s, whose east-west gateway has the address %s; is its remote secret of another cluster? carrick remote-clusters --context=%[1]s", m.context, address, o.context, strings.Join(o.addresses, ","))
		}
	}
	if len(m.seen[o.cfg.Cluster]) == 0 && len(o.addresses) > 0 && m.watched[o.cfg.Cluster].SyncStatus == "synced" && m.cfg.Network != o.cfg.Network {
		f.add("%s knows no gateway of %s, which has one at %s; does Service istio-eastwestgateway have the label topology.istio.io/network=%s and a port 15443? carrick eastwest --context=%[2]s --install", m.context, o.context, strings.Join(o.addresses, ","), o.cfg.Network)
	}
}

// checked is what mesh check says, as JSON.
type checked struct {
	Clusters []checkedCluster `json:"clusters"`
	Findings []string         `json:"findings"`
}

type checkedCluster struct {
	Context string   `json:"context"`
	Cluster string   `json:"cluster"`
	Mesh    string   `json:"mesh"`
	Network string   `json:"network"`
	Root    string   `json:"root"`
	Gateway []string `json:"gateway"`
	Watches []string `json:"watches"`

	WithoutEffect []message `json:"withoutEffect,omitempty"` // users' objects
}

func (f findings) print(out io.Writer, ms []*member, output string) error {
	if structured(output) {
		v := checked{Clusters: []checkedCluster{}, Findings: append([]string{}, f...)}
		for _, m := range ms {
			v.Clusters = append(v.Clusters, checkedCluster{m.context, m.cfg.Cluster, m.cfg.MeshID, m.cfg.Network, m.root, m.addresses, slices.Sorted(maps.Keys(m.watched)), m.inert})
		}
		if err := printValue(out, v, output); err != nil {
			return err
		}
		if len(f) > 0 {
			return silent{errors.New("the mesh does not fit together")}
		}
		return nil
	}
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
	for _, m := range ms { // those of level Error are among the findings
		mild := slices.DeleteFunc(slices.Clone(m.inert), func(x message) bool { return x.Level == "Error" })
		for i := range mild {
			mild[i].Cluster = m.context
		}
		warnInert(out, mild)
	}
	if len(f) > 0 {
		return silent{errors.New("the mesh does not fit together")}
	}
	fmt.Fprintf(out, "✔ %d clusters fit together: roots, names, networks, secrets, gateways.\n", len(ms))
	return nil
}
