package mesh

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
)

// protective is an object that protects something. One that is wrong is not refused, for what it protects would
// be open then: it holds as strictly as it can be read, after a restart like before.
type protective interface {
	Object
	// strictest returns the object without what is wrong with it, and with the strictest that this may have
	// meant. Nil if what can be read of it protects nothing.
	strictest() Object
}

// Protects reports whether an object that is wrong holds nevertheless, as strictly as it can be read.
func Protects(o Object) bool {
	_, ok := o.(protective)
	return ok
}

// accept returns what the mesh is to hold of an object, and false if that is what it held before: an object that
// cannot mean anything is refused. It keeps account of all that is wrong.
func (b *builder) accept(k Key, o Object) (Object, bool) {
	if o == nil {
		edit(b, &b.refusals, k.String(), nil, true)
		return nil, true
	}
	found := validate(o)
	if len(found) == 0 && b.settings.Check != nil {
		found = b.settings.Check(o)
	}
	var r *refusal
	if len(found) > 0 {
		r = &refusal{k, found}
	}
	edit(b, &b.refusals, k.String(), r, r == nil)
	p, protects := o.(protective)
	if !protects {
		return o, r == nil
	}
	if x := p.strictest(); x != nil {
		return x, true
	}
	return nil, false
}

// strictest implements protective.
func (p *PeerAuthentication) strictest() Object {
	const strict = security.PeerAuthentication_MutualTLS_STRICT
	unread := func(field string) bool {
		return slices.ContainsFunc(p.Unread, func(u string) bool {
			return u == "spec" || u == field || strings.HasPrefix(u, field+".") || strings.HasPrefix(u, field+"[")
		})
	}
	spec := proto.CloneOf(p.Spec)
	lost := unread("spec.mtls") || unread("spec.portLevelMtls") || !isMode(spec.GetMtls())
	for n, m := range spec.GetPortLevelMtls() {
		switch {
		case n < 1 || n > 65535: // which port was meant, nobody knows
			lost = lost || m.GetMode() == strict || !isMode(m)
			delete(spec.PortLevelMtls, n)
		case !isMode(m):
			spec.PortLevelMtls[n] = &security.PeerAuthentication_MutualTLS{Mode: strict}
		}
	}
	if lost {
		spec.Mtls = &security.PeerAuthentication_MutualTLS{Mode: strict}
	}
	if unread("spec.selector") { // it may be for any workload of its namespace, so it may loosen nothing
		spec.Selector = nil
		if spec.GetMtls().GetMode() != strict {
			spec.Mtls = nil
		}
	}
	if len(spec.GetSelector().GetMatchLabels()) == 0 {
		for n, m := range spec.GetPortLevelMtls() {
			if m.GetMode() != strict {
				delete(spec.PortLevelMtls, n)
			}
		}
	}
	if unread("spec.selector") && spec.Mtls == nil && len(spec.PortLevelMtls) == 0 {
		return nil
	}
	if proto.Equal(spec, p.Spec) && len(p.Unread) == 0 {
		return p
	}
	out := &PeerAuthentication{Meta: p.Meta, Spec: spec}
	out.Unread = nil
	return out
}

func isMode(m *security.PeerAuthentication_MutualTLS) bool {
	_, ok := security.PeerAuthentication_MutualTLS_Mode_name[int32(m.GetMode())]
	return ok
}
