package mesh

import (
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/schema"
)

// UnusedFields returns a finding for each field that users have set in objects of implemented kinds and that
// has no effect.
func (s *Snapshot) UnusedFields() (found []Finding) {
	for o := range s.UserObjects() {
		_, spec := o.Written()
		found = append(found, Unused(o.Key(), "spec.", spec)...)
	}
	return found
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
