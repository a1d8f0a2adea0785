package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ineffective are annotations of Istio that change nothing here, with the reason.
var ineffective = map[string]string{
	"sidecar.istio.io/bootstrapOverride":     "the proxy's bootstrap is not made from a ConfigMap",
	"sidecar.istio.io/proxyImageType":        "the image has one type; another image: " + annProxyImage,
	"sidecar.istio.io/statsCompression":      "statistics are served as the client accepts them",
	"sidecar.istio.io/statsEvictionInterval": "statistics are not evicted",
	"sidecar.istio.io/statsFlushInterval":    "statistics are current whenever they are asked for",
	"sidecar.istio.io/statsHistogramBins":    "histograms have Envoy's default buckets",
	"sidecar.istio.io/statsHistogramBuckets": "histograms have Envoy's default buckets",
	"proxy.istio.io/overrides":               "an injected pod is not injected again; a container " + proxyContainer + " in the pod overrides",

	"readiness.status.sidecar.istio.io/applicationPorts": "the proxy is ready when it has its configuration, whatever the ports",
}

// onlyEnvoy are annotations that the built-in proxy has no use for: it keeps all its statistics.
var onlyEnvoy = []string{annExtraStatTags, annStatsPrefixes, annStatsSuffixes, annStatsRegexps}

// prefixes are the groups of annotations that are the injector's.
var prefixes = []string{"sidecar.istio.io/", "traffic.sidecar.istio.io/", "status.sidecar.istio.io/", "readiness.status.sidecar.istio.io/", "inject.istio.io/", "proxy.istio.io/"}

// known are all annotations of these groups that are read.
var known = []string{
	annConfig, annStatus, annInject, annTemplates, annNative, annRewrite, annInterception, annProxyImage, annLogLevel, annComponentLogLevel, annAgentLogLevel,
	annCPU, annCPULimit, annMemory, annMemoryLimit, annVolume, annVolumeMount, annStatusPort, annReadyDelay, annReadyPeriod, annReadyFailures,
	annIncludeOutIPs, annExcludeOutIPs, annIncludeInPorts, annExcludeInPorts, annIncludeOutPorts, annExcludeOutPorts, annExcludeIfs, annKubevirtIfs,
	annDiscoveryAddress, annExtraStatTags, annStatsPrefixes, annStatsSuffixes, annStatsRegexps,
}

// Notes returns what the owner of a pod should know though it can be injected: what has no effect, what
// bypasses the proxy, and that a pod which asks for a proxy gets none.
func Notes(pod *corev1.Pod, namespace string, p Params) (notes []string) {
	if ok, why := Wanted(pod, namespace, p); !ok {
		ask, labelled := pod.Labels[annInject]
		if !labelled {
			ask = pod.Annotations[annInject]
		}
		if says(ask) && !injected(pod) {
			return []string{"it is not injected though it asks for it: " + why}
		}
		return nil
	}
	for _, c := range SharesUser(pod) {
		notes = append(notes, fmt.Sprintf("container %s runs as the proxy's user or group, so its connections bypass the proxy; run it as another", c))
	}
	engine := text(pod.Annotations, annEngine, or(p.Engine, EngineCarrick))
	for _, name := range slices.Sorted(maps.Keys(pod.Annotations)) {
		why, inert := ineffective[name]
		switch {
		case inert:
			notes = append(notes, fmt.Sprintf("annotation %s has no effect: %s", name, why))
		case engine == EngineCarrick && slices.Contains(onlyEnvoy, name):
			notes = append(notes, fmt.Sprintf("annotation %s has no effect: the built-in proxy keeps all its statistics, with the labels that it has", name))
		case !slices.Contains(known, name) && slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) }):
			notes = append(notes, fmt.Sprintf("annotation %s is unknown; check its spelling", name))
		}
	}
	return notes
}

// SharesUser returns the pod's own containers that run as the proxy's user or group, whose connections
// redirection leaves alone.
func SharesUser(pod *corev1.Pod) (names []string) {
	own := takeContainer(ptrTo(slices.Clone(pod.Spec.Containers)), proxyContainer)
	uid, gid := int64(proxyUID), int64(proxyUID)
	if own != nil && own.SecurityContext != nil {
		if u := own.SecurityContext.RunAsUser; u != nil {
			uid = *u
		}
		if g := own.SecurityContext.RunAsGroup; g != nil {
			gid = *g
		}
	}
	of := func(pick func(*corev1.PodSecurityContext) *int64, own func(*corev1.SecurityContext) *int64, c *corev1.Container) *int64 {
		if c.SecurityContext != nil && own(c.SecurityContext) != nil {
			return own(c.SecurityContext)
		}
		if pod.Spec.SecurityContext != nil {
			return pick(pod.Spec.SecurityContext)
		}
		return nil
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		u := of(func(s *corev1.PodSecurityContext) *int64 { return s.RunAsUser }, func(s *corev1.SecurityContext) *int64 { return s.RunAsUser }, c)
		g := of(func(s *corev1.PodSecurityContext) *int64 { return s.RunAsGroup }, func(s *corev1.SecurityContext) *int64 { return s.RunAsGroup }, c)
		if c.Name != proxyContainer && (u != nil && *u == uid || g != nil && *g == gid) {
			names = append(names, c.Name)
		}
	}
	return names
}

func ptrTo[T any](v T) *T { return &v }

// onWindows reports whether a pod asks for nodes of Windows, where no Linux container starts.
func onWindows(s *corev1.PodSpec) bool {
	if s.OS != nil && s.OS.Name == corev1.Windows {
		return true
	}
	return s.NodeSelector["kubernetes.io/os"] == "windows" || s.NodeSelector["beta.kubernetes.io/os"] == "windows"
}
