package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// meshFile describes a whole mesh: the file of mesh apply.
type meshFile struct {
	APIVersion string        `json:"apiVersion"` // carrick.dev/v1alpha1
	Kind       string        `json:"kind"`       // Mesh
	MeshID     string        `json:"meshID"`
	Profile    string        `json:"profile"` // of the control planes; default "default"
	Set        []string      `json:"set"`     // PATH=VALUE for all installations, as of install --set
	Root       meshRoot      `json:"root"`
	Expose     *bool         `json:"exposeServices"` // default true
	Clusters   []meshCluster `json:"clusters"`
}

// meshRoot is where the CA's files are; what is missing is made.
type meshRoot struct {
	Dir string `json:"dir"` // relative to the mesh file; default "certs"
	Key string `json:"key"` // rsa4096 (default), rsa2048, p256
}

type meshCluster struct {
	Name    string   `json:"name"`
	Context string   `json:"context"` // default: the name
	Network string   `json:"network"`
	Pools   []string `json:"pools"`  // FROM-TO or CIDR; installs Carrick's load balancer
	Server  string   `json:"server"` // API server as the other clusters reach it; default as of create-remote-secret
	Set     []string `json:"set"`    // more PATH=VALUE for this cluster alone
}

const meshExample = `apiVersion: carrick.dev/v1alpha1
kind: Mesh
meshID: mesh1
root: {dir: certs}
clusters:
- {name: cluster1, network: network1, pools: [10.10.50.75-10.10.50.90]}
- {name: cluster2, network: network2, pools: [10.29.8.75-10.29.8.90]}`

func (a *app) meshApply() *cobra.Command {
	var file string
	var o installOptions
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Makes a mesh of several clusters from one file: CA, load balancers, control planes, gateways, secrets",
		Long: `Makes a mesh of several clusters from one file, and changes one that is there to what the file says. It
shows what it will do and asks; what is as it should be is left alone, so a repeat is harmless. Context is
the cluster's name unless it is given. Without pools, LoadBalancer Services are left to what the cluster has.
The file:

` + meshExample,
		Example: "  carrick mesh apply -f mesh.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f := cmd.Flag("context"); f != nil && f.Changed {
				if a.target.context == "" {
					return emptyContext(nil)
				}
				return usagef("--context is not for mesh apply: the file names the context of each cluster")
			}
			if file == "" {
				return usagef("-f FILE is missing; the file looks like this: see carrick mesh apply --help")
			}
			if err := o.accept.check(); err != nil {
				return err
			}
			if !o.yes && !o.dryRun {
				if err := canAsk(cmd, file == "-"); err != nil {
					return err
				}
			}
			b, err := readFile(cmd, file, install.MaxFile)
			if err != nil {
				return err
			}
			f, err := parseMesh(b)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if file != "-" && !filepath.IsAbs(f.Root.Dir) {
				f.Root.Dir = filepath.Join(filepath.Dir(file), f.Root.Dir)
			}
			return a.applyMesh(cmd, f, o)
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "the mesh file; - is standard input")
	o.accept.add(cmd)
	cmd.Flags().BoolVarP(&o.yes, "skip-confirmation", "y", false, "do not ask")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print the plan, and change nothing")
	cmd.Flags().DurationVar(&o.timeout, "readiness-timeout", 5*time.Minute, "how long to wait for each part to be ready")
	return cmd
}

var clusterName = regexp.MustCompile(`^[a-zA-Z0-9]([-._a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$`)

// parseMesh reads a mesh file, fills in defaults, and says by field what is wrong.
func parseMesh(b []byte) (*meshFile, error) {
	f := &meshFile{}
	if err := yaml.UnmarshalStrict(b, f); err != nil {
		return nil, fmt.Errorf("is no mesh file: %s", oneLine(err))
	}
	if f.Kind != "" && f.Kind != "Mesh" || f.APIVersion != "" && f.APIVersion != "carrick.dev/v1alpha1" {
		return nil, fmt.Errorf("is %s of %s; want kind Mesh of carrick.dev/v1alpha1", f.Kind, f.APIVersion)
	}
	if f.MeshID == "" {
		return nil, fmt.Errorf("meshID is missing; name the mesh, such as mesh1")
	}
	if len(f.Clusters) == 0 {
		return nil, fmt.Errorf("clusters is empty; list them with name and network")
	}
	if f.Profile == "" {
		f.Profile = "default"
	}
	if !slices.Contains(install.Profiles, f.Profile) {
		return nil, fmt.Errorf("profile %q is not one of %s", f.Profile, strings.Join(install.Profiles, ", "))
	}
	if f.Root.Dir == "" {
		f.Root.Dir = "certs"
	}
	if f.Root.Key == "" {
		f.Root.Key = "rsa4096"
	}
	if _, err := keyFlag(f.Root.Key); err != nil {
		return nil, fmt.Errorf("root.key %q is not rsa4096, rsa2048 or p256", f.Root.Key)
	}
	seen := map[string]string{}
	for i := range f.Clusters {
		c := &f.Clusters[i]
		at := fmt.Sprintf("clusters[%d]", i)
		if c.Context == "" {
			c.Context = c.Name
		}
		switch {
		case c.Name == "":
			return nil, fmt.Errorf("%s.name is missing", at)
		case !clusterName.MatchString(c.Name):
			return nil, fmt.Errorf("%s.name %q: want letters, digits, -, _ and .", at, c.Name)
		case c.Network == "":
			return nil, fmt.Errorf("%s.network is missing; clusters whose pods reach each other have one network, others one each", at)
		case seen["name "+c.Name] != "":
			return nil, fmt.Errorf("%s.name %s is that of %s, too", at, c.Name, seen["name "+c.Name])
		case seen["context "+c.Context] != "":
			return nil, fmt.Errorf("%s.context %s is that of %s, too", at, c.Context, seen["context "+c.Context])
		}
		seen["name "+c.Name], seen["context "+c.Context] = at, at
	}
	return f, nil
}

// operator is the IstioOperator file of a cluster's control plane, as the guide writes it.
func (f *meshFile) operator(c meshCluster) map[string]any {
	return map[string]any{
		"apiVersion": "install.istio.io/v1alpha1",
		"kind":       "IstioOperator",
		"spec": map[string]any{
			"profile": f.Profile,
			"values": map[string]any{"global": map[string]any{
				"meshID":       f.MeshID,
				"multiCluster": map[string]any{"clusterName": c.Name},
				"network":      c.Network,
			}},
		},
	}
}

// networks counts the file's networks: with one, no gateway stands between clusters.
func (f *meshFile) networks() int {
	var all []string
	for _, c := range f.Clusters {
		all = append(all, c.Network)
	}
	slices.Sort(all)
	return len(slices.Compact(all))
}

// step is one thing that mesh apply does, and finds done or not.
type step struct {
	cluster string
	what    string
	state   string // what there is to do; "" if it is as it should be
	do      func(ctx context.Context) error
}

// applyMesh looks, shows, asks, and does what is to be done, in an order in which each step needs
// only what is before it.
func (a *app) applyMesh(cmd *cobra.Command, f *meshFile, o installOptions) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	m := &meshMaker{app: a, cmd: cmd, file: f, timeout: o.timeout, clusters: map[string]*cluster{}}
	for _, c := range f.Clusters {
		k, err := a.target.connectTo(c.Context)
		if err != nil {
			return err
		}
		if err := checkVersion(k); err != nil {
			return err
		}
		m.clusters[c.Name] = k
	}
	steps, err := m.plan(ctx)
	if err != nil {
		return err
	}
	open := printSteps(out, f, m.clusters, steps)
	if open == 0 {
		fmt.Fprintf(out, "✔ Mesh %s is as the file says. Next: carrick mesh check %s\n", f.MeshID, contextFlags(f))
		m.warnCAs(ctx)
		return nil
	}
	for _, c := range f.Clusters {
		if err := checkProtection(cmd, m.clusters[c.Name], m.namespace(), false, o.accept); err != nil {
			return err
		}
	}
	if o.dryRun {
		return nil
	}
	if !o.yes {
		if err := ask(cmd); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if s.state == "" {
			continue
		}
		if err := s.do(ctx); err != nil {
			if k := m.clusters[s.cluster]; k != nil {
				err = k.wrong(err)
			}
			return fmt.Errorf("%s, %s: %w; what was done before stays: mend this, then run the same command again", s.cluster, s.what, err)
		}
		fmt.Fprintf(out, "✔ %s: %s\n", s.cluster, s.what)
	}
	fmt.Fprintf(out, "✔ Mesh %s is there. Next: carrick mesh check %s\n", f.MeshID, contextFlags(f))
	m.warnCAs(ctx)
	return nil
}

func (m *meshMaker) warnCAs(ctx context.Context) {
	for _, c := range m.file.Clusters {
		warnCA(ctx, m.cmd.OutOrStdout(), m.clusters[c.Name], m.namespace())
	}
}

func contextFlags(f *meshFile) string {
	var out []string
	for _, c := range f.Clusters {
		out = append(out, "--context="+c.Context)
	}
	return strings.Join(out, " ")
}

// printSteps shows the plan and returns how many steps are open.
func printSteps(out io.Writer, f *meshFile, clusters map[string]*cluster, steps []step) (open int) {
	fmt.Fprintf(out, "Mesh %s of %d clusters:\n", f.MeshID, len(f.Clusters))
	for _, c := range f.Clusters {
		fmt.Fprintf(out, "  %s: network %s, %s\n", c.Name, c.Network, clusters[c.Name])
	}
	var rows [][]string
	for _, s := range steps {
		state := s.state
		if state == "" {
			state = "as it should be"
		} else {
			open++
		}
		rows = append(rows, []string{s.cluster, s.what, state})
	}
	if err := table(out, "CLUSTER\tSTEP\tWHAT IS TO DO", rows); err != nil {
		fmt.Fprintln(out, err)
	}
	return open
}

// holds reports whether a spec has all that another says; the API server may have filled in more.
func holds(have, want any) bool {
	h, _ := have.(map[string]any)
	w, _ := want.(map[string]any)
	for k, v := range w {
		x, err1 := json.Marshal(h[k])
		y, err2 := json.Marshal(v)
		if err1 != nil || err2 != nil || string(x) != string(y) {
			return false
		}
	}
	return true
}
