package config

import "testing"

// TestBootstrapPaths: what is no bootstrap is refused by the path of the field.
func TestBootstrapPaths(t *testing.T) {
	for text, want := range map[string]string{
		"frobnicate: 1": `bootstrap: frobnicate: no such field; check its spelling and indentation`,
		"static_resources: {listeners: [{}, {name: x, adress: {}}]}":                                                                                                           `bootstrap: static_resources.listeners[1].adress: no such field; check its spelling and indentation`,
		"static_resources: {listeners: [{address: {socket_address: {port_value: eighty}}}]}":                                                                                   `bootstrap: static_resources.listeners[0].address.socket_address.port_value: invalid value for uint32 field portValue: "eighty"`,
		"staticResources: {clusters: [{connectTimeout: [1]}]}":                                                                                                                 `bootstrap: static_resources.clusters[0].connect_timeout: unexpected token [`,
		"static_resources: {clusters: [{connect_timeout: '1'}]}":                                                                                                               `bootstrap: static_resources.clusters[0].connect_timeout: invalid google.protobuf.Duration value "1"`,
		`static_resources: {listeners: [{filter_chains: [{filters: [{typed_config: {"@type": type.googleapis.com/no.such}}]}]}]}`:                                              `bootstrap: static_resources.listeners[0].filter_chains[0].filters[0].typed_config: type.googleapis.com/no.such is not supported`,
		`static_resources: {clusters: [{typed_extension_protocol_options: {a: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, b: 1}}}]}`: `bootstrap: static_resources.clusters[0].typed_extension_protocol_options["a"].b: no such field; check its spelling and indentation`,
		"static_resources: {clusters: [{lb_policy: FASTEST}]}":                                                                                                                 `bootstrap: static_resources.clusters[0].lb_policy: invalid value for enum field lbPolicy: "FASTEST"`,
	} {
		_, err := ParseBootstrap([]byte(text))
		if err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", text, err, want)
		}
	}
}
