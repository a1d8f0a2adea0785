package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// injectorSuffix ends the names of all webhooks that add sidecars.
const injectorSuffix = "sidecar-injector.istio.io"

// verdict is what the webhooks of one configuration do with a pod.
type verdict struct {
	Webhook  string `json:"webhook"`
	Revision string `json:"revision"`
	Injected bool   `json:"injected"`
	Reason   string `json:"reason"`
}

func (a *app) checkInject() *cobra.Command {
	var output, podLabels string
	cmd := &cobra.Command{
		Use:   "check-inject POD.NAMESPACE | -l LABELS -n NAMESPACE",
		Short: "Says which webhook adds a sidecar to a pod, or why none does",
		Example: `  carrick x check-inject deploy/helloworld-v1.sample
  carrick x check-inject -n sample -l app=helloworld,version=v1`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, "table", "json", "yaml", ""); err != nil {
				return err
			}
			if (len(args) == 1) == (podLabels != "") {
				return usagef("name a pod (POD.NAMESPACE), or the labels of one that is to be (-l app=x -n NAMESPACE)")
			}
			of, err := labels.ConvertSelectorToLabelsMap(podLabels)
			if err != nil {
				return usagef("-l %s: want KEY=VALUE,…: %v", podLabels, err)
			}
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			namespace, pod := c.namespace, (*corev1.Pod)(nil)
			if len(args) == 1 {
				var name string
				if namespace, name, err = c.pod(cmd.Context(), args[0]); err != nil {
					return err
				}
				if pod, err = c.Kube.CoreV1().Pods(namespace).Get(cmd.Context(), name, metav1.GetOptions{}); err != nil {
					return c.wrong(fmt.Errorf("pod %s of namespace %s: %w", name, namespace, err))
				}
				of = pod.Labels
			}
			ns, err := c.Kube.CoreV1().Namespaces().Get(cmd.Context(), namespace, metav1.GetOptions{})
			if err != nil {
				return c.wrong(fmt.Errorf("namespace %s: %w", namespace, err))
			}
			hooks, err := c.injectors(cmd)
			if err != nil {
				return err
			}
			vs := verdicts(hooks, ns.Labels, of)
			if structured(output) {
				return printValue(cmd.OutOrStdout(), vs, output)
			}
			return printVerdicts(cmd, vs, pod)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().StringVarP(&podLabels, "labels", "l", "", "labels of a pod that is to be, KEY=VALUE,…")
	return cmd
}

func printVerdicts(cmd *cobra.Command, vs []verdict, pod *corev1.Pod) error {
	out := cmd.OutOrStdout()
	if len(vs) == 0 {
		fmt.Fprintln(out, "No webhook adds sidecars here; install a control plane: carrick install")
		return nil
	}
	var rows [][]string
	injecting := 0
	for _, v := range vs {
		mark := "✘"
		if v.Injected {
			mark = "✔"
			injecting++
		}
		rows = append(rows, []string{v.Webhook, v.Revision, mark, v.Reason})
	}
	if err := table(out, "WEBHOOK\tREVISION\tINJECTED\tREASON", rows); err != nil {
		return err
	}
	if injecting > 1 {
		fmt.Fprintln(out, "Several webhooks take the pod: leave one label, istio-injection or istio.io/rev")
	}
	if pod != nil && injecting > 0 && !hasProxy(pod) {
		fmt.Fprintf(out, "Pod %s/%s has no sidecar: it is older than its label, or its annotations say no. Make it anew: kubectl -n %[1]s delete pod %[2]s\n", pod.Namespace, pod.Name)
	}
	return nil
}

// hasProxy reports whether a pod has a sidecar, of either form.
func hasProxy(p *corev1.Pod) bool {
	is := func(c corev1.Container) bool { return c.Name == "istio-proxy" }
	return slices.ContainsFunc(p.Spec.Containers, is) || slices.ContainsFunc(p.Spec.InitContainers, is)
}

// injectors returns the configurations with webhooks that add sidecars, by name.
func (c *cluster) injectors(cmd *cobra.Command) ([]admissionv1.MutatingWebhookConfiguration, error) {
	l, err := c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(cmd.Context(), metav1.ListOptions{})
	if err != nil {
		return nil, c.wrong(fmt.Errorf("listing webhooks: %w", err))
	}
	all := slices.DeleteFunc(l.Items, func(m admissionv1.MutatingWebhookConfiguration) bool {
		return !slices.ContainsFunc(m.Webhooks, func(w admissionv1.MutatingWebhook) bool { return strings.HasSuffix(w.Name, injectorSuffix) })
	})
	slices.SortFunc(all, func(a, b admissionv1.MutatingWebhookConfiguration) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// verdicts says what each configuration does with a pod of these labels.
func verdicts(hooks []admissionv1.MutatingWebhookConfiguration, namespace, pod map[string]string) []verdict {
	vs := []verdict{}
	for _, m := range hooks {
		v := verdict{Webhook: m.Name, Revision: m.Labels["istio.io/rev"], Reason: "no label of the namespace or the pod asks for it"}
		for _, w := range m.Webhooks {
			ns, nsLabels := selects(w.NamespaceSelector, namespace)
			p, podLabels := selects(w.ObjectSelector, pod)
			if !ns && len(w.NamespaceSelector.MatchLabels) > 0 {
				v.Reason = "it is deactivated: the tag default stands for another revision"
			}
			switch {
			case ns && p:
				v.Injected, v.Reason = true, "it takes all namespaces"
				switch {
				case nsLabels != "":
					v.Reason = "namespace label " + nsLabels
				case podLabels != "":
					v.Reason = "pod label " + podLabels
				}
			case ns && nsLabels != "" && podLabels != "":
				v.Reason = "pod label " + podLabels + " prevents it"
			case namespace["istio-injection"] == "disabled":
				v.Reason = "namespace label istio-injection=disabled prevents it"
			}
			if v.Injected {
				break
			}
		}
		vs = append(vs, v)
	}
	return vs
}

// selects reports whether a selector takes labels, and which of them it names, as KEY=VALUE,….
func selects(s *metav1.LabelSelector, has map[string]string) (ok bool, named string) {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return false, ""
	}
	var names []string
	for _, r := range s.MatchExpressions {
		if v, ok := has[r.Key]; ok {
			names = append(names, r.Key+"="+v)
		}
	}
	return sel.Matches(labels.Set(has)), strings.Join(names, ",")
}

// injectedSpace is a namespace with what injects it.
type injectedSpace struct {
	Namespace string         `json:"namespace"`
	Revision  string         `json:"revision"`          // "" if new pods get no sidecar
	Webhook   string         `json:"webhook,omitempty"` // that does
	Pods      map[string]int `json:"pods,omitempty"`    // by the revision that injected them; "" for none
}

func (a *app) injector() *cobra.Command {
	var output string
	var everywhere bool
	list := &cobra.Command{
		Use:   "list",
		Short: "Lists the namespaces whose pods get sidecars, from which revision, and how many have one",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "table", "json", "yaml", ""); err != nil {
				return err
			}
			return survey(&a.target, cmd, everywhere, output,
				func(c *cluster) ([]injectedSpace, error) { return c.injected(cmd) },
				func(all []injectedSpace) error { return printInjected(cmd, all) })
		},
	}
	list.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	list.Flags().BoolVar(&everywhere, "all-contexts", false, "ask every cluster of the kubeconfig")
	cmd := &cobra.Command{Use: "injector", Short: "What adds sidecars to pods"}
	cmd.AddCommand(list)
	return cmd
}

// injected returns the namespaces whose new pods get a sidecar, or some of whose pods have one.
func (c *cluster) injected(cmd *cobra.Command) ([]injectedSpace, error) {
	hooks, err := c.injectors(cmd)
	if err != nil {
		return nil, err
	}
	spaces, err := c.Kube.CoreV1().Namespaces().List(cmd.Context(), metav1.ListOptions{})
	if err != nil {
		return nil, c.wrong(fmt.Errorf("listing namespaces: %w", err))
	}
	pods, err := c.Kube.CoreV1().Pods("").List(cmd.Context(), metav1.ListOptions{})
	if err != nil {
		return nil, c.wrong(fmt.Errorf("listing pods: %w", err))
	}
	all := []injectedSpace{}
	for _, ns := range spaces.Items {
		x := injectedSpace{Namespace: ns.Name, Pods: map[string]int{}}
		for _, v := range verdicts(hooks, ns.Labels, nil) {
			if v.Injected {
				x.Revision, x.Webhook = cmp.Or(v.Revision, install.DefaultRevision), v.Webhook
				break
			}
		}
		some := x.Webhook != ""
		for i := range pods.Items {
			p := &pods.Items[i]
			if p.Namespace != ns.Name {
				continue
			}
			rev := ""
			if hasProxy(p) && p.Annotations["sidecar.istio.io/status"] != "" {
				rev, some = cmp.Or(p.Annotations["istio.io/rev"], install.DefaultRevision), true
			}
			x.Pods[rev]++
		}
		if some {
			all = append(all, x)
		}
	}
	return all, nil
}

func printInjected(cmd *cobra.Command, all []injectedSpace) error {
	if len(all) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "No namespace is injected; label one: kubectl label namespace NAMESPACE istio-injection=enabled")
		return nil
	}
	var rows [][]string
	for _, x := range all {
		var pods []string
		for rev, n := range x.Pods {
			s := fmt.Sprintf("%s: %d", cmp.Or(rev, "no sidecar"), n)
			if rev != x.Revision {
				s += " NEEDS RESTART"
			}
			pods = append(pods, s)
		}
		slices.Sort(pods)
		rows = append(rows, []string{x.Namespace, cmp.Or(x.Revision, "-"), cmp.Or(strings.Join(pods, ", "), "<no pods>"), cmp.Or(x.Webhook, "-")})
	}
	return table(cmd.OutOrStdout(), "NAMESPACE\tISTIO-REVISION\tPOD-REVISIONS\tINJECTOR-HOOK", rows)
}
