package mesh

import (
	"slices"
	"testing"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// One bad field of MeshConfig falls back alone: to its last good value or, after a start, to its default, which
// is the strictest reading where it protects.
func TestMeshConfigFallsBackByField(t *testing.T) {
	event := func(yaml string, unread ...string) Event {
		m := &MeshConfig{Cluster: "c1", Namespace: "istio-system", Name: "istio", Spec: &meshconfig.MeshConfig{}, Unread: unread}
		fromYAML(t, yaml, m.Spec)
		return Event{Object: m}
	}
	good := event("{outboundTrafficPolicy: {mode: ALLOW_ANY}, accessLogFormat: 'good %PROTOCOL%', trustDomain: one, meshMTLS: {minProtocolVersion: TLSV1_2}}")
	for _, c := range []struct {
		name  string
		event Event
		// at a start, and after the good one
		format, formatAfter string
		open, openAfter     bool
		field               string // of the finding, which is about the ConfigMap
	}{
		{"a bad format", event("{trustDomain: td, accessLogFormat: '%NO_SUCH%', outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"),
			"", "good %PROTOCOL%", false, false, "accessLogFormat"},
		{"JSON in single quotes, that it is not", event(`{trustDomain: td, accessLogEncoding: JSON, accessLogFormat: "{'a': 'b'}", outboundTrafficPolicy: {mode: REGISTRY_ONLY}}`),
			"", "", false, false, "accessLogFormat"}, // the last one is no JSON
		{"an unread mode", event("{trustDomain: td, outboundTrafficPolicy: {}}", "outboundTrafficPolicy.mode"), "", "", false, true, ""},
		{"an unread policy", event("{trustDomain: td}", "outboundTrafficPolicy"), "", "", false, true, ""},
		{"an unread TLS version", event("{trustDomain: td, meshMTLS: {cipherSuites: [a]}}", "meshMTLS.minProtocolVersion"), "", "", true, true, ""},
		{"a bad timeout", event("{trustDomain: td, connectTimeout: '0.0001s'}"), "", "", true, true, "connectTimeout"},
	} {
		check := func(when string, s *Snapshot, format string, open bool) {
			t.Helper()
			conf := s.Config()
			if conf.TrustDomain != "td" || conf.Spec.GetAccessLogFormat() != format || conf.AllowAny != open {
				t.Errorf("%s, %s: trust domain %s, format %q, open %v; want td, %q, %v", c.name, when, conf.TrustDomain, conf.Spec.GetAccessLogFormat(), conf.AllowAny, format, open)
			}
			var fields []string
			for _, f := range s.Findings() {
				fields = append(fields, f.Field)
				if f.Object != (Key{"c1", "ConfigMap", "istio-system", "istio"}) || f.Fix == "" {
					t.Errorf("%s: finding %v", c.name, f)
				}
			}
			if c.field == "" && len(fields) > 0 || c.field != "" && !slices.Equal(fields, []string{c.field}) {
				t.Errorf("%s, %s: findings about %q, want %q", c.name, when, fields, c.field)
			}
		}
		check("at a start", New(Settings{Cluster: "c1"}).Apply(c.event), c.format, c.open)
		check("after a good one", New(Settings{Cluster: "c1"}).Apply(good).Apply(c.event), c.formatAfter, c.openAfter)
	}
	strict := New(Settings{Cluster: "c1"}).Apply(event("{}", "meshMTLS.minProtocolVersion")).Config()
	if strict.MeshTLS.GetMinProtocolVersion() != meshconfig.MeshConfig_TLSConfig_TLSV1_3 {
		t.Errorf("an unread TLS version after a start is %v", strict.MeshTLS)
	}
	// The whole document unread: the strictest of all, or the last.
	for s, open := range map[*Snapshot]bool{
		New(Settings{Cluster: "c1"}).Apply(event("{}", "")):             false,
		New(Settings{Cluster: "c1"}).Apply(good).Apply(event("{}", "")): true,
	} {
		if c := s.Config(); c.AllowAny != open || open != (c.TrustDomain == "one") {
			t.Errorf("nothing read: %+v, want open %v", c, open)
		}
	}
	// What was good again is good again.
	s := New(Settings{Cluster: "c1"}).Apply(event("{accessLogFormat: '%NO_SUCH%'}")).Apply(good)
	if len(s.Findings()) > 0 || s.Config().Spec.GetAccessLogFormat() != "good %PROTOCOL%" {
		t.Errorf("findings %v", s.Findings())
	}
}

// Gateways that MeshNetworks names by a host name are at the addresses that it has.
func TestNetworkGatewayByName(t *testing.T) {
	nets := &meshconfig.MeshNetworks{}
	fromYAML(t, "networks: {n2: {endpoints: [{fromRegistry: c2}], gateways: [{address: gw.example.com, port: 15443}]}}", nets)
	m := &MeshConfig{Cluster: "c1", Spec: &meshconfig.MeshConfig{}, Networks: nets}
	s := New(Settings{Cluster: "c1"}).Apply(Event{Object: m})
	if gs := s.Networks().To("n2"); len(gs) != 0 {
		t.Errorf("gateways %v before the name leads anywhere", gs)
	}
	resolved := *m
	resolved.Addresses = map[string][]string{"gw.example.com": {"192.0.2.1", "192.0.2.2"}}
	s = s.Apply(Event{Object: &resolved})
	if gs := s.Networks().To("n2"); len(gs) != 2 || gs[0].Address != "192.0.2.1" || gs[1].Port != 15443 {
		t.Errorf("gateways %v", gs)
	}
}
