package compile

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// What gRPC's own xDS client and server take is less: no listener filters, no SDS, no transport socket
// matches, no chains to choose from by the first bytes.

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
		tls := grpcTLS(accountSANs(r.accounts, strings.Split(v.settings.trust, ",")))
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

// grpcTLS is the workload's certificate and its roots, by the certificate provider that the agent's
// bootstrap names.
func grpcTLS(peers []*tlsv3.SubjectAltNameMatcher) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsCertificateProviderInstance: &tlsv3.CertificateProviderPluginInstance{InstanceName: "default", CertificateName: "default"},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			CaCertificateProviderInstance: &tlsv3.CertificateProviderPluginInstance{InstanceName: "default", CertificateName: "ROOTCA"},
			MatchTypedSubjectAltNames:     peers,
		}},
	}
}

// grpcServer is what the inbound listeners of a workload depend on whose application is gRPC's own xDS
// server (gRFC A36).
type grpcServer struct {
	ports []grpcPort // in order
}

type grpcPort struct {
	port uint16
	tls  bool
}

// grpcServerOf finds the ports that services lead to. A server cannot tell mutual TLS from plaintext by the
// first bytes, so PERMISSIVE is what the label says that makes clients in the mesh use TLS.
func grpcServerOf(s *mesh.Snapshot, p Proxy) (r grpcServer) {
	labels := labelMap(p.Labels)
	mode, modes := s.Policies().Modes(p.Namespace, labels)
	for _, t := range targets(s, p) {
		m := modeOn(t.port, mode, modes)
		r.ports = append(r.ports, grpcPort{t.port, m == mesh.Strict || m == mesh.Permissive && labels[tlsModeLabel] == "istio"})
	}
	slices.SortFunc(r.ports, func(a, b grpcPort) int { return cmp.Compare(a.port, b.port) })
	return r
}

// build returns a listener for each port and each address that stands for all of the pod's: a server asks
// for the one that it listens on, and takes no other. "[::]" is what Go calls a port without an address.
func (r grpcServer) build() *workload {
	var listeners []*resource.Resource
	for _, p := range r.ports {
		for _, ip := range []string{"0.0.0.0", "::"} {
			name := "xds.istio.io/grpc/lds/inbound/" + net.JoinHostPort(ip, strconv.Itoa(int(p.port)))
			listeners = append(listeners, newResource(name, &listenerv3.Listener{
				Name: name, Address: socketAddress(ip, uint32(p.port)), FilterChains: []*listenerv3.FilterChain{p.chain()},
			}))
		}
	}
	return &workload{listeners: partOf(listeners)}
}

func (p grpcPort) chain() *listenerv3.FilterChain {
	c := &listenerv3.FilterChain{Name: "inbound-plaintext", Filters: httpChain(inline(&hcmv3.HttpConnectionManager{
		StatPrefix:  inboundName(p.port),
		HttpFilters: []*hcmv3.HttpFilter{httpFilter(routerFilter, &routerv3.Router{})},
	}, &routev3.RouteConfiguration{
		Name: "inbound",
		VirtualHosts: []*routev3.VirtualHost{{
			Name: "inbound", Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}},
			}},
		}},
	}))}
	if p.tls {
		c.Name = "inbound-mtls"
		c.TransportSocket = &core.TransportSocket{Name: tlsSocket, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: toAny(&tlsv3.DownstreamTlsContext{
			CommonTlsContext: grpcTLS(nil), RequireClientCertificate: boolean(true),
		})}}
	}
	return c
}
