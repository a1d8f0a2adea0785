// Package schema lists the kinds of objects that users write for a mesh, one row each: what a kind is
// called, which of its versions API servers may serve, how it is told about its state, and whether it
// has an effect here. It knows no object and no API server; what has to treat all kinds alike (watches,
// statuses, roles, analysis, debug pages, documents) ranges over it.
package schema

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
)

// Status is the form in which an object says what became of it.
type Status int

// Forms of status.
const (
	NoStatus     Status = iota // events alone tell
	Istio                      // Istio's: status.conditions with Reconciled
	GatewayClass               // Gateway API's: status.conditions with Accepted
	Gateway                    // Gateway API's: status.conditions with Accepted and Programmed
	Route                      // Gateway API's: status.parents, one entry for each parent and controller
	Policy                     // Gateway API's: status.ancestors, one entry for each target and controller
	Export                     // MCS': status.conditions with Valid
)

// Groups of kinds.
const (
	Networking   = "networking.istio.io"
	Security     = "security.istio.io"
	Telemetry    = "telemetry.istio.io"
	Extensions   = "extensions.istio.io"
	GatewayAPI   = "gateway.networking.k8s.io"
	Experimental = "gateway.networking.x-k8s.io"
	MultiCluster = "multicluster.x-k8s.io"
	Kubernetes   = "networking.k8s.io"
)

// Kind is one kind of object.
type Kind struct {
	Group, Kind, Plural string
	Versions            []string // that API servers may serve, the one to read first; all have one form
	ClusterScoped       bool
	Status              Status

	// Spec returns an empty message of the spec's form. Nil where that is not a protobuf message.
	Spec func() proto.Message

	// Implemented says whether objects of the kind have an effect. Setting it takes away all warnings.
	Implemented bool
	// Without is what users miss while the kind is not implemented, as a sentence's end:
	// "AuthorizationPolicy has no effect: " + Without.
	Without string
	// Guards reports whether an object, in its JSON form, protects something, so that something stands
	// open which the user believes closed while it has no effect. Nil: no object of the kind does.
	Guards func(object map[string]any) bool
}

// Name is what the mesh and its users call the kind: Kind, with the group behind it where Istio has a
// kind of the same name. No two kinds share one.
func (k Kind) Name() string {
	if k.Group == GatewayAPI && k.Kind == "Gateway" {
		return k.Kind + "." + k.Group
	}
	return k.Kind
}

// APIVersion returns the group and the version to read first.
func (k Kind) APIVersion() string { return k.Group + "/" + k.Versions[0] }

// Serves reports whether a version of the kind is known.
func (k Kind) Serves(version string) bool { return slices.Contains(k.Versions, version) }

// Protects reports whether an object of the kind, in its JSON form, protects something.
func (k Kind) Protects(object map[string]any) bool { return k.Guards != nil && k.Guards(object) }

// Of returns the kind of that group and name in the API.
func Of(group, kind string) (Kind, bool) {
	return find(func(k Kind) bool { return k.Group == group && k.Kind == kind })
}

// Named returns the kind of that Name.
func Named(name string) (Kind, bool) {
	return find(func(k Kind) bool { return k.Name() == name })
}

func find(is func(Kind) bool) (Kind, bool) {
	all := Kinds()
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i], true
	}
	return Kind{}, false
}

// always is for kinds of which every object protects something.
func always(map[string]any) bool { return true }

// enforced is for policies that can be tried without being enforced.
func enforced(object map[string]any) bool {
	metadata, _ := object["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	return annotations["istio.io/dry-run"] != "true"
}

// ownFilters are how the names of the EnvoyFilters begin that Istio's installers made for telemetry
// until 1.21. They carry the label of their revision.
var ownFilters = []string{"stats-filter-", "tcp-stats-filter-", "metadata-exchange-", "tcp-metadata-exchange-", "stackdriver-filter-"}

// usersFilter is for EnvoyFilters: those that users wrote, which may do anything.
func usersFilter(object map[string]any) bool {
	metadata, _ := object["metadata"].(map[string]any)
	labels, _ := metadata["labels"].(map[string]any)
	name, _ := metadata["name"].(string)
	return labels["istio.io/rev"] == nil || !slices.ContainsFunc(ownFilters, func(p string) bool { return strings.HasPrefix(name, p) })
}

// closesEgress is for Sidecars: those that let workloads call registered hosts only.
func closesEgress(object map[string]any) bool {
	spec, _ := object["spec"].(map[string]any)
	policy, ok := spec["outboundTrafficPolicy"].(map[string]any)
	if !ok {
		return false
	}
	mode, said := policy["mode"]
	return !said || mode == "REGISTRY_ONLY" || mode == 0.0 || mode == int64(0) // the mode's zero value is REGISTRY_ONLY
}
