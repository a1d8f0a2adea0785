package compile

import (
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcweb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	preservecase "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/carrick-mesh/carrick/mesh"
)

// httpSettings are those of MeshConfig that HTTP filters and listeners depend on. Comparable.
type httpSettings struct {
	log       logSettings
	normalize meshconfig.MeshConfig_ProxyPathNormalization_NormalizationType
	detect    int64                                       // protocolDetectionTimeout, ns; 0 waits for ever
	policy    *meshconfig.MeshConfig_DefaultTrafficPolicy // of rules that say nothing; nil for none
	http1     HTTP1
}

func httpSettingsOf(c *mesh.Config, p Proxy) httpSettings {
	return httpSettings{
		logSettingsOf(c), c.Spec.GetPathNormalization().GetNormalization(), c.Spec.GetProtocolDetectionTimeout().AsDuration().Nanoseconds(),
		c.DefaultPolicy, p.HTTP1,
	}
}

func httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: toAny(m)}}
}

const (
	faultFilter  = "envoy.filters.http.fault"
	webFilter    = "envoy.filters.http.grpc_web"
	corsFilter   = "envoy.filters.http.cors"
	routerFilter = "envoy.filters.http.router"
)

// connectionManager returns what all HTTP connection managers of a mesh have in common.
func (s httpSettings) connectionManager(statPrefix string) *hcmv3.HttpConnectionManager {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: statPrefix,
		AccessLog:  s.log.accessLogs(false),
		HttpFilters: []*hcmv3.HttpFilter{
			httpFilter(faultFilter, &faultv3.HTTPFault{}),
			httpFilter(corsFilter, &corsv3.Cors{}),
			httpFilter(routerFilter, &routerv3.Router{}),
		},
		NormalizePath:                boolean(true),
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
		Proxy_100Continue:            true,
		RequestIdExtension:           &hcmv3.RequestIDExtension{TypedConfig: toAny(&uuidv3.UuidRequestIdConfig{UseRequestIdForTraceSampling: boolean(true)})},
		StreamIdleTimeout:            seconds(0),
		UpgradeConfigs:               []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		UseRemoteAddress:             boolean(false),
	}
	if s.http1.Accept10 || s.http1.KeepCase {
		m.HttpProtocolOptions = http1Options(s.http1)
	}
	if s.http1.Idle > 0 {
		m.CommonHttpProtocolOptions = &core.HttpProtocolOptions{IdleTimeout: span(s.http1.Idle)}
	}
	switch s.normalize {
	case meshconfig.MeshConfig_ProxyPathNormalization_NONE:
		m.NormalizePath = boolean(false)
	case meshconfig.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:
		m.MergeSlashes = true
	case meshconfig.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES:
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
	return m
}

// http1Options returns the HTTP/1 options of either side of a proxy.
func http1Options(o HTTP1) *core.Http1ProtocolOptions {
	out := &core.Http1ProtocolOptions{AcceptHttp_10: o.Accept10}
	if o.KeepCase {
		out.HeaderKeyFormat = &core.Http1ProtocolOptions_HeaderKeyFormat{HeaderFormat: &core.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter{
			StatefulFormatter: &core.TypedExtensionConfig{Name: "preserve_case", TypedConfig: toAny(&preservecase.PreserveCaseFormatterConfig{})},
		}}
	}
	return out
}

// translateWeb has a connection manager make gRPC of gRPC-Web, as Envoy can.
func translateWeb(m *hcmv3.HttpConnectionManager) {
	m.HttpFilters = slices.Insert(m.HttpFilters, 0, httpFilter(webFilter, &grpcweb.GrpcWeb{}))
}

func byRDS(m *hcmv3.HttpConnectionManager, route string) *hcmv3.HttpConnectionManager {
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: route}}
	return m
}

func inline(m *hcmv3.HttpConnectionManager, routes *routev3.RouteConfiguration) *hcmv3.HttpConnectionManager {
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes}
	return m
}

func filter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: toAny(m)}}
}

// httpChain returns the filters of a chain that ends in a connection manager.
func httpChain(m *hcmv3.HttpConnectionManager) []*listenerv3.Filter {
	return []*listenerv3.Filter{filter("envoy.filters.network.http_connection_manager", m)}
}

// weighted is one of the clusters that TCP connections are spread over.
type weighted struct {
	cluster string
	weight  uint32
}

// tcp returns the filter that proxies connections as they are.
func (s httpSettings) tcp(statPrefix string, to ...weighted) []*listenerv3.Filter {
	return s.tcpWithin(connectionLimits{}, statPrefix, to...)
}

// tcpWithin is tcp for connections that have limits.
func (s httpSettings) tcpWithin(l connectionLimits, statPrefix string, to ...weighted) []*listenerv3.Filter {
	t := &tcpproxy.TcpProxy{
		StatPrefix: statPrefix, AccessLog: s.log.accessLogs(false), IdleTimeout: l.idle, MaxDownstreamConnectionDuration: l.most,
	}
	if l.bySource {
		t.HashPolicy = []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
	}
	if t.IdleTimeout == nil && s.http1.Idle > 0 {
		t.IdleTimeout = span(s.http1.Idle)
	}
	if len(to) == 1 {
		t.ClusterSpecifier = &tcpproxy.TcpProxy_Cluster{Cluster: to[0].cluster}
	} else {
		w := &tcpproxy.TcpProxy_WeightedCluster{}
		for _, x := range to {
			w.Clusters = append(w.Clusters, &tcpproxy.TcpProxy_WeightedCluster_ClusterWeight{Name: x.cluster, Weight: x.weight})
		}
		t.ClusterSpecifier = &tcpproxy.TcpProxy_WeightedClusters{WeightedClusters: w}
	}
	return []*listenerv3.Filter{filter("envoy.filters.network.tcp_proxy", t)}
}

func silentBlackHole() []*listenerv3.Filter {
	return []*listenerv3.Filter{filter("envoy.filters.network.tcp_proxy", &tcpproxy.TcpProxy{
		StatPrefix: blackHole, ClusterSpecifier: &tcpproxy.TcpProxy_Cluster{Cluster: blackHole},
	})}
}

func listenerFilter(name string, m proto.Message, off *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: toAny(m)}, FilterDisabled: off}
}

// sniffHTTP looks for HTTP in the first bytes, but on ports where that is known not to help.
func sniffHTTP(off *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.http_inspector", &httpinspector.HttpInspector{}, off)
}

func sniffTLS(off *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspector.TlsInspector{InitialReadBufferSize: u32(512)}, off)
}

// proxyProtocol takes the client's address from the PROXY header that each connection begins with.
func proxyProtocol() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocol.ProxyProtocol{}, nil)
}

func originalDestination() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_dst", &originaldst.OriginalDst{}, nil)
}

// listenOn returns the name and addresses of a listener on all addresses of a proxy.
func listenOn(f Family, port uint16) (name string, a *core.Address, more []*listenerv3.AdditionalAddress) {
	switch f {
	case IPv6:
		return "::_" + strconv.Itoa(int(port)), socketAddress("::", uint32(port)), nil
	case IPv4 | IPv6:
		more = []*listenerv3.AdditionalAddress{{Address: socketAddress("::", uint32(port))}}
	}
	return "0.0.0.0_" + strconv.Itoa(int(port)), socketAddress("0.0.0.0", uint32(port)), more
}
