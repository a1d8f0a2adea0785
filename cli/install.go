package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
)

func (a *app) install() *cobra.Command {
	var o operatorFlags
	var accept acceptance
	var yes, dryRun, adopt, force, verify bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:     "install",
		Aliases: []string{"apply"},
		Short:   "Installs or changes a control plane or gateways",
		Long: `Installs the control plane and gateways that an IstioOperator file or a profile describes, or changes
what is installed to it: what an earlier run of the same file name wrote and this one does not hold is removed.`,
		Example: `  carrick install --set profile=demo
  carrick install --context=cluster1 -f cluster1.yaml
  gen-eastwest-gateway.sh --network network1 | carrick install --context=cluster1 -y -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := accept.check(); err != nil {
				return err
			}
			cfg, err := o.resolve(cmd, a.version)
			if err != nil {
				return err
			}
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			if adopt {
				taken, err := c.TakenOver(cmd.Context(), cfg.Namespace, cfg.Revision)
				if err != nil {
					return c.wrong(err)
				}
				if cfg, err = cfg.Over(taken); err != nil {
					return err
				}
			}
			stdinUsed := false
			for _, f := range o.files {
				stdinUsed = stdinUsed || f == "-"
			}
			return runInstall(cmd, c, cfg, installOptions{
				yes: yes, dryRun: dryRun, adopt: adopt, accept: accept, timeout: timeout, stdinUsed: stdinUsed})
		},
	}
	o.add(cmd)
	accept.add(cmd)
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would change, and change nothing")
	cmd.Flags().BoolVar(&adopt, "adopt", false, "take over the Istio that is installed: its names of cluster, mesh and network, its mesh configuration, CA, remote secrets and addresses stay, its sidecars are served until they restart")
	cmd.Flags().BoolVar(&force, "force", false, "accepted for istioctl's sake; mistakes in files stay errors")
	cmd.Flags().BoolVar(&verify, "verify", false, "accepted for istioctl's sake; install always waits until all is ready")
	cmd.Flags().DurationVar(&timeout, "readiness-timeout", 5*time.Minute, "how long to wait until all is ready")
	return cmd
}

type installOptions struct {
	yes, dryRun, adopt, stdinUsed bool
	accept                        acceptance
	told                          bool // of objects without effect, which are not named again
	timeout                       time.Duration
}

func runInstall(cmd *cobra.Command, c *cluster, cfg *install.Config, o installOptions) error {
	cfg.OnNodes(c.Nodes(cmd.Context()))
	m, err := cfg.Render()
	if err != nil {
		return err
	}
	what := strings.Join(cfg.Components(), ", ")
	if what == "" {
		what = "nothing"
	}
	intro := fmt.Sprintf("This will install Carrick %s profile %q (components: %s) into %s", m.Version, cfg.Profile, what, c)
	if err := carryOut(cmd, c, m, intro, o); err != nil || o.dryRun {
		return err
	}
	warnCA(cmd.Context(), cmd.OutOrStdout(), c, cfg.Namespace)
	return nil
}

// carryOut plans, shows, asks and applies.
func carryOut(cmd *cobra.Command, c *cluster, m *install.Manifest, intro string, o installOptions) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	if !o.yes && !o.dryRun {
		if err := canAsk(cmd, o.stdinUsed); err != nil {
			return err
		}
	}
	if err := checkVersion(c); err != nil {
		return err
	}
	p, err := c.Plan(ctx, m, o.adopt)
	if err != nil {
		return c.wrong(err)
	}
	switch {
	case o.dryRun:
		fmt.Fprintln(out, intro+", if it were not a dry run.")
	case o.yes:
		fmt.Fprintf(out, "Target cluster: %s\n", c)
	default:
		fmt.Fprintln(out, intro+".")
	}
	printPlan(out, p, o.dryRun)
	if serves(m) && !o.told {
		if err := checkProtection(cmd, c, m.Namespace, o.adopt, o.accept); err != nil {
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
	rep, flush := reporter(out)
	err = c.Apply(ctx, p, o.timeout, rep)
	flush()
	if err != nil {
		return c.wrong(err)
	}
	return nil
}

// printPlan shows what an install that was here before will change; all shows a new one, too.
func printPlan(w io.Writer, p *install.Plan, all bool) {
	if p.Before != nil && (len(p.Created)+len(p.Changed)+len(p.Removed) > 0 || all) {
		if v := p.Before.Version; v != p.Manifest.Version {
			fmt.Fprintf(w, "  version:  %s becomes %s\n", v, p.Manifest.Version)
		}
		fmt.Fprintf(w, "  kept:     %d objects\n", len(p.Kept))
	}
	if p.Before != nil || all {
		for _, r := range p.Created {
			fmt.Fprintf(w, "  new:      %s\n", r)
		}
	}
	for _, ch := range p.Changed {
		fields := ch.Fields
		more := ""
		if len(fields) > 6 {
			more = fmt.Sprintf(", and %d more", len(fields)-6)
			fields = fields[:6]
		}
		fmt.Fprintf(w, "  changed:  %s: %s%s\n", ch.Ref, strings.Join(fields, ", "), more)
	}
	for _, r := range p.Adopted {
		fmt.Fprintf(w, "  adopted:  %s\n", r)
	}
	for _, ch := range p.Dropped {
		fmt.Fprintf(w, "  dropped:  %s: %s\n", ch.Ref, strings.Join(ch.Fields, ", "))
	}
	for _, r := range slices.Concat(p.Removed, p.Leftover) {
		fmt.Fprintf(w, "  removed:  %s\n", r)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "  note:     %s\n", n)
	}
}

// canAsk refuses to go on without -y where nobody can be asked.
func canAsk(cmd *cobra.Command, stdinUsed bool) error {
	if stdinUsed {
		return usagef("the file comes from standard input, so there is nobody to ask; give -y to go ahead")
	}
	in := cmd.InOrStdin()
	if !terminal(in) {
		if _, scripted := in.(interface{ Answers() }); !scripted {
			return usagef("there is no terminal to ask on; give -y to go ahead without asking")
		}
	}
	return nil
}

// ask returns nil on y or yes.
func ask(cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	fmt.Fprint(out, "Proceed? (y/N) ")
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil && line == "" {
		fmt.Fprintln(out)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	fmt.Fprintln(out, "Cancelled.")
	return silent{errors.New("cancelled")}
}

// reporter prints progress: on a terminal one line that is overwritten, else each new line once.
// flush ends an unfinished line.
func reporter(w io.Writer) (rep install.Reporter, flush func()) {
	tty, last := terminal(w), ""
	green, reset := "", ""
	if tty {
		green, reset = "\033[32m", "\033[0m"
	}
	wipe := func() {
		if tty && last != "" {
			fmt.Fprint(w, "\r\033[K")
		}
		last = ""
	}
	rep.Progress = func(line string) {
		if line == last {
			return
		}
		if tty {
			width := 200
			if len(line) > width {
				line = line[:width]
			}
			fmt.Fprintf(w, "\r\033[K- %s", line)
		} else {
			fmt.Fprintf(w, "- %s\n", line)
		}
		last = line
	}
	rep.Done = func(line string) {
		wipe()
		fmt.Fprintf(w, "%s✔%s %s\n", green, reset, line)
	}
	return rep, wipe
}

func (a *app) manifest() *cobra.Command {
	parent := &cobra.Command{Use: "manifest", Short: "Prints what install would apply"}
	var o operatorFlags
	gen := &cobra.Command{
		Use:   "generate",
		Short: "Prints the Kubernetes objects of an installation, for kubectl apply -f -",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.resolve(cmd, a.version)
			if err != nil {
				return err
			}
			m, err := cfg.Render()
			if err != nil {
				return err
			}
			return printManifest(cmd, m)
		},
	}
	o.add(gen)
	parent.AddCommand(gen, a.manifestChart())
	return parent
}

func (a *app) manifestChart() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "chart",
		Short: "Writes Helm charts of the same objects: base, istiod and gateway, with the value names of Istio's",
		Long: `Writes the Helm charts base, istiod and gateway. They hold the objects that install applies, and take the
values of Istio's charts. Namespace and network label are the user's to make:

  carrick manifest chart -o charts
  kubectl create namespace istio-system
  kubectl label namespace istio-system topology.istio.io/network=network1
  helm install -n istio-system istio-base charts/base
  helm install -n istio-system istiod charts/istiod --set global.network=network1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usagef("-o DIR is missing: where to write the charts")
			}
			files, err := install.Charts(a.version)
			if err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(files)) {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return err
				}
				if err := writeFile(path, files[name], 0o644); err != nil {
					return err
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "✔ Charts base, istiod and gateway of version %s are in %s\n", a.version, dir)
			return nil
		},
	}
	cmd.Flags().StringVarP(&dir, "output", "o", "", "folder to write to")
	return cmd
}

// printManifest prints the objects as YAML that kubectl apply takes.
func printManifest(cmd *cobra.Command, m *install.Manifest) error {
	y, err := m.YAML()
	if err != nil {
		return err
	}
	_, err = cmd.OutOrStdout().Write(y)
	return err
}

func (a *app) uninstall() *cobra.Command {
	var yes, purge, verify, peers bool
	var revision string
	var timeout time.Duration
	var files []string
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Removes the control plane and gateways; --purge also the CRDs and what the control plane made",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			rm := install.Removal{Purge: purge}
			if revision != "" {
				if err := knownRevision(cmd.Context(), c, revision); err != nil && !verify {
					return err
				}
				rm.Installs = append(rm.Installs, install.ControlPlaneName(revision))
			}
			for _, f := range files {
				b, err := readFile(cmd, f, install.MaxFile)
				if err != nil {
					return err
				}
				docs, err := install.Parse(f, b)
				if err != nil {
					return err
				}
				cfg, err := install.Resolve(docs, nil, a.version)
				if err != nil {
					return err
				}
				rm.Installs = append(rm.Installs, cfg.Name)
			}
			if verify {
				return verifyGone(cmd, c, rm)
			}
			if revision == "" {
				if err := a.peerSecrets(cmd, c, peers, yes); err != nil {
					return err
				}
			}
			return runUninstall(cmd, c, rm, revision, yes, timeout)
		},
	}
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove all installations, the CRDs with all their objects, and the self-signed CA")
	cmd.Flags().BoolVar(&peers, "peers", false, "remove this cluster's remote secret from the other clusters of the kubeconfig")
	cmd.Flags().BoolVar(&verify, "verify", false, "remove nothing: list what is left, exit code 1 if anything is")
	cmd.Flags().StringVarP(&revision, "revision", "r", "", "only the control plane of this revision")
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "only the installation of this IstioOperator file")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Minute, "how long to wait for the end of what is removed")
	return cmd
}

func runUninstall(cmd *cobra.Command, c *cluster, rm install.Removal, revision string, yes bool, timeout time.Duration) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	if !yes {
		if err := canAsk(cmd, false); err != nil {
			return err
		}
	}
	refs, err := c.Left(ctx, rm)
	if err != nil {
		return c.wrong(err)
	}
	fmt.Fprintf(out, "Target cluster: %s\n", c)
	if len(refs) == 0 {
		fmt.Fprintln(out, "Nothing of Carrick is installed there.")
		return nil
	}
	count := map[string]int{}
	for _, r := range refs {
		count[r.Kind]++
		if r.Kind != "CustomResourceDefinition" {
			fmt.Fprintf(out, "  removed:  %s\n", r)
		}
	}
	if n := count["CustomResourceDefinition"]; n > 0 {
		fmt.Fprintf(out, "  removed:  %d CustomResourceDefinitions, with all objects of their kinds\n", n)
	}
	if err := warnUninstall(ctx, out, c, revision); err != nil {
		return err
	}
	if !yes {
		if err := ask(cmd); err != nil {
			return err
		}
	}
	rep, flush := reporter(out)
	err = c.Uninstall(ctx, refs, timeout, rep)
	flush()
	if err != nil {
		return c.wrong(err)
	}
	fmt.Fprintf(out, "Namespace %s and what others put there stay (kubectl delete namespace %[1]s), as do the load balancer and its pools (carrick lb uninstall).\n", install.DefaultNamespace)
	return nil
}

// knownRevision returns an error that lists the revisions if there is none of that name.
func knownRevision(ctx context.Context, c *cluster, revision string) error {
	all, err := c.Revisions(ctx)
	if err != nil {
		return c.wrong(err)
	}
	if len(all) > 0 && !slices.Contains(all, revision) {
		return c.wrong(fmt.Errorf("no control plane of revision %s is installed; there are: %s", revision, strings.Join(all, ", ")))
	}
	return nil
}

// warnUninstall lists the pods that hold a sidecar, of all revisions or of one: they keep running,
// without a control plane.
func warnUninstall(ctx context.Context, out io.Writer, c *cluster, revision string) error {
	pods, err := podsWithProxy(ctx, c, revision)
	if err != nil {
		return c.wrong(err)
	}
	if len(pods) == 0 {
		return nil
	}
	fmt.Fprintf(out, "  note:     %d pods still hold a sidecar, which runs on without a control plane until they are restarted:\n", len(pods))
	for i, p := range pods {
		if i == 10 {
			fmt.Fprintf(out, "              and %d more\n", len(pods)-i)
			break
		}
		fmt.Fprintf(out, "              %s\n", p)
	}
	return nil
}

func verifyGone(cmd *cobra.Command, c *cluster, rm install.Removal) error {
	rm.Purge = true
	refs, err := c.Left(cmd.Context(), rm)
	if err != nil {
		return c.wrong(err)
	}
	out := cmd.OutOrStdout()
	if len(refs) == 0 {
		fmt.Fprintf(out, "✔ Nothing of Carrick is left in %s\n", c)
		return nil
	}
	for _, r := range refs {
		fmt.Fprintf(out, "left: %s\n", r)
	}
	return c.wrong(fmt.Errorf("%d objects of Carrick are left; remove them: carrick uninstall --purge", len(refs)))
}
