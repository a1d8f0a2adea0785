package differential

import "strings"

const (
	corsFilter  = `- {name: envoy.filters.http.cors, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}`
	faultFilter = `- {name: envoy.filters.http.fault, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}}`
	inspectors  = `listener_filters:
- {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
- {name: http, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
`
	preserveCase = `header_key_format: {stateful_formatter: {name: preserve_case, typed_config: {"@type": type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}`
)

// tcpLog tells connections by the client's address, as logFormat does.
var tcpLog = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%\\tflags=%RESPONSE_FLAGS%\\trx=%BYTES_RECEIVED%\\ttx=%BYTES_SENT%\\tcluster=%UPSTREAM_CLUSTER%\\thost=%UPSTREAM_HOST%\\tsni=%REQUESTED_SERVER_NAME%\\n"

func tcp(cluster, more string) string {
	return "name: tcp\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n    stat_prefix: x\n    cluster: " + cluster + "\n    access_log: " + fileLog(tcpLog) + "\n" + indent(more, 4)
}

// to is routes by path: each pair is a prefix and the action, which has a cluster unless it is whole.
func to(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		b.WriteString("- match: {prefix: \"" + pairs[i] + "\"}\n  name: \"" + pairs[i] + "\"\n" + indent(pairs[i+1], 2))
	}
	return b.String()
}

func route(fields string) string { return "route: {" + fields + "}" }

var pathOptions = map[string]string{
	"path-plain":         "",
	"path-normalize":     "normalize_path: true",
	"path-merge":         "merge_slashes: true",
	"path-both":          "normalize_path: true\nmerge_slashes: true",
	"path-reject":        "normalize_path: true\nmerge_slashes: true\npath_with_escaped_slashes_action: REJECT_REQUEST",
	"path-redirect":      "normalize_path: true\nmerge_slashes: true\npath_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT",
	"path-forward":       "normalize_path: true\nmerge_slashes: true\npath_with_escaped_slashes_action: UNESCAPE_AND_FORWARD",
	"path-only-redirect": "path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT",
}

var trustOptions = map[string]string{
	"trust-default":    "",
	"trust-edge":       "use_remote_address: true",
	"trust-edge-hop":   "use_remote_address: true\nxff_num_trusted_hops: 1",
	"trust-hop":        "xff_num_trusted_hops: 1",
	"trust-skip":       "use_remote_address: true\nskip_xff_append: true",
	"trust-port":       "use_remote_address: true\nappend_x_forwarded_port: true",
	"trust-port-inner": "append_x_forwarded_port: true",
	"trust-keep-id":    "use_remote_address: true\npreserve_external_request_id: true",
	"trust-via":        "via: me\nserver_name: us\nserver_header_transformation: APPEND_IF_ABSENT",
	"trust-pass":       "server_header_transformation: PASS_THROUGH\nalways_set_request_id_in_response: true\ngenerate_request_id: false",
}

func simple(options map[string]string) (ls []listen) {
	for _, name := range sorted(options) {
		ls = append(ls, listen{name: name, manager: options[name]})
	}
	return ls
}

func mutual(more string) string {
	return downstreamTLS("require_client_certificate: true\ncommon_tls_context: {" + certificate("server") + ", alpn_protocols: [h2, http/1.1], validation_context: {trusted_ca: {filename: \"@PKI@/root.pem\"}" + more + "}}")
}

var listeners = func() []listen {
	ls := []listen{
		{name: "plain"},
		{name: "trailers", manager: "http_protocol_options: {enable_trailers: true}", routes: to("/", route("cluster: trailers"))},
		{name: "chunked-length", manager: "http_protocol_options: {allow_chunked_length: true}"},
		{name: "http10", manager: "http_protocol_options: {accept_http_10: true, default_host_for_http_10: ten}"},
		{name: "upgrades", manager: "upgrade_configs: [{upgrade_type: websocket}]"},
		{name: "preserve", manager: "http_protocol_options: {" + preserveCase + "}", routes: to("/direct", "direct_response: {status: 200, body: {inline_string: hi}}", "/", route("cluster: preserve"))},
		{name: "proper", manager: "http_protocol_options: {header_key_format: {proper_case_words: {}}}", routes: to("/direct", "direct_response: {status: 200, body: {inline_string: hi}}", "/", route("cluster: proper"))},
		{name: "to-h2", routes: to("/", route("cluster: h2"))},
		{name: "h2-only", manager: "codec_type: HTTP2\nhttp2_protocol_options: {max_concurrent_streams: 10}"},
		{name: "few-headers", manager: "common_http_protocol_options: {max_headers_count: 5}\nmax_request_headers_kb: 2", routes: to("/", route("cluster: few-headers"))},
		{name: "timeouts", manager: "stream_idle_timeout: 0.4s\nrequest_headers_timeout: 0.3s", routes: to("/route", route("cluster: up, timeout: 0.3s"), "/idle", route("cluster: up, timeout: 0s, idle_timeout: 0.3s"), "/none", route("cluster: up, timeout: 0s"),
			"/max", route("cluster: up, timeout: 0s, max_stream_duration: {max_stream_duration: 0.3s}"), "/h2", route("cluster: h2, timeout: 0.3s"), "/grpc", route("cluster: h2, max_stream_duration: {grpc_timeout_header_max: 0s}"), "/", route("cluster: up"))},
		{name: "request-timeout", manager: "request_timeout: 0.3s"},
		{name: "retries", routes: retryRoutes()},
		{name: "routes", routes: matchRoutes()},
		{name: "mutations", routes: mutationRoutes(), host: "domains: [\"*\"]\nrequest_headers_to_add: [{header: {key: x-host, value: h}}]\nresponse_headers_to_add: [{header: {key: x-host, value: h}}]\nresponse_headers_to_remove: [x-up]",
			table: "response_headers_to_add: [{header: {key: x-table, value: t}}]\nrequest_headers_to_remove: [x-gone-table]"},
		{name: "redirects", routes: redirectRoutes()},
		{name: "tls-required", host: "domains: [\"*\"]\nrequire_tls: ALL"},
		{name: "tls-required-edge", host: "domains: [\"*\"]\nrequire_tls: ALL", manager: "use_remote_address: true"},
		{name: "tls-required-external", host: "domains: [\"*\"]\nrequire_tls: EXTERNAL_ONLY", manager: "use_remote_address: true"},
		{name: "scheme", manager: "scheme_header_transformation: {scheme_to_overwrite: https}", host: "domains: [\"*\"]\nrequire_tls: ALL"},
		{name: "strip-any", manager: "strip_any_host_port: true"},
		{name: "strip-matching", manager: "strip_matching_host_port: true"},
		{name: "strip-dot", manager: "strip_trailing_host_dot: true"},
		{name: "cors", filters: corsFilter, host: `domains: ["*"]
typed_per_filter_config: {envoy.filters.http.cors: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_origin_string_match: [{exact: "http://a"}, {prefix: "http://p."}], allow_methods: "GET,POST", allow_headers: "x-a", expose_headers: "x-b", max_age: "7", allow_credentials: true}}`},
		{name: "faults", filters: faultFilter, routes: `- match: {prefix: /abort}
  route: {cluster: up}
  typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 418, percentage: {numerator: 100}}}}
- match: {prefix: /grpc}
  route: {cluster: up}
  typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {grpc_status: 7, percentage: {numerator: 100}}}}
- match: {prefix: /delay}
  route: {cluster: up}
  typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, delay: {fixed_delay: 0.2s, percentage: {numerator: 100}}}}
- match: {prefix: /header}
  route: {cluster: up}
  typed_per_filter_config: {envoy.filters.http.fault: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 419, percentage: {numerator: 100}}, headers: [{name: x-f, string_match: {exact: "1"}}]}}
- match: {prefix: /}
  route: {cluster: up}`},
		{name: "hosts", host: `domains: [a.example, "*.a.example", "*-pre.example", "a.*", "[::1]", "b.example:81"]`},
		{name: "ports-ignored", host: `domains: [a.example, "*.a.example"]`, table: "ignore_port_in_host_matching: true"},
		// TLS of the client
		{name: "tls", socket: downstreamTLS("common_tls_context: {" + certificate("server") + ", alpn_protocols: [h2, http/1.1]}")},
		{name: "tls12", socket: downstreamTLS("common_tls_context: {" + certificate("server") + ", tls_params: {tls_maximum_protocol_version: TLSv1_2}}")},
		{name: "tls13", socket: downstreamTLS("common_tls_context: {" + certificate("server") + ", tls_params: {tls_minimum_protocol_version: TLSv1_3}}")},
		{name: "tls-sni", socket: downstreamTLS("require_sni: true\ncommon_tls_context: {" + certificate("server") + "}")},
		{name: "tls-https", socket: downstreamTLS("common_tls_context: {" + certificate("server") + "}"), host: "domains: [\"*\"]\nrequire_tls: ALL"},
		{name: "mutual", socket: mutual("")},
		{name: "mutual-san", socket: mutual(`, match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/x/sa/y"}}]`)},
		{name: "mutual-crl", socket: mutual(`, crl: {filename: "@PKI@/crl.pem"}`)},
		{name: "mutual-crl-other", socket: mutual(`, crl: {filename: "@PKI@/other-crl.pem"}`)},
		{name: "mutual-spki", socket: mutual(`, verify_certificate_spki: ["@SPKI-CLIENT@"]`)},
		{name: "mutual-hash", socket: mutual(`, verify_certificate_hash: ["@HASH-CLIENT@"]`)},
		{name: "mutual-either", socket: mutual(`, verify_certificate_hash: ["@HASH-CLIENT@"], verify_certificate_spki: ["@SPKI-REVOKED@"]`)},
		{name: "optional", socket: strings.Replace(mutual(""), "require_client_certificate: true", "require_client_certificate: false", 1)},
		{name: "xfcc", socket: mutual(""), manager: "forward_client_cert_details: SANITIZE_SET\nset_current_client_cert_details: {subject: true, uri: true, dns: true}"},
		{name: "xfcc-append", socket: mutual(""), manager: "forward_client_cert_details: APPEND_FORWARD\nset_current_client_cert_details: {uri: true}"},
		{name: "xfcc-forward", manager: "forward_client_cert_details: ALWAYS_FORWARD_ONLY"},
		{name: "chains", more: inspectors, chains: tlsChains()},
		{name: "sni-tcp", more: inspectors, network: tcp("first", "")},
		{name: "upstream-tls", routes: upstreamTLSRoutes()},
		// TCP
		{name: "tcp-echo", network: tcp("echo", "")},
		{name: "tcp-first", network: tcp("first", "")},
		{name: "tcp-rst", network: tcp("rst", "")},
		{name: "tcp-closed", network: tcp("closed", "")},
		{name: "tcp-empty", network: tcp("empty", "")},
		{name: "tcp-idle", network: tcp("echo", "idle_timeout: 0.3s")},
		{name: "tcp-max", network: tcp("echo", "max_downstream_connection_duration: 0.3s")},
	}
	ls = append(ls, simple(pathOptions)...)
	return append(ls, simple(trustOptions)...)
}()
