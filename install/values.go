package install

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-mesh/carrick/schema"
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
		Proxy     proxyValues `json:"proxy"`
		ProxyInit struct {
			Resources map[string]any `json:"resources"`
		} `json:"proxy_init"`
	} `json:"global"`
	Pilot struct {
		AutoscaleEnabled *bool                        `json:"autoscaleEnabled"`
		AutoscaleMin     *int32                       `json:"autoscaleMin"`
		AutoscaleMax     int32                        `json:"autoscaleMax"`
		ReplicaCount     *int32                       `json:"replicaCount"`
		Resources        *corev1.ResourceRequirements `json:"resources"`
		Env              map[string]any               `json:"env"`
		NodeSelector     map[string]string            `json:"nodeSelector"`
		Tolerations      []corev1.Toleration          `json:"tolerations"`
		PodAnnotations   map[string]string            `json:"podAnnotations"`
	} `json:"pilot"`
	Gateways struct {
		Ingress gatewayValues `json:"istio-ingressgateway"`
		Egress  gatewayValues `json:"istio-egressgateway"`
	} `json:"gateways"`
	SidecarInjectorWebhook struct {
		EnableNamespacesByDefault bool              `json:"enableNamespacesByDefault"`
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

// proxyValues names what the injector reads; it gets them as they are written.
type proxyValues struct {
	Image                           string         `json:"image"`
	Engine                          string         `json:"engine"`
	NativeSidecar                   *bool          `json:"nativeSidecar"`
	AutoInject                      string         `json:"autoInject"`
	ClusterDomain                   string         `json:"clusterDomain"`
	LogLevel                        string         `json:"logLevel"`
	ComponentLogLevel               string         `json:"componentLogLevel"`
	IncludeIPRanges                 string         `json:"includeIPRanges"`
	ExcludeIPRanges                 string         `json:"excludeIPRanges"`
	IncludeInboundPorts             string         `json:"includeInboundPorts"`
	ExcludeInboundPorts             string         `json:"excludeInboundPorts"`
	IncludeOutboundPorts            string         `json:"includeOutboundPorts"`
	ExcludeOutboundPorts            string         `json:"excludeOutboundPorts"`
	Privileged                      bool           `json:"privileged"`
	HoldApplicationUntilProxyStarts *bool          `json:"holdApplicationUntilProxyStarts"`
	Resources                       map[string]any `json:"resources"`
	Lifecycle                       map[string]any `json:"lifecycle"`
	SeccompProfile                  map[string]any `json:"seccompProfile"`
	StatusPort                      int32          `json:"statusPort"`
	StartupProbe                    map[string]any `json:"startupProbe"`
	ReadinessInitialDelaySeconds    int32          `json:"readinessInitialDelaySeconds"`
	ReadinessPeriodSeconds          int32          `json:"readinessPeriodSeconds"`
	ReadinessFailureThreshold       int32          `json:"readinessFailureThreshold"`
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

// decodeValues reads Helm values strictly, and returns the paths that have no effect here.
func decodeValues(raw map[string]any) (v *values, ignored []schema.Unused, err error) {
	rest := prune(raw, "", &ignored)
	v = &values{}
	if err := strict(rest, v, "spec.values."); err != nil {
		return nil, nil, err
	}
	slices.SortFunc(ignored, func(a, b schema.Unused) int { return strings.Compare(a.Path, b.Path) })
	return v, ignored, nil
}

// prune returns raw without the inert paths, which it appends to found.
func prune(raw map[string]any, at string, found *[]schema.Unused) map[string]any {
	out := map[string]any{}
	for k, v := range raw {
		path := strings.TrimPrefix(at+"."+k, ".")
		if hasNoEffect(path) {
			*found = append(*found, schema.Unused{Path: "values." + path, Why: "nothing here reads it"})
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
