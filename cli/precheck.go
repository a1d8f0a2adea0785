package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	authv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The minor versions of Kubernetes 1 that this build supports: the oldest whose APIs suffice, and
// the newest that it was tested with, the lab's. The table in the READMEs says the same.
const (
	oldestMinor = 22
	newestMinor = 37
)

func (a *app) precheck() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "precheck",
		Short: "Says which Kubernetes this build supports, and whether a cluster can take it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if err := table(out, "CARRICK\tKUBERNETES", [][]string{{series(a.version), fmt.Sprintf("1.%d to 1.%d", oldestMinor, newestMinor)}}); err != nil {
				return err
			}
			names := []string{""}
			if all {
				var err error
				if names, err = a.target.contexts(); err != nil {
					return err
				}
			}
			bad := 0
			for _, name := range names {
				c, err := a.target.connectTo(name)
				if !all {
					c, err = a.target.connect(cmd)
				}
				if err != nil {
					if !all && !cmd.Flag("context").Changed && !cmd.Flag("kubeconfig").Changed && strings.Contains(err.Error(), "no cluster is configured") {
						return nil // the range is all that can be said offline
					}
					return err
				}
				bad += checkCluster(cmd.Context(), out.Write, c, a.target.istioNamespace)
			}
			if bad > 0 {
				return silent{errors.New("precheck failed")}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all-contexts", false, "check every cluster of the kubeconfig")
	return cmd
}

// series is MAJOR.MINOR of a release, whose patches support what it does; of a build of other kind its
// whole name.
func series(version string) string {
	if v, ok := parseVersion(version); ok {
		return fmt.Sprintf("%d.%d", v[0], v[1])
	}
	return version
}

// checkCluster prints a verdict on each point and returns how many stand in the way.
func checkCluster(ctx context.Context, write func([]byte) (int, error), c *cluster, namespace string) (bad int) {
	say := func(ok bool, format string, args ...any) {
		mark := "✔"
		if !ok {
			mark = "✘"
			bad++
		}
		_, _ = write([]byte(mark + " " + fmt.Sprintf(format, args...) + "\n"))
	}
	_, _ = write([]byte("\n" + c.String() + "\n"))
	v, err := c.Kube.Discovery().ServerVersion()
	if err != nil {
		what, fix := remedy(err)
		what = strings.ToUpper(what[:1]) + what[1:]
		say(false, "%s; %s.", what, cmp.Or(fix, "check the kubeconfig's server, and the network to it"))
		return bad
	}
	minor := minorOf(v.Minor)
	switch {
	case v.Major != "1" || minor < oldestMinor:
		say(false, "Kubernetes %s is too old. Upgrade it to 1.%d or newer.", v.GitVersion, oldestMinor)
	case minor > newestMinor:
		say(true, "Kubernetes %s is newer than 1.%d, the newest that this build was tested with. It should work; a newer Carrick may know it.", v.GitVersion, newestMinor)
	default:
		say(true, "Kubernetes %s is supported.", v.GitVersion)
	}
	checkPermissions(ctx, c, say)
	checkCRDs(ctx, c, say)
	checkOthers(ctx, c, namespace, say)
	found, err := c.withoutEffect(ctx, namespace)
	if err != nil {
		say(false, "Objects without effect cannot be found: %s", oneLine(err))
	}
	for _, m := range found {
		if m.Level == "Error" {
			say(false, "%s", m)
		} else {
			_, _ = write([]byte("! " + m.String() + "\n"))
		}
	}
	return bad
}

func minorOf(s string) int {
	n, _ := strconv.Atoi(regexp.MustCompile(`^[0-9]+`).FindString(s))
	return n
}

// checkVersion refuses a cluster that is too old, before anything is written.
func checkVersion(c *cluster) error {
	v, err := c.Kube.Discovery().ServerVersion()
	if err != nil {
		return c.wrong(err)
	}
	if minor := minorOf(v.Minor); v.Major != "1" || minor < oldestMinor {
		return c.wrong(fmt.Errorf("kubernetes %s is too old; this build supports 1.%d to 1.%d", v.GitVersion, oldestMinor, newestMinor))
	}
	return nil
}

func checkPermissions(ctx context.Context, c *cluster, say func(bool, string, ...any)) {
	var missing []string
	for _, p := range []struct{ group, resource, namespace string }{
		{"", "namespaces", ""},
		{"apiextensions.k8s.io", "customresourcedefinitions", ""},
		{"rbac.authorization.k8s.io", "clusterroles", ""},
		{"rbac.authorization.k8s.io", "clusterrolebindings", ""},
		{"admissionregistration.k8s.io", "mutatingwebhookconfigurations", ""},
		{"", "serviceaccounts", install.DefaultNamespace},
		{"", "configmaps", install.DefaultNamespace},
		{"", "services", install.DefaultNamespace},
		{"apps", "deployments", install.DefaultNamespace},
		{"policy", "poddisruptionbudgets", install.DefaultNamespace},
	} {
		r, err := c.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authv1.SelfSubjectAccessReview{
			Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authv1.ResourceAttributes{
				Namespace: p.namespace, Verb: "create", Group: p.group, Resource: p.resource,
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			say(false, "What this user may do cannot be found out: %s", oneLine(err))
			return
		}
		if !r.Status.Allowed {
			missing = append(missing, p.resource)
		}
	}
	if len(missing) > 0 {
		say(false, "This user may not create %s. Use one that may, such as a cluster-admin.", strings.Join(missing, ", "))
		return
	}
	say(true, "This user may install.")
}

func checkCRDs(ctx context.Context, c *cluster, say func(bool, string, ...any)) {
	gvr := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	l, err := c.Dynamic.Resource(gvr).List(ctx, metav1.ListOptions{})
	if err != nil {
		say(false, "CRDs cannot be listed: %s", oneLine(err))
		return
	}
	own, others := 0, []string{}
	for _, crd := range l.Items {
		if !strings.HasSuffix(crd.GetName(), ".istio.io") {
			continue
		}
		if crd.GetLabels()[install.ManagedBy] == "carrick" {
			own++
		} else {
			others = append(others, crd.GetName())
		}
	}
	switch {
	case len(others) > 0:
		say(true, "%d CRDs of Istio are there, made by others (%s, …). They are used as they are.", len(others), others[0])
	case own > 0:
		say(true, "%d CRDs of Carrick are there and will be brought up to date.", own)
	default:
		say(true, "No CRDs of Istio are there; install brings them.")
	}
}

func checkOthers(ctx context.Context, c *cluster, namespace string, say func(bool, string, ...any)) {
	d, err := c.Kube.AppsV1().Deployments(namespace).Get(ctx, "istiod", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		say(true, "No control plane runs in namespace %s.", namespace)
	case err != nil:
		say(false, "Namespace %s cannot be read: %s", namespace, oneLine(err))
	case d.Labels[install.ManagedBy] == "carrick":
		say(true, "Carrick's control plane runs in namespace %s; install will change it.", namespace)
	default:
		image := "unknown image"
		if cs := d.Spec.Template.Spec.Containers; len(cs) > 0 {
			image = cs[0].Image
		}
		say(false, "Deployment %s/istiod (%s) is another control plane's. Remove it first, or take it over with install --adopt.", namespace, image)
	}
}
