package compile

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// Trial compiles a user's object by itself, in a mesh that has what it needs and nothing else, and returns what
// proxies would refuse. It is what mesh.Settings.Check is for: an object that fails never joins what many share.
func Trial(o mesh.Object) []mesh.Finding {
	switch o := o.(type) {
	case *mesh.VirtualService:
		return tryRoutes(o)
	case *mesh.DestinationRule:
		return tryRule(o)
	case *mesh.Gateway:
		return tryGateway(o)
	}
	return nil
}

// trialFinding is about one part of an object. The error names the rest of the place in Envoy's words.
func trialFinding(o mesh.Key, field string, err error) mesh.Finding {
	return mesh.Finding{Object: o, Field: field, Message: "every proxy would refuse it: " + err.Error(), Fix: "correct or remove that"}
}

// tryRoutes builds each route for each of its matches, whomever they are for.
func tryRoutes(o *mesh.VirtualService) (found []mesh.Finding) {
	add := func(field string, err error) {
		if err != nil && !slices.ContainsFunc(found, func(f mesh.Finding) bool { return f.Field == field }) {
			found = append(found, trialFinding(o.Key(), field, err))
		}
	}
	t := translation{
		service: o, port: 80, gateways: []string{"mesh"},
		resolve: func(host string) string { return host },
		target:  func(string) *mesh.HostService { return nil },
		rule:    func(string) *mesh.Rule { return nil },
	}
	for i, r := range o.Spec.GetHttp() {
		matches := r.GetMatch()
		if len(matches) == 0 {
			matches = []*networking.HTTPMatchRequest{nil}
		}
		for _, m := range matches {
			add(fmt.Sprintf("spec.http[%d]", i), refusal(t.route(r, m)))
		}
	}
	for i, r := range o.Spec.GetTcp() {
		add(fmt.Sprintf("spec.tcp[%d].route", i), tryDestinations(r.GetRoute()))
	}
	for i, r := range o.Spec.GetTls() {
		add(fmt.Sprintf("spec.tls[%d].route", i), tryDestinations(r.GetRoute()))
		for j, m := range r.GetMatch() {
			for k, name := range m.GetSniHosts() {
				if name != "*" {
					add(fmt.Sprintf("spec.tls[%d].match[%d].sniHosts[%d]", i, j, k), serverNameRefusal([]string{name}))
				}
			}
		}
	}
	return found
}

func tryDestinations(routes []*networking.RouteDestination) error {
	sum := uint64(0)
	for _, d := range routes {
		sum += uint64(max(0, d.GetWeight()))
	}
	if len(routes) < 2 {
		return nil
	}
	return weightRefusal(sum)
}

// trialMesh is where rules and gateways are tried.
const trialMesh = "trial"

// tryRule builds the clusters and the routes of a service that has the rule's ports.
func tryRule(o *mesh.DestinationRule) []mesh.Finding {
	svc := &mesh.Service{Cluster: trialMesh, Namespace: o.Namespace, Name: trialMesh, ClusterIPs: []string{"192.0.2.1"},
		Selector: map[string]string{"app": trialMesh}, Type: mesh.ClusterIP}
	add := func(n uint16, protocol string) {
		if !slices.ContainsFunc(svc.Ports, func(p mesh.ServicePort) bool { return p.Number == n }) {
			svc.Ports = append(svc.Ports, mesh.ServicePort{Name: fmt.Sprintf("%s-%d", protocol, n), Number: n})
		}
	}
	policies := []*networking.TrafficPolicy{o.Spec.GetTrafficPolicy()}
	for _, s := range o.Spec.GetSubsets() {
		policies = append(policies, s.GetTrafficPolicy())
	}
	for _, p := range policies {
		for _, s := range p.GetPortLevelSettings() {
			add(uint16(s.GetPort().GetNumber()), "http")
		}
	}
	add(80, "http")
	add(81, "tcp")
	spec := proto.CloneOf(o.Spec)
	spec.Host, spec.ExportTo, spec.WorkloadSelector = trialMesh, nil, nil
	rule := &mesh.DestinationRule{Meta: o.Meta, Spec: spec}
	rule.Cluster = trialMesh
	passthrough := &networking.Server{Port: &networking.Port{Number: 15443, Name: "tls", Protocol: "TLS"}, Hosts: []string{"*"},
		Tls: &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_AUTO_PASSTHROUGH}}
	return tried(o.Key(), svc, rule, trialGateway(&networking.Gateway{Servers: []*networking.Server{passthrough}}))
}

// tryGateway builds the listeners and route tables of a gateway that serves something on every port.
func tryGateway(o *mesh.Gateway) []mesh.Finding {
	svc := &mesh.Service{Cluster: trialMesh, Namespace: trialMesh, Name: trialMesh, Ports: []mesh.ServicePort{{Name: "http", Number: 80}}, Type: mesh.ClusterIP}
	to := &networking.Destination{Host: trialMesh}
	routes := &networking.VirtualService{
		Hosts: []string{"*"}, Gateways: []string{trialMesh},
		Http: []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{{Destination: to}}}},
		Tcp:  []*networking.TCPRoute{{Route: []*networking.RouteDestination{{Destination: to}}}},
	}
	spec := proto.CloneOf(o.Spec)
	for _, s := range spec.GetServers() {
		for i, h := range s.GetHosts() {
			if _, rest, ok := strings.Cut(h, "/"); ok { // whatever namespace the routes must be of
				s.Hosts[i] = rest
			}
		}
	}
	return tried(o.Key(), svc, &mesh.VirtualService{Meta: trialMeta(), Spec: routes}, trialGateway(spec))
}

func trialMeta() mesh.Meta {
	return mesh.Meta{Cluster: trialMesh, Namespace: trialMesh, Name: trialMesh}
}

func trialGateway(spec *networking.Gateway) *mesh.Gateway {
	spec.Selector = map[string]string{"app": trialMesh}
	return &mesh.Gateway{Meta: trialMeta(), Spec: spec}
}

// tried compiles objects for a sidecar and a gateway, and returns what they would refuse as findings about one of
// the objects, the only one that comes from a user.
func tried(about mesh.Key, objects ...mesh.Object) []mesh.Finding {
	pod := &mesh.Pod{Cluster: trialMesh, Namespace: trialMesh, Name: trialMesh, Labels: map[string]string{"app": trialMesh}, IPs: []string{"192.0.2.2"}}
	events := []mesh.Event{{Object: pod}}
	for _, x := range objects {
		events = append(events, mesh.Event{Object: x})
	}
	s := mesh.New(mesh.Settings{Cluster: trialMesh}).Apply(events...)
	c := New()
	c.Pass(s, []Proxy{Of(s, pod, Node{}), Of(s, pod, Node{Router: true})})
	if all := c.Faults(); len(all) > 0 { // the others are the same cause in other places
		f := all[0]
		f.Object = about
		return []mesh.Finding{f}
	}
	return nil
}
