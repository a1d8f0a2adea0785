package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func (a *app) upgrade() *cobra.Command {
	var contexts []string
	var revision string
	var yes, dryRun, rollback bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Brings what is installed to this version, with the settings it was installed with",
		Long: `Brings the control plane and the gateways to this version, or with --rollback back to the one before.
Profile, files, --set arguments and hand edits of the mesh's configuration stay. Several clusters
(--context again and again) are upgraded one after another; the first that fails ends it.

The safer way is a second control plane beside the first: carrick install --revision NAME, then move
namespaces to it (carrick tag set), and remove the first: carrick uninstall --revision default.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(contexts) == 0 {
				contexts = []string{""}
			}
			var clusters []*cluster
			for _, name := range contexts { // all names are right before the first cluster is touched
				if name == "" && cmd.Flag("context").Changed {
					return usagef("--context is empty; give a context's name")
				}
				c, err := a.target.connectTo(name)
				if err != nil {
					return err
				}
				clusters = append(clusters, c)
			}
			for i, c := range clusters {
				err := a.upgradeCluster(cmd, c, revision, rollback, installOptions{yes: yes, dryRun: dryRun, timeout: timeout})
				if err != nil && i+1 < len(clusters) {
					fmt.Fprintf(cmd.ErrOrStderr(), "! Not begun: context %s\n", strings.Join(contexts[i+1:], ", "))
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&contexts, "context", nil, "context of the kubeconfig; repeat it for each cluster")
	cmd.Flags().StringVarP(&revision, "revision", "r", "", "the control plane of this revision, and its gateways; needed where there are several")
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would change, and change nothing")
	cmd.Flags().BoolVar(&rollback, "rollback", false, "go back to the version before")
	cmd.Flags().DurationVar(&timeout, "readiness-timeout", 5*time.Minute, "how long to wait until all is ready")
	return cmd
}

// upgradeCluster upgrades the installations of a cluster, the control plane first, for gateways get
// their proxies from it.
func (a *app) upgradeCluster(cmd *cobra.Command, c *cluster, revision string, rollback bool, o installOptions) error {
	states, err := a.toUpgrade(cmd.Context(), c, revision)
	if err != nil {
		return c.wrong(err)
	}
	versions := map[string]string{}
	for _, s := range states { // all may go before the first goes
		versions[s.Name] = a.version
		if rollback {
			versions[s.Name] = s.Previous
		} else if err := mayUpgrade(s.Version, a.version); err != nil {
			return c.wrong(fmt.Errorf("%s: %w", s.Name, err))
		}
	}
	found, err := c.withoutEffect(cmd.Context(), a.target.istioNamespace)
	if err != nil {
		return c.wrong(err)
	}
	warnInert(cmd.ErrOrStderr(), found)
	o.told = true
	for _, s := range states {
		to := versions[s.Name]
		if to == "" {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s has no version before %s.\n", c.context, s.Name, s.Version)
			continue
		}
		m, err := manifestOf(s, to, c.Nodes(cmd.Context()))
		if err != nil {
			return c.wrong(err)
		}
		if cfg, err := s.Config(to); err == nil { // the load balancer's is not an IstioOperator file
			warnUnused(cmd.ErrOrStderr(), cfg)
		}
		others, err := c.LeaveOthers(cmd.Context(), m)
		if err != nil {
			return c.wrong(err)
		}
		for _, r := range others {
			fmt.Fprintf(cmd.OutOrStdout(), "  note:     %s belongs to another installation by now and stays as it is\n", r)
		}
		for _, p := range pinned(m, to) {
			fmt.Fprintf(cmd.OutOrStdout(), "  note:     %s, as its file says, and stays so\n", p)
		}
		intro := fmt.Sprintf("This will bring %s from %s to %s in %s", s.Name, s.Version, to, c)
		if err := carryOut(cmd, c, m, intro, o); err != nil {
			return err
		}
	}
	if o.dryRun {
		return nil
	}
	if err := reportSidecars(cmd, c); err != nil {
		return err
	}
	warnCA(cmd.Context(), cmd.OutOrStdout(), c, a.target.istioNamespace)
	return nil
}

// pinned lists the programs of a manifest whose image a file ties to another version.
func pinned(m *install.Manifest, version string) (all []string) {
	for _, o := range m.Objects() {
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		for _, c := range containers {
			cm, _ := c.(map[string]any)
			if image, _ := cm["image"].(string); image != "" && image != "auto" && imageTag(image) != version {
				all = append(all, fmt.Sprintf("%s %s runs %s", o.GetKind(), o.GetName(), image))
			}
		}
	}
	return all
}

// toUpgrade returns the installations to upgrade in their order: all, or those of a revision.
func (a *app) toUpgrade(ctx context.Context, c *cluster, revision string) ([]*install.State, error) {
	states, err := c.States(ctx)
	if err != nil {
		return nil, err
	}
	if len(states) == 0 {
		return nil, errors.New("nothing of Carrick is installed; install it: carrick install (what Helm installed is upgraded by helm upgrade)")
	}
	revisions, err := c.Revisions(ctx)
	if err != nil {
		return nil, err
	}
	if revision == "" && len(revisions) > 1 {
		return nil, fmt.Errorf("there are control planes of several revisions, %s; say which one: --revision", strings.Join(revisions, ", "))
	}
	if revision != "" {
		if !slices.Contains(revisions, revision) {
			return nil, fmt.Errorf("no control plane of revision %s is installed; there are: %s", revision, strings.Join(revisions, ", "))
		}
		var errs []error
		states = slices.DeleteFunc(states, func(s *install.State) bool {
			if s.Name == install.LBName {
				return len(revisions) > 1 // of no revision
			}
			cfg, err := s.Config(a.version)
			errs = append(errs, err)
			return err == nil && cmp.Or(cfg.Revision, install.DefaultRevision) != revision
		})
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(states, func(x, y *install.State) int { return upgradeRank(x) - upgradeRank(y) })
	return states, nil
}

func upgradeRank(s *install.State) int {
	switch {
	case s.Name == install.LBName:
		return 2
	case install.IsControlPlane(s.Name):
		return 0
	}
	return 1
}

// manifestOf renders an installation again, with its own settings and another version, for so many nodes.
func manifestOf(s *install.State, version string, nodes int) (*install.Manifest, error) {
	if s.Name == install.LBName {
		l := lbFlags{sets: withTag(s.Sets, version)}
		lc, err := l.config(version)
		if err != nil {
			return nil, err
		}
		m, err := install.LoadBalancer(lc)
		if err != nil {
			return nil, err
		}
		m.Sets = s.Sets
		return m, nil
	}
	again := *s
	again.Sets = withTag(s.Sets, version)
	cfg, err := again.Config(version)
	if err != nil {
		return nil, err
	}
	cfg.OnNodes(nodes)
	return cfg.Render()
}

// withTag returns --set arguments that end with the tag. Without arguments for the tag the version
// is the default anyway, but a file may have named one.
func withTag(sets []string, version string) (out []string) {
	for _, s := range sets {
		if !strings.HasPrefix(s, "tag=") && !strings.HasPrefix(s, "values.global.tag=") {
			out = append(out, s)
		}
	}
	return append(out, "tag="+version)
}

// mayUpgrade refuses to go back, and to leave a minor version out.
func mayUpgrade(from, to string) error {
	a, okA := parseVersion(from)
	b, okB := parseVersion(to)
	if !okA || !okB {
		return nil // a build from source: whoever installs it knows
	}
	switch {
	case a[0] > b[0] || a[0] == b[0] && (a[1] > b[1] || a[1] == b[1] && a[2] > b[2]):
		return fmt.Errorf("version %s is installed, which is newer than %s; use its own carrick, or go back with: carrick upgrade --rollback", from, to)
	case a[0] == b[0] && b[1] > a[1]+1:
		var stops []string
		for m := a[1] + 1; m < b[1]; m++ {
			stops = append(stops, fmt.Sprintf("%d.%d", a[0], m))
		}
		return fmt.Errorf("version %s cannot go to %s at once; go by way of %s, with the carrick of each", from, to, strings.Join(stops, ", then "))
	case b[0] > a[0]:
		return fmt.Errorf("version %s cannot go to %s at once: a new major version has notes of its own", from, to)
	}
	return nil
}

// parseVersion reads MAJOR.MINOR.PATCH, with or without a v before and a -SUFFIX behind.
func parseVersion(s string) (v [3]int, ok bool) {
	s, _, _ = strings.Cut(strings.TrimPrefix(s, "v"), "-")
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return v, false
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

// reportSidecars lists the workloads whose pods still run another image than the injector gives.
func reportSidecars(cmd *cobra.Command, c *cluster) error {
	old, err := oldSidecars(cmd.Context(), c)
	if err != nil {
		return c.wrong(err)
	}
	out := cmd.OutOrStdout()
	if len(old) == 0 {
		return nil
	}
	fmt.Fprintf(out, "%d pods run the sidecar of another version, which goes on working. Replace them when it suits:\n", len(old))
	for i, p := range old {
		if i == 20 {
			fmt.Fprintf(out, "  and %d more\n", len(old)-i)
			break
		}
		fmt.Fprintf(out, "  %s\n", p)
	}
	fmt.Fprintf(out, "  kubectl --context=%s -n NAMESPACE rollout restart deployment\n", c.context)
	return nil
}

// oldSidecars returns the pods whose sidecar is of another version than the control plane of their
// revision, or of a revision that is gone.
func oldSidecars(ctx context.Context, c *cluster) (names []string, err error) {
	ds, err := c.Kube.AppsV1().Deployments(install.DefaultNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return nil, fmt.Errorf("listing the control planes: %w", err)
	}
	tags := map[string]string{} // by revision
	for _, d := range ds.Items {
		if cs := d.Spec.Template.Spec.Containers; len(cs) > 0 {
			tags[cmp.Or(d.Labels["istio.io/rev"], install.DefaultRevision)] = imageTag(cs[0].Image)
		}
	}
	pods, err := c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{LabelSelector: "security.istio.io/tlsMode=istio"})
	if err != nil {
		return nil, fmt.Errorf("listing pods with sidecars: %w", err)
	}
	for _, p := range pods.Items {
		tag := tags[cmp.Or(p.Annotations["istio.io/rev"], install.DefaultRevision)]
		for _, ct := range append(p.Spec.InitContainers, p.Spec.Containers...) {
			if ct.Name == "istio-proxy" && imageTag(ct.Image) != tag {
				names = append(names, fmt.Sprintf("%s/%s (%s)", p.Namespace, p.Name, imageTag(ct.Image)))
			}
		}
	}
	return names, nil
}

func imageTag(image string) string {
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return image[i+1:]
	}
	return "latest"
}
