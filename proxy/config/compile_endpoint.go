package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// maxPriority is Envoy's bound on priorities.
const maxPriority = 128

func compileAssignment(m *endpoint.ClusterLoadAssignment) (*Assignment, error) {
	a := &Assignment{
		Name:           m.ClusterName,
		Overprovision:  orUint32(m.GetPolicy().GetOverprovisioningFactor(), 140),
		WeightedHealth: m.GetPolicy().GetWeightedPriorityHealth(),
	}
	for i, d := range m.GetPolicy().GetDropOverloads() {
		f, err := compileFraction(d.DropPercentage)
		if err != nil {
			return nil, in("policy", inIndex("drop_overloads", i, in("drop_percentage", err)))
		}
		a.Drop = append(a.Drop, f)
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
	for i, a := range p.GetAdditionalAddresses() {
		ap, err := ipPort(a.GetAddress().GetSocketAddress())
		if err != nil {
			return nil, in("endpoint", inIndex("additional_addresses", i, in("address", err)))
		}
		e.More = append(e.More, ap)
	}
	if h := p.GetHealthCheckConfig(); h != nil {
		if h.PortValue > 65535 {
			return nil, in("endpoint.health_check_config.port_value", fmt.Errorf("%d is no port", h.PortValue))
		}
		e.HealthPort, e.HealthHost, e.NoActiveHealth = uint16(h.PortValue), h.Hostname, h.DisableActiveHealthCheck
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
	e.Canary = md["envoy.lb"].GetFields()["canary"].GetBoolValue()
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

func (c *Cluster) compileHealth(m *cluster.Cluster, _ *needs) error {
	for i, h := range m.HealthChecks {
		x, err := compileHealthCheck(h)
		if err != nil {
			return inIndex("health_checks", i, err)
		}
		c.Health = append(c.Health, x)
	}
	return nil
}

func compileHealthCheck(m *core.HealthCheck) (*HealthCheck, error) {
	h := &HealthCheck{
		Timeout: orDuration(m.Timeout, 0), Interval: orDuration(m.Interval, 0), Jitter: orDuration(m.IntervalJitter, 0),
		NoTrafficInterval: orDuration(m.NoTrafficInterval, 0), UnhealthyInterval: orDuration(m.UnhealthyInterval, 0),
		Unhealthy: orUint32(m.UnhealthyThreshold, 1), Healthy: orUint32(m.HealthyThreshold, 1),
		ReuseConnection: orBool(m.ReuseConnection, true),
	}
	if h.Timeout == 0 || h.Interval == 0 {
		return nil, errors.New("needs a timeout and an interval above 0")
	}
	switch c := m.HealthChecker.(type) {
	case *core.HealthCheck_HttpHealthCheck_:
		x := c.HttpHealthCheck
		h.HTTP = &HTTPHealthCheck{Host: x.Host, Path: x.Path, Method: "GET"}
		if x.Method != core.RequestMethod_METHOD_UNSPECIFIED {
			h.HTTP.Method = x.Method.String()
		}
		h.HTTP.HTTP2 = x.CodecClientType.String() == "HTTP2"
		for _, r := range x.ExpectedStatuses {
			h.HTTP.Statuses = append(h.HTTP.Statuses, StatusRange{int(r.Start), int(r.End)})
		}
		if h.HTTP.Statuses == nil {
			h.HTTP.Statuses = []StatusRange{{200, 201}}
		}
		var err error
		h.HTTP.Headers, err = compileHeaderMutations("request_headers_to_add", x.RequestHeadersToAdd, "request_headers_to_remove", x.RequestHeadersToRemove)
		return h, in("http_health_check", err)
	case *core.HealthCheck_GrpcHealthCheck_:
		h.GRPC = &GRPCHealthCheck{c.GrpcHealthCheck.GetServiceName(), c.GrpcHealthCheck.GetAuthority()}
	case *core.HealthCheck_TcpHealthCheck_:
		h.TCP = &TCPHealthCheck{}
		var err error
		if h.TCP.Send, err = payload(c.TcpHealthCheck.GetSend()); err != nil {
			return nil, in("tcp_health_check.send", err)
		}
		for i, p := range c.TcpHealthCheck.GetReceive() {
			b, err := payload(p)
			if err != nil {
				return nil, in("tcp_health_check", inIndex("receive", i, err))
			}
			h.TCP.Receive = append(h.TCP.Receive, b)
		}
	default:
		return nil, errors.New("has no kind")
	}
	return h, nil
}
