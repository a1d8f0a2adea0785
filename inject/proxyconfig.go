package inject

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"
)

// proxyConfig returns base with the YAML of annotation proxy.istio.io/config laid over it.
func proxyConfig(base *meshconfig.ProxyConfig, overlay string) (*meshconfig.ProxyConfig, error) {
	out := &meshconfig.ProxyConfig{}
	if base != nil {
		out = proto.Clone(base).(*meshconfig.ProxyConfig)
	}
	if strings.TrimSpace(overlay) == "" {
		return out, nil
	}
	data, err := yaml.YAMLToJSON([]byte(overlay))
	if err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	over := &meshconfig.ProxyConfig{}
	if err := protojson.Unmarshal(data, over); err != nil {
		return nil, fmt.Errorf("not a ProxyConfig: %w", err)
	}
	overlayMessage(out.ProtoReflect(), over.ProtoReflect())
	return out, checkProxyConfig(out)
}

// checkProxyConfig refuses what the agent or the init container would refuse.
func checkProxyConfig(c *meshconfig.ProxyConfig) error {
	for _, p := range []struct {
		field string
		value int32
	}{{"statusPort", c.GetStatusPort()}, {"proxyAdminPort", c.GetProxyAdminPort()}} {
		if p.value < 0 || p.value > 65535 {
			return fmt.Errorf("%s: %d is out of range (1-65535)", p.field, p.value)
		}
	}
	if n := c.GetConcurrency().GetValue(); n < 0 {
		return fmt.Errorf("concurrency: %d is less than 0", n)
	}
	for _, d := range []struct {
		field string
		value *durationpb.Duration
	}{{"drainDuration", c.GetDrainDuration()}, {"terminationDrainDuration", c.GetTerminationDrainDuration()}} {
		if d.value != nil && (!d.value.IsValid() || d.value.AsDuration() < 0) {
			return fmt.Errorf("%s: %s is not a positive duration", d.field, d.value.AsDuration())
		}
	}
	if c.GetProxyMetadata()["INVALID_DROP"] == "true" {
		return fmt.Errorf("proxyMetadata.INVALID_DROP: it is not supported")
	}
	return nil
}

// overlayMessage sets in dst what src has. Unlike proto.Merge it replaces lists and
// well-known types: a BoolValue of false must win over one of true.
func overlayMessage(dst, src protoreflect.Message) {
	src.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			m := dst.Mutable(f).Map()
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				m.Set(k, e)
				return true
			})
		case f.IsList(), f.Message() == nil, strings.HasPrefix(string(f.Message().FullName()), "google.protobuf."):
			dst.Set(f, v)
		default:
			overlayMessage(dst.Mutable(f).Message(), v.Message())
		}
		return true
	})
}

// encodeProxyConfig is the PROXY_CONFIG of a pod: compact JSON, the same bytes for the same
// message (protojson adds blanks at random).
func encodeProxyConfig(c *meshconfig.ProxyConfig) (string, error) {
	data, err := protojson.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encoding proxy config: %w", err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return "", fmt.Errorf("encoding proxy config: %w", err)
	}
	return b.String(), nil
}
