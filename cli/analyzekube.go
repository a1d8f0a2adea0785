package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admission "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/carrick-mesh/carrick/mesh"
)

// levels are of Istio's messages; those with another code, and without, are warnings.
var levels = map[string]string{
	"IST0101": "Error", "IST0106": "Error", "IST0109": "Error", "IST0112": "Error", "IST0139": "Error", "IST0145": "Error",
	"IST0102": "Info", "IST0118": "Info", "IST0131": "Info",
}

// withoutSidecars are namespaces that nobody expects to be injected.
var withoutSidecars = []string{"kube-system", "kube-public", "kube-node-lease", "metallb-system", "local-path-storage"}

// injectionState is what a namespace's labels ask for.
type injectionState int

const (
	unsaid injectionState = iota
	injected
	refused
)

func injectionOf(labels map[string]string) injectionState {
	switch labels["istio-injection"] {
	case "enabled":
		return injected
	case "disabled":
		return refused
	}
	if labels["istio.io/rev"] != "" {
		return injected
	}
	return unsaid
}

// analyzeInjection finds what keeps sidecars out of where they are meant to be.
func (a *app) analyzeInjection(ctx context.Context, c *cluster, name string) (out []message, err error) {
	spaces, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing namespaces: %w", err)
	}
	byName := map[string]*corev1.Namespace{}
	for i := range spaces.Items {
		byName[spaces.Items[i].Name] = &spaces.Items[i]
	}
	populated := map[string]bool{}
	opts := metav1.ListOptions{Limit: 500}
	for {
		pods, err := c.Kube.CoreV1().Pods("").List(ctx, opts)
		if err != nil {
			return nil, fmt.Errorf("listing pods: %w", err)
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			populated[p.Namespace] = true
			if ns := byName[p.Namespace]; ns != nil {
				out = append(out, analyzePod(p, injectionOf(ns.Labels))...)
			}
		}
		if opts.Continue = pods.Continue; opts.Continue == "" {
			break
		}
	}
	for i := range spaces.Items {
		ns := &spaces.Items[i]
		if ns.Name != a.target.istioNamespace && !slices.Contains(withoutSidecars, ns.Name) && populated[ns.Name] {
			out = append(out, analyzeNamespace(ns)...)
		}
	}
	svcs, err := c.Kube.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing Services: %w", err)
	}
	for i := range svcs.Items {
		if ns := byName[svcs.Items[i].Namespace]; ns != nil && injectionOf(ns.Labels) == injected {
			out = append(out, analyzePorts(&svcs.Items[i])...)
		}
	}
	hooks, err := a.analyzeWebhooks(ctx, c)
	if err != nil {
		return nil, err
	}
	pools, err := a.analyzePools(ctx, c)
	if err != nil {
		return nil, err
	}
	out = slices.Concat(out, hooks, pools)
	for i := range out {
		out[i].Cluster = name
	}
	return out, nil
}

func finding(code, origin, field, text, fix string) message {
	level := levels[code]
	if level == "" {
		level = "Warning"
	}
	return message{Level: level, Code: code, Origin: origin, Field: field, Message: text, Fix: fix}
}

func analyzeNamespace(ns *corev1.Namespace) (out []message) {
	origin := "Namespace " + ns.Name
	if ns.Labels["istio-injection"] != "" && ns.Labels["istio.io/rev"] != "" {
		out = append(out, finding("IST0123", origin, "metadata.labels", "has both labels istio-injection and istio.io/rev; the first one counts", "remove one: kubectl label namespace "+ns.Name+" istio-injection-"))
	}
	if injectionOf(ns.Labels) == unsaid {
		out = append(out, finding("IST0102", origin, "", "is not enabled for injection, so its pods get no sidecar",
			fmt.Sprintf("kubectl label namespace %s istio-injection=enabled, or =disabled to say that it is meant", ns.Name)))
	}
	return out
}

// analyzePod finds pods that should have a sidecar and have none, and those that take its user.
func analyzePod(p *corev1.Pod, space injectionState) (out []message) {
	origin := "Pod " + p.Namespace + "/" + p.Name
	containers := slices.Concat(p.Spec.InitContainers, p.Spec.Containers)
	sidecar := slices.ContainsFunc(containers, func(c corev1.Container) bool { return c.Name == "istio-proxy" })
	for _, c := range containers {
		if !sidecar || c.Name == "istio-proxy" || c.Name == "istio-init" {
			continue
		}
		if s := c.SecurityContext; s != nil && s.RunAsUser != nil && *s.RunAsUser == 1337 {
			out = append(out, finding("IST0144", origin, "spec.containers."+c.Name+".securityContext.runAsUser", "user 1337 is the sidecar's: what this container sends is not redirected to it", "take another user"))
		}
	}
	if s := p.Spec.SecurityContext; s != nil && s.RunAsUser != nil && *s.RunAsUser == 1337 && sidecar && p.Annotations["inject.istio.io/templates"] == "" {
		out = append(out, finding("IST0144", origin, "spec.securityContext.runAsUser", "user 1337 is the sidecar's: what its containers send is not redirected to it", "take another user"))
	}
	label := p.Labels["sidecar.istio.io/inject"]
	if label == "" {
		label = p.Annotations["sidecar.istio.io/inject"]
	}
	wanted := space == injected && label != "false" || space != refused && label == "true"
	if wanted && !sidecar && !p.Spec.HostNetwork && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
		out = append(out, finding("IST0103", origin, "", "has no sidecar, though its namespace or label asks for one", "restart it: it was made before, or while the injector could not be reached"))
	}
	return out
}

// analyzePorts finds ports of which nothing says what they speak.
func analyzePorts(s *corev1.Service) (out []message) {
	for i, p := range s.Spec.Ports {
		m := mesh.ServicePort{Name: p.Name, Number: uint16(p.Port), Transport: string(p.Protocol)}
		field, said := "name", p.Name
		if p.AppProtocol != nil {
			m.AppProtocol = *p.AppProtocol
			field, said = "appProtocol", *p.AppProtocol
		}
		if m.Protocol() != mesh.Auto {
			continue
		}
		out = append(out, finding("IST0118", "Service "+s.Namespace+"/"+s.Name, fmt.Sprintf("spec.ports[%d].%s", i, field),
			fmt.Sprintf("%q (port %d) does not say a known protocol, so the first bytes that the client sends are waited for, and a server that speaks first hangs", said, p.Port),
			"name it by the protocol: http, http-NAME, tcp, or set appProtocol"))
	}
	return out
}

// analyzeWebhooks finds injectors whose control plane is not there: where they hold, no pod is made.
func (a *app) analyzeWebhooks(ctx context.Context, c *cluster) (out []message, err error) {
	hooks, err := c.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing webhooks: %w", err)
	}
	seen := map[[3]string]bool{} // configuration, namespace and name of the Service
	gone := func(origin, what string, s *admission.ServiceReference) error {
		if s == nil || seen[[3]string{origin, s.Namespace, s.Name}] {
			return nil
		}
		seen[[3]string{origin, s.Namespace, s.Name}] = true
		_, err := c.Kube.CoreV1().Services(s.Namespace).Get(ctx, s.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			out = append(out, finding("IST0139", origin, "webhooks", fmt.Sprintf("it calls Service %s/%s, which does not exist, so %s", s.Namespace, s.Name, what),
				"install that control plane, or remove the configuration"))
		} else if err != nil {
			return fmt.Errorf("reading Service %s/%s: %w", s.Namespace, s.Name, err)
		}
		return nil
	}
	for _, h := range hooks.Items {
		for _, w := range h.Webhooks {
			if !strings.HasPrefix(h.Name, "istio-") {
				continue
			}
			if err := gone("MutatingWebhookConfiguration "+h.Name, "pods it selects cannot be made", w.ClientConfig.Service); err != nil {
				return nil, err
			}
		}
	}
	checks, err := c.Kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing webhooks: %w", err)
	}
	for _, h := range checks.Items {
		for _, w := range h.Webhooks {
			if !strings.HasSuffix(w.Name, "validation.istio.io") {
				continue
			}
			if err := gone("ValidatingWebhookConfiguration "+h.Name, "Istio's objects cannot be changed", w.ClientConfig.Service); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}
