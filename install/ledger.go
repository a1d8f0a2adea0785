package install

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/carrick-mesh/carrick/schema"
)

// inert lists values of Istio's charts (1.15 to 1.31) that change nothing here, below values. They are
// accepted with a warning, so that existing files keep working. A value in neither place is refused as
// misspelt.
var inert = strings.Fields(`
	base cni istio_cni istiodRemote telemetry ztunnel ownerName defaultRevision revisionTags profile
	gatewayClasses experimental compatibilityVersion
	global.arch global.autoscalingv2API global.caName global.certSigners
	global.configCluster global.configValidation global.defaultConfigVisibilitySettings
	global.defaultNodeSelector global.defaultResources global.defaultTolerations global.enabled
	global.externalIstiod global.istiod global.jwtPolicy global.k8sIngress global.localityLbSetting
	global.mountMtlsCerts global.omitSidecarInjectorConfigMap global.oneNamespace
	global.operatorManageWebhooks global.pilotCertProvider global.podDNSSearchNamespaces
	global.remotePilotAddress global.sds global.sts global.tracer global.useMCP global.variant
	global.meshExpansion global.multiCluster.globalDomainSuffix
	global.multiCluster.includeEnvoyFilter global.outboundTrafficPolicy
	global.platform global.networkPolicy global.nativeNftables global.resourceScope global.waypoint
	global.ipFamilies global.ipFamilyPolicy
	global.proxy.tracer global.proxy.outlierLogPath global.proxy.enableCoreDump global.proxy.lifecycle.type
	global.proxy_init.image global.proxy_init.forceApplyIptables global.proxy_init.type
	pilot.affinity pilot.autoscaleBehavior pilot.configMap pilot.configNamespace pilot.configSource
	pilot.cpu pilot.deploymentLabels pilot.enabled pilot.enableProtocolSniffingForInbound
	pilot.enableProtocolSniffingForOutbound pilot.extraContainerArgs pilot.image pilot.ipFamilies
	pilot.ipFamilyPolicy pilot.jwksResolverExtraRootCA pilot.keepaliveMaxServerConnectionAge
	pilot.memory pilot.podLabels pilot.policy pilot.rollingMaxSurge pilot.rollingMaxUnavailable
	pilot.seccompProfile pilot.serviceAnnotations pilot.taint pilot.topologySpreadConstraints
	pilot.hub pilot.tag pilot.traceSampling pilot.cni pilot.volumes pilot.volumeMounts pilot.initContainers
	pilot.pdb pilot.trustedZtunnelName pilot.trustedZtunnelNamespace pilot.variant
	pilot.sidecarInjectorWebhookAnnotations global.enableReaderRBAC
	pilot.envVarFrom pilot.deploymentAnnotations pilot.serviceAccountAnnotations
	gateways.enabled gateways.securityContext gateways.seccompProfile
	sidecarInjectorWebhook.reinvocationPolicy sidecarInjectorWebhook.useLegacySelectors
	sidecarInjectorWebhook.objectSelector
`)

// inertOfGateways are the same below gateways.istio-ingressgateway and gateways.istio-egressgateway.
var inertOfGateways = strings.Fields(`
	name enabled labels customService cpu memory secretVolumes configVolumes runAsRoot zvpn externalIPs
	additionalContainers applicationPorts ingressPorts meshExpansionPorts rollingMaxSurge rollingMaxUnavailable
	certificates podAntiAffinityLabelSelector podAntiAffinityTermLabelSelector topologySpreadConstraints
	serviceAccount replicaCount networkGateway ipFamilies ipFamilyPolicy
`)

// hasNoEffect reports whether the value at a path below values changes nothing.
func hasNoEffect(path string) bool {
	for _, gateway := range []string{"gateways.istio-ingressgateway.", "gateways.istio-egressgateway."} {
		if rest, ok := strings.CutPrefix(path, gateway); ok {
			return slices.Contains(inertOfGateways, rest)
		}
	}
	return slices.Contains(inert, path)
}

// environment are the variables that the control plane reads.
var environment = []string{
	"CLUSTER_ID", "DEFAULT_WORKLOAD_CERT_TTL", "MAX_WORKLOAD_CERT_TTL", "PILOT_HTTP10", "POD_NAME", "POD_NAMESPACE", "REVISION",
	"HTTP2_READ_IDLE_TIMEOUT_SECONDS", "HTTP2_PING_TIMEOUT_SECONDS", "GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GODEBUG",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ",
}

// unused returns the fields of a file's spec, beside values, that have no effect here: settings of the mesh
// that nothing reads, and variables that the control plane does not know.
func (c *Config) unused() (found []schema.Unused) {
	for _, from := range []struct {
		at   string
		mesh map[string]any
	}{{"values.meshConfig.", c.vals.MeshConfig}, {"meshConfig.", c.spec.MeshConfig}} {
		if mesh, err := meshConfig(from.mesh); err == nil { // otherwise it is refused elsewhere
			for _, u := range schema.WithoutEffect(mesh) {
				found = append(found, schema.Unused{Path: from.at + u.Path, Why: u.Why})
			}
		}
	}
	variable := func(at, name string) {
		if !slices.Contains(environment, name) {
			found = append(found, schema.Unused{Path: at + name, Why: "the control plane does not read this variable"})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.vals.Pilot.Env)) {
		variable("values.pilot.env.", name)
	}
	if pilot := c.spec.Components.Pilot; pilot != nil {
		for _, e := range slices.SortedFunc(slices.Values(pilot.K8s.Env), func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) }) {
			variable("components.pilot.k8s.env.", e.Name)
		}
	}
	return found
}
