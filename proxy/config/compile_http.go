package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	cors "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	fault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcstats "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	preservecase "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
)

func compileHCM(m *hcm.HttpConnectionManager, ns *needs) (*HTTPConnectionManager, error) {
	common := m.GetCommonHttpProtocolOptions()
	h := &HTTPConnectionManager{
		StatPrefix: strings.TrimSuffix(m.StatPrefix, ";"),

		IdleTimeout:           orDuration(common.GetIdleTimeout(), time.Hour),
		StreamIdleTimeout:     orDuration(m.StreamIdleTimeout, 5*time.Minute),
		RequestTimeout:        orDuration(m.RequestTimeout, 0),
		RequestHeadersTimeout: orDuration(m.RequestHeadersTimeout, 0),
		MaxConnectionDuration: orDuration(common.GetMaxConnectionDuration(), 0),
		MaxStreamDuration:     orDuration(common.GetMaxStreamDuration(), 0),
		MaxRequests:           orUint32(common.GetMaxRequestsPerConnection(), 0),
		MaxHeaderBytes:        orUint32(m.MaxRequestHeadersKb, 60) << 10,
		MaxHeaders:            orUint32(common.GetMaxHeadersCount(), 100),

		ServerName:   m.ServerName,
		ServerHeader: ServerHeader(m.ServerHeaderTransformation),
		Via:          m.Via,

		UseRemoteAddress:    m.UseRemoteAddress.GetValue(),
		TrustedHops:         m.XffNumTrustedHops,
		SkipXFFAppend:       m.SkipXffAppend,
		AppendXFPort:        m.AppendXForwardedPort,
		SchemeOverwrite:     m.GetSchemeHeaderTransformation().GetSchemeToOverwrite(),
		GenerateRequestID:   orBool(m.GenerateRequestId, true),
		PreserveRequestID:   m.PreserveExternalRequestId,
		RequestIDInResponse: m.AlwaysSetRequestIdInResponse,
		ForwardCert:         ForwardCert(m.ForwardClientCertDetails),

		NormalizePath:    m.NormalizePath.GetValue(),
		MergeSlashes:     m.MergeSlashes,
		StripHostDot:     m.StripTrailingHostDot,
		Proxy100Continue: m.Proxy_100Continue,
	}
	if h.ServerName == "" {
		h.ServerName = "envoy"
	}
	if d := m.SetCurrentClientCertDetails; d != nil {
		h.CertDetails = CertDetails{Subject: d.Subject.GetValue(), Cert: d.Cert, Chain: d.Chain, DNS: d.Dns, URI: d.Uri}
	}
	if err := h.compileEnums(m); err != nil {
		return nil, err
	}
	if err := h.compileProtocols(m); err != nil {
		return nil, err
	}
	if rs := m.GetInternalAddressConfig().GetCidrRanges(); len(rs) > 0 {
		var err error
		if h.InternalRanges, err = compilePrefixes("cidr_ranges", rs); err != nil {
			return nil, in("internal_address_config", err)
		}
	}
	switch r := m.RouteSpecifier.(type) {
	case *hcm.HttpConnectionManager_Rds:
		h.RDS = r.Rds.GetRouteConfigName()
		if h.RDS == "" {
			return nil, in("rds.route_config_name", errors.New("is empty"))
		}
		if err := viaADS(r.Rds.GetConfigSource()); err != nil {
			return nil, in("rds.config_source", err)
		}
		ns.add(resource.RouteType, h.RDS)
	case *hcm.HttpConnectionManager_RouteConfig:
		t, err := compileRoutes(r.RouteConfig)
		if err != nil {
			return nil, in("route_config", err)
		}
		h.Routes = t
	default:
		return nil, errors.New("has no routes")
	}
	var err error
	if h.Filters, err = compileFilters(m.HttpFilters); err != nil {
		return nil, err
	}
	if h.AccessLogs, err = compileLogs("access_log", m.AccessLog); err != nil {
		return nil, err
	}
	h.Tracing = m.Tracing != nil
	if m.GetRequestIdExtension().GetTypedConfig() != nil {
		if _, err := unpack(m.RequestIdExtension.TypedConfig); err != nil {
			return nil, in("request_id_extension.typed_config", err)
		}
	}
	return h, nil
}

func (h *HTTPConnectionManager) compileEnums(m *hcm.HttpConnectionManager) error {
	switch m.CodecType {
	case hcm.HttpConnectionManager_AUTO:
	case hcm.HttpConnectionManager_HTTP1:
		h.Codec = CodecHTTP1
	case hcm.HttpConnectionManager_HTTP2:
		h.Codec = CodecHTTP2
	default:
		return in("codec_type", notSupported(m.CodecType.String()))
	}
	switch m.PathWithEscapedSlashesAction {
	case hcm.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcm.HttpConnectionManager_KEEP_UNCHANGED:
	case hcm.HttpConnectionManager_REJECT_REQUEST:
		h.EscapedSlashes = SlashesReject
	case hcm.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		h.EscapedSlashes = SlashesUnescapeRedirect
	case hcm.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		h.EscapedSlashes = SlashesUnescapeForward
	default:
		return in("path_with_escaped_slashes_action", notSupported(m.PathWithEscapedSlashesAction.String()))
	}
	switch {
	case m.GetStripAnyHostPort():
		h.StripHostPort = HostPortAny
	case m.StripMatchingHostPort:
		h.StripHostPort = HostPortMatching
	}
	if s := h.SchemeOverwrite; s != "" && s != "http" && s != "https" {
		return in("scheme_header_transformation.scheme_to_overwrite", fmt.Errorf("%q is neither http nor https", s))
	}
	for i, u := range m.UpgradeConfigs {
		if err := addUpgrade(&h.Upgrades, u.UpgradeType, u.Enabled.GetValue() || u.Enabled == nil); err != nil {
			return inIndex("upgrade_configs", i, err)
		}
	}
	return nil
}

func addUpgrade(m *map[string]bool, kind string, enabled bool) error {
	kind = strings.ToLower(kind)
	if kind == "" || kind == "connect" || kind == "connect-udp" {
		return in("upgrade_type", notSupported(strings.ToUpper(kind)))
	}
	if *m == nil {
		*m = map[string]bool{}
	}
	(*m)[kind] = enabled
	return nil
}

func (h *HTTPConnectionManager) compileProtocols(m *hcm.HttpConnectionManager) error {
	var err error
	if h.HTTP1, err = compileHTTP1(m.HttpProtocolOptions); err != nil {
		return in("http_protocol_options", err)
	}
	h.HTTP2 = compileHTTP2(m.Http2ProtocolOptions, 1024)
	return nil
}

func compileHTTP1(m *core.Http1ProtocolOptions) (HTTP1Options, error) {
	o := HTTP1Options{
		Accept10:           m.GetAcceptHttp_10(),
		DefaultHost:        m.GetDefaultHostForHttp_10(),
		Trailers:           m.GetEnableTrailers(),
		AllowChunkedLength: m.GetAllowChunkedLength(),
		AnyMethod:          m.GetAllowCustomMethods(),
	}
	return o, in("header_key_format", o.compileNames(m.GetHeaderKeyFormat()))
}

func (o *HTTP1Options) compileNames(m *core.Http1ProtocolOptions_HeaderKeyFormat) error {
	if m == nil {
		return nil
	}
	switch f := m.HeaderFormat.(type) {
	case *core.Http1ProtocolOptions_HeaderKeyFormat_ProperCaseWords_:
		o.ProperCase = true
	case *core.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter:
		p, err := unpackAs[*preservecase.PreserveCaseFormatterConfig](f.StatefulFormatter.GetTypedConfig())
		if err != nil {
			return in("stateful_formatter", in("typed_config", err))
		}
		o.KeepCase = true
		o.OthersProper = p.FormatterTypeOnEnvoyHeaders == preservecase.PreserveCaseFormatterConfig_PROPER_CASE
	default:
		return errors.New("is empty")
	}
	return nil
}

// compileHTTP2 gives absent windows Envoy's present defaults.
func compileHTTP2(m *core.Http2ProtocolOptions, streams uint32) HTTP2Options {
	return HTTP2Options{
		MaxStreams:       orUint32(m.GetMaxConcurrentStreams(), streams),
		StreamWindow:     orUint32(m.GetInitialStreamWindowSize(), 16<<20),
		ConnectionWindow: orUint32(m.GetInitialConnectionWindowSize(), 24<<20),
		HeaderTable:      orUint32(m.GetHpackTableSize(), 4096),
		PingInterval:     orDuration(m.GetConnectionKeepalive().GetInterval(), 0),
		PingTimeout:      orDuration(m.GetConnectionKeepalive().GetTimeout(), 0),
	}
}

func compileFilters(fs []*hcm.HttpFilter) ([]HTTPFilter, error) {
	var out []HTTPFilter
	for i, f := range fs {
		if leftOut(f.GetTypedConfig()) {
			continue
		}
		c, err := compileFilter(f.GetTypedConfig())
		if err != nil {
			if f.IsOptional && errors.Is(err, errNotSupported) {
				continue
			}
			return nil, inIndex("http_filters", i, in("typed_config", err))
		}
		if n := len(out); n > 0 {
			if _, ok := out[n-1].Config.(*RouterFilter); ok {
				return nil, inIndex("http_filters", i, errors.New("follows the router"))
			}
		}
		out = append(out, HTTPFilter{Name: f.Name, Disabled: f.Disabled, Config: c})
	}
	if n := len(out); n > 0 {
		if _, ok := out[n-1].Config.(*RouterFilter); ok {
			return out, nil
		}
	}
	return nil, in("http_filters", errors.New("does not end with the router"))
}

func compileFilter(a *anypb.Any) (FilterConfig, error) {
	m, err := unpack(a)
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *router.Router:
		return &RouterFilter{SuppressEnvoyHeaders: m.SuppressEnvoyHeaders}, nil
	case *cors.Cors:
		return &CORSFilter{}, nil
	case *grpcstats.FilterConfig:
		return &GRPCStatsFilter{}, nil
	case *fault.HTTPFault:
		return compileFault(m)
	}
	return nil, notSupported(a.GetTypeUrl())
}

func compileFault(m *fault.HTTPFault) (*FaultFilter, error) {
	f := &FaultFilter{
		Upstream:  m.UpstreamCluster,
		MaxActive: orUint32(m.MaxActiveFaults, 0),
	}
	var err error
	if d := m.Delay; d != nil {
		f.Delay, f.DelayHeader = orDuration(d.GetFixedDelay(), 0), d.GetHeaderDelay() != nil
		if f.DelayPercent, err = compileFraction(d.Percentage); err != nil {
			return nil, in("delay.percentage", err)
		}
	}
	if a := m.Abort; a != nil {
		switch t := a.ErrorType.(type) {
		case *fault.FaultAbort_HttpStatus:
			if t.HttpStatus < 200 || t.HttpStatus > 599 {
				return nil, in("abort.http_status", fmt.Errorf("%d is not between 200 and 599", t.HttpStatus))
			}
			f.AbortStatus = int(t.HttpStatus)
		case *fault.FaultAbort_GrpcStatus:
			f.AbortGRPC = &t.GrpcStatus
		case *fault.FaultAbort_HeaderAbort_:
			f.AbortHeader = true
		}
		if f.AbortPercent, err = compileFraction(a.Percentage); err != nil {
			return nil, in("abort.percentage", err)
		}
	}
	f.Headers, err = compileHeaderMatchers("headers", m.Headers)
	return f, err
}

// viaADS refuses sources that are not the xDS server itself.
func viaADS(s *core.ConfigSource) error {
	switch s.GetConfigSourceSpecifier().(type) {
	case *core.ConfigSource_Ads, *core.ConfigSource_Self:
		return nil
	}
	return notSupported("a source other than ads")
}
