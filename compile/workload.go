package compile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// workload is what a proxy has for itself, whatever services it sees. Immutable. Proxies of which it
// comes out the same share it.
type workload struct {
	clusters, listeners, routes *resource.Part // nil if none
	secrets                     *resource.List // nil if none
	// passthrough says what the gateway exposes to other networks: "0.0.0.0_15443=*.local|a.b;...", for
	// each listener the host patterns. "" if it is no such gateway.
	passthrough string
	faults      faults
	from        any // what it was made of: kept, for its key has the addresses of what that points to
}

// workloads makes and remembers them.
type workloads struct {
	proxies map[Proxy]*remembered
	rows    map[string]*workload // by what they were made of
}

type remembered struct {
	from inputs
	key  string
	*workload
}

// inputs is all that a workload is looked up in. Comparable.
type inputs struct {
	services    *mesh.Table[*mesh.Service] // of its namespace, in its cluster
	policies    *mesh.Policies
	config      *mesh.Config
	gateways    *mesh.Table[*mesh.Gateway]
	routes      *mesh.Table[*mesh.VirtualService]
	rules       *mesh.Table[*mesh.DestinationRule]
	credentials *mesh.Table[*mesh.Credential]
	stamp       *mesh.Stamp
}

func (w *workloads) pass(s *mesh.Snapshot, proxies []Proxy) []*workload {
	last := *w
	w.proxies, w.rows = make(map[Proxy]*remembered, len(proxies)), map[string]*workload{}
	out := make([]*workload, len(proxies))
	for i, p := range proxies {
		in := inputs{services: s.Services(p.Cluster, p.Namespace), config: s.Config()}
		if p.Router {
			in.gateways, in.routes, in.rules, in.stamp, in.credentials = s.Gateways(), s.MergedVirtualServices(), s.DestinationRules(), s.Stamp(), s.Credentials()
		} else {
			in.policies, in.rules = s.Policies(), s.DestinationRules()
		}
		x := last.proxies[p]
		if x == nil || x.from != in {
			var before *workload
			if x != nil {
				before = x.workload
			}
			key, own := w.workload(s, p, last.rows, before)
			x = &remembered{in, key, own}
		}
		w.proxies[p], w.rows[x.key], out[i] = x, x.workload, x.workload
	}
	return out
}

// workload returns what a proxy has for itself, and the row that it was made of. Parts that are as they were
// before keep their pointers.
func (w *workloads) workload(s *mesh.Snapshot, p Proxy, last map[string]*workload, before *workload) (key string, own *workload) {
	var build func() *workload
	switch {
	case p.Dialect == GRPC:
		r := grpcServerOf(s, p)
		key, build = fmt.Sprintf("grpc %#v", r), r.build
	case p.Router:
		r := gatewayOf(s, p)
		key, build = "gateway "+r.key(), r.build
	default:
		r := sidecarOf(s, p)
		key, build = fmt.Sprintf("sidecar %#v", r), r.build
	}
	if own = w.rows[key]; own == nil {
		if own = last[key]; own == nil {
			own = build()
			own.keep(before)
		}
	}
	return key, own
}

// keep gives w the parts of another workload that are like its own.
func (w *workload) keep(before *workload) {
	if before == nil {
		return
	}
	for _, p := range []struct{ now, was **resource.Part }{
		{&w.clusters, &before.clusters}, {&w.listeners, &before.listeners}, {&w.routes, &before.routes},
	} {
		if *p.now != nil && *p.was != nil && slices.EqualFunc((*p.now).Resources, (*p.was).Resources, func(a, b *resource.Resource) bool {
			return a.Name == b.Name && a.Version == b.Version
		}) {
			*p.now = *p.was
		}
	}
}

// instances returns the services of a proxy's namespace that select it, the oldest first.
func instances(s *mesh.Snapshot, p Proxy) (services []*mesh.Service) {
	labels := labelMap(p.Labels)
	for svc := range s.Services(p.Cluster, p.Namespace).All() {
		if len(svc.Selector) > 0 && svc.Type != mesh.ExternalName && mesh.Selects(svc.Selector, labels) {
			services = append(services, svc)
		}
	}
	slices.SortStableFunc(services, func(a, b *mesh.Service) int { return a.Created.Compare(b.Created) })
	return services
}

// targetPort returns where a port of a service leads to in the workload, or 0 if no container says.
func targetPort(p Proxy, port mesh.ServicePort) uint16 {
	switch {
	case port.TargetPort != 0:
		return port.TargetPort
	case port.TargetName != "":
		return p.namedPort(port.TargetName)
	}
	return port.Number
}

func partOf(rs []*resource.Resource) *resource.Part {
	if len(rs) == 0 {
		return nil
	}
	slices.SortFunc(rs, func(a, b *resource.Resource) int { return strings.Compare(a.Name, b.Name) })
	return &resource.Part{Resources: rs}
}
