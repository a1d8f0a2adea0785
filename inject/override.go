package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// What overrides of the proxy's container and annotations drag along: whatever else was made from the
// value that they replace.

// annotateConfig takes annotations into the ProxyConfig, by which the agent learns of them.
func (b *builder) annotateConfig() {
	if v := b.ann[annDiscoveryAddress]; v != "" {
		b.config.DiscoveryAddress = v
	}
	const agentsDefault = 15020
	if port := b.statusPort(); port != 0 && (port != agentsDefault || b.config.StatusPort != 0) {
		b.config.StatusPort = port // where the probes ask, the agent has to listen
	}
	b.config.ExtraStatTags = append(slices.Clip(b.config.GetExtraStatTags()), words(b.ann[annExtraStatTags])...)
	for _, s := range []struct {
		annotation string
		field      func(*meshconfig.ProxyConfig_ProxyStatsMatcher) *[]string
	}{
		{annStatsPrefixes, func(m *meshconfig.ProxyConfig_ProxyStatsMatcher) *[]string { return &m.InclusionPrefixes }},
		{annStatsSuffixes, func(m *meshconfig.ProxyConfig_ProxyStatsMatcher) *[]string { return &m.InclusionSuffixes }},
		{annStatsRegexps, func(m *meshconfig.ProxyConfig_ProxyStatsMatcher) *[]string { return &m.InclusionRegexps }},
	} {
		if more := words(b.ann[s.annotation]); len(more) > 0 {
			if b.config.ProxyStatsMatcher == nil {
				b.config.ProxyStatsMatcher = &meshconfig.ProxyConfig_ProxyStatsMatcher{}
			}
			list := s.field(b.config.ProxyStatsMatcher)
			*list = append(slices.Clip(*list), more...)
		}
	}
}

// words splits a comma-separated list.
func words(s string) (out []string) {
	for w := range strings.SplitSeq(s, ",") {
		if w = strings.TrimSpace(w); w != "" {
			out = append(out, w)
		}
	}
	return out
}

// settle follows up what was laid over the proxy's container; was is the container before.
func (b *builder) settle(c, was *corev1.Container, pod *corev1.PodSpec) error {
	b.uid, b.gid = proxyUID, proxyUID
	sc := c.SecurityContext
	if sc == nil {
		sc = &corev1.SecurityContext{}
	}
	if sc.RunAsUser != nil {
		b.uid = *sc.RunAsUser
	} else if p := pod.SecurityContext; p != nil && p.RunAsUser != nil {
		b.uid = *p.RunAsUser
	}
	if sc.RunAsGroup != nil {
		b.gid = *sc.RunAsGroup
	}
	if b.uid == 0 && ptr.Deref(sc.RunAsNonRoot, false) {
		sc.RunAsNonRoot = ptr.To(false)
	}
	powerful := ptr.Deref(sc.Privileged, false) || sc.Capabilities != nil && slices.Contains(sc.Capabilities.Add, "SYS_ADMIN")
	if powerful && sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		sc.AllowPrivilegeEscalation = ptr.To(true) // the API server refuses the contradiction
	}
	fit(&c.Resources, was.Resources)
	env := func(name string) string {
		for _, e := range slices.Backward(c.Env) {
			if e.Name == name {
				return e.Value
			}
		}
		return ""
	}
	b.mode = or(env("ISTIO_META_INTERCEPTION_MODE"), b.interception())
	if b.role == templateSidecar {
		if err := refuseMode(b.mode, "ISTIO_META_INTERCEPTION_MODE"); err != nil {
			return err
		}
	}
	if e := env("CARRICK_PROXY_ENGINE"); e != b.engine() {
		return fmt.Errorf("environment variable CARRICK_PROXY_ENGINE of container %s is %q: it chooses the image as well; use annotation %s", c.Name, e, annEngine)
	}
	return nil
}

// redirects reports whether the pod's connections go through the proxy.
func (b *builder) redirects() bool {
	return b.role == templateSidecar
}

// fit keeps requests within limits where one of the two was overridden: what was not follows.
func fit(r *corev1.ResourceRequirements, was corev1.ResourceRequirements) {
	for name, request := range r.Requests {
		limit, bounded := r.Limits[name]
		if !bounded || request.Cmp(limit) <= 0 {
			continue
		}
		if old, ok := was.Requests[name]; ok && old.Cmp(request) == 0 {
			r.Requests[name] = limit
		} else if old, ok := was.Limits[name]; ok && old.Cmp(limit) == 0 {
			r.Limits[name] = request
		}
	}
}

// unions are fields of which an object has one only: one that is laid over replaces the others.
var unions = [][]string{
	{"value", "valueFrom"},
	{"exec", "httpGet", "tcpSocket", "grpc", "sleep"},
	{"fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"},
}

// untangle takes out of base what over replaces by another kind of the same thing, which a strategic
// merge would leave beside it and the API server refuse.
func untangle(base, over []byte) ([]byte, error) {
	var b, o map[string]any
	if err := json.Unmarshal(base, &b); err != nil {
		return nil, fmt.Errorf("decoding: %w", err)
	}
	if err := json.Unmarshal(over, &o); err != nil {
		return nil, fmt.Errorf("decoding: %w", err)
	}
	untangleMap(b, o, false)
	return json.Marshal(b)
}

// untangleMap works in place. A volume has one source, under any name.
func untangleMap(base, over map[string]any, volume bool) {
	for _, union := range unions {
		if !slices.ContainsFunc(union, func(k string) bool { return over[k] != nil }) {
			continue
		}
		for _, k := range union {
			if over[k] == nil {
				delete(base, k)
			}
		}
	}
	if volume && len(over) > 1 {
		maps.DeleteFunc(base, func(k string, _ any) bool { return k != "name" && over[k] == nil })
	}
	for k, v := range over {
		switch v := v.(type) {
		case map[string]any:
			if b, ok := base[k].(map[string]any); ok {
				untangleMap(b, v, false)
			}
		case []any:
			if b, ok := base[k].([]any); ok {
				untangleList(b, v, k == "volumes")
			}
		}
	}
}

// untangleList pairs the elements of two lists by their names.
func untangleList(base, over []any, volumes bool) {
	for _, o := range over {
		om, ok := o.(map[string]any)
		if !ok || om["name"] == nil {
			continue
		}
		for _, b := range base {
			if bm, ok := b.(map[string]any); ok && bm["name"] == om["name"] {
				untangleMap(bm, om, volumes)
			}
		}
	}
}

// refuseMode returns an error for a mode of interception that is not REDIRECT, said where.
func refuseMode(mode, where string) error {
	switch mode {
	case "TPROXY":
		return fmt.Errorf("interception mode TPROXY (%s) is not supported: use REDIRECT; HTTP applications read the client's address in x-forwarded-for", where)
	case "NONE":
		return fmt.Errorf("interception mode NONE (%s) is not supported, for connections would pass the proxy in plaintext: use REDIRECT, or leave the pod out by the label sidecar.istio.io/inject: \"false\"", where)
	}
	return nil
}
