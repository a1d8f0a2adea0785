package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// proxyView is how the proxy-config verbs get at a proxy, and print.
type proxyView struct {
	app    *app
	file   string
	output string
	args   []string
	all    bool     // every cluster of the kubeconfig that has the pod
	at     *cluster // the one that is asked now
}

func (a *app) proxyConfig() *cobra.Command {
	parent := &cobra.Command{
		Use:     "proxy-config",
		Aliases: []string{"pc"},
		Short:   "Shows the configuration that a proxy runs on",
		Long: `Shows the configuration that a proxy runs on. The proxy is POD.NAMESPACE, POD -n NAMESPACE or
deploy/NAME.NAMESPACE, or a config dump in a file (--file, - is standard input).`,
	}
	parent.AddCommand(a.pcCluster(), a.pcListener(), a.pcRoute(), a.pcEndpoint(), a.pcSecret(), a.pcBootstrap(), a.pcLog(), a.pcAll())
	return parent
}

// command makes a verb of proxy-config; run gets at the proxy through the view.
func (a *app) pcCommand(use, short string, aliases []string, run func(cmd *cobra.Command, v *proxyView) error) *cobra.Command {
	v := &proxyView{app: a}
	cmd := &cobra.Command{
		Use:     use + " [POD.NAMESPACE]",
		Aliases: aliases,
		Short:   short,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (v.file == "") {
				return usagef("give a proxy (POD.NAMESPACE) or a file (--file), one of them")
			}
			if err := checkOutput(v.output, "", "table", "short", "wide", "json", "yaml"); err != nil {
				return err
			}
			v.args = args
			switch {
			case v.file != "":
				return run(cmd, v)
			case v.all && structured(v.output):
				return usagef("--all-contexts goes with -o short and wide: for %s ask one cluster after the other", v.output)
			}
			return a.target.each(cmd, v.all, func(c *cluster) error {
				v.at = c
				return run(cmd, v)
			})
		},
	}
	cmd.Flags().StringVarP(&v.file, "file", "f", "", "config dump to read instead of asking a proxy")
	cmd.Flags().StringVarP(&v.output, "output", "o", "short", "short, wide, json or yaml")
	cmd.Flags().BoolVar(&v.all, "all-contexts", false, "ask the proxy of this name in every cluster of the kubeconfig")
	cmd.Flags().Int("proxy-admin-port", 15000, "port of the proxy's admin server")
	return cmd
}

// get asks the proxy's admin server for a path.
func (v *proxyView) get(cmd *cobra.Command, path string) (*cluster, []byte, error) {
	if v.file != "" {
		b, err := readFile(cmd, v.file, maxAnswer)
		return nil, b, err
	}
	return v.call(cmd, http.MethodGet, path)
}

// call asks the admin server of the proxy that the view is of.
func (v *proxyView) call(cmd *cobra.Command, method, path string) (*cluster, []byte, error) {
	c := v.at
	namespace, pod, err := c.pod(cmd.Context(), v.args[0])
	if err != nil {
		return nil, nil, err
	}
	port, err := cmd.Flags().GetInt("proxy-admin-port")
	if err != nil {
		return nil, nil, err
	}
	b, err := c.call(cmd.Context(), method, namespace, pod, port, path)
	if err != nil {
		return nil, nil, c.wrong(fmt.Errorf("asking the proxy of %s/%s (has it one?): %w", namespace, pod, err))
	}
	return c, b, nil
}

func (v *proxyView) dump(cmd *cobra.Command) (*cluster, *diagnose.Dump, error) {
	c, b, err := v.get(cmd, "config_dump")
	if err != nil {
		return nil, nil, err
	}
	d, err := diagnose.ParseDump(b)
	return c, d, err
}

// body prints resources as JSON or YAML; false if a table is wanted.
func (v *proxyView) body(cmd *cobra.Command, bodies any) (bool, error) {
	if !structured(v.output) {
		return false, nil
	}
	if list, ok := bodies.([]any); ok {
		for _, x := range list {
			if m, ok := x.(map[string]any); ok {
				delete(m, "@type") // what it is, the verb says
			}
		}
	}
	b, err := json.MarshalIndent(diagnose.Camel(bodies), "", "    ")
	if err == nil && v.output == "yaml" {
		b, err = yaml.JSONToYAML(b)
	}
	if err != nil {
		return true, fmt.Errorf("encoding the answer: %w", err)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(string(b)))
	return true, err
}

func (v *proxyView) wide() bool { return v.output == "wide" }

func portFlag(want int, have string) bool { return want == 0 || fmt.Sprint(want) == have }

func (a *app) pcCluster() *cobra.Command {
	var fqdn, direction, subset string
	var port int
	cmd := a.pcCommand("cluster", "Lists the clusters", []string{"clusters", "c"}, func(cmd *cobra.Command, v *proxyView) error {
		_, d, err := v.dump(cmd)
		if err != nil {
			return err
		}
		bodies := []any{}
		var rows [][]string
		for _, r := range d.ClusterRows() {
			if fqdn != "" && !strings.Contains(r.FQDN, fqdn) || !portFlag(port, r.Port) || subset != "" && r.Subset != subset || direction != "" && r.Direction != direction {
				continue
			}
			bodies = append(bodies, r.Body)
			rows = append(rows, []string{r.FQDN, r.Port, r.Subset, r.Direction, r.Type, r.Rule})
		}
		if done, err := v.body(cmd, bodies); done {
			return err
		}
		return table(cmd.OutOrStdout(), "SERVICE FQDN\tPORT\tSUBSET\tDIRECTION\tTYPE\tDESTINATION RULE", rows)
	})
	cmd.Flags().StringVar(&fqdn, "fqdn", "", "only clusters whose service name contains this")
	cmd.Flags().StringVar(&direction, "direction", "", "only inbound or outbound")
	cmd.Flags().StringVar(&subset, "subset", "", "only this subset")
	cmd.Flags().IntVar(&port, "port", 0, "only this port")
	return cmd
}

func (a *app) pcListener() *cobra.Command {
	var address, kind string
	var port int
	var verbose bool
	cmd := a.pcCommand("listener", "Lists the listeners and their filter chains", []string{"listeners", "l"}, func(cmd *cobra.Command, v *proxyView) error {
		_, d, err := v.dump(cmd)
		if err != nil {
			return err
		}
		bodies := []any{}
		var rows [][]string
		last := ""
		for _, r := range d.ListenerRows() {
			if address != "" && r.Address != address || !portFlag(port, r.Port) || kind != "" && !strings.EqualFold(kind, r.Type) {
				continue
			}
			if key := r.Name + r.Address + r.Port; key != last {
				bodies, last = append(bodies, r.Body), key
			}
			rows = append(rows, []string{r.Address, r.Port, r.Match, r.Destination})
		}
		if done, err := v.body(cmd, bodies); done {
			return err
		}
		return table(cmd.OutOrStdout(), "ADDRESS\tPORT\tMATCH\tDESTINATION", rows)
	})
	cmd.Flags().StringVar(&address, "address", "", "only this address")
	cmd.Flags().StringVar(&kind, "type", "", "only HTTP or TCP")
	cmd.Flags().IntVar(&port, "port", 0, "only this port")
	cmd.Flags().BoolVar(&verbose, "verbose", true, "accepted for istioctl's sake")
	return cmd
}

func (a *app) pcRoute() *cobra.Command {
	var name string
	var verbose bool
	cmd := a.pcCommand("route", "Lists the routes", []string{"routes", "r"}, func(cmd *cobra.Command, v *proxyView) error {
		_, d, err := v.dump(cmd)
		if err != nil {
			return err
		}
		if v.output == "json" || v.output == "yaml" {
			bodies := []any{}
			for _, rc := range d.Routes {
				if m, ok := rc.(map[string]any); ok && (name == "" || m["name"] == name) {
					bodies = append(bodies, rc)
				}
			}
			_, err := v.body(cmd, bodies)
			return err
		}
		header := "NAME\tDOMAINS\tMATCH\tVIRTUAL SERVICE"
		if v.wide() {
			header = "NAME\tVHOST NAME\tDOMAINS\tMATCH\tVIRTUAL SERVICE"
		}
		var rows [][]string
		for _, r := range d.RouteRows() {
			if name != "" && r.Name != name {
				continue
			}
			row := []string{r.Name, r.Domains, r.Match, r.VirtualService}
			if v.wide() {
				row = slices.Insert(row, 1, r.VirtualHost)
			}
			rows = append(rows, row)
		}
		return table(cmd.OutOrStdout(), header, rows)
	})
	cmd.Flags().StringVar(&name, "name", "", "only the route configuration of this name")
	cmd.Flags().BoolVar(&verbose, "verbose", true, "accepted for istioctl's sake")
	return cmd
}

func (a *app) pcEndpoint() *cobra.Command {
	var address, name, status string
	var port int
	cmd := a.pcCommand("endpoint", "Lists the endpoints and their health", []string{"endpoints", "ep"}, func(cmd *cobra.Command, v *proxyView) error {
		c, b, err := v.get(cmd, "clusters?format=json")
		if err != nil {
			return err
		}
		all, err := diagnose.ParseEndpoints(b)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(r diagnose.EndpointRow) bool {
			return address != "" && r.Address != address || name != "" && r.Cluster != name || !portFlag(port, r.Port) || status != "" && !strings.EqualFold(status, r.Status)
		})
		bodies := []any{}
		for _, r := range all {
			bodies = append(bodies, r.Body)
		}
		if done, err := v.body(cmd, bodies); done {
			return err
		}
		var o *origins
		if v.wide() && c != nil {
			if o, err = v.origins(cmd, c); err != nil {
				return err
			}
		}
		var rows [][]string
		for _, r := range all {
			row := []string{r.HostPort(), r.Status, r.Outlier, r.Cluster}
			if o != nil {
				mc, network, via := o.of(r)
				row = append(row, mc, network, via, r.Weight)
			}
			rows = append(rows, row)
		}
		header := "ENDPOINT\tSTATUS\tOUTLIER CHECK\tCLUSTER"
		if o != nil {
			header += "\tMESH CLUSTER\tNETWORK\tVIA\tWEIGHT"
		}
		return table(cmd.OutOrStdout(), header, rows)
	})
	cmd.Flags().StringVar(&address, "address", "", "only this address")
	cmd.Flags().StringVar(&name, "cluster", "", "only this cluster, by Envoy's name: outbound|5000||helloworld.sample.svc.cluster.local")
	cmd.Flags().StringVar(&status, "status", "", "only this status: healthy, unhealthy, …")
	cmd.Flags().IntVar(&port, "port", 0, "only this port")
	return cmd
}

// origins says where endpoints are: in which cluster and network, and behind which gateway.
type origins struct {
	clusters map[string]string // by cluster name and address, from the proxy
	gateways map[string]gatewayOf
	own      string
}

type gatewayOf struct{ Network, Cluster string }

// networkz is one gateway in the control plane's /debug/networkz.
type networkz struct {
	Network string `json:"network"`
	Cluster string `json:"cluster"`
	Addr    string `json:"addr"`
	Port    any    `json:"port"`
}

func (n networkz) hostPort() string { return net.JoinHostPort(n.Addr, fmt.Sprint(n.Port)) }

func (v *proxyView) origins(cmd *cobra.Command, c *cluster) (*origins, error) {
	o := &origins{gateways: map[string]gatewayOf{}}
	_, b, err := v.get(cmd, "config_dump?include_eds")
	if err != nil {
		return nil, err
	}
	d, err := diagnose.ParseDump(b)
	if err != nil {
		return nil, err
	}
	o.clusters = d.Origins()
	if m, ok := d.Bootstrap.(map[string]any); ok {
		node, _ := m["node"].(map[string]any)
		meta, _ := node["metadata"].(map[string]any)
		o.own, _ = meta["NETWORK"].(string)
	}
	return o, o.askNetworks(cmd.Context(), c, v.app.target.istioNamespace)
}

func (o *origins) askNetworks(ctx context.Context, c *cluster, namespace string) error {
	_, answers, err := c.debug(ctx, namespace, "/debug/networkz")
	if err != nil {
		return err
	}
	for _, b := range answers {
		var all []networkz
		if err := json.Unmarshal(b, &all); err != nil {
			return fmt.Errorf("the control plane's answer about networks is not understood: %w", err)
		}
		for _, n := range all {
			o.gateways[n.hostPort()] = gatewayOf{n.Network, n.Cluster}
		}
	}
	return nil
}

// of returns the mesh cluster, the network, and the gateway that stands between, each "-" if unknown
// or none.
func (o *origins) of(r diagnose.EndpointRow) (cluster, network, via string) {
	cluster, network, via = o.clusters[r.Cluster+" "+r.HostPort()], o.own, "-"
	if g, ok := o.gateways[r.HostPort()]; ok && strings.HasPrefix(r.Cluster, "outbound") {
		network, via = g.Network, "gateway"
		if g.Cluster != "" {
			cluster = g.Cluster
		}
	}
	if !strings.HasPrefix(r.Cluster, "outbound") {
		network = ""
	}
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	return dash(cluster), dash(network), via
}

func (a *app) pcSecret() *cobra.Command {
	return a.pcCommand("secret", "Lists the certificates", []string{"secrets", "s"}, func(cmd *cobra.Command, v *proxyView) error {
		_, d, err := v.dump(cmd)
		if err != nil {
			return err
		}
		bodies := []any{}
		var rows [][]string
		for _, r := range d.SecretRows(time.Now()) {
			bodies = append(bodies, r.Body)
			row := []string{r.Name, r.Type, r.Status, r.Valid, r.Serial, r.NotAfter, r.NotBefore}
			if v.wide() {
				row = append(row, r.TrustDomain)
			}
			rows = append(rows, row)
		}
		if done, err := v.body(cmd, bodies); done {
			return err
		}
		header := "RESOURCE NAME\tTYPE\tSTATUS\tVALID CERT\tSERIAL NUMBER\tNOT AFTER\tNOT BEFORE"
		if v.wide() {
			header += "\tTRUST DOMAIN"
		}
		return table(cmd.OutOrStdout(), header, rows)
	})
}

func (a *app) pcBootstrap() *cobra.Command {
	return a.pcCommand("bootstrap", "Shows what the proxy started with", []string{"b"}, func(cmd *cobra.Command, v *proxyView) error {
		_, d, err := v.dump(cmd)
		if err != nil {
			return err
		}
		if d.Bootstrap == nil {
			return fmt.Errorf("the config dump has no bootstrap")
		}
		if v.output != "yaml" {
			v.output = "json"
		}
		_, err = v.body(cmd, map[string]any{"bootstrap": d.Bootstrap})
		return err
	})
}

func (a *app) pcAll() *cobra.Command {
	return a.pcCommand("all", "Shows clusters, listeners, routes, secrets; as JSON the whole dump", []string{"a"}, func(cmd *cobra.Command, v *proxyView) error {
		_, b, err := v.get(cmd, "config_dump?include_eds")
		if err != nil {
			return err
		}
		if v.output == "json" || v.output == "yaml" {
			if v.output == "yaml" {
				if b, err = yaml.JSONToYAML(b); err != nil {
					return err
				}
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		}
		d, err := diagnose.ParseDump(b)
		if err != nil {
			return err
		}
		return printAll(cmd, d)
	})
}

func printAll(cmd *cobra.Command, d *diagnose.Dump) error {
	out := cmd.OutOrStdout()
	var c, l, r, s [][]string
	for _, x := range d.ClusterRows() {
		c = append(c, []string{x.FQDN, x.Port, x.Subset, x.Direction, x.Type, x.Rule})
	}
	for _, x := range d.ListenerRows() {
		l = append(l, []string{x.Address, x.Port, x.Match, x.Destination})
	}
	for _, x := range d.RouteRows() {
		r = append(r, []string{x.Name, x.Domains, x.Match, x.VirtualService})
	}
	for _, x := range d.SecretRows(time.Now()) {
		s = append(s, []string{x.Name, x.Type, x.Status, x.Valid, x.Serial, x.NotAfter, x.NotBefore})
	}
	for i, t := range []struct {
		header string
		rows   [][]string
	}{
		{"SERVICE FQDN\tPORT\tSUBSET\tDIRECTION\tTYPE\tDESTINATION RULE", c},
		{"ADDRESS\tPORT\tMATCH\tDESTINATION", l},
		{"NAME\tDOMAINS\tMATCH\tVIRTUAL SERVICE", r},
		{"RESOURCE NAME\tTYPE\tSTATUS\tVALID CERT\tSERIAL NUMBER\tNOT AFTER\tNOT BEFORE", s},
	} {
		if i > 0 {
			fmt.Fprintln(out)
		}
		if err := table(out, t.header, t.rows); err != nil {
			return err
		}
	}
	return nil
}
