package inject

import (
	"encoding/json"
	"fmt"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Engines that a proxy container can run.
const (
	EngineCarrick = "carrick"
	EngineEnvoy   = "envoy"
)

// Params are the settings of one control plane. The zero value of a field is its default in
// Istio, unless it says otherwise. They are not changed by injection.
type Params struct {
	Hub, Tag    string // "docker.io/carrickmesh", "latest"
	Image       string // "carrick"; with a slash a whole reference instead of HUB/IMAGE:TAG
	EnvoyImage  string // "carrick-envoy"; where the engine is Envoy
	Engine      string // EngineCarrick
	PullPolicy  corev1.PullPolicy
	PullSecrets []string

	Namespace   string // of the control plane, "istio-system"
	Revision    string // "" is the default revision
	CAAddress   string // "istiod[-REVISION].NAMESPACE.svc:15012"
	ClusterID   string // "Kubernetes"
	Network     string
	MeshID      string // the trust domain
	TrustDomain string // "cluster.local"
	DNSDomain   string // "cluster.local"

	ProxyConfig *meshconfig.ProxyConfig // MeshConfig's defaultConfig
	// MergePrometheus makes the agent's port serve the application's metrics, too.
	MergePrometheus bool

	// Native puts the proxy among the init containers with restartPolicy Always, which
	// Kubernetes supports by default since 1.29; else it is an ordinary container.
	Native bool
	// Hold makes the application's containers wait for an ordinary proxy container. With
	// a native one they always do.
	Hold bool

	RewriteProbes  bool
	AlwaysSelector []metav1.LabelSelector
	NeverSelector  []metav1.LabelSelector
	Disabled       bool              // inject only pods that ask for it
	Annotations    map[string]string // added to every injected pod

	LogLevel, ComponentLogLevel, AgentLogLevel string // "warning", "misc:error", "default:info"
	LogAsJSON                                  bool
	IncludeIPRanges, ExcludeIPRanges           string // "*", ""
	IncludeInboundPorts, ExcludeInboundPorts   string // "*", ""
	IncludeOutboundPorts, ExcludeOutboundPorts string
	Privileged                                 bool
	Resources, InitResources                   corev1.ResourceRequirements
	Readiness                                  Readiness
	StatusPort                                 int32 // 15020; MeshConfig and annotations come first
	StartupFailures                            int32 // seconds that a proxy may take to start, 600; less than 0 is no startup probe
	Lifecycle                                  *corev1.Lifecycle
	Seccomp                                    *corev1.SeccompProfile

	Templates Templates // see WithConfig

	mesh   *meshconfig.MeshConfig // for custom templates
	values []byte                 // JSON
}

// Readiness is the proxy's readiness probe; zero fields take 1 s, 15 s and 4 failures.
type Readiness struct {
	InitialDelaySeconds int32 `json:"readinessInitialDelaySeconds"`
	PeriodSeconds       int32 `json:"readinessPeriodSeconds"`
	FailureThreshold    int32 `json:"readinessFailureThreshold"`
}

// values is the part read of the values of ConfigMap istio-sidecar-injector, named as in
// Istio's charts, with global.proxy.engine and global.proxy.nativeSidecar beside.
type values struct {
	Global struct {
		Hub              string   `json:"hub"`
		Tag              any      `json:"tag"` // 1.15 may be a number
		ImagePullPolicy  string   `json:"imagePullPolicy"`
		ImagePullSecrets []string `json:"imagePullSecrets"`
		IstioNamespace   string   `json:"istioNamespace"`
		CAAddress        string   `json:"caAddress"`
		MeshID           string   `json:"meshID"`
		Network          string   `json:"network"`
		TrustDomain      string   `json:"trustDomain"`
		LogAsJSON        bool     `json:"logAsJson"`
		MultiCluster     struct {
			ClusterName string `json:"clusterName"`
		} `json:"multiCluster"`
		Logging struct {
			Level string `json:"level"`
		} `json:"logging"`
		Proxy struct {
			Image                           string          `json:"image"`
			Engine                          string          `json:"engine"`
			NativeSidecar                   *bool           `json:"nativeSidecar"`
			AutoInject                      string          `json:"autoInject"`
			ClusterDomain                   string          `json:"clusterDomain"`
			LogLevel                        string          `json:"logLevel"`
			ComponentLogLevel               string          `json:"componentLogLevel"`
			IncludeIPRanges                 string          `json:"includeIPRanges"`
			ExcludeIPRanges                 string          `json:"excludeIPRanges"`
			IncludeInboundPorts             string          `json:"includeInboundPorts"`
			ExcludeInboundPorts             string          `json:"excludeInboundPorts"`
			IncludeOutboundPorts            string          `json:"includeOutboundPorts"`
			ExcludeOutboundPorts            string          `json:"excludeOutboundPorts"`
			Privileged                      bool            `json:"privileged"`
			HoldApplicationUntilProxyStarts *bool           `json:"holdApplicationUntilProxyStarts"`
			Resources                       json.RawMessage `json:"resources"`
			Lifecycle                       json.RawMessage `json:"lifecycle"`
			SeccompProfile                  json.RawMessage `json:"seccompProfile"`
			StatusPort                      int32           `json:"statusPort"`
			StartupProbe                    struct {
				Enabled          *bool `json:"enabled"`
				FailureThreshold int32 `json:"failureThreshold"`
			} `json:"startupProbe"`
			Readiness
		} `json:"proxy"`
		ProxyInit struct {
			Resources json.RawMessage `json:"resources"`
		} `json:"proxy_init"`
	} `json:"global"`
	Revision               string `json:"revision"`
	SidecarInjectorWebhook struct {
		RewriteAppHTTPProbe  *bool                  `json:"rewriteAppHTTPProbe"`
		AlwaysInjectSelector []metav1.LabelSelector `json:"alwaysInjectSelector"`
		NeverInjectSelector  []metav1.LabelSelector `json:"neverInjectSelector"`
		InjectedAnnotations  map[string]string      `json:"injectedAnnotations"`
	} `json:"sidecarInjectorWebhook"`
}

// NewParams reads the settings from a mesh's configuration and the values (JSON) of its
// ConfigMap istio-sidecar-injector. native says whether the cluster supports native
// sidecars; global.proxy.nativeSidecar overrides it. mesh may be nil.
func NewParams(mesh *meshconfig.MeshConfig, valuesJSON []byte, native bool) (Params, error) {
	var v values
	if len(valuesJSON) > 0 {
		if err := json.Unmarshal(valuesJSON, &v); err != nil {
			return Params{}, fmt.Errorf("values of the sidecar injector: %w", err)
		}
	}
	g, px, w := &v.Global, &v.Global.Proxy, &v.SidecarInjectorWebhook
	p := Params{
		Hub: g.Hub, Image: px.Image, Engine: px.Engine,
		PullPolicy: corev1.PullPolicy(g.ImagePullPolicy), PullSecrets: g.ImagePullSecrets,
		Namespace: g.IstioNamespace, Revision: v.Revision, CAAddress: g.CAAddress,
		ClusterID: g.MultiCluster.ClusterName, Network: g.Network, MeshID: g.MeshID,
		TrustDomain: g.TrustDomain, DNSDomain: px.ClusterDomain,
		ProxyConfig: mesh.GetDefaultConfig(), MergePrometheus: true,
		Native: native, Hold: true, RewriteProbes: true,
		AlwaysSelector: w.AlwaysInjectSelector, NeverSelector: w.NeverInjectSelector,
		Disabled: px.AutoInject == "disabled", Annotations: w.InjectedAnnotations,
		LogLevel: px.LogLevel, ComponentLogLevel: px.ComponentLogLevel, AgentLogLevel: g.Logging.Level, LogAsJSON: g.LogAsJSON,
		IncludeIPRanges: px.IncludeIPRanges, ExcludeIPRanges: px.ExcludeIPRanges,
		IncludeInboundPorts: px.IncludeInboundPorts, ExcludeInboundPorts: px.ExcludeInboundPorts,
		IncludeOutboundPorts: px.IncludeOutboundPorts, ExcludeOutboundPorts: px.ExcludeOutboundPorts,
		Privileged: px.Privileged, Readiness: px.Readiness, StatusPort: px.StatusPort, StartupFailures: px.StartupProbe.FailureThreshold,
		mesh: mesh, values: valuesJSON,
	}
	if g.Tag != nil {
		p.Tag = fmt.Sprint(g.Tag)
	}
	if mesh.GetTrustDomain() != "" {
		p.TrustDomain = mesh.GetTrustDomain()
	}
	if m := mesh.GetEnablePrometheusMerge(); m != nil {
		p.MergePrometheus = m.Value
	}
	if px.NativeSidecar != nil {
		p.Native = *px.NativeSidecar
	}
	if px.HoldApplicationUntilProxyStarts != nil {
		p.Hold = *px.HoldApplicationUntilProxyStarts
	}
	if w.RewriteAppHTTPProbe != nil {
		p.RewriteProbes = *w.RewriteAppHTTPProbe
	}
	if e := px.StartupProbe.Enabled; e != nil && !*e {
		p.StartupFailures = -1
	}
	for _, r := range []struct {
		name string
		from json.RawMessage
		to   any
	}{
		{"proxy.resources", px.Resources, &p.Resources}, {"proxy_init.resources", g.ProxyInit.Resources, &p.InitResources},
		{"proxy.lifecycle", px.Lifecycle, &p.Lifecycle}, {"proxy.seccompProfile", px.SeccompProfile, &p.Seccomp},
	} {
		if len(r.from) > 0 && string(r.from) != "{}" {
			if err := json.Unmarshal(r.from, r.to); err != nil {
				return Params{}, fmt.Errorf("values of the sidecar injector: global.%s: %w", r.name, err)
			}
		}
	}
	if err := p.check(); err != nil {
		return Params{}, err
	}
	if p.Engine != "" && p.Engine != EngineCarrick && p.Engine != EngineEnvoy {
		return Params{}, fmt.Errorf("values of the sidecar injector: global.proxy.engine is %q, want %s or %s", p.Engine, EngineCarrick, EngineEnvoy)
	}
	return p, nil
}

// withDefaults returns p with every empty setting filled.
func (p Params) withDefaults() Params {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&p.Hub, "docker.io/carrickmesh"}, {&p.Tag, "latest"}, {&p.Image, "carrick"}, {&p.EnvoyImage, "carrick-envoy"},
		{&p.Engine, EngineCarrick}, {&p.Namespace, "istio-system"}, {&p.ClusterID, "Kubernetes"},
		{&p.TrustDomain, "cluster.local"}, {&p.DNSDomain, "cluster.local"},
		{&p.LogLevel, "warning"}, {&p.ComponentLogLevel, "misc:error"}, {&p.AgentLogLevel, "default:info"},
		{&p.IncludeIPRanges, "*"}, {&p.IncludeInboundPorts, "*"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if p.MeshID == "" {
		p.MeshID = p.TrustDomain
	}
	if p.CAAddress == "" {
		p.CAAddress = p.istiod() + ":15012"
	}
	if p.Resources.Requests == nil && p.Resources.Limits == nil {
		p.Resources = resources("100m", "128Mi", "2", "1Gi")
	}
	if p.InitResources.Requests == nil && p.InitResources.Limits == nil {
		p.InitResources = p.Resources
	}
	for _, d := range []struct {
		field *int32
		value int32
	}{{&p.Readiness.InitialDelaySeconds, 1}, {&p.Readiness.PeriodSeconds, 15}, {&p.Readiness.FailureThreshold, 4}, {&p.StatusPort, 15020}, {&p.StartupFailures, 600}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return p
}

// check refuses settings that the init container would refuse in every pod.
func (p Params) check() error {
	for _, v := range []struct {
		name, value string
		check       func(string) error
	}{
		{"includeIPRanges", p.IncludeIPRanges, checks[annIncludeOutIPs]}, {"excludeIPRanges", p.ExcludeIPRanges, checks[annExcludeOutIPs]},
		{"includeInboundPorts", p.IncludeInboundPorts, checks[annIncludeInPorts]}, {"excludeInboundPorts", p.ExcludeInboundPorts, checks[annExcludeInPorts]},
		{"includeOutboundPorts", p.IncludeOutboundPorts, checks[annIncludeOutPorts]}, {"excludeOutboundPorts", p.ExcludeOutboundPorts, checks[annExcludeOutPorts]},
		{"logLevel", p.LogLevel, proxyLevel}, {"componentLogLevel", p.ComponentLogLevel, componentLevels},
	} {
		if err := v.check(v.value); err != nil {
			return fmt.Errorf("values of the sidecar injector: global.proxy.%s: %q: %w", v.name, v.value, err)
		}
	}
	if err := checks[annAgentLogLevel](p.AgentLogLevel); err != nil {
		return fmt.Errorf("values of the sidecar injector: global.logging.level: %q: %w", p.AgentLogLevel, err)
	}
	if p.StatusPort < 0 || p.StatusPort > 65535 {
		return fmt.Errorf("values of the sidecar injector: global.proxy.statusPort: %d is out of range (0-65535)", p.StatusPort)
	}
	return nil
}

// istiod is the control plane's host name.
func (p Params) istiod() string {
	name := "istiod"
	if p.Revision != "" && p.Revision != "default" {
		name += "-" + p.Revision
	}
	return name + "." + p.Namespace + ".svc"
}

// image returns the reference of the proxy's image for an engine.
func (p Params) image(engine string) string {
	name := p.Image
	if engine == EngineEnvoy && !strings.Contains(name, "/") {
		name = p.EnvoyImage
	}
	if strings.Contains(name, "/") {
		return name
	}
	return p.Hub + "/" + name + ":" + p.Tag
}

func resources(cpu, memory, cpuLimit, memoryLimit string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpuLimit), corev1.ResourceMemory: resource.MustParse(memoryLimit)},
	}
}
