package install

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	meshv1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// values is the part of Istio's Helm values that decides something here. What concerns injected
// pods (global.proxy, global.proxy_init, sidecarInjectorWebhook) is passed on to the injector as
// it is, in ConfigMap istio-sidecar-injector.
type values struct {
	Global struct {
		Hub               string            `json:"hub"`
		Tag               any               `json:"tag"`
		ImagePullPolicy   corev1.PullPolicy `json:"imagePullPolicy"`
		ImagePullSecrets  []string          `json:"imagePullSecrets"`
		IstioNamespace    string            `json:"istioNamespace"`
		MeshID            string            `json:"meshID"`
		Network           string            `json:"network"`
		MeshNetworks      map[string]any    `json:"meshNetworks"`
		PriorityClassName string            `json:"priorityClassName"`
		CAAddress         string            `json:"caAddress"`   // of injected proxies
		TrustDomain       string            `json:"trustDomain"` // of the mesh, unless meshConfig has one
		LogAsJSON         bool              `json:"logAsJson"`   // of injected proxies
		MultiCluster      struct {
			Enabled     *bool  `json:"enabled"`
			ClusterName string `json:"clusterName"`
		} `json:"multiCluster"`
		Logging struct {
			Level string `json:"level"`
		} `json:"logging"`
		DefaultPodDisruptionBudget struct {
			Enabled bool `json:"enabled"`
		} `json:"defaultPodDisruptionBudget"`
		Proxy     map[string]any `json:"proxy"`
		ProxyInit map[string]any `json:"proxy_init"`
	} `json:"global"`
	Pilot struct {
		AutoscaleEnabled *bool                        `json:"autoscaleEnabled"`
		AutoscaleMin     *int32                       `json:"autoscaleMin"`
		AutoscaleMax     int32                        `json:"autoscaleMax"`
		ReplicaCount     *int32                       `json:"replicaCount"`
		TraceSampling    *float64                     `json:"traceSampling"`
		Resources        *corev1.ResourceRequirements `json:"resources"`
		Env              map[string]any               `json:"env"`
		NodeSelector     map[string]string            `json:"nodeSelector"`
		Tolerations      []corev1.Toleration          `json:"tolerations"`
		PodAnnotations   map[string]string            `json:"podAnnotations"`
		Hub              string                       `json:"hub"`
		Tag              any                          `json:"tag"`
	} `json:"pilot"`
	Gateways struct {
		Ingress gatewayValues `json:"istio-ingressgateway"`
		Egress  gatewayValues `json:"istio-egressgateway"`
	} `json:"gateways"`
	SidecarInjectorWebhook struct {
		EnableNamespacesByDefault bool              `json:"enableNamespacesByDefault"`
		ObjectSelector            map[string]any    `json:"objectSelector"`
		RewriteAppHTTPProbe       *bool             `json:"rewriteAppHTTPProbe"`
		NeverInjectSelector       []any             `json:"neverInjectSelector"`
		AlwaysInjectSelector      []any             `json:"alwaysInjectSelector"`
		InjectedAnnotations       map[string]string `json:"injectedAnnotations"`

		Templates        map[string]string   `json:"templates"` // custom ones, by name
		DefaultTemplates []string            `json:"defaultTemplates"`
		Aliases          map[string][]string `json:"aliases"`
	} `json:"sidecarInjectorWebhook"`
	MeshConfig map[string]any `json:"meshConfig"`
	Revision   string         `json:"revision"`
}

type gatewayValues struct {
	AutoscaleEnabled         *bool                               `json:"autoscaleEnabled"`
	AutoscaleMin             *int32                              `json:"autoscaleMin"`
	AutoscaleMax             int32                               `json:"autoscaleMax"`
	Type                     corev1.ServiceType                  `json:"type"`
	Ports                    []corev1.ServicePort                `json:"ports"`
	LoadBalancerIP           string                              `json:"loadBalancerIP"`
	LoadBalancerSourceRanges []string                            `json:"loadBalancerSourceRanges"`
	ExternalTrafficPolicy    corev1.ServiceExternalTrafficPolicy `json:"externalTrafficPolicy"`
	ServiceAnnotations       map[string]string                   `json:"serviceAnnotations"`
	PodAnnotations           map[string]string                   `json:"podAnnotations"`
	Resources                *corev1.ResourceRequirements        `json:"resources"`
	NodeSelector             map[string]string                   `json:"nodeSelector"`
	Tolerations              []corev1.Toleration                 `json:"tolerations"`
	Env                      map[string]any                      `json:"env"`
	InjectionTemplate        string                              `json:"injectionTemplate"`
}

// inert lists values that Istio 1.15 knows and that change nothing here. They are accepted with
// a warning, so that existing files keep working.
var inert = strings.Fields(`
	base cni istio_cni istiodRemote telemetry ztunnel ownerName defaultRevision revisionTags profile
	global.arch global.autoscalingv2API global.caName global.certSigners
	global.configCluster global.configValidation global.defaultConfigVisibilitySettings
	global.defaultNodeSelector global.defaultResources global.defaultTolerations global.enabled
	global.externalIstiod global.istiod global.jwtPolicy global.k8sIngress global.localityLbSetting
	global.mountMtlsCerts global.omitSidecarInjectorConfigMap global.oneNamespace
	global.operatorManageWebhooks global.pilotCertProvider global.podDNSSearchNamespaces
	global.remotePilotAddress global.sds global.sts global.tracer global.useMCP global.variant
	global.operatorManageWebhooks global.meshExpansion global.multiCluster.globalDomainSuffix
	global.multiCluster.includeEnvoyFilter global.outboundTrafficPolicy
	pilot.affinity pilot.autoscaleBehavior pilot.configMap pilot.configNamespace pilot.configSource
	pilot.cpu pilot.deploymentLabels pilot.enabled pilot.enableProtocolSniffingForInbound
	pilot.enableProtocolSniffingForOutbound pilot.extraContainerArgs pilot.image pilot.ipFamilies
	pilot.ipFamilyPolicy pilot.jwksResolverExtraRootCA pilot.keepaliveMaxServerConnectionAge
	pilot.memory pilot.podLabels pilot.policy pilot.rollingMaxSurge pilot.rollingMaxUnavailable
	pilot.seccompProfile pilot.serviceAnnotations pilot.taint pilot.topologySpreadConstraints
	gateways.enabled gateways.securityContext gateways.seccompProfile
	gateways.istio-ingressgateway.name gateways.istio-ingressgateway.enabled
	gateways.istio-ingressgateway.labels gateways.istio-ingressgateway.customService
	gateways.istio-ingressgateway.cpu gateways.istio-ingressgateway.memory
	gateways.istio-ingressgateway.secretVolumes gateways.istio-ingressgateway.configVolumes
	gateways.istio-ingressgateway.runAsRoot gateways.istio-ingressgateway.zvpn
	gateways.istio-ingressgateway.externalIPs gateways.istio-ingressgateway.additionalContainers
	gateways.istio-ingressgateway.applicationPorts gateways.istio-ingressgateway.ingressPorts
	gateways.istio-ingressgateway.meshExpansionPorts gateways.istio-ingressgateway.rollingMaxSurge
	gateways.istio-ingressgateway.rollingMaxUnavailable gateways.istio-ingressgateway.certificates
	gateways.istio-ingressgateway.podAntiAffinityLabelSelector
	gateways.istio-ingressgateway.podAntiAffinityTermLabelSelector
	gateways.istio-egressgateway.name gateways.istio-egressgateway.enabled
	gateways.istio-egressgateway.labels gateways.istio-egressgateway.cpu gateways.istio-egressgateway.memory
	gateways.istio-egressgateway.secretVolumes gateways.istio-egressgateway.configVolumes
	gateways.istio-egressgateway.runAsRoot gateways.istio-egressgateway.zvpn
	gateways.istio-egressgateway.rollingMaxSurge gateways.istio-egressgateway.rollingMaxUnavailable
	gateways.istio-egressgateway.podAntiAffinityLabelSelector
	gateways.istio-egressgateway.podAntiAffinityTermLabelSelector
	sidecarInjectorWebhook.reinvocationPolicy sidecarInjectorWebhook.useLegacySelectors
	sidecarInjectorWebhook.templates sidecarInjectorWebhook.defaultTemplates
`)

// decodeValues reads Helm values strictly, and returns the paths that have no effect here.
func decodeValues(raw map[string]any) (v *values, ignored []string, err error) {
	rest := prune(raw, "", &ignored)
	v = &values{}
	if err := strict(rest, v, "spec.values."); err != nil {
		return nil, nil, err
	}
	slices.Sort(ignored)
	return v, ignored, nil
}

// prune returns raw without the inert paths, which it appends to found.
func prune(raw map[string]any, at string, found *[]string) map[string]any {
	out := map[string]any{}
	for k, v := range raw {
		path := strings.TrimPrefix(at+"."+k, ".")
		if slices.Contains(inert, path) {
			*found = append(*found, "values."+path)
			continue
		}
		if m, ok := v.(map[string]any); ok {
			v = prune(m, path, found)
		}
		out[k] = v
	}
	return out
}

// meshConfig checks that raw is a MeshConfig of the Istio API, and returns it.
func meshConfig(raw map[string]any) (*meshv1.MeshConfig, error) {
	if raw == nil {
		raw = map[string]any{}
	}
	b, err := json.Marshal(raw)
	if err != nil {
		return nil, err
	}
	mc := &meshv1.MeshConfig{}
	if err := protojson.Unmarshal(b, mc); err != nil {
		// "proto: (line 1:2): unknown field \"x\"": the line is of our JSON, not of the user's file
		msg := strings.ReplaceAll(err.Error(), "\u00a0", " ")
		if _, after, ok := strings.Cut(msg, "): "); ok {
			msg = after
		}
		return nil, fmt.Errorf("%s", msg)
	}
	return mc, nil
}
