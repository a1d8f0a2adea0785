package inject

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/carrick-mesh/carrick/agent/redirect/spec"
	"github.com/carrick-mesh/carrick/log"
)

// Annotations of pods that are read, beside those named where they are used.
const (
	annConfig            = "proxy.istio.io/config"
	annEngine            = "carrick.dev/proxy"
	annStatus            = "sidecar.istio.io/status"
	annInject            = "sidecar.istio.io/inject"
	annTemplates         = "inject.istio.io/templates"
	annRev               = "istio.io/rev"
	annNative            = "sidecar.istio.io/nativeSidecar"
	annRewrite           = "sidecar.istio.io/rewriteAppHTTPProbers"
	annMergeMetrics      = "prometheus.istio.io/merge-metrics"
	annInterception      = "sidecar.istio.io/interceptionMode"
	annProxyImage        = "sidecar.istio.io/proxyImage"
	annLogLevel          = "sidecar.istio.io/logLevel"
	annComponentLogLevel = "sidecar.istio.io/componentLogLevel"
	annAgentLogLevel     = "sidecar.istio.io/agentLogLevel"
	annCPU               = "sidecar.istio.io/proxyCPU"
	annCPULimit          = "sidecar.istio.io/proxyCPULimit"
	annMemory            = "sidecar.istio.io/proxyMemory"
	annMemoryLimit       = "sidecar.istio.io/proxyMemoryLimit"
	annVolume            = "sidecar.istio.io/userVolume"
	annVolumeMount       = "sidecar.istio.io/userVolumeMount"
	annStatusPort        = "status.sidecar.istio.io/port"
	annReadyDelay        = "readiness.status.sidecar.istio.io/initialDelaySeconds"
	annReadyPeriod       = "readiness.status.sidecar.istio.io/periodSeconds"
	annReadyFailures     = "readiness.status.sidecar.istio.io/failureThreshold"
	annDiscoveryAddress  = "sidecar.istio.io/discoveryAddress"
	annExtraStatTags     = "sidecar.istio.io/extraStatTags"
	annStatsPrefixes     = "sidecar.istio.io/statsInclusionPrefixes"
	annStatsSuffixes     = "sidecar.istio.io/statsInclusionSuffixes"
	annStatsRegexps      = "sidecar.istio.io/statsInclusionRegexps"

	annIncludeOutIPs   = "traffic.sidecar.istio.io/includeOutboundIPRanges"
	annExcludeOutIPs   = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
	annIncludeInPorts  = "traffic.sidecar.istio.io/includeInboundPorts"
	annExcludeInPorts  = "traffic.sidecar.istio.io/excludeInboundPorts"
	annIncludeOutPorts = "traffic.sidecar.istio.io/includeOutboundPorts"
	annExcludeOutPorts = "traffic.sidecar.istio.io/excludeOutboundPorts"
	annExcludeIfs      = "traffic.sidecar.istio.io/excludeInterfaces"
	annKubevirtIfs     = "traffic.sidecar.istio.io/kubevirtInterfaces"
	annRerouteVirtIfs  = "istio.io/reroute-virtual-interfaces"

	labelRev        = "istio.io/rev"
	labelNetwork    = "topology.istio.io/network"
	labelTLSMode    = "security.istio.io/tlsMode"
	labelCanonical  = "service.istio.io/canonical-name"
	labelCanonicalR = "service.istio.io/canonical-revision"
)

// checks are the annotations whose values have a form, with what the form is. They end up in
// command lines, so nothing is passed on unseen.
var checks = map[string]func(string) error{
	// These become flags of the init container, which reads them by the same code.
	annIncludeOutIPs:   read(spec.ParseRangeSet),
	annExcludeOutIPs:   read(spec.ParseRanges),
	annIncludeInPorts:  read(spec.ParsePortSet),
	annExcludeInPorts:  read(spec.ParsePorts),
	annIncludeOutPorts: read(spec.ParsePorts),
	annExcludeOutPorts: read(spec.ParsePorts),
	annExcludeIfs:      read(spec.ParseInterfaces),
	annKubevirtIfs:     read(spec.ParseInterfaces),
	annRerouteVirtIfs:  read(spec.ParseInterfaces),

	annLogLevel:          proxyLevel,
	annComponentLogLevel: componentLevels,
	annAgentLogLevel:     read(log.ParseLevel),
	annStatusPort:        number(0, 65535),
	annReadyDelay:        number(0, 1<<20),
	annReadyPeriod:       number(0, 1<<20),
	annReadyFailures:     number(1, 1<<20),
	annRewrite:           boolean,
	annNative:            boolean,
	annMergeMetrics:      boolean,
	annCPU:               quantity,
	annCPULimit:          quantity,
	annMemory:            quantity,
	annMemoryLimit:       quantity,
	annInterception:      oneOf("REDIRECT", "TPROXY", "NONE"),
	annEngine:            oneOf(EngineCarrick, EngineEnvoy),
}

// checkAnnotations returns an error that names the first bad annotation.
func checkAnnotations(a map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if check := checks[name]; check != nil {
			v := a[name]
			if err := check(v); err != nil {
				return fmt.Errorf("annotation %s: %q: %w", name, v, err)
			}
		}
	}
	return nil
}

// read makes a check of what reads the value later.
func read[T any](parse func(string) (T, error)) func(string) error {
	return func(v string) error {
		_, err := parse(v)
		return err
	}
}

// proxyLevel is a level of the proxy's log, as Envoy names them.
func proxyLevel(v string) error {
	return oneOf("", "trace", "debug", "info", "warning", "warn", "error", "critical", "off")(v)
}

// componentLevels are Envoy's COMPONENT:LEVEL,….
func componentLevels(v string) error {
	for part := range strings.SplitSeq(v, ",") {
		name, level, ok := strings.Cut(strings.TrimSpace(part), ":")
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		if !ok || name == "" {
			return fmt.Errorf("want COMPONENT:LEVEL, comma-separated")
		}
		if err := proxyLevel(level); err != nil {
			return err
		}
	}
	return nil
}

func number(low, high int) func(string) error {
	return func(v string) error {
		if n, err := strconv.Atoi(v); err != nil || n < low || n > high {
			return fmt.Errorf("want a number from %d to %d", low, high)
		}
		return nil
	}
}

func boolean(v string) error {
	if _, err := strconv.ParseBool(v); err != nil {
		return fmt.Errorf("want true or false")
	}
	return nil
}

func quantity(v string) error {
	if _, err := resource.ParseQuantity(v); err != nil {
		return fmt.Errorf("want a quantity such as 100m or 128Mi")
	}
	return nil
}

func oneOf(choice ...string) func(string) error {
	return func(v string) error {
		for _, c := range choice {
			if v == c {
				return nil
			}
		}
		return fmt.Errorf("want one of %s", strings.Join(choice, ", "))
	}
}

// enabled is a checked boolean annotation.
func enabled(a map[string]string, name string, fallback bool) bool {
	if b, err := strconv.ParseBool(a[name]); err == nil {
		return b
	}
	return fallback
}

// text is an annotation, or its default where it is absent; present and empty is empty.
func text(a map[string]string, name, fallback string) string {
	if v, ok := a[name]; ok {
		return v
	}
	return fallback
}

// count is a checked number annotation.
func count(a map[string]string, name string, fallback int32) int32 {
	if n, err := strconv.ParseInt(a[name], 10, 32); err == nil {
		return int32(n)
	}
	return fallback
}
