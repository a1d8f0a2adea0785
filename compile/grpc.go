package compile

import (
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// What gRPC's own xDS client takes is less: no listener filters, no SDS, no transport socket matches.

func plainADS() *core.ConfigSource {
	return &core.ConfigSource{ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}
}

// grpcListeners returns a listener for each port, named as the client's target: HOST:PORT.
func grpcListeners(r listenerRow, v listenerView, part *mesh.Service) (m made) {
	for _, p := range part.Ports {
		if p.Protocol() == mesh.UDP {
			continue
		}
		ip := "0.0.0.0"
		if len(part.ClusterIPs) > 0 && part.Cluster == v.cluster {
			ip = part.ClusterIPs[0]
		}
		name := r.svc.Host + ":" + strconv.Itoa(int(p.Number))
		hcm := &hcmv3.HttpConnectionManager{
			StatPrefix:     name,
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: plainADS(), RouteConfigName: clusterName(p.Number, "", r.svc.Host)}},
			HttpFilters:    []*hcmv3.HttpFilter{httpFilter(faultFilter, &faultv3.HTTPFault{}), httpFilter(routerFilter, &routerv3.Router{})},
		}
		m.resources = append(m.resources, newResource(name, &listenerv3.Listener{
			Name: name, Address: socketAddress(ip, uint32(p.Number)), ApiListener: &listenerv3.ApiListener{ApiListener: toAny(hcm)},
		}))
	}
	return m
}

func (r clusterRow) grpcCluster(v clusterView, name string, p mesh.ServicePort, subset *networking.Subset) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: plainADS(), ServiceName: name},
	}
	policy := policyFor(r.rule, subset, p.Number)
	if n := policy.GetConnectionPool().GetHttp().GetHttp2MaxRequests(); n > 0 {
		c.CircuitBreakers = breakers(&clusterv3.CircuitBreakers_Thresholds{MaxRequests: u32(uint32(n))})
	}
	if policy.GetTls().GetMode() == networking.ClientTLSSettings_ISTIO_MUTUAL {
		tls := &tlsv3.CommonTlsContext{
			TlsCertificateProviderInstance: &tlsv3.CertificateProviderPluginInstance{InstanceName: "default", CertificateName: "default"},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
				CaCertificateProviderInstance: &tlsv3.CertificateProviderPluginInstance{InstanceName: "default", CertificateName: "ROOTCA"},
				MatchTypedSubjectAltNames:     accountSANs(r.accounts, strings.Split(v.settings.trust, ",")),
			}},
		}
		sni := sniName(p.Number, subset.GetName(), r.svc.Host)
		if s := policy.GetTls().GetSni(); s != "" {
			sni = s
		}
		c.TransportSocket = &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.UpstreamTlsContext{
			CommonTlsContext: tls, Sni: sni,
		})}}
	}
	return c
}
