package agent

import (
	"encoding/json"
	"fmt"
	"net"
	"path"
	"strconv"
)

// object is a JSON object.
type object = map[string]any

// bootstrap returns the configuration that the proxy starts with, as JSON in the shape of Istio's:
// whatever reads the one reads the other. The node, xDS and SDS on the agent's sockets, admin on
// loopback, metrics on 15090, readiness on 15021.
func bootstrap(n Node, cfg *ProxyConfig, p ports, engine Engine, ipv6 bool) ([]byte, error) {
	nodeJSON, err := n.json()
	if err != nil {
		return nil, err
	}
	loopback, wildcard := "127.0.0.1", "0.0.0.0"
	if ipv6 {
		loopback, wildcard = "::1", "::"
	}
	clusters := []any{
		staticCluster("prometheus_stats", "0.250s", tcp(loopback, cfg.AdminPort)),
		staticCluster("agent", "0.250s", tcp(loopback, cfg.StatusPort)),
		http2(staticCluster("sds-grpc", "1s", pipe(path.Join(cfg.ConfigPath, "SDS")))),
		xdsCluster(cfg),
	}
	b := object{
		"node": nodeJSON,
		"layered_runtime": object{"layers": []any{object{"name": "global config", "static_layer": object{
			"re2.max_program_size.error_level": "32768"}}, object{"name": "admin", "admin_layer": object{}}}},
		"stats_config": statsConfig(cfg),
		"overload_manager": object{"resource_monitors": []any{object{ // connections are bounded by policy
			"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": object{
				"@type":                             "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
				"max_active_downstream_connections": "2147483647"}}}},
		"admin": object{
			"access_log": []any{object{"name": "envoy.access_loggers.file", "typed_config": object{
				"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/null"}}},
			"profile_path": path.Join(cfg.ConfigPath, "envoy.prof"),
			"address":      tcp(loopback, cfg.AdminPort),
		},
		"dynamic_resources": object{
			"lds_config": ads(), "cds_config": ads(),
			"ads_config": object{
				"api_type": "DELTA_GRPC", "set_node_on_first_message_only": true, "transport_api_version": "V3",
				"grpc_services": []any{object{"envoy_grpc": object{"cluster_name": "xds-grpc"}}},
			},
		},
	}
	if zipkin := cfg.Tracing.Zipkin.Address; zipkin != "" && engine == Envoy {
		c, tracing, err := zipkinTracing(zipkin)
		if err != nil {
			return nil, err
		}
		clusters = append(clusters, c)
		b["tracing"] = tracing
	}
	b["static_resources"] = object{
		"clusters": clusters,
		"listeners": []any{
			staticListener(wildcard, p.prometheus, "stats", "/stats/prometheus", "prometheus_stats"),
			staticListener(wildcard, p.health, "agent", "/healthz/ready", "agent"),
		},
	}
	if engine == Builtin { // has no use for them
		for _, k := range []string{"layered_runtime", "stats_config", "overload_manager"} {
			delete(b, k)
		}
	}
	out, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding Envoy's bootstrap: %w", err)
	}
	return append(out, '\n'), nil
}

func ads() object {
	return object{"ads": object{}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
}

func tcp(address string, port int) object {
	return object{"socket_address": object{"protocol": "TCP", "address": address, "port_value": port}}
}

func pipe(path string) object { return object{"pipe": object{"path": path}} }

func staticCluster(name, timeout string, address object) object {
	return object{"name": name, "type": "STATIC", "connect_timeout": timeout, "lb_policy": "ROUND_ROBIN",
		"load_assignment": object{"cluster_name": name, "endpoints": []any{object{
			"lb_endpoints": []any{object{"endpoint": object{"address": address}}}}}}}
}

func http2(c object) object {
	c["typed_extension_protocol_options"] = object{httpOptions: object{
		"@type":                "type.googleapis.com/" + httpOptions,
		"explicit_http_config": object{"http2_protocol_options": object{}}}}
	return c
}

const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// xdsCluster is the agent's relay. One request is one stream; each gets a connection.
func xdsCluster(cfg *ProxyConfig) object {
	c := http2(staticCluster("xds-grpc", "1s", pipe(path.Join(cfg.ConfigPath, "XDS"))))
	var limits []any
	for _, p := range []string{"DEFAULT", "HIGH"} {
		limits = append(limits, object{"priority": p, "max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000})
	}
	c["circuit_breakers"] = object{"thresholds": limits}
	options := c["typed_extension_protocol_options"].(object)[httpOptions].(object)
	options["common_http_protocol_options"] = object{"max_requests_per_connection": 1}
	return c
}

// staticListener is a plain HTTP listener that passes one path on.
func staticListener(address string, port int, prefix, path, cluster string) object {
	return object{
		"address": tcp(address, port),
		"filter_chains": []any{object{"filters": []any{object{
			"name": "envoy.filters.network.http_connection_manager",
			"typed_config": object{
				"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
				"codec_type":  "AUTO",
				"stat_prefix": prefix,
				"route_config": object{"virtual_hosts": []any{object{"name": "backend", "domains": []string{"*"},
					"routes": []any{object{"match": object{"prefix": path}, "route": object{"cluster": cluster}}}}}},
				"http_filters": []any{object{"name": "envoy.filters.http.router", "typed_config": object{
					"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}},
			}}}}},
	}
}

// statsConfig turns parts of Envoy's statistics' names into labels and keeps only statistics that
// someone reads: thousands per cluster otherwise.
func statsConfig(cfg *ProxyConfig) object {
	tags := []any{
		tag("cluster_name", `^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)`),
		tag("tcp_prefix", `^tcp\.((.*?)\.)\w+?$`),
		tag("response_code", `_rq(_(\d{3}))$`),
		tag("response_code_class", `_rq(_(\dxx))$`),
		tag("http_conn_manager_listener_prefix", `^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`),
		tag("http_conn_manager_prefix", `^http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`),
		tag("listener_address", `^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`),
	}
	for _, t := range cfg.ExtraStatTags {
		tags = append(tags, tag(t, `(`+t+`=\.=(.*?);\.;)`))
	}
	var keep []any
	add := func(kind string, names ...string) {
		for _, n := range names {
			if kind == "regex" {
				keep = append(keep, object{"safe_regex": object{"regex": n}})
			} else {
				keep = append(keep, object{kind: n})
			}
		}
	}
	add("prefix", "reporter=", "cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "istio", "component")
	add("prefix", cfg.StatsMatcher.InclusionPrefixes...)
	add("suffix", "ssl_context_update_by_sds")
	add("suffix", cfg.StatsMatcher.InclusionSuffixes...)
	add("regex", `vhost\..*\.route\..*`, `http\..*\.downstream_cx_active`, `listener\..*\.downstream_cx_active`)
	add("regex", cfg.StatsMatcher.InclusionRegexps...)
	return object{"use_all_default_tags": false, "stats_tags": tags,
		"stats_matcher": object{"inclusion_list": object{"patterns": keep}}}
}

func tag(name, regex string) object { return object{"tag_name": name, "regex": regex} }

func zipkinTracing(address string) (cluster, tracing object, err error) {
	host, port, err := net.SplitHostPort(address)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		return nil, nil, fmt.Errorf("PROXY_CONFIG: tracing.zipkin.address: %q is not HOST:PORT", address)
	}
	cluster = staticCluster("zipkin", "1s", tcp(host, int(n)))
	cluster["type"], cluster["respect_dns_ttl"], cluster["dns_refresh_rate"] = "STRICT_DNS", true, "30s"
	return cluster, object{"http": object{"name": "envoy.tracers.zipkin", "typed_config": object{
		"@type":             "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
		"collector_cluster": "zipkin", "collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON",
		"trace_id_128bit": true, "shared_span_context": false}}}, nil
}
