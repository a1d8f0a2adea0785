package config

import (
	"strings"
	"testing"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/carrick-mesh/carrick/resource"
)

func typedStruct(url, value string) string {
	return `{"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/` + url + `, value: ` + value + `}`
}

var istioStats = `{name: istio.stats, typed_config: ` + typedStruct("stats.PluginConfig", "{}") + `}`

// TestLeftOutByType: what is left out is told by its type; a name that begins like Istio's is no reason.
func TestLeftOutByType(t *testing.T) {
	wasm := func(runtime, code string) string {
		return typedStruct("envoy.extensions.filters.http.wasm.v3.Wasm", `{config: {vm_config: {runtime: `+runtime+`, code: {local: {inline_string: `+code+`}}}}}`)
	}
	for _, c := range []struct {
		filter string
		taken  bool
	}{
		{istioStats, true},
		{`{name: anything, typed_config: ` + typedStruct("io.istio.http.peer_metadata.Config", "{}") + `}`, true},
		{`{name: istio.stats, typed_config: ` + wasm("envoy.wasm.runtime.null", "envoy.wasm.stats") + `}`, true},
		{`{name: istio.stats, typed_config: ` + wasm("envoy.wasm.runtime.v8", "envoy.wasm.stats") + `}`, false},
		{`{name: istio.stats, typed_config: ` + wasm("envoy.wasm.runtime.null", "my.own.filter") + `}`, false},
		{`{name: istio.ext_authz, typed_config: ` + anyUnknown + `}`, false},
		{`{name: istio_authn, typed_config: ` + anyUnknown + `}`, false},
		{`{name: istio.rbac, typed_config: {"@type": type.googleapis.com/google.protobuf.StringValue, value: x}}`, false},
		{`{name: istio.jwt}`, false},
	} {
		m := fromYAML(t, strings.ReplaceAll(hcmListener(`rds: {route_config_name: a, config_source: {ads: {}}}, http_filters: [`+c.filter+`, `+routerFilter+`]`), "\t", " "), &listener.Listener{})
		var comp Compiler
		if _, err := comp.Decode(resource.ListenerType, resource.New("x", marshal(t, m))); (err == nil) != c.taken {
			t.Errorf("%s: %v", c.filter, err)
		}
	}
}
