package mesh

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
)

// Config is the local cluster's MeshConfig with Istio's defaults filled in. Immutable.
type Config struct {
	Object          Key                                     // the ConfigMap, for findings
	Spec            *meshconfig.MeshConfig                  // as the user wrote it; never nil
	TrustDomain     string                                  // default "cluster.local"
	TrustAliases    []string                                // other trust domains whose workloads count as ours, in order
	RootNamespace   string                                  // default the system namespace
	ConnectTimeout  time.Duration                           // default 10 s
	AutoMTLS        bool                                    // default true
	AllowAny        bool                                    // outboundTrafficPolicy; default true
	InboundLoopback bool                                    // inboundTrafficPolicy LOCALHOST; default false
	UpgradeHTTP     bool                                    // h2UpgradePolicy; default false
	IngressClass    string                                  // default "istio"
	LocalityLB      *networking.LocalityLoadBalancerSetting // may be nil

	Retry *networking.HTTPRetry // of routes that say nothing; nil for Istio's default

	DefaultPolicy *meshconfig.MeshConfig_DefaultTrafficPolicy                 // of DestinationRules that say nothing; may be nil
	Keepalive     *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive // may be nil
	TLSDefaults   *meshconfig.MeshConfig_TLSConfig                            // of all TLS but that between workloads; may be nil
	MeshTLS       *meshconfig.MeshConfig_TLSConfig                            // of TLS between workloads; may be nil

	networks  *meshconfig.MeshNetworks
	addresses map[string][]string // of the host names of gateways in networks
	local     []string            // host patterns that stay in their cluster
	shared    []string            // exceptions from them

	controlPlanes string // ending of the hosts of control planes
}

func newConfig(m *MeshConfig, s Settings) *Config {
	spec := &meshconfig.MeshConfig{}
	c := &Config{}
	if m != nil {
		spec, c.networks, c.addresses = m.Spec, m.Networks, m.Addresses
		c.Object = configMap(m)
	}
	c.Spec = spec
	c.TrustDomain = cmp.Or(spec.GetTrustDomain(), "cluster.local")
	c.TrustAliases = slices.Sorted(slices.Values(spec.GetTrustDomainAliases()))
	c.RootNamespace = cmp.Or(spec.GetRootNamespace(), s.SystemNamespace)
	c.ConnectTimeout = duration(spec.GetConnectTimeout(), 10*time.Second)
	c.AutoMTLS = spec.GetEnableAutoMtls() == nil || spec.GetEnableAutoMtls().GetValue()
	// ALLOW_ANY_DYNAMIC_DNS lets the same out, and would only look the name up again.
	c.AllowAny = spec.GetOutboundTrafficPolicy() == nil || spec.GetOutboundTrafficPolicy().GetMode() != meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY
	c.InboundLoopback = spec.GetInboundTrafficPolicy().GetMode() == meshconfig.MeshConfig_InboundTrafficPolicy_LOCALHOST
	c.UpgradeHTTP = spec.GetH2UpgradePolicy() == meshconfig.MeshConfig_UPGRADE
	c.IngressClass = cmp.Or(spec.GetIngressClass(), "istio")
	c.LocalityLB, c.Retry = spec.GetLocalityLbSetting(), spec.GetDefaultHttpRetryPolicy()
	c.DefaultPolicy, c.Keepalive = spec.GetDefaultTrafficPolicy(), spec.GetTcpKeepalive()
	c.TLSDefaults, c.MeshTLS = spec.GetTlsDefaults(), spec.GetMeshMTLS()
	c.controlPlanes = "." + s.SystemNamespace + ".svc." + s.Domain
	c.local = []string{
		"*.kube-system.svc." + s.Domain,
		"kubernetes.default.svc." + s.Domain,
		"istiod." + s.SystemNamespace + ".svc." + s.Domain,
	}
	for _, x := range spec.GetServiceSettings() {
		if x.GetSettings().GetClusterLocal() {
			c.local = append(c.local, x.GetHosts()...)
		} else {
			c.shared = append(c.shared, x.GetHosts()...)
		}
	}
	return c
}

// configMap returns the key of a MeshConfig's ConfigMap.
func configMap(m *MeshConfig) Key {
	if m.Name == "" {
		return m.Key()
	}
	return Key{m.Cluster, "ConfigMap", m.Namespace, m.Name}
}

// clusterLocal reports whether a host's endpoints stay in their cluster.
func (c *Config) clusterLocal(host string) bool {
	is := func(pattern string) bool { return MatchHost(pattern, host) }
	if name, own := strings.CutSuffix(host, c.controlPlanes); own && strings.HasPrefix(name, "istiod-") {
		return true // of a revision
	}
	return slices.ContainsFunc(c.local, is) && !slices.ContainsFunc(c.shared, func(p string) bool { return p == host })
}

// exportTo returns what an object's exportTo means, with the mesh's default for none: nil is all.
func exportTo(said, byDefault []string) []string {
	if len(said) == 0 {
		said = byDefault
	}
	if len(said) == 0 || slices.Contains(said, "*") {
		return nil
	}
	return said
}

// MatchHost reports whether a host name is what a pattern says: itself, "*", or "*." and a suffix.
func MatchHost(pattern, host string) bool {
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(host, suffix)
	}
	return pattern == host
}

// keep makes now the pointer that was before, if both have the same content: so that what depends on it is
// not made again.
func keep[M interface {
	comparable
	proto.Message
}](now *M, before M) {
	var none M
	if before != none && *now != none && proto.Equal(*now, before) {
		*now = before
	}
}

func duration(d *durationpb.Duration, byDefault time.Duration) time.Duration {
	if d == nil {
		return byDefault
	}
	return d.AsDuration()
}
