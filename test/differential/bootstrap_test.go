package differential

import (
	"fmt"
	"strings"
)

// listen is one listener of the bootstrap; its port follows from its place in the list.
type listen struct {
	name    string
	manager string // more of the connection manager, one field a line
	routes  string // of the one virtual host; "": all to cluster up
	host    string // more of the virtual host
	table   string // more of the route configuration
	filters string // HTTP filters before the router
	socket  string // the transport socket
	more    string // more of the listener
	network string // the network filter in place of the connection manager
	chains  string // all filter chains in place of one
}

const firstPort = 10000

func portOf(name string) int {
	for i := range listeners {
		if listeners[i].name == name {
			return firstPort + i
		}
	}
	panic("no listener " + name)
}

// logFormat begins with the client's address, by which lines find their case.
var logFormat = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%\\tcode=%RESPONSE_CODE%\\tflags=%RESPONSE_FLAGS%\\tdetails=%RESPONSE_CODE_DETAILS%\\t" +
	"method=%REQ(:METHOD)%\\tpath=%REQ(:PATH)%\\tauthority=%REQ(:AUTHORITY)%\\tprotocol=%PROTOCOL%\\trx=%BYTES_RECEIVED%\\ttx=%BYTES_SENT%\\t" +
	"cluster=%UPSTREAM_CLUSTER%\\thost=%UPSTREAM_HOST%\\tattempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT%\\troute=%ROUTE_NAME%\\tsni=%REQUESTED_SERVER_NAME%\\t" +
	"transport=%UPSTREAM_TRANSPORT_FAILURE_REASON%\\tremote=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\\n"

func fileLog(format string) string {
	return `[{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "@LOG@", log_format: {text_format_source: {inline_string: "` + format + `"}}}}]`
}

func indent(text string, n int) string {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.Repeat(" ", n) + lines[i]
	}
	return strings.Join(lines, "\n") + "\n"
}

const allUp = "- match: {prefix: /}\n  name: all\n  route: {cluster: up}"

func (l *listen) yaml() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  - name: %s\n    address: {socket_address: {address: \"@ADDR@\", port_value: %d}}\n", l.name, portOf(l.name))
	b.WriteString(indent(l.more, 4))
	b.WriteString("    filter_chains:\n")
	if l.chains != "" {
		return b.String() + indent(l.chains, 4)
	}
	b.WriteString(indent(l.chain(""), 4))
	return b.String()
}

// chain is a filter chain, to which first (name, match) belongs.
func (l *listen) chain(first string) string {
	text := "- filters:\n"
	if first != "" {
		text = "- " + first + "\n  filters:\n"
	}
	if l.network != "" {
		text += indent("- "+l.network, 2)
	} else {
		text += indent(l.http(), 2)
	}
	if l.socket != "" {
		text += "  transport_socket:\n" + indent(l.socket, 4)
	}
	return text
}

func (l *listen) http() string {
	routes, host, table := l.routes, l.host, l.table
	if routes == "" {
		routes = allUp
	}
	if host == "" {
		host = `domains: ["*"]`
	}
	return `- name: hcm
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
    stat_prefix: x
    access_log: ` + fileLog(logFormat) + `
` + indent(l.manager, 4) + `    http_filters:
` + indent(l.filters, 4) + `    - {name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
    route_config:
      name: r
      request_headers_to_add: [{header: {key: ` + clientHeader + `, value: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
` + indent(table, 6) + `      virtual_hosts:
      - name: v
` + indent(host, 8) + `        routes:
` + indent(routes, 8)
}

// cluster is one cluster of the bootstrap.
type cluster struct {
	name  string
	ports []int
	more  string
}

func (c *cluster) yaml() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  - name: %s\n    connect_timeout: 1s\n    type: STATIC\n%s    load_assignment:\n      cluster_name: %s\n      endpoints:\n      - lb_endpoints:\n", c.name, indent(c.more, 4), c.name)
	for _, p := range c.ports {
		fmt.Fprintf(&b, "        - endpoint: {address: {socket_address: {address: \"@ADDR@\", port_value: %d}}}\n", p)
	}
	if len(c.ports) == 0 {
		return strings.Replace(b.String(), "      endpoints:\n      - lb_endpoints:\n", "      endpoints: []\n", 1)
	}
	return b.String()
}

// options are a cluster's HTTP options.
func options(more string) string {
	return "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n" + indent(more, 4)
}

func upstreamTLS(context string) string {
	return "transport_socket:\n  name: tls\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n" + indent(context, 4)
}

func downstreamTLS(context string) string {
	return "name: tls\ntyped_config:\n  \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n" + indent(context, 2)
}

// certificate is a leaf of the pki in a TLS context; @PKI@ is the folder.
func certificate(name string) string {
	return fmt.Sprintf(`tls_certificates: [{certificate_chain: {filename: "@PKI@/%[1]s.pem"}, private_key: {filename: "@PKI@/%[1]s.key"}}]`, name)
}

const h1Explicit = "explicit_http_config: {http_protocol_options: {}}\n"

func clusters(p *pki) []cluster {
	ca := `trusted_ca: {filename: "@PKI@/root.pem"}`
	validated := func(sni, context string) string {
		return upstreamTLS("sni: " + sni + "\ncommon_tls_context: {validation_context: {" + ca + context + "}}")
	}
	auto := options(h1Explicit + "upstream_http_protocol_options: {auto_sni: true, auto_san_validation: true}")
	breaker := "circuit_breakers: {thresholds: [{max_pending_requests: 0, max_connections: 1}]}"
	return []cluster{
		{"up", []int{portUp}, ""},
		{"two", []int{portUp, portUpToo}, ""},
		{"closed", []int{portClosed}, ""},
		{"empty", nil, ""},
		{"h2", []int{portH2}, options("explicit_http_config: {http2_protocol_options: {}}")},
		{"same", []int{portUp}, options("use_downstream_protocol_config: {http_protocol_options: {}}")},
		{"no-pending", []int{portUp}, breaker},
		{"preserve", []int{portUp}, options(`explicit_http_config: {http_protocol_options: {header_key_format: {stateful_formatter: {name: preserve_case, typed_config: {"@type": type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}}}`)},
		{"proper", []int{portUp}, options("explicit_http_config: {http_protocol_options: {header_key_format: {proper_case_words: {}}}}")},
		{"trailers", []int{portUp}, options("explicit_http_config: {http_protocol_options: {enable_trailers: true}}")},
		{"few-headers", []int{portUp}, options(h1Explicit + "common_http_protocol_options: {max_headers_count: 5}")},
		{"tls", []int{portTLS}, validated("a.example", "")},
		{"tls-plain-server", []int{portUp}, validated("a.example", "")},
		{"tls-no-validation", []int{portTLS}, upstreamTLS("sni: stranger.example")},
		{"tls-auto", []int{portTLS}, auto + upstreamTLS("common_tls_context: {validation_context: {"+ca+"}}")},
		{"tls-stranger", []int{portTLS}, validated("stranger.example", "")},
		{"tls-san", []int{portTLS}, validated("a.example", `, match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: b.example}}]`)},
		{"tls-san-wrong", []int{portTLS}, validated("a.example", `, match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: c.example}}]`)},
		{"tls-spki", []int{portTLS}, validated("a.example", fmt.Sprintf(`, verify_certificate_spki: ["%s"]`, p.spki("server")))},
		{"tls-spki-wrong", []int{portTLS}, validated("a.example", fmt.Sprintf(`, verify_certificate_spki: ["%s"]`, p.spki("client")))},
		{"tls-hash", []int{portTLS}, validated("a.example", fmt.Sprintf(`, verify_certificate_hash: ["%s"]`, p.hash("server")))},
		{"tls-hash-wrong", []int{portTLS}, validated("a.example", fmt.Sprintf(`, verify_certificate_hash: ["%s"]`, p.hash("client")))},
		{"tls-crl", []int{portTLS}, validated("a.example", `, crl: {filename: "@PKI@/crl.pem"}`)},
		{"tls-crl-revoked", []int{portTLS}, validated("revoked.example", `, crl: {filename: "@PKI@/crl.pem"}`)},
		{"tls-crl-empty", []int{portTLS}, validated("revoked.example", `, crl: {filename: "@PKI@/empty-crl.pem"}`)},
		{"tls-crl-other", []int{portTLS}, validated("a.example", `, crl: {filename: "@PKI@/other-crl.pem"}`)},
		{"mtls", []int{portMTLS}, upstreamTLS("sni: a.example\ncommon_tls_context: {" + certificate("client") + ", validation_context: {" + ca + "}}")},
		{"mtls-without", []int{portMTLS}, validated("a.example", "")},
		{"echo", []int{portEcho}, ""},
		{"first", []int{portFirst}, ""},
		{"rst", []int{portRST}, ""},
	}
}

// bootstrap is what both proxies start with.
func bootstrap(p *pki) string {
	var b strings.Builder
	b.WriteString("admin: {address: {socket_address: {address: \"@ADDR@\", port_value: 0}}}\nstatic_resources:\n  listeners:\n")
	for i := range listeners {
		b.WriteString(listeners[i].yaml())
	}
	b.WriteString("  clusters:\n")
	for _, c := range clusters(p) {
		b.WriteString(c.yaml())
	}
	return strings.NewReplacer("@PKI@", p.dir, "@SPKI-CLIENT@", p.spki("client"), "@SPKI-REVOKED@", p.spki("revoked"), "@HASH-CLIENT@", p.hash("client")).Replace(b.String())
}
