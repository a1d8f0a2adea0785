package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

const (
	proxyContainer = "istio-proxy"
	initContainer  = "istio-init"
	imageAuto      = "auto"
)

// systemNamespaces are never injected: their pods come before any mesh.
var systemNamespaces = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// Wanted reports whether a pod is to be injected, and if not, why. The webhook's selectors
// have looked at the namespace before; pods that ask for nothing follow p.
func Wanted(pod *corev1.Pod, namespace string, p Params) (bool, string) {
	switch {
	case pod.Spec.HostNetwork:
		return false, "it uses the host's network"
	case onWindows(&pod.Spec):
		return false, "it runs on Windows, and the proxy runs on Linux"
	case slices.Contains(systemNamespaces, namespace):
		return false, "namespace " + namespace + " is never injected"
	case injected(pod):
		return false, "it is injected already"
	}
	ask, ok := pod.Labels[annInject]
	if !ok {
		ask = pod.Annotations[annInject]
	}
	switch {
	case says(ask):
		return true, ""
	case ask != "":
		return false, annInject + " is " + ask
	}
	if matches(p.NeverSelector, pod.Labels) {
		return false, "neverInjectSelector matches its labels"
	}
	if matches(p.AlwaysSelector, pod.Labels) {
		return true, ""
	}
	if p.Disabled {
		return false, "injection is off for pods that do not ask for it"
	}
	return true, ""
}

// says reports whether a value of annotation or label sidecar.istio.io/inject asks for injection.
func says(ask string) bool {
	return slices.Contains([]string{"true", "yes", "y", "on"}, strings.ToLower(ask))
}

func matches(selectors []metav1.LabelSelector, of map[string]string) bool {
	for i := range selectors {
		s, err := metav1.LabelSelectorAsSelector(&selectors[i])
		if err == nil && !s.Empty() && s.Matches(labels.Set(of)) {
			return true
		}
	}
	return false
}

// injected: a status left over by a copied template, without the container, does not count.
func injected(pod *corev1.Pod) bool {
	if pod.Annotations[annStatus] == "" {
		return false
	}
	is := func(c corev1.Container) bool { return c.Name == proxyContainer && c.Image != imageAuto }
	return slices.ContainsFunc(pod.Spec.Containers, is) || slices.ContainsFunc(pod.Spec.InitContainers, is)
}

// status is the value of annotation sidecar.istio.io/status: what was added.
type status struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
}

// Inject returns a copy of pod with its proxy, by the templates that annotation
// inject.istio.io/templates names: sidecar (the default), gateway or grpc-agent, with custom
// ones laid over it in their order. A pod that Wanted refuses is returned as it is. The namespace counts
// where the pod has none yet. A container istio-proxy that a custom template has, or at last
// the pod itself, is laid over ours, field by field; its image auto stands for ours. Errors
// name the annotation or field at fault.
func Inject(pod *corev1.Pod, namespace string, p Params) (*corev1.Pod, error) {
	return injectFor(pod, namespace, workloadOf(pod), p)
}

func injectFor(pod *corev1.Pod, namespace string, w Workload, p Params) (*corev1.Pod, error) {
	if pod.Namespace != "" {
		namespace = pod.Namespace
	}
	if ok, _ := Wanted(pod, namespace, p); !ok {
		return pod, nil
	}
	if err := checkAnnotations(pod.Annotations); err != nil {
		return nil, err
	}
	p = p.withDefaults()
	if err := p.check(); err != nil {
		return nil, err
	}
	b := &builder{Params: p, namespace: namespace, workload: w, in: pod, ann: pod.Annotations}
	var err error
	if b.config, err = proxyConfig(p.ProxyConfig, pod.Annotations[annConfig]); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annConfig, err)
	}
	b.annotateConfig()
	builtIn, custom, err := p.Templates.chosen(pod.Annotations[annTemplates])
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annTemplates, err)
	}
	b.custom = custom
	if len(builtIn) > 0 {
		b.role = builtIn[0]
	}
	b.gateway, b.proxyless = b.role == templateGateway, b.role == templateGRPC
	if b.role == templateSidecar {
		if err := refuseMode(b.interception(), "annotation "+annInterception+", or ProxyConfig"); err != nil {
			return nil, err
		}
	}
	return b.build()
}

// build adds everything to a copy of the pod.
func (b *builder) build() (*corev1.Pod, error) {
	out := b.in.DeepCopy()
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	b.network = text(out.Labels, labelNetwork, b.Network)
	b.native = enabled(b.ann, annNative, b.Native) && !b.gateway

	// The pod's own istio-proxy says what ours is to differ in.
	own := takeContainer(&out.Spec.Containers, proxyContainer)
	if c := takeContainer(&out.Spec.InitContainers, proxyContainer); c != nil {
		own = c
	}
	takeContainer(&out.Spec.InitContainers, initContainer)
	before := out.DeepCopy()
	if err := b.lay(out); err != nil {
		return nil, err
	}
	st := added(before, out)
	if st.Revision = b.Revision; st.Revision == "" {
		st.Revision = "default"
	}
	if b.role == "" { // no proxy at all
		if own != nil {
			out.Spec.Containers = append(out.Spec.Containers, *own)
		}
		return out, writeStatus(out, st)
	}
	b.apps, b.own = out.Spec.Containers, own

	proxy, err := b.proxy()
	if err != nil {
		return nil, err
	}
	if enabled(b.ann, annRewrite, b.RewriteProbes) && !b.gateway && !b.proxyless && b.statusPort() != 0 {
		probers, err := rewriteProbes(&out.Spec, b.statusPort())
		if err != nil {
			return nil, err
		}
		if probers != "" {
			proxy.Env = append(proxy.Env, corev1.EnvVar{Name: "ISTIO_KUBE_APP_PROBERS", Value: probers})
		}
	}
	b.mergePrometheus(out, &proxy)
	overlays := b.overProxy
	if own != nil {
		c := *own
		if c.Image == imageAuto {
			c.Image = ""
		}
		overlays = append(overlays, c)
	}
	was := proxy.DeepCopy()
	if err := overlayContainer(&proxy, overlays); err != nil {
		return nil, err
	}
	if err := b.settle(&proxy, was, &out.Spec); err != nil {
		return nil, err
	}
	if err := b.place(out, proxy, &st); err != nil {
		return nil, err
	}
	if b.proxyless {
		b.shareWithApps(&out.Spec)
	}
	if err := b.volumes(out, &st); err != nil {
		return nil, err
	}
	for _, s := range b.PullSecrets {
		ref := corev1.LocalObjectReference{Name: s}
		if !slices.Contains(out.Spec.ImagePullSecrets, ref) {
			out.Spec.ImagePullSecrets = append(out.Spec.ImagePullSecrets, ref)
		}
		st.ImagePullSecrets = append(st.ImagePullSecrets, s)
	}
	b.label(out)
	return out, writeStatus(out, st)
}

// added lists what after has and before has not.
func added(before, after *corev1.Pod) (st status) {
	names := func(cs []corev1.Container) (out []string) {
		for _, c := range cs {
			out = append(out, c.Name)
		}
		return out
	}
	volumes := func(vs []corev1.Volume) (out []string) {
		for _, v := range vs {
			out = append(out, v.Name)
		}
		return out
	}
	without := func(list, those []string) (out []string) {
		for _, n := range list {
			if !slices.Contains(those, n) {
				out = append(out, n)
			}
		}
		return out
	}
	st.InitContainers = without(names(after.Spec.InitContainers), names(before.Spec.InitContainers))
	st.Containers = without(names(after.Spec.Containers), names(before.Spec.Containers))
	st.Volumes = without(volumes(after.Spec.Volumes), volumes(before.Spec.Volumes))
	return st
}

func writeStatus(out *corev1.Pod, st status) error {
	data, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encoding status: %w", err)
	}
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	out.Annotations[annStatus] = string(data)
	return nil
}

// place puts the containers in their order. A native proxy starts before the pod's own init
// containers, so that they are in the mesh; otherwise the redirection is set up last, for
// without a proxy it would cut them off.
func (b *builder) place(out *corev1.Pod, proxy corev1.Container, st *status) error {
	var inits []corev1.Container
	if b.redirects() {
		c := b.redirect()
		if err := overlayContainer(&c, b.overInit); err != nil {
			return err
		}
		inits = append(inits, c)
	}
	switch {
	case b.native:
		inits = append(inits, proxy)
		out.Spec.InitContainers = append(inits, out.Spec.InitContainers...)
	case b.hold():
		out.Spec.Containers = append([]corev1.Container{proxy}, out.Spec.Containers...)
		out.Spec.InitContainers = append(out.Spec.InitContainers, inits...)
	default:
		out.Spec.Containers = append(out.Spec.Containers, proxy)
		out.Spec.InitContainers = append(out.Spec.InitContainers, inits...)
	}
	for _, c := range inits {
		st.InitContainers = append(st.InitContainers, c.Name)
	}
	if !b.native {
		st.Containers = append(st.Containers, proxy.Name)
	}
	return nil
}

// label writes the labels and annotations that Istio writes.
func (b *builder) label(out *corev1.Pod) {
	setDefault := func(m map[string]string, k, v string) {
		if _, ok := m[k]; !ok && v != "" {
			m[k] = v
		}
	}
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := out.Labels[k]; v != "" {
				return v
			}
		}
		return ""
	}
	if !b.gateway && !b.proxyless { // whether a proxyless application serves TLS is its own affair
		setDefault(out.Labels, labelTLSMode, "istio")
	}
	setDefault(out.Labels, labelCanonical, labelValue(or(first("app.kubernetes.io/name", "app"), b.workload.Name)))
	setDefault(out.Labels, labelCanonicalR, or(first("app.kubernetes.io/version", "version"), "latest"))
	setDefault(out.Labels, labelNetwork, b.network)
	setDefault(out.Annotations, annRev, or(b.Revision, "default"))
	if len(b.apps) > 0 {
		setDefault(out.Annotations, "kubectl.kubernetes.io/default-container", b.apps[0].Name)
		setDefault(out.Annotations, "kubectl.kubernetes.io/default-logs-container", b.apps[0].Name)
	}
	for k, v := range b.Annotations {
		setDefault(out.Annotations, k, v)
	}
}

// labelValue cuts a name to what a label's value may have.
func labelValue(s string) string {
	if len(s) > 63 {
		s = s[:63]
	}
	return strings.Trim(s, "-_.")
}

// mergePrometheus points Prometheus at the agent, which adds the application's metrics, found
// where the pod's annotations (in any of the spellings Prometheus takes) said they are.
func (b *builder) mergePrometheus(out *corev1.Pod, proxy *corev1.Container) {
	if !enabled(b.ann, annMergeMetrics, b.MergePrometheus) || b.statusPort() == 0 {
		return
	}
	var app struct {
		Scrape string `json:"scrape"`
		Path   string `json:"path"`
		Port   string `json:"port"`
	}
	spelling := strings.NewReplacer(".", "_", "/", "_", "-", "_")
	for k, v := range out.Annotations {
		to := map[string]*string{"prometheus_io_scrape": &app.Scrape, "prometheus_io_path": &app.Path, "prometheus_io_port": &app.Port}[spelling.Replace(k)]
		if to != nil {
			*to = v
			delete(out.Annotations, k)
		}
	}
	port := strconv.Itoa(int(b.statusPort()))
	if (app.Scrape != "" || app.Path != "" || app.Port != "") && app.Port != port {
		data, err := json.Marshal(app)
		if err == nil { // three strings always encode
			proxy.Env = append(proxy.Env, corev1.EnvVar{Name: "ISTIO_PROMETHEUS_ANNOTATIONS", Value: string(data)})
		}
	}
	out.Annotations["prometheus.io/scrape"] = "true"
	out.Annotations["prometheus.io/port"] = port
	out.Annotations["prometheus.io/path"] = "/stats/prometheus"
}

// overlayContainer lays other versions of a container over ours, as kubectl apply would.
func overlayContainer(ours *corev1.Container, over []any) error {
	for _, c := range over {
		if err := merge(ours, c, corev1.Container{}); err != nil {
			return fmt.Errorf("container %s: %w", ours.Name, err)
		}
	}
	return nil
}

func takeContainer(from *[]corev1.Container, name string) *corev1.Container {
	i := slices.IndexFunc(*from, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	c := (*from)[i]
	*from = slices.Delete(slices.Clone(*from), i, i+1)
	return &c
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
