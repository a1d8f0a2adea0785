package mesh

import (
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/schema"
)

// UnusedFields returns a finding for each field that users have set in objects of implemented kinds, or in the
// mesh's own configuration, and that has no effect.
func (s *Snapshot) UnusedFields() (found []Finding) {
	for o := range s.UserObjects() {
		_, spec := o.Written()
		found = append(found, Unused(o.Key(), "spec.", spec)...)
	}
	c := s.Config()
	for _, f := range Unused(c.Object, "", c.Spec) {
		// The address of a collector that install writes into every mesh, as Istio's installers do, is not the
		// user's wish.
		written := c.Spec.GetDefaultConfig().GetTracing().GetZipkin().GetAddress() == "zipkin."+s.settings.SystemNamespace+":9411"
		if f.Field != "defaultConfig.tracing" || !written {
			found = append(found, f)
		}
	}
	return append(found, Unused(c.Object, "meshNetworks.", c.networks)...)
}

// Unused returns a finding for each field of a message that has no effect. At is the path that leads to the
// message in its object, with a dot at its end.
func Unused(o Key, at string, m proto.Message) (found []Finding) {
	for _, u := range schema.WithoutEffect(m) {
		found = append(found, Finding{
			Object: o, Field: at + u.Path, Message: "it has no effect: " + u.Why, Fix: "remove it, or do without what it asks for",
		})
	}
	return found
}
