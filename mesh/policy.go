package mesh

import (
	"cmp"
	"slices"

	security "istio.io/api/security/v1beta1"
)

// MTLS says what a workload's port accepts.
type MTLS uint8

// What a port accepts.
const (
	Permissive MTLS = iota // plaintext and mutual TLS
	Strict                 // mutual TLS only
	Disabled               // plaintext only
)

// String returns the mode as PeerAuthentication spells it.
func (m MTLS) String() string { return [...]string{"PERMISSIVE", "STRICT", "DISABLE"}[m] }

// Policies are the PeerAuthentications of the local cluster. Immutable.
type Policies struct {
	root string // the namespace whose policy without a selector holds for the mesh
	all  *Table[*PeerAuthentication]
}

// All returns the PeerAuthentications, by namespace and name.
func (p *Policies) All() *Table[*PeerAuthentication] { return p.all }

// Mode returns what a port (the workload's, not a Service's) of a workload with those labels accepts.
func (p *Policies) Mode(namespace string, labels map[string]string, port uint16) MTLS {
	mode, ports := p.Modes(namespace, labels)
	if m, ok := ports[port]; ok {
		return m
	}
	return mode
}

// Modes returns what a workload accepts on all ports but those named, and on these. The most specific
// policy holds: one that selects the workload, the namespace's, the mesh's; of two alike the oldest.
func (p *Policies) Modes(namespace string, labels map[string]string) (mode MTLS, ports map[uint16]MTLS) {
	if p.all.Len() == 0 {
		return Permissive, nil
	}
	rows := p.all.prefixed(namespace + "/")
	if namespace != p.root {
		rows = slices.Concat(rows, p.all.prefixed(p.root+"/"))
	}
	var own, ns, mesh *PeerAuthentication
	older := func(a, b *PeerAuthentication) *PeerAuthentication {
		if a == nil || cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.Name, a.Name)) < 0 {
			return b
		}
		return a
	}
	for _, r := range rows {
		switch sel := r.Spec.GetSelector().GetMatchLabels(); {
		case len(sel) > 0:
			if r.Namespace == namespace && Selects(sel, labels) {
				own = older(own, r)
			}
		case r.Namespace == namespace && namespace != p.root:
			ns = older(ns, r)
		case r.Namespace == p.root:
			mesh = older(mesh, r)
		}
	}
	ports = map[uint16]MTLS{}
	for _, r := range []*PeerAuthentication{mesh, ns, own} {
		if r == nil {
			continue
		}
		if r.Spec.GetMtls().GetMode() != security.PeerAuthentication_MutualTLS_UNSET {
			mode = modeOf(r.Spec.GetMtls(), mode)
			clear(ports) // what is more particular says it of all ports
		}
		for n, m := range r.Spec.GetPortLevelMtls() { // without a selector: of a policy in its strictest reading
			ports[uint16(n)] = modeOf(m, mode)
		}
	}
	return mode, ports
}

func modeOf(m *security.PeerAuthentication_MutualTLS, inherited MTLS) MTLS {
	switch m.GetMode() {
	case security.PeerAuthentication_MutualTLS_PERMISSIVE:
		return Permissive
	case security.PeerAuthentication_MutualTLS_STRICT:
		return Strict
	case security.PeerAuthentication_MutualTLS_DISABLE:
		return Disabled
	}
	return inherited
}

// Selects reports whether labels have all of a selector. An empty selector selects everything.
func Selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if w, ok := labels[k]; !ok || w != v {
			return false
		}
	}
	return true
}
