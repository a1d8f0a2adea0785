package config

import (
	"errors"
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/resource"
)

const routerFilter = `{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}`

// hcmListener is a listener with a connection manager with these fields, inline.
func hcmListener(fields string) string {
	return `{name: x, address: {socket_address: {address: 0.0.0.0, port_value: 80}}, filter_chains: [{filters: [{name: h, typed_config: {
		"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, ` + fields + `}}]}]}`
}

// routeTable is a route table with one route with these fields.
func routeTable(fields string) string {
	return `{name: x, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, ` + fields + `}]}]}`
}

const anyUnknown = `{"@type": type.googleapis.com/google.protobuf.Empty, value: {}}`

// TestRefusals holds that what cannot be honoured is refused by the path of the field.
func TestRefusals(t *testing.T) {
	lds := func() proto.Message { return &listener.Listener{} }
	cds := func() proto.Message { return &cluster.Cluster{} }
	eds := func() proto.Message { return &endpoint.ClusterLoadAssignment{} }
	rds := func() proto.Message { return &route.RouteConfiguration{} }
	sds := func() proto.Message { return &tlsv3.Secret{} }
	const hcmPath = `listener "x": filter_chains[0].filters[0].typed_config.`
	for _, c := range []struct {
		typeURL string
		mk      func() proto.Message
		text    string
		want    string
	}{
		{resource.ListenerType, lds, `{name: x, filter_chains: [{}]}`, `listener "x": address: is missing`},
		{resource.ListenerType, lds, `{name: x, address: {socket_address: {address: nope, port_value: 1}}, filter_chains: [{}]}`, `listener "x": address.socket_address.address: "nope" is no IP address`},
		{resource.ListenerType, lds, `{name: x, address: {socket_address: {protocol: UDP, address: 1.1.1.1, port_value: 1}}, filter_chains: [{}]}`, `listener "x": address.socket_address.protocol: UDP is not supported`},
		{resource.ListenerType, lds, `{name: x, address: {socket_address: {address: 1.1.1.1, port_value: 1}}}`, `listener "x": filter_chains: is empty`},
		{resource.ListenerType, lds, `{name: x, udp_listener_config: {}}`, `listener "x": udp_listener_config: not supported`},
		{resource.ListenerType, lds, `{name: x, address: {socket_address: {address: 1.1.1.1, port_value: 1}}, filter_chains: [{filters: [{name: f, typed_config: ` + anyUnknown + `}]}]}`,
			`listener "x": filter_chains[0].filters[0].typed_config: type.googleapis.com/google.protobuf.Empty is not supported`},
		{resource.ListenerType, lds, `{name: x, address: {socket_address: {address: 1.1.1.1, port_value: 1}}, filter_chains: [{name: a, filter_chain_match: {destination_port: 5}}, {name: b, filter_chain_match: {destination_port: 5}}]}`,
			`listener "x": filter_chains[1].filter_chain_match: is the same as that of chain "a"`},
		{resource.ListenerType, lds, `{name: x, address: {socket_address: {address: 1.1.1.1, port_value: 1}}, filter_chains: [{filter_chain_match: {server_names: ["a*b"]}}]}`,
			`listener "x": filter_chains[0].filter_chain_match.server_names[0]: is neither a name nor "*." and a name`},
		{resource.ListenerType, lds, hcmListener(`stat_prefix: s, http_filters: [` + routerFilter + `]`), `listener "x": filter_chains[0].filters[0].typed_config: has no routes`},
		{resource.ListenerType, lds, hcmListener(`codec_type: HTTP3`), hcmPath + `codec_type: HTTP3 is not supported`},
		{resource.ListenerType, lds, hcmListener(`local_reply_config: {}`), hcmPath + `local_reply_config: not supported`},
		{resource.ListenerType, lds, hcmListener(`rds: {route_config_name: a, config_source: {ads: {}}}, http_filters: [{name: jwt, typed_config: ` + anyUnknown + `}, ` + routerFilter + `]`),
			hcmPath + `http_filters[0].typed_config: type.googleapis.com/google.protobuf.Empty is not supported`},
		{resource.ListenerType, lds, hcmListener(`rds: {route_config_name: a, config_source: {ads: {}}}`), hcmPath + `http_filters: does not end with the router`},
		{resource.ListenerType, lds, hcmListener(`rds: {route_config_name: a, config_source: {path: x}}`), hcmPath + `rds.config_source: a source other than ads is not supported`},
		{resource.ListenerType, lds, hcmListener(`upgrade_configs: [{upgrade_type: CONNECT}]`), hcmPath + `upgrade_configs[0].upgrade_type: CONNECT is not supported`},
		{resource.ListenerType, lds, hcmListener(`route_config: {virtual_hosts: [{name: a, domains: [x]}, {name: b, domains: [X]}]}`), hcmPath + `route_config.virtual_hosts[1].domains[0]: "X" is also a domain of virtual host "a"`},
		{resource.ListenerType, lds, hcmListener(`access_log: [{typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: p, log_format: {text_format_source: {inline_string: "%NOPE%"}}}}], rds: {route_config_name: a, config_source: {ads: {}}}, http_filters: [` + routerFilter + `]`),
			hcmPath + `access_log[0].typed_config.log_format.text_format_source: %NOPE%: not supported`},

		{resource.RouteType, rds, routeTable(`route: {cluster: c, retry_policy: {retry_on: "5xx,whenever"}}`), `route configuration "x": virtual_hosts[0].routes[0].route.retry_policy.retry_on: "whenever" is not supported`},
		{resource.RouteType, rds, routeTable(`route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}`), `route configuration "x": virtual_hosts[0].routes[0].route.weighted_clusters: has no weight above 0`},
		{resource.RouteType, rds, routeTable(`route: {cluster: c, metadata_match: {}}`), `route configuration "x": virtual_hosts[0].routes[0].route.metadata_match: not supported`},
		{resource.RouteType, rds, routeTable(`route: {}`), `route configuration "x": virtual_hosts[0].routes[0].route: names no cluster`},
		{resource.RouteType, rds, routeTable(`request_headers_to_add: [{header: {key: "a b", value: x}}], route: {cluster: c}`), `route configuration "x": virtual_hosts[0].routes[0].request_headers_to_add[0].header.key: "a b" is no header name`},
		{resource.RouteType, rds, routeTable(`request_headers_to_add: [{header: {key: a, value: "%NOPE%"}}], route: {cluster: c}`), `route configuration "x": virtual_hosts[0].routes[0].request_headers_to_add[0].header.value: %NOPE%: not supported`},
		{resource.RouteType, rds, routeTable(`request_headers_to_remove: [":path"], route: {cluster: c}`), `route configuration "x": virtual_hosts[0].routes[0].request_headers_to_remove[0]: ":path" cannot be removed`},
		{resource.RouteType, rds, routeTable(`direct_response: {status: 700}`), `route configuration "x": virtual_hosts[0].routes[0].direct_response.status: 700 is out of range (200-599)`},
		{resource.RouteType, rds, routeTable(`typed_per_filter_config: {f: ` + anyUnknown + `}, route: {cluster: c}`), `route configuration "x": virtual_hosts[0].routes[0].typed_per_filter_config["f"]: type.googleapis.com/google.protobuf.Empty is not supported`},
		{resource.RouteType, rds, `{name: x, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {safe_regex: {regex: "("}}, route: {cluster: c}}]}]}`, `route configuration "x": virtual_hosts[0].routes[0].match.safe_regex.regex: is not a regular expression of RE2: missing closing ): ` + "`(`"},
		{resource.RouteType, rds, routeTable(`route: {cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: '\1'}}`), `route configuration "x": virtual_hosts[0].routes[0].route.regex_rewrite.substitution: \1: the pattern has only 0 groups`},
		{resource.RouteType, rds, `{name: x, vhds: {config_source: {ads: {}}}}`, `route configuration "x": vhds: not supported`},

		{resource.ClusterType, cds, `{name: x, type: EDS}`, `cluster "x": eds_cluster_config.eds_config: a source other than ads is not supported`},
		{resource.ClusterType, cds, `{name: x, cluster_type: {name: y}}`, `cluster "x": cluster_type: not supported`},
		{resource.ClusterType, cds, `{name: x, type: STATIC, load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: name, port_value: 1}}}}]}]}}`, `cluster "x": load_assignment: "name" (priority 0) is no IP address, as type STATIC wants`},
		{resource.ClusterType, cds, `{name: x, lb_policy: LOAD_BALANCING_POLICY_CONFIG}`, `cluster "x": lb_policy: LOAD_BALANCING_POLICY_CONFIG is not supported`},
		{resource.ClusterType, cds, `{name: x, filters: [{name: other}]}`, `cluster "x": filters[0]: other is not supported`},
		{resource.ClusterType, cds, `{name: x, upstream_bind_config: {socket_options: [{level: 1, name: 2, int_value: 1}]}}`, `cluster "x": upstream_bind_config.socket_options[0]: level 1, name 2 is not supported`},
		{resource.ClusterType, cds, `{name: x, transport_socket: {name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {tls_params: {tls_minimum_protocol_version: TLSv1_0}}}}}`,
			`cluster "x": transport_socket.typed_config.common_tls_context.tls_params.tls_minimum_protocol_version: TLSv1_0 (TLS 1.2 and 1.3 are) is not supported`},
		{resource.ClusterType, cds, `{name: x, transport_socket: {name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {tls_params: {cipher_suites: [RC4]}}}}}`,
			`cluster "x": transport_socket.typed_config.common_tls_context.tls_params.cipher_suites[0]: "RC4" is not supported`},
		{resource.ClusterType, cds, `{name: x, typed_extension_protocol_options: {other: ` + anyUnknown + `}}`, `cluster "x": typed_extension_protocol_options["other"]: not supported`},

		{resource.ClusterType, cds, `{name: x, outlier_detection: {enforcing_success_rate: 100}}`, `cluster "x": outlier_detection.enforcing_success_rate: a value above 0 is not supported`},
		{resource.ClusterType, cds, `{name: x, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {allow_connect: true}}}}}`,
			`cluster "x": typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].explicit_http_config.http2_protocol_options.allow_connect: not supported`},
		{resource.ClusterType, cds, `{name: x, transport_socket: {name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {tls_certificate_sds_secret_configs: [{name: a, sds_config: {path_config_source: {path: /x}}}]}}}}`,
			`cluster "x": transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs[0].sds_config.path_config_source: not supported`},
		{resource.ClusterType, cds, `{name: x, transport_socket: {name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context: {trusted_ca: {filename: /x, watched_directory: {path: /}}}}}}}`,
			`cluster "x": transport_socket.typed_config.common_tls_context.validation_context.trusted_ca.watched_directory: not supported`},
		{resource.ListenerType, lds, `{name: x, address: {socket_address: {address: 1.1.1.1, port_value: 1}}, filter_chains: [{transport_socket: {name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, ocsp_staple_policy: MUST_STAPLE}}}]}`,
			`listener "x": filter_chains[0].transport_socket.typed_config.ocsp_staple_policy: MUST_STAPLE is not supported`},
		{resource.RouteType, rds, routeTable(`route: {weighted_clusters: {clusters: [{name: a, weight: 1, typed_per_filter_config: {f: ` + anyUnknown + `}}]}}`),
			`route configuration "x": virtual_hosts[0].routes[0].route.weighted_clusters.clusters[0].typed_per_filter_config: not supported`},
		{resource.EndpointType, eds, `{cluster_name: x, endpoints: [{lb_endpoints: [{endpoint: {}}]}]}`, `endpoints "x": endpoints[0].lb_endpoints[0].endpoint.address: is missing`},
		{resource.EndpointType, eds, `{cluster_name: x, endpoints: [{priority: 129}]}`, `endpoints "x": endpoints[0].priority: 129 is out of range (0-128)`},
		{resource.SecretType, sds, `{name: x, tls_certificate: {certificate_chain: {inline_string: c}}}`, `secret "x": tls_certificate.private_key: is missing`},
		{resource.SecretType, sds, `{name: x}`, `secret "x": is empty`},
	} {
		m := fromYAML(t, strings.ReplaceAll(c.text, "\t", " "), c.mk())
		var comp Compiler
		_, err := comp.Decode(c.typeURL, resource.New("x", marshal(t, m)))
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: error %v, want %s", c.text, err, c.want)
			continue
		}
		if err.Error() != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.text, err, c.want)
		}
	}
}

// What Istio's own Envoy has more than others is left out; an optional filter too.
func TestLeftOut(t *testing.T) {
	text := hcmListener(`rds: {route_config_name: a, config_source: {ads: {}}}, http_filters: [` + istioStats + `, {name: other, is_optional: true, typed_config: ` + anyUnknown + `}, ` + routerFilter + `]`)
	m := fromYAML(t, strings.ReplaceAll(text, "\t", " "), &listener.Listener{})
	var comp Compiler
	needs, err := comp.Decode(resource.ListenerType, resource.New("x", marshal(t, m)))
	if err != nil {
		t.Fatal(err)
	}
	if len(needs) != 1 || needs[0] != (Name{resource.RouteType, "a"}) {
		t.Errorf("needs %v", needs)
	}
}

// A field that this version of the API does not know is refused, too.
func TestUnknownField(t *testing.T) {
	b := append(marshal(t, &cluster.Cluster{Name: "x"}), 0xf8, 0xff, 0x01, 0x01) // field 4095
	var comp Compiler
	if _, err := comp.Decode(resource.ClusterType, resource.New("x", b)); err == nil {
		t.Error("taken")
	}
}

// The last good object stays where an update is refused, and is dropped when it is not used.
func TestCompilerRemembers(t *testing.T) {
	src := func(name string, m proto.Message) Source {
		return Source{Type: resource.ClusterType, Resource: resource.New(name, marshal(t, m))}
	}
	var c Compiler
	a, b := src("a", &cluster.Cluster{Name: "a"}), src("b", &cluster.Cluster{Name: "b"})
	one, err := c.Compile([]Source{a, b})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Decode(resource.ClusterType, resource.New("a", []byte{0xff})); err == nil {
		t.Fatal("nonsense is taken")
	}
	changed := src("b", &cluster.Cluster{Name: "b", AltStatName: "other"})
	two, err := c.Compile([]Source{a, changed})
	if err != nil {
		t.Fatal(err)
	}
	if one.Clusters["a"] != two.Clusters["a"] || one.Clusters["b"] == two.Clusters["b"] {
		t.Error("the wrong objects are new")
	}
	if _, err := c.Compile([]Source{a}); err != nil {
		t.Fatal(err)
	}
	if len(c.last) != 1 {
		t.Errorf("%d objects are remembered, want 1", len(c.last))
	}
	// Static resources are not replaced by those of the same name from the server.
	static := a
	static.Static = true
	cfg, err := c.Compile([]Source{static, src("a", &cluster.Cluster{Name: "a", AltStatName: "dynamic"})})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Clusters["a"].StatName != "a" || len(cfg.Sources) != 1 {
		t.Errorf("cluster %+v", cfg.Clusters["a"])
	}
}

func FuzzCompile(f *testing.F) {
	for _, path := range dumps(f) {
		for i, s := range readDump(f, path) {
			if i%5 == 0 {
				f.Add(s.Type, s.Resource.Bytes())
			}
		}
	}
	f.Fuzz(func(t *testing.T, typeURL string, b []byte) {
		var c Compiler
		c.Decode(typeURL, resource.New("x", b))
	})
}

// BenchmarkCompile is a sidecar's whole configuration, first from nothing and then unchanged.
func BenchmarkCompile(b *testing.B) {
	sources := readDump(b, "../../compile/testdata/istiod/sidecar-helloworld.json")
	b.Run("cold", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var c Compiler
			if _, err := c.Compile(sources); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		var c Compiler
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Compile(sources); err != nil {
				b.Fatal(err)
			}
		}
	})
}
