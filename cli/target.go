package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	_ "k8s.io/client-go/plugin/pkg/client/auth/exec" // users' kubeconfigs may get tokens by a command
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// targetFlags picks a cluster, as kubectl's and istioctl's flags do.
type targetFlags struct {
	kubeconfig     string
	context        string
	namespace      string
	istioNamespace string
	flags          *pflag.FlagSet
}

func (t *targetFlags) add(fs *pflag.FlagSet) {
	t.flags = fs
	fs.StringVarP(&t.kubeconfig, "kubeconfig", "c", "", "kubeconfig file (default $KUBECONFIG, then ~/.kube/config)")
	fs.StringVar(&t.context, "context", "", "context of the kubeconfig (default the current one)")
	fs.StringVarP(&t.namespace, "namespace", "n", "", "namespace of pods that are named without one")
	fs.StringVarP(&t.istioNamespace, "istioNamespace", "i", install.DefaultNamespace, "namespace of the control plane")
}

// cluster is an API server that a command talks to.
type cluster struct {
	install.Cluster
	config    *rest.Config
	context   string
	server    string
	entry     *api.Cluster // of the kubeconfig
	namespace string       // for pods that are named without one
}

// String names the cluster for people.
func (c *cluster) String() string { return fmt.Sprintf("context %s, server %s", c.context, c.server) }

// connect returns the cluster that the flags pick; it sends nothing yet. An explicitly empty
// --context is an error: it is most often an unset variable, and the current context is then
// seldom what was meant.
func (t *targetFlags) connect(cmd *cobra.Command) (*cluster, error) {
	if f := cmd.Flag("context"); f != nil && f.Changed && t.context == "" {
		names, _ := t.contexts()
		return nil, emptyContext(names)
	}
	return t.connectTo(t.context)
}

func emptyContext(have []string) error {
	return usagef("--context is empty; give one of: %s", strings.Join(have, ", "))
}

func (t *targetFlags) connectTo(name string) (*cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = t.kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: name})
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	current := name
	if current == "" {
		current = raw.CurrentContext
	}
	if len(raw.Contexts) > 0 && raw.Contexts[current] == nil {
		names, _ := t.contexts()
		if current == "" {
			return nil, usagef("the kubeconfig has no current context; give --context, one of: %s", strings.Join(names, ", "))
		}
		return nil, usagef("context %q is not in the kubeconfig; it has: %s", current, strings.Join(names, ", "))
	}
	cfg, err := loader.ClientConfig()
	if err != nil {
		if clientcmd.IsEmptyConfig(err) {
			return nil, errNoCluster
		}
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	cfg.QPS, cfg.Burst = 100, 200
	cfg.UserAgent = "carrick"
	cfg.WarningHandler = rest.NoWarnings{}
	cfg.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	c := &cluster{config: cfg, context: current, server: cfg.Host, entry: &api.Cluster{}, namespace: t.namespace}
	if x := raw.Contexts[current]; x != nil && raw.Clusters[x.Cluster] != nil {
		c.entry = raw.Clusters[x.Cluster]
	}
	if c.namespace == "" {
		if c.namespace, _, err = loader.Namespace(); err != nil {
			return nil, fmt.Errorf("reading the kubeconfig: %w", err)
		}
	}
	calls := rest.CopyConfig(cfg) // streams, which have none of it, are made from cfg
	calls.Timeout = callTimeout
	if c.Kube, err = kubernetes.NewForConfig(calls); err != nil {
		return nil, fmt.Errorf("context %s: %w", current, err)
	}
	if c.Dynamic, err = dynamic.NewForConfig(calls); err != nil {
		return nil, fmt.Errorf("context %s: %w", current, err)
	}
	return c, nil
}

// contexts returns the names of the kubeconfig's contexts.
func (t *targetFlags) contexts() ([]string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = t.kubeconfig
	raw, err := rules.Load()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	var names []string
	for n := range raw.Contexts {
		names = append(names, n)
	}
	sort.Strings(names)
	return names, nil
}

// each calls f with the cluster that the flags pick, or with every cluster of the kubeconfig, each
// under a line that names it, unless the output is JSON or YAML; one that fails does not keep the
// others from their turn.
func (t *targetFlags) each(cmd *cobra.Command, all bool, f func(*cluster) error) error {
	if !all {
		c, err := t.connect(cmd)
		if err != nil {
			return err
		}
		return f(c)
	}
	names, err := t.everyContext(cmd)
	if err != nil {
		return err
	}
	var errs []error
	output := cmd.Flag("output")
	headed := output == nil || !structured(output.Value.String())
	for i, name := range names {
		if i > 0 && headed {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		c, err := t.connectTo(name)
		if err == nil {
			if headed {
				fmt.Fprintf(cmd.OutOrStdout(), "%s\n", c)
			}
			err = f(c)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// pod finds a running pod by NAME, NAME.NAMESPACE, or KIND/NAME[.NAMESPACE] of a workload or Service.
func (c *cluster) pod(ctx context.Context, arg string) (namespace, name string, err error) {
	kind, rest, typed := strings.Cut(arg, "/")
	if !typed {
		kind, rest = "pod", arg
	}
	name, namespace = rest, c.namespace
	if i := strings.LastIndexByte(rest, '.'); i > 0 {
		name, namespace = rest[:i], rest[i+1:]
	}
	if name == "" || namespace == "" {
		return "", "", usagef("%q is not a pod: give POD.NAMESPACE, POD -n NAMESPACE, or deploy/NAME.NAMESPACE", arg)
	}
	var sel string
	switch kind {
	case "pod", "pods", "po":
		if _, err := c.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return "", "", c.wrong(fmt.Errorf("pod %s of namespace %s: %w", name, namespace, err))
		}
		return namespace, name, nil
	default:
		if sel, err = c.selector(ctx, kind, namespace, name); err != nil {
			return "", "", err
		}
	}
	pods, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: sel, FieldSelector: "status.phase=Running"})
	if err != nil {
		return "", "", c.wrong(fmt.Errorf("the pods of %s: %w", arg, err))
	}
	pods.Items = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(pods.Items) == 0 {
		return "", "", c.wrong(fmt.Errorf("%s has no running pod", arg))
	}
	return namespace, pods.Items[0].Name, nil
}

func (c *cluster) selector(ctx context.Context, kind, namespace, name string) (string, error) {
	var sel *metav1.LabelSelector
	var err error
	switch kind {
	case "deploy", "deployment", "deployments", "deployment.apps":
		d, e := c.Kube.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err = e; e == nil {
			sel = d.Spec.Selector
		}
	case "ds", "daemonset", "daemonsets":
		d, e := c.Kube.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err = e; e == nil {
			sel = d.Spec.Selector
		}
	case "sts", "statefulset", "statefulsets":
		d, e := c.Kube.AppsV1().StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err = e; e == nil {
			sel = d.Spec.Selector
		}
	case "svc", "service", "services":
		s, e := c.Kube.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
		if err = e; e == nil {
			sel = &metav1.LabelSelector{MatchLabels: s.Spec.Selector}
		}
	default:
		return "", usagef("%s/%s: kind %q is not one of pod, deploy, ds, sts, svc", kind, name, kind)
	}
	if err != nil {
		return "", c.wrong(fmt.Errorf("%s %s of namespace %s: %w", kind, name, namespace, err))
	}
	return metav1.FormatLabelSelector(sel), nil
}

// controlPlanes returns the running pods of the control plane.
func (c *cluster) controlPlanes(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	pods, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod", FieldSelector: "status.phase=Running"})
	if err != nil {
		return nil, c.wrong(fmt.Errorf("looking for the control plane: %w", err))
	}
	pods.Items = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if len(pods.Items) == 0 {
		return nil, c.wrong(fmt.Errorf("no control plane (pod with label app=istiod) runs in namespace %s; install one: carrick install --context=%s", namespace, c.context))
	}
	return pods.Items, nil
}

// debug asks every control plane for a path of its debug server. The answers are by pod name.
func (c *cluster) debug(ctx context.Context, namespace, path string) (names []string, answers [][]byte, err error) {
	pods, err := c.controlPlanes(ctx, namespace)
	if err != nil {
		return nil, nil, err
	}
	sort.Slice(pods, func(i, j int) bool { return pods[i].Name < pods[j].Name })
	var errs []error
	for _, p := range pods {
		b, err := c.fetch(ctx, p.Namespace, p.Name, 8080, path)
		if err != nil {
			errs = append(errs, c.wrong(fmt.Errorf("asking %s for %s: %w", p.Name, path, err)))
			continue
		}
		names, answers = append(names, p.Name), append(answers, b)
	}
	if len(answers) == 0 {
		return nil, nil, errors.Join(errs...)
	}
	return names, answers, nil
}

// readFile reads a file, or standard input for "-", within the bound that files have.
func readFile(cmd *cobra.Command, path string, limit int64) ([]byte, error) {
	var r io.Reader
	if path == "-" {
		r = cmd.InOrStdin()
	} else {
		f, err := openFile(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	var b bytes.Buffer
	if n, err := io.Copy(&b, io.LimitReader(r, limit+1)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	} else if n > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b.Bytes(), nil
}
