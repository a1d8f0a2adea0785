package compile

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	metadata "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/metadata/v3"
	withoutquery "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/req_without_query/v3"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/carrick-mesh/carrick/mesh"
)

// logSettings is where and how requests are logged. Comparable; the zero value logs nothing.
type logSettings struct {
	path string
	text string // format, if json is ""
	json string // a JSON object of format strings
}

// textFormat is Istio 1.15's default.
const textFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% ` +
	`%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" ` +
	`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" ` +
	`"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% ` +
	`%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// jsonFormat is the same for encoding JSON.
const jsonFormat = `{"authority":"%REQ(:AUTHORITY)%","bytes_received":"%BYTES_RECEIVED%","bytes_sent":"%BYTES_SENT%",` +
	`"connection_termination_details":"%CONNECTION_TERMINATION_DETAILS%","downstream_local_address":"%DOWNSTREAM_LOCAL_ADDRESS%",` +
	`"downstream_remote_address":"%DOWNSTREAM_REMOTE_ADDRESS%","duration":"%DURATION%","method":"%REQ(:METHOD)%",` +
	`"path":"%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%","protocol":"%PROTOCOL%","request_id":"%REQ(X-REQUEST-ID)%",` +
	`"requested_server_name":"%REQUESTED_SERVER_NAME%","response_code":"%RESPONSE_CODE%","response_code_details":"%RESPONSE_CODE_DETAILS%",` +
	`"response_flags":"%RESPONSE_FLAGS%","route_name":"%ROUTE_NAME%","start_time":"%START_TIME%","upstream_cluster":"%UPSTREAM_CLUSTER%",` +
	`"upstream_host":"%UPSTREAM_HOST%","upstream_local_address":"%UPSTREAM_LOCAL_ADDRESS%",` +
	`"upstream_service_time":"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%","upstream_transport_failure_reason":"%UPSTREAM_TRANSPORT_FAILURE_REASON%",` +
	`"user_agent":"%REQ(USER-AGENT)%","x_forwarded_for":"%REQ(X-FORWARDED-FOR)%"}`

func logSettingsOf(c *mesh.Config) logSettings {
	l := logSettings{path: c.Spec.GetAccessLogFile()}
	format := c.Spec.GetAccessLogFormat()
	switch {
	case l.path == "":
	case c.Spec.GetAccessLogEncoding() == meshconfig.MeshConfig_JSON:
		l.json = jsonFormat
		if m := map[string]any{}; format != "" && json.Unmarshal([]byte(format), &m) == nil {
			l.json = format
		}
	case format == "":
		l.text = textFormat
	default:
		l.text = format
		if !strings.HasSuffix(format, "\n") {
			l.text += "\n"
		}
	}
	return l
}

// accessLogs returns what a filter or, for connections that no filter chain takes (unmatched), a
// listener logs.
func (l logSettings) accessLogs(unmatched bool) []*accesslogv3.AccessLog {
	if l.path == "" {
		return nil
	}
	log := &filelog.FileAccessLog{Path: l.path}
	format := &core.SubstitutionFormatString{Formatters: l.formatters()}
	if l.json != "" {
		m := map[string]any{}
		_ = json.Unmarshal([]byte(l.json), &m) // logSettingsOf has tried it
		format.Format = &core.SubstitutionFormatString_JsonFormat{JsonFormat: jsonStruct(m)}
	} else {
		format.Format = &core.SubstitutionFormatString_TextFormatSource{TextFormatSource: &core.DataSource{
			Specifier: &core.DataSource_InlineString{InlineString: l.text},
		}}
	}
	log.AccessLogFormat = &filelog.FileAccessLog_LogFormat{LogFormat: format}
	a := &accesslogv3.AccessLog{Name: "envoy.access_loggers.file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: toAny(log)}}
	if unmatched {
		a.Filter = &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}},
		}}
	}
	return []*accesslogv3.AccessLog{a}
}

// formatters are Envoy's extensions for the operators that it does not know without them.
func (l logSettings) formatters() []*core.TypedExtensionConfig {
	var out []*core.TypedExtensionConfig
	if format := l.text + l.json; strings.Contains(format, "%REQ_WITHOUT_QUERY(") {
		out = append(out, &core.TypedExtensionConfig{Name: "envoy.formatter.req_without_query", TypedConfig: toAny(&withoutquery.ReqWithoutQuery{})})
	}
	if format := l.text + l.json; strings.Contains(format, "%METADATA(") {
		out = append(out, &core.TypedExtensionConfig{Name: "envoy.formatter.metadata", TypedConfig: toAny(&metadata.Metadata{})})
	}
	return out
}

func jsonStruct(m map[string]any) *structpb.Struct {
	s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if v, err := structpb.NewValue(m[k]); err == nil {
			s.Fields[k] = v
		}
	}
	return s
}
