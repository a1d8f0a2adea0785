package admin

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/resource"
)

// configDump writes the configuration as an envoy.admin.v3.ConfigDump: all of it, or the elements of
// the repeated field ?resource=, cut down to ?mask=, those whose name matches ?name_regex=, with
// endpoints for ?include_eds.
func (h *handler) configDump(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	field := q.Get("resource")
	var name *regexp.Regexp
	if s := q.Get("name_regex"); s != "" {
		var err error
		if name, err = regexp.Compile(s); err != nil {
			http.Error(w, fmt.Sprintf("name_regex: %v", err), http.StatusBadRequest)
			return
		}
	}
	dumps := h.dumps(q.Has("include_eds") || strings.Contains(field, "endpoint"))
	var parts []proto.Message
	if field == "" {
		parts = dumps
	} else {
		var found bool
		if parts, found = elements(dumps, field); !found {
			http.Error(w, fmt.Sprintf("%s not found in config dump", field), http.StatusNotFound)
			return
		}
	}
	out := &adminv3.ConfigDump{}
	for _, p := range parts {
		if name != nil && !keepNamed(p, name, field != "") {
			continue
		}
		readable(p.ProtoReflect())
		if m := q.Get("mask"); m != "" {
			prune(p.ProtoReflect(), strings.Split(m, ","))
		}
		a, err := anypb.New(p)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		out.Configs = append(out.Configs, a)
	}
	writeJSON(w, out)
}

// dumps returns the parts of a full dump, in Envoy's order.
func (h *handler) dumps(endpoints bool) []proto.Message {
	cfg := h.o.Config()
	started := timestamppb.New(h.o.Started)
	boot := &adminv3.BootstrapConfigDump{Bootstrap: h.o.Bootstrap, LastUpdated: started}
	if boot.Bootstrap != nil {
		boot.Bootstrap = proto.CloneOf(boot.Bootstrap)
	}
	clusters, eps := &adminv3.ClustersConfigDump{}, &adminv3.EndpointsConfigDump{}
	listeners, routes := &adminv3.ListenersConfigDump{}, &adminv3.RoutesConfigDump{}
	for _, s := range cfg.Sources {
		a := &anypb.Any{TypeUrl: s.Type, Value: s.Resource.Bytes()}
		at := stamp(s.Updated, started)
		switch s.Type {
		case resource.ClusterType:
			if s.Static {
				clusters.StaticClusters = append(clusters.StaticClusters, &adminv3.ClustersConfigDump_StaticCluster{Cluster: a, LastUpdated: at})
				break
			}
			clusters.VersionInfo = max(clusters.VersionInfo, s.Version)
			clusters.DynamicActiveClusters = append(clusters.DynamicActiveClusters, &adminv3.ClustersConfigDump_DynamicCluster{VersionInfo: s.Version, Cluster: a, LastUpdated: at})
		case resource.EndpointType:
			eps.DynamicEndpointConfigs = append(eps.DynamicEndpointConfigs, &adminv3.EndpointsConfigDump_DynamicEndpointConfig{VersionInfo: s.Version, EndpointConfig: a, LastUpdated: at})
		case resource.ListenerType:
			routes.StaticRouteConfigs = append(routes.StaticRouteConfigs, inlineRoutes(s, at)...)
			if s.Static {
				listeners.StaticListeners = append(listeners.StaticListeners, &adminv3.ListenersConfigDump_StaticListener{Listener: a, LastUpdated: at})
				break
			}
			listeners.VersionInfo = max(listeners.VersionInfo, s.Version)
			listeners.DynamicListeners = append(listeners.DynamicListeners, &adminv3.ListenersConfigDump_DynamicListener{
				Name: s.Resource.Name, ActiveState: &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: s.Version, Listener: a, LastUpdated: at},
			})
		case resource.RouteType:
			routes.DynamicRouteConfigs = append(routes.DynamicRouteConfigs, &adminv3.RoutesConfigDump_DynamicRouteConfig{VersionInfo: s.Version, RouteConfig: a, LastUpdated: at})
		}
	}
	out := []proto.Message{boot, clusters}
	if endpoints {
		out = append(out, eps)
	}
	return append(out, listeners, &adminv3.ScopedRoutesConfigDump{}, routes, h.secretsDump(cfg, started))
}

func stamp(t time.Time, def *timestamppb.Timestamp) *timestamppb.Timestamp {
	if t.IsZero() {
		return def
	}
	return timestamppb.New(t)
}

// inlineRoutes returns the route tables inside a listener.
func inlineRoutes(s config.Source, at *timestamppb.Timestamp) []*adminv3.RoutesConfigDump_StaticRouteConfig {
	l := &listenerv3.Listener{}
	if proto.Unmarshal(s.Resource.Bytes(), l) != nil {
		return nil // it was decoded before; a dump shows what it can
	}
	var out []*adminv3.RoutesConfigDump_StaticRouteConfig
	for _, fc := range append(slices.Clone(l.FilterChains), l.DefaultFilterChain) {
		for _, f := range fc.GetFilters() {
			m := &hcm.HttpConnectionManager{}
			if f.GetTypedConfig().UnmarshalTo(m) != nil || m.GetRouteConfig() == nil {
				continue
			}
			if a, err := anypb.New(m.GetRouteConfig()); err == nil {
				out = append(out, &adminv3.RoutesConfigDump_StaticRouteConfig{RouteConfig: a, LastUpdated: at})
			}
		}
	}
	return out
}

func (h *handler) secretsDump(cfg *config.Config, started *timestamppb.Timestamp) *adminv3.SecretsConfigDump {
	out := &adminv3.SecretsConfigDump{}
	add := func(sec *tlsv3.Secret, version string, at *timestamppb.Timestamp, static bool) {
		redact(sec)
		a, err := anypb.New(sec)
		if err != nil {
			return
		}
		if static {
			out.StaticSecrets = append(out.StaticSecrets, &adminv3.SecretsConfigDump_StaticSecret{Name: sec.Name, Secret: a, LastUpdated: at})
			return
		}
		out.DynamicActiveSecrets = append(out.DynamicActiveSecrets, &adminv3.SecretsConfigDump_DynamicSecret{Name: sec.Name, VersionInfo: version, Secret: a, LastUpdated: at})
	}
	if h.o.Secrets != nil {
		for _, s := range h.o.Secrets() {
			sec := &tlsv3.Secret{Name: s.Name}
			if len(s.Chain) > 0 {
				sec.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(s.Chain), PrivateKey: inline(redacted)}}
			} else {
				sec.Type = &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(s.Roots)}}
			}
			add(sec, s.Version, stamp(s.Updated, started), false)
		}
	}
	for _, s := range cfg.Sources {
		sec := &tlsv3.Secret{}
		if s.Type == resource.SecretType && proto.Unmarshal(s.Resource.Bytes(), sec) == nil {
			add(sec, s.Version, stamp(s.Updated, started), s.Static)
		}
	}
	return out
}

// redacted stands where Envoy's dumps leave something out.
var redacted = []byte("[redacted]")

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

// redact takes private keys and other secret bytes out.
func redact(s *tlsv3.Secret) {
	if c := s.GetTlsCertificate(); c != nil {
		if c.PrivateKey != nil {
			c.PrivateKey = inline(redacted)
		}
		if c.Password != nil {
			c.Password = inline(redacted)
		}
		c.Pkcs12 = nil
	}
	if g := s.GetGenericSecret(); g != nil {
		g.Secret, g.Secrets = inline(redacted), nil
	}
	if k := s.GetSessionTicketKeys(); k != nil {
		k.Keys = []*core.DataSource{inline(redacted)}
	}
}

// redactMessage does what redact does for any message that holds keys.
func redactMessage(m proto.Message) {
	switch x := m.(type) {
	case *tlsv3.Secret:
		redact(x)
	case *tlsv3.TlsCertificate:
		redact(&tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: x}})
	case *tlsv3.GenericSecret:
		redact(&tlsv3.Secret{Type: &tlsv3.Secret_GenericSecret{GenericSecret: x}})
	case *tlsv3.TlsSessionTicketKeys:
		redact(&tlsv3.Secret{Type: &tlsv3.Secret_SessionTicketKeys{SessionTicketKeys: x}})
	}
}

// readable makes a message fit for JSON and for strangers' eyes, in place: keys are redacted, and an
// Any of a type that is not known here (Istio's own filters) is replaced by a Struct that names the
// type.
func readable(m protoreflect.Message) {
	if !m.IsValid() {
		return
	}
	if a, ok := m.Interface().(*anypb.Any); ok {
		if a.TypeUrl == "" {
			return
		}
		x, err := a.UnmarshalNew()
		if err != nil {
			s, err := structpb.NewStruct(map[string]any{"type_url": a.TypeUrl, "bytes": len(a.Value)})
			if err == nil {
				err = a.MarshalFrom(s)
			}
			if err != nil {
				a.Reset()
			}
			return
		}
		readable(x.ProtoReflect())
		if b, err := proto.Marshal(x); err == nil {
			a.Value = b
		}
		return
	}
	redactMessage(m.Interface())
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					readable(v.Message())
					return true
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				readable(v.List().Get(i).Message())
			}
		default:
			readable(v.Message())
		}
		return true
	})
}

// elements returns the elements of a repeated field of one of the dumps, by its proto name.
func elements(dumps []proto.Message, field string) (out []proto.Message, found bool) {
	for _, d := range dumps {
		fd := d.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field))
		if fd == nil || !fd.IsList() || fd.Message() == nil {
			continue
		}
		found = true
		l := d.ProtoReflect().Get(fd).List()
		for i := range l.Len() {
			out = append(out, l.Get(i).Message().Interface())
		}
	}
	return out, found
}

// keepNamed reports whether an element has a matching name; of a whole dump it drops the elements that
// have none.
func keepNamed(m proto.Message, re *regexp.Regexp, element bool) bool {
	if element {
		return re.MatchString(nameOf(m.ProtoReflect()))
	}
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if !fd.IsList() || fd.Message() == nil {
			return true
		}
		l := v.List()
		n := 0
		for i := range l.Len() {
			if e := l.Get(i); re.MatchString(nameOf(e.Message())) {
				l.Set(n, e)
				n++
			}
		}
		l.Truncate(n)
		return true
	})
	return true
}

// nameOf returns the name of a dump's element: its own, or that of the resource in it.
func nameOf(m protoreflect.Message) string {
	for _, f := range []protoreflect.Name{"name", "cluster_name"} {
		if fd := m.Descriptor().Fields().ByName(f); fd != nil && fd.Kind() == protoreflect.StringKind {
			if s := m.Get(fd).String(); s != "" {
				return s
			}
		}
	}
	name := ""
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Message() == nil || fd.IsList() || fd.IsMap() {
			return true
		}
		if a, ok := v.Message().Interface().(*anypb.Any); ok {
			if x, err := a.UnmarshalNew(); err == nil {
				name = nameOf(x.ProtoReflect())
			}
		}
		return name == ""
	})
	return name
}

// prune keeps only the fields that the paths of a field mask name. An Any is looked into.
func prune(m protoreflect.Message, paths []string) {
	below := map[string][]string{}
	whole := map[string]bool{}
	for _, p := range paths {
		head, rest, deeper := strings.Cut(strings.TrimSpace(p), ".")
		if deeper {
			below[head] = append(below[head], rest)
		} else {
			whole[head] = true
		}
	}
	if a, ok := m.Interface().(*anypb.Any); ok {
		x, err := a.UnmarshalNew()
		if err != nil {
			return
		}
		prune(x.ProtoReflect(), paths)
		if b, err := proto.Marshal(x); err == nil {
			a.Value = b
		}
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(fd.Name())
		sub := below[name]
		switch {
		case whole[name]:
		case sub == nil || fd.Message() == nil || fd.IsMap():
			m.Clear(fd)
		case fd.IsList():
			for i := range v.List().Len() {
				prune(v.List().Get(i).Message(), sub)
			}
		default:
			prune(v.Message(), sub)
		}
		return true
	})
}
