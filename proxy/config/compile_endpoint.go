package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// maxPriority is Envoy's bound on priorities.
const maxPriority = 128

func compileAssignment(m *endpoint.ClusterLoadAssignment) (*Assignment, error) {
	a := &Assignment{
		Name:          m.ClusterName,
		Overprovision: orUint32(m.GetPolicy().GetOverprovisioningFactor(), 140),
	}
	for i, g := range m.Endpoints {
		if g.Priority > maxPriority {
			return nil, inIndex("endpoints", i, in("priority", fmt.Errorf("%d is more than %d", g.Priority, maxPriority)))
		}
		l := &LocalityEndpoints{
			Region: g.GetLocality().GetRegion(), Zone: g.GetLocality().GetZone(), Subzone: g.GetLocality().GetSubZone(),
			Weight: orUint32(g.LoadBalancingWeight, 0),
		}
		for j, e := range g.LbEndpoints {
			x, err := compileEndpoint(e)
			if err != nil {
				return nil, inIndex("endpoints", i, inIndex("lb_endpoints", j, err))
			}
			l.Endpoints = append(l.Endpoints, x)
		}
		for len(a.Priorities) <= int(g.Priority) {
			a.Priorities = append(a.Priorities, nil)
		}
		a.Priorities[g.Priority] = append(a.Priorities[g.Priority], l)
	}
	return a, nil
}

func compileEndpoint(m *endpoint.LbEndpoint) (*Endpoint, error) {
	p := m.GetEndpoint()
	e := &Endpoint{Hostname: p.GetHostname(), Weight: max(orUint32(m.LoadBalancingWeight, 1), 1)}
	switch a := p.GetAddress().GetAddress().(type) {
	case *core.Address_SocketAddress:
		s := a.SocketAddress
		if s.GetPortValue() > 65535 {
			return nil, in("endpoint.address.socket_address.port_value", fmt.Errorf("%d is no port", s.GetPortValue()))
		}
		if s.GetProtocol() != core.SocketAddress_TCP {
			return nil, in("endpoint.address.socket_address.protocol", notSupported(s.GetProtocol().String()))
		}
		e.Host, e.Port = s.GetAddress(), uint16(s.GetPortValue())
		if ip, err := netip.ParseAddr(e.Host); err == nil {
			e.Addr = netip.AddrPortFrom(ip.Unmap(), e.Port)
		} else if e.Host == "" {
			return nil, in("endpoint.address.socket_address.address", errors.New("is empty"))
		}
	case *core.Address_Pipe:
		e.Pipe = a.Pipe.GetPath()
	default:
		return nil, in("endpoint.address", errors.New("is missing"))
	}
	switch m.HealthStatus {
	case core.HealthStatus_HEALTHY:
		e.Health = Healthy
	case core.HealthStatus_DEGRADED:
		e.Health = Degraded
	case core.HealthStatus_UNHEALTHY, core.HealthStatus_TIMEOUT:
		e.Health = Unhealthy
	case core.HealthStatus_DRAINING:
		e.Health = Draining
	}
	md := m.GetMetadata().GetFilterMetadata()
	e.Labels = labels(md["envoy.transport_socket_match"])
	e.Workload = md["istio"].GetFields()["workload"].GetStringValue()
	return e, nil
}

// labels turns a struct of scalars into sorted labels.
func labels(s *structpb.Struct) []Label {
	var out []Label
	for k, v := range s.GetFields() {
		out = append(out, Label{k, scalar(v)})
	}
	slices.SortFunc(out, func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func scalar(v *structpb.Value) string {
	switch x := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return x.StringValue
	case nil, *structpb.Value_NullValue:
		return ""
	default:
		return fmt.Sprint(v.AsInterface())
	}
}
