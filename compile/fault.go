package compile

import (
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/carrick-mesh/carrick/mesh"
)

// faults says of objects what a build left out of them, because a proxy would refuse all that it stands in.
type faults []mesh.Finding

// add takes a fault once for each object: one cause often shows in several places.
func (f *faults) add(o mesh.Key, err error) {
	if slices.ContainsFunc(*f, func(x mesh.Finding) bool { return x.Object == o }) {
		return
	}
	*f = append(*f, mesh.Finding{
		Object: o, Field: "spec", Message: "every proxy would refuse it: " + err.Error(), Fix: "correct or remove that",
	})
}

// Faults returns what the last Pass left out, each once: what a proxy would have refused a whole listener, table
// or cluster for.
func (c *Compiler) Faults() (all []mesh.Finding) {
	for _, f := range c.faults {
		if !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all
}

func firstRefusal(routes []*routev3.Route) error {
	for _, r := range routes {
		if err := refusal(r); err != nil {
			return err
		}
	}
	return nil
}
