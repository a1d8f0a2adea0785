package mesh

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// fallBack returns the MeshConfig with each field that cannot be read, or cannot mean anything, as it was last,
// or without a last one as its default: where it protects something, as the strictest reading of it. All other
// fields stay. Findings are about fields that cannot mean anything; who could not read one tells of it himself.
func (b *builder) fallBack(o *MeshConfig) (*MeshConfig, []Finding) {
	found := validate(o)
	if len(found)+len(o.Unread) == 0 {
		return o, nil
	}
	out := *o
	out.Spec = proto.Clone(o.Spec).(*meshconfig.MeshConfig)
	last := b.config.Spec
	for _, path := range o.Unread {
		restore(out.Spec, last, path, b.configured)
	}
	for _, f := range validate(&out) {
		restore(out.Spec, last, f.Field, b.configured)
	}
	for _, f := range validate(&out) { // the last good value does not go with what is new beside it
		restore(out.Spec, &meshconfig.MeshConfig{}, f.Field, false)
	}
	return &out, found
}

// restore sets what a path names, as far as it leads through single messages, to what last has there. Without a
// last one (known is false) it becomes the strictest reading. An empty path is all.
func restore(spec, last *meshconfig.MeshConfig, path string, known bool) {
	if path == "" {
		proto.Reset(spec)
		proto.Merge(spec, last)
	} else {
		path = restoreField(spec.ProtoReflect(), last.ProtoReflect(), path)
	}
	if known {
		return
	}
	strictly(spec, path)
}

// restoreField returns the path of what it has set.
func restoreField(m, last protoreflect.Message, path string) string {
	name, rest, _ := strings.Cut(path, ".")
	name, _, _ = strings.Cut(name, "[") // of a list all falls back
	f := m.Descriptor().Fields().ByJSONName(name)
	if f == nil {
		return path
	}
	if rest != "" && f.Message() != nil && !f.IsList() && !f.IsMap() && m.Has(f) {
		return name + "." + restoreField(m.Mutable(f).Message(), last.Get(f).Message(), rest)
	}
	if last.Has(f) {
		whole := last.New()
		whole.Set(f, last.Get(f))
		m.Set(f, proto.Clone(whole.Interface()).ProtoReflect().Get(f))
	} else {
		m.Clear(f)
	}
	return name
}

// strictly gives fields that protect something their strictest value: those at a path or below it. What is not
// here has a default that protects as much as any.
func strictly(spec *meshconfig.MeshConfig, path string) {
	is := func(field string) bool {
		return path == "" || path == field || strings.HasPrefix(field, path+".") || strings.HasPrefix(path, field+".")
	}
	if is("outboundTrafficPolicy.mode") {
		spec.OutboundTrafficPolicy = &meshconfig.MeshConfig_OutboundTrafficPolicy{Mode: meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY}
	}
	if is("pathNormalization.normalization") {
		spec.PathNormalization = &meshconfig.MeshConfig_ProxyPathNormalization{Normalization: meshconfig.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES}
	}
	for _, t := range []struct {
		field string
		of    **meshconfig.MeshConfig_TLSConfig
	}{{"meshMTLS", &spec.MeshMTLS}, {"tlsDefaults", &spec.TlsDefaults}} {
		if path != "" && is(t.field+".minProtocolVersion") {
			if *t.of == nil {
				*t.of = &meshconfig.MeshConfig_TLSConfig{}
			}
			(*t.of).MinProtocolVersion = meshconfig.MeshConfig_TLSConfig_TLSV1_3
		}
	}
}
