package admin

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/carrick-mesh/carrick/proxy/config"
	"github.com/carrick-mesh/carrick/resource"
)

// hosts returns the hosts of a cluster.
func (h *handler) hosts(cfg *config.Config, c *config.Cluster) []Host {
	if h.o.Hosts != nil {
		return h.o.Hosts(c.Name)
	}
	a := cfg.Assignment(c)
	if a == nil {
		return nil
	}
	var out []Host
	for p, ls := range a.Priorities {
		for _, l := range ls {
			for _, e := range l.Endpoints {
				out = append(out, Host{Endpoint: e, Locality: l, Priority: p})
			}
		}
	}
	return out
}

func (x *Host) address() *core.Address {
	e := x.Endpoint
	switch {
	case x.Address.IsValid():
		return socketAddress(x.Address.Addr().String(), x.Address.Port())
	case e.Pipe != "":
		return &core.Address{Address: &core.Address_Pipe{Pipe: &core.Pipe{Path: e.Pipe}}}
	}
	return socketAddress(e.Host, e.Port)
}

func socketAddress(host string, port uint16) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func (x *Host) name() string {
	e := x.Endpoint
	switch {
	case x.Address.IsValid():
		return x.Address.String()
	case e.Pipe != "":
		return e.Pipe
	case e.Addr.IsValid():
		return e.Addr.String()
	}
	return fmt.Sprintf("%s:%d", e.Host, e.Port)
}

var healthStatus = map[config.Health]core.HealthStatus{
	config.HealthUnknown: core.HealthStatus_HEALTHY, config.Healthy: core.HealthStatus_HEALTHY,
	config.Degraded: core.HealthStatus_DEGRADED, config.Unhealthy: core.HealthStatus_UNHEALTHY,
	config.Draining: core.HealthStatus_DRAINING,
}

func (x *Host) flags() string {
	var f []string
	if x.FailedActive {
		f = append(f, "/failed_active_hc")
	}
	if x.FailedOutlier {
		f = append(f, "/failed_outlier_check")
	}
	switch x.Endpoint.Health {
	case config.Unhealthy, config.Draining:
		f = append(f, "/failed_eds_health")
	case config.Degraded:
		f = append(f, "/degraded_eds_health")
	}
	if x.Excluded {
		f = append(f, "/excluded_via_immediate_hc_fail")
	}
	if f == nil {
		return "healthy"
	}
	return strings.Join(f, "")
}

type metric struct {
	name    string
	counter bool
	value   uint64
}

// metrics are a host's statistics, in Envoy's order.
func (x *Host) metrics() []metric {
	return []metric{
		{"cx_active", false, x.CxActive}, {"cx_connect_fail", true, x.CxConnectFail}, {"cx_total", true, x.CxTotal},
		{"rq_active", false, x.RqActive}, {"rq_error", true, x.RqError}, {"rq_success", true, x.RqSuccess},
		{"rq_timeout", true, x.RqTimeout}, {"rq_total", true, x.RqTotal},
	}
}

func (h *handler) clusters(w http.ResponseWriter, r *http.Request) {
	cfg := h.o.Config()
	static := map[string]bool{}
	for _, s := range cfg.Sources {
		if s.Type == resource.ClusterType && s.Static {
			static[s.Resource.Name] = true
		}
	}
	names := slices.Sorted(maps.Keys(cfg.Clusters))
	if r.URL.Query().Get("format") != "json" {
		text(w)
		for _, n := range names {
			h.clusterText(w, cfg, cfg.Clusters[n], !static[n])
		}
		return
	}
	out := &adminv3.Clusters{}
	for _, n := range names {
		out.ClusterStatuses = append(out.ClusterStatuses, h.clusterStatus(cfg, cfg.Clusters[n], !static[n]))
	}
	writeJSON(w, out)
}

func (h *handler) clusterStatus(cfg *config.Config, c *config.Cluster, viaAPI bool) *adminv3.ClusterStatus {
	st := &adminv3.ClusterStatus{Name: c.Name, AddedViaApi: viaAPI, ObservabilityName: c.StatName, EdsServiceName: c.EDSName, CircuitBreakers: &clusterv3.CircuitBreakers{}}
	for i, t := range c.Breakers {
		st.CircuitBreakers.Thresholds = append(st.CircuitBreakers.Thresholds, &clusterv3.CircuitBreakers_Thresholds{
			Priority:       core.RoutingPriority(i),
			MaxConnections: wrapperspb.UInt32(t.MaxConnections), MaxPendingRequests: wrapperspb.UInt32(t.MaxPending),
			MaxRequests: wrapperspb.UInt32(t.MaxRequests), MaxRetries: wrapperspb.UInt32(t.MaxRetries),
		})
	}
	for _, x := range h.hosts(cfg, c) {
		hs := &adminv3.HostStatus{
			Address: x.address(), Weight: x.Endpoint.Weight, Hostname: x.Endpoint.Hostname, Priority: uint32(x.Priority),
			HealthStatus: &adminv3.HostHealthStatus{
				EdsHealthStatus: healthStatus[x.Endpoint.Health], FailedOutlierCheck: x.FailedOutlier,
				FailedActiveHealthCheck: x.FailedActive, ExcludedViaImmediateHcFail: x.Excluded,
			},
			Locality: &core.Locality{},
		}
		if l := x.Locality; l != nil {
			hs.Locality = &core.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.Subzone}
		}
		for _, m := range x.metrics() {
			t := adminv3.SimpleMetric_GAUGE
			if m.counter {
				t = adminv3.SimpleMetric_COUNTER
			}
			hs.Stats = append(hs.Stats, &adminv3.SimpleMetric{Name: m.name, Type: t, Value: m.value})
		}
		st.HostStatuses = append(st.HostStatuses, hs)
	}
	return st
}

func (h *handler) clusterText(w io.Writer, cfg *config.Config, c *config.Cluster, viaAPI bool) {
	p := func(format string, args ...any) { fmt.Fprintf(w, "%s::%s\n", c.Name, fmt.Sprintf(format, args...)) }
	p("observability_name::%s", c.StatName)
	for i, t := range c.Breakers {
		prio := [...]string{"default", "high"}[i]
		p("%s_priority::max_connections::%d", prio, t.MaxConnections)
		p("%s_priority::max_pending_requests::%d", prio, t.MaxPending)
		p("%s_priority::max_requests::%d", prio, t.MaxRequests)
		p("%s_priority::max_retries::%d", prio, t.MaxRetries)
	}
	p("added_via_api::%v", viaAPI)
	if c.EDSName != "" {
		p("eds_service_name::%s", c.EDSName)
	}
	for _, x := range h.hosts(cfg, c) {
		n := x.name()
		for _, m := range x.metrics() {
			p("%s::%s::%d", n, m.name, m.value)
		}
		var l config.LocalityEndpoints
		if x.Locality != nil {
			l = *x.Locality
		}
		p("%s::hostname::%s", n, x.Endpoint.Hostname)
		p("%s::health_flags::%s", n, x.flags())
		p("%s::weight::%d", n, x.Endpoint.Weight)
		p("%s::region::%s", n, l.Region)
		p("%s::zone::%s", n, l.Zone)
		p("%s::sub_zone::%s", n, l.Subzone)
		p("%s::canary::false", n)
		p("%s::priority::%d", n, x.Priority)
		p("%s::success_rate::-1", n)
		p("%s::local_origin_success_rate::-1", n)
	}
}

func (h *handler) listeners(w http.ResponseWriter, r *http.Request) {
	var all []Listener
	if h.o.Listeners != nil {
		all = h.o.Listeners()
	} else {
		for _, l := range h.o.Config().Listeners {
			all = append(all, Listener{l.Name, l.Addresses})
		}
	}
	if r.URL.Query().Get("format") != "json" {
		text(w)
		for _, l := range all {
			for _, a := range l.Addresses {
				fmt.Fprintf(w, "%s::%s\n", l.Name, a)
			}
		}
		return
	}
	out := &adminv3.Listeners{}
	for _, l := range all {
		st := &adminv3.ListenerStatus{Name: l.Name}
		for i, a := range l.Addresses {
			if i == 0 {
				st.LocalAddress = addressOf(a)
			} else {
				st.AdditionalLocalAddresses = append(st.AdditionalLocalAddresses, addressOf(a))
			}
		}
		out.ListenerStatuses = append(out.ListenerStatuses, st)
	}
	writeJSON(w, out)
}

func addressOf(a netip.AddrPort) *core.Address { return socketAddress(a.Addr().String(), a.Port()) }
