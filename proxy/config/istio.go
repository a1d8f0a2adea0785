package config

import (
	"strings"

	udpa "github.com/cncf/xds/go/udpa/type/v1"
	xds "github.com/cncf/xds/go/xds/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// istioTypes are the extensions that only Istio's build of Envoy has and that may be left out: they
// gather telemetry, or do what this proxy does by itself (the ALPN of a protocol). It is the type that
// says so: a name is whatever somebody chose, also for a filter that protects something.
var istioTypes = map[string]bool{
	"stats.PluginConfig":                                        true,
	"io.istio.http.peer_metadata.Config":                        true,
	"envoy.tcp.metadataexchange.config.MetadataExchange":        true,
	"istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig": true,
	// It notes who the peer is, for a later filter to decide; that filter would be refused.
	"istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig": true,
	"istio.envoy.config.filter.http.authn.v2alpha2.FilterConfig": true,
}

// istioCode are the same filters as they were before they had types of their own: code that is built
// into Istio's Envoy, under the configuration of a Wasm filter.
var istioCode = map[string]bool{"envoy.wasm.stats": true, "envoy.wasm.metadata_exchange": true}

// leftOut reports whether an extension is one of Istio's that may be left out.
func leftOut(a *anypb.Any) bool {
	switch name := typeName(a.GetTypeUrl()); name {
	case "udpa.type.v1.TypedStruct":
		m := &udpa.TypedStruct{}
		return a.UnmarshalTo(m) == nil && leftOutStruct(m.TypeUrl, m.Value)
	case "xds.type.v3.TypedStruct":
		m := &xds.TypedStruct{}
		return a.UnmarshalTo(m) == nil && leftOutStruct(m.TypeUrl, m.Value)
	default:
		return istioTypes[name]
	}
}

func leftOutStruct(typeURL string, v *structpb.Struct) bool {
	switch name := typeName(typeURL); name {
	case "envoy.extensions.filters.http.wasm.v3.Wasm", "envoy.extensions.filters.network.wasm.v3.Wasm":
		vm := field(field(v, "config"), "vm_config")
		code := field(field(vm, "code"), "local").GetFields()["inline_string"].GetStringValue()
		return vm.GetFields()["runtime"].GetStringValue() == "envoy.wasm.runtime.null" && istioCode[code]
	default:
		return istioTypes[name]
	}
}

func field(s *structpb.Struct, name string) *structpb.Struct {
	return s.GetFields()[name].GetStructValue()
}

func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }
