package mesh

import (
	"fmt"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/carrick-mesh/carrick/schema"
)

// Inert is a user's object of a kind that has no effect here. Only what tells whether it was meant for
// this mesh is kept of it.
type Inert struct {
	Meta            // without labels and generation
	Kind     string // schema.Kind.Name
	Protects bool   // something that stands open without it
	// Class is what decides whose object it is: the controller of a GatewayClass or IngressClass, the
	// class of a Gateway or Ingress; "" if it names none.
	Class string
	// Parents are what a route or a set of listeners is attached to, or a policy is for, in its order.
	Parents []Parent
}

// Parent is an object that another one names.
type Parent struct {
	Field                        string // that names it: "spec.parentRefs[0]"
	Group, Kind, Namespace, Name string
}

// Key implements Object.
func (i *Inert) Key() Key { return i.key(i.Kind) }

// NotImplemented is the Reason of findings about objects without effect.
const NotImplemented = "NotImplemented"

// WithoutEffect returns a finding for each object that was meant for this mesh and has no effect in it,
// and for a route one for each of its parents. Shared: it must not be written to.
func (s *Snapshot) WithoutEffect() []Finding { return s.ineffective }

// SameFindings reports whether Findings and WithoutEffect are those of another Snapshot, without looking
// at them one by one.
func (s *Snapshot) SameFindings(as *Snapshot) bool {
	x, y := s.ineffective, as.ineffective
	return s.refusals == as.refusals && len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0])
}

// findInert makes WithoutEffect again.
func (b *builder) findInert() {
	owners := b.owners()
	b.ineffective = nil
	for i := range b.inert.All() {
		k, ok := schema.Named(i.Kind)
		if !ok || k.Implemented {
			continue
		}
		for _, field := range owners.fields(i, k) {
			b.ineffective = append(b.ineffective, inertFinding(i, k, field))
		}
	}
}

func inertFinding(i *Inert, k schema.Kind, field string) Finding {
	f := Finding{Object: i.Key(), Field: field, Level: "Warning", Reason: NotImplemented,
		Message: fmt.Sprintf("%s has NO effect in this version of Carrick: %s", k.Name(), k.Without)}
	if i.Protects {
		f.Level, f.Fix = "Error", "enforce it by other means, such as a NetworkPolicy or the application, until it has"
	}
	return f
}

// Names that Istio gives its controllers and classes.
const (
	gatewayController = "istio.io/" // the beginning: gateway-controller, mesh-controller …
	ingressController = "istio.io/ingress-controller"
)

var istioClasses = map[string]bool{"istio": true, "istio-waypoint": true, "istio-remote": true, "istio-east-west": true}

// owners tells which objects of Gateway API and Ingress were meant for this mesh, and which for other
// controllers of the cluster.
type owners struct {
	config   *Config
	classes  map[string]bool // GatewayClasses by name: whether Istio's controller is named
	ingress  map[string]bool // IngressClasses, alike
	gateways map[Parent]bool // Gateways and sets of listeners that are for this mesh
	others   bool            // some other controller serves GatewayClasses
}

func (b *builder) owners() *owners {
	o := &owners{config: b.config, classes: map[string]bool{}, ingress: map[string]bool{}, gateways: map[Parent]bool{}}
	each := func(kind string, f func(i *Inert)) {
		for i := range b.inert.All() {
			if i.Kind == kind {
				f(i)
			}
		}
	}
	each("GatewayClass", func(i *Inert) {
		o.classes[i.Name] = strings.HasPrefix(i.Class, gatewayController)
		o.others = o.others || !o.classes[i.Name]
	})
	each("IngressClass", func(i *Inert) { o.ingress[i.Name] = i.Class == ingressController })
	each("Gateway."+schema.GatewayAPI, func(i *Inert) {
		if mine, known := o.classes[i.Class]; mine || !known && istioClasses[i.Class] {
			o.gateways[Parent{"", schema.GatewayAPI, "Gateway", i.Namespace, i.Name}] = true
		}
	})
	for kind, group := range map[string]string{"ListenerSet": schema.GatewayAPI, "XListenerSet": schema.Experimental} {
		each(kind, func(i *Inert) {
			if len(o.attached(i)) > 0 {
				o.gateways[Parent{"", group, kind, i.Namespace, i.Name}] = true
			}
		})
	}
	return o
}

// fields returns the fields by which an object is for this mesh, "" for the whole of it; none if it is
// not.
func (o *owners) fields(i *Inert, k schema.Kind) []string {
	mine := true
	switch k.Status {
	case schema.Route:
		return o.attached(i)
	case schema.Gateway:
		mine = o.gateways[Parent{"", k.Group, k.Kind, i.Namespace, i.Name}]
	case schema.GatewayClass:
		mine = o.classes[i.Name]
	case schema.Policy:
		if !o.active() {
			return nil
		}
		fields := make([]string, 0, len(i.Parents))
		for _, p := range i.Parents {
			fields = append(fields, p.Field)
		}
		return fields
	default:
		switch k.Kind {
		case "ReferenceGrant":
			mine = o.active()
		case "IngressClass":
			mine = o.ingress[i.Name]
		case "Ingress":
			mine = o.serves(i.Class)
		}
	}
	if !mine {
		return nil
	}
	return []string{""}
}

// attached returns the fields that name parents of this mesh: its gateways, and hosts that sidecars call.
func (o *owners) attached(i *Inert) (fields []string) {
	for _, p := range i.Parents {
		field := p.Field
		p.Field = ""
		host := p.Group == "" && p.Kind == "Service" || p.Group == schema.Networking && p.Kind == "ServiceEntry"
		if host || o.gateways[p] {
			fields = append(fields, field)
		}
	}
	return fields
}

// active reports whether objects of Gateway API that name no controller are for this mesh: it has
// gateways, or nobody else has.
func (o *owners) active() bool { return len(o.gateways) > 0 || !o.others }

// serves reports whether Istio would serve an Ingress of that class.
func (o *owners) serves(class string) bool {
	switch mode := o.config.Spec.GetIngressControllerMode(); {
	case mode == meshconfig.MeshConfig_OFF:
		return false
	case class == "":
		return mode == meshconfig.MeshConfig_DEFAULT
	}
	mine, known := o.ingress[class]
	return mine || !known && class == o.config.IngressClass
}
