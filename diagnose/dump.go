package diagnose

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/certs"
)

// Dump is a proxy's answer to /config_dump (envoy.admin.v3.ConfigDump as JSON).
type Dump struct {
	Clusters  []any // envoy.config.cluster.v3.Cluster
	Listeners []any // envoy.config.listener.v3.Listener
	Routes    []any // envoy.config.route.v3.RouteConfiguration
	Secrets   []Secret
	Endpoints []any // envoy.config.endpoint.v3.ClusterLoadAssignment, if asked for with include_eds
	Bootstrap any

	own map[string]bool // "clusters/NAME", "listeners/NAME": those of the bootstrap, by the names they got
}

// Secret is a secret of a dump, with its state.
type Secret struct {
	Name   string
	Active bool
	Body   any
}

// ParseDump reads a config dump.
func ParseDump(b []byte) (*Dump, error) {
	root, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("the config dump is not JSON: %w", err)
	}
	if at(root, "configs") == nil {
		return nil, fmt.Errorf("the config dump has no field configs: is it the answer to /config_dump?")
	}
	d := &Dump{own: map[string]bool{}}
	for _, c := range list(root, "configs") {
		switch typeName(c) {
		case "BootstrapConfigDump":
			d.Bootstrap = at(c, "bootstrap")
		case "ClustersConfigDump":
			for _, r := range each(c, "cluster", "static_clusters") {
				d.own["clusters/"+str(r, "name")] = true
			}
			d.Clusters = append(d.Clusters, each(c, "cluster", "static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters")...)
		case "RoutesConfigDump":
			d.Routes = append(d.Routes, each(c, "route_config", "static_route_configs", "dynamic_route_configs")...)
		case "EndpointsConfigDump":
			d.Endpoints = append(d.Endpoints, each(c, "endpoint_config", "static_endpoint_configs", "dynamic_endpoint_configs")...)
		case "ListenersConfigDump":
			for _, r := range each(c, "listener", "static_listeners") {
				d.own["listeners/"+str(r, "name")] = true
				d.Listeners = append(d.Listeners, r)
			}
			for _, l := range list(c, "dynamic_listeners") {
				for _, state := range []string{"active_state", "warming_state"} {
					if x := at(l, state, "listener"); x != nil {
						d.Listeners = append(d.Listeners, x)
						break
					}
				}
			}
		case "SecretsConfigDump":
			for _, kind := range []string{"static_secrets", "dynamic_active_secrets", "dynamic_warming_secrets"} {
				for _, s := range list(c, kind) {
					d.Secrets = append(d.Secrets, Secret{str(s, "name"), kind != "dynamic_warming_secrets", at(s, "secret")})
				}
			}
		}
	}
	return d, nil
}

func each(c any, field string, kinds ...string) (out []any) {
	for _, k := range kinds {
		for _, x := range list(c, k) {
			if r := at(x, field); r != nil {
				out = append(out, r)
			}
		}
	}
	return out
}

func decode(b []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	return v, dec.Decode(&v)
}

// ClusterRow is a line of proxy-config cluster.
type ClusterRow struct {
	Name, FQDN, Port, Subset, Direction, Type, Rule string
	Body                                            any
}

// ClusterRows lists clusters by FQDN, port, subset and direction.
func (d *Dump) ClusterRows() (rows []ClusterRow) {
	for _, c := range d.Clusters {
		r := ClusterRow{Name: str(c, "name"), Body: c}
		r.Direction, r.Port, r.Subset, r.FQDN = SplitName(r.Name)
		switch r.Type = str(c, "type"); {
		case str(c, "cluster_type", "name") != "":
			r.Type = str(c, "cluster_type", "name")
		case r.Type == "":
			r.Type = "STATIC"
		}
		r.Rule = object(str(c, "metadata", "filter_metadata", "istio", "config"))
		rows = append(rows, r)
	}
	sort.SliceStable(rows, func(i, j int) bool {
		a, b := rows[i], rows[j]
		if a.FQDN != b.FQDN {
			return a.FQDN < b.FQDN
		}
		if a.Port != b.Port {
			x, _ := strconv.Atoi(a.Port)
			y, _ := strconv.Atoi(b.Port)
			return x < y
		}
		return a.Subset+a.Direction < b.Subset+b.Direction
	})
	return rows
}

// SplitName splits DIRECTION|PORT|SUBSET|FQDN; of another name it is the FQDN that is not "-".
func SplitName(name string) (direction, port, subset, fqdn string) {
	p := strings.Split(name, "|")
	if len(p) != 4 {
		return "-", "-", "-", name
	}
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	return p[0], dash(p[1]), dash(p[2]), p[3]
}

// object turns a resource's path in metadata into NAME.NAMESPACE.
func object(path string) string {
	p := strings.Split(path, "/")
	if i := slices.Index(p, "namespaces"); i >= 0 && i+3 < len(p) {
		return p[i+3] + "." + p[i+1]
	}
	return ""
}

// ListenerRow is a line of proxy-config listener: one filter chain.
type ListenerRow struct {
	Name, Address, Port, Match, Destination, Type string
	Body                                          any
}

// ListenerRows lists the filter chains of all listeners by address and port.
func (d *Dump) ListenerRows() (rows []ListenerRow) {
	for _, l := range d.Listeners {
		addr, port := str(l, "address", "socket_address", "address"), str(l, "address", "socket_address", "port_value")
		if p := str(l, "address", "pipe", "path"); p != "" {
			addr, port = p, "-"
		}
		chains := list(l, "filter_chains")
		if dflt := at(l, "default_filter_chain"); dflt != nil {
			chains = append(slices.Clone(chains), dflt)
		}
		for _, c := range chains {
			dest, kind := destination(c)
			rows = append(rows, ListenerRow{str(l, "name"), addr, port, match(at(c, "filter_chain_match")), dest, kind, l})
		}
	}
	sort.SliceStable(rows, func(i, j int) bool {
		a, b := rows[i], rows[j]
		if a.Address != b.Address {
			return a.Address < b.Address
		}
		x, _ := strconv.Atoi(a.Port)
		y, _ := strconv.Atoi(b.Port)
		return x < y
	})
	return rows
}

func match(m any) string {
	var c []string
	if s := strs(m, "server_names"); len(s) > 0 {
		c = append(c, "SNI: "+strings.Join(s, ","))
	}
	if t := str(m, "transport_protocol"); t != "" {
		c = append(c, "Trans: "+t)
	}
	if p := strs(m, "application_protocols"); len(p) > 0 {
		c = append(c, "App: "+protocols(p))
	}
	port := str(m, "destination_port")
	if port != "" {
		port = ":" + port
	}
	var addrs []string
	for _, r := range list(m, "prefix_ranges") {
		a := str(r, "address_prefix")
		if n := str(r, "prefix_len"); n != "" && n != "32" && n != "128" || n == "" {
			a += "/" + or(n, "0")
		}
		addrs = append(addrs, a+port)
	}
	if len(addrs) > 0 {
		c = append(c, "Addr: "+strings.Join(addrs, ","))
	} else if port != "" {
		c = append(c, "Addr: *"+port)
	}
	return or(strings.Join(c, "; "), "ALL")
}

// protocols names the well-known ALPN lists.
func protocols(p []string) string {
	switch {
	case slices.Equal(p, []string{"http/1.1", "h2c"}), slices.Equal(p, []string{"http/1.0", "http/1.1", "h2c"}):
		return "HTTP"
	case slices.Contains(p, "istio-http/1.1") && slices.Contains(p, "istio"):
		return "TCP TLS,HTTP TLS"
	case slices.Contains(p, "istio-http/1.1"):
		return "HTTP TLS"
	case slices.Contains(p, "istio"):
		return "TCP TLS"
	}
	return strings.Join(p, ",")
}

func destination(chain any) (dest, kind string) {
	for _, f := range list(chain, "filters") {
		cfg := at(f, "typed_config")
		switch typeName(cfg) {
		case "HttpConnectionManager":
			if name := str(cfg, "rds", "route_config_name"); name != "" {
				return "Route: " + name, "HTTP"
			}
			return inlineRoutes(at(cfg, "route_config")), "HTTP"
		case "TcpProxy":
			if c := str(cfg, "cluster"); c != "" {
				return "Cluster: " + c, "TCP"
			}
			var cs []string
			for _, w := range list(cfg, "weighted_clusters", "clusters") {
				cs = append(cs, fmt.Sprintf("%s[%s]", str(w, "name"), str(w, "weight")))
			}
			return "Cluster: " + strings.Join(cs, ", "), "TCP"
		}
	}
	return "Non-HTTP/Non-TCP", "UNKNOWN"
}

func inlineRoutes(rc any) string {
	seen := map[string]bool{}
	var out []string
	for _, vh := range list(rc, "virtual_hosts") {
		for _, r := range list(vh, "routes") {
			if c := str(r, "route", "cluster"); c != "" && !seen[c] {
				seen[c] = true
				out = append(out, "Cluster: "+c)
			}
		}
	}
	if len(out) == 1 {
		return out[0]
	}
	return "Inline Route: " + or(strings.Join(out, ", "), str(rc, "name"))
}

// RouteRow is a line of proxy-config route: one route of one virtual host.
type RouteRow struct {
	Name, VirtualHost, Domains, Match, VirtualService string
	Body                                              any
}

// RouteRows lists all routes by the name of their configuration.
func (d *Dump) RouteRows() (rows []RouteRow) {
	for _, rc := range d.Routes {
		name := str(rc, "name")
		for _, vh := range list(rc, "virtual_hosts") {
			base := RouteRow{Name: name, VirtualHost: str(vh, "name"), Domains: domains(strs(vh, "domains")), Body: rc}
			if len(list(vh, "routes")) == 0 {
				base.Match, base.VirtualService = "/*", "404"
				rows = append(rows, base)
			}
			for _, r := range list(vh, "routes") {
				row := base
				row.Match = routeMatch(at(r, "match"))
				row.VirtualService = object(str(r, "metadata", "filter_metadata", "istio", "config"))
				if s := str(r, "direct_response", "status"); s != "" && row.VirtualService == "" {
					row.VirtualService = s
				}
				rows = append(rows, row)
			}
		}
	}
	sort.SliceStable(rows, func(i, j int) bool {
		a, errA := strconv.Atoi(rows[i].Name)
		b, errB := strconv.Atoi(rows[j].Name)
		if errA == nil && errB == nil {
			return a < b
		}
		if (errA == nil) != (errB == nil) {
			return errA == nil
		}
		return rows[i].Name < rows[j].Name
	})
	return rows
}

func domains(ds []string) string {
	switch n := len(ds); {
	case n > 2:
		return fmt.Sprintf("%s, %s + %d more...", ds[0], ds[1], n-2)
	default:
		return strings.Join(ds, ", ")
	}
}

func routeMatch(m any) string {
	s := "/*"
	switch {
	case str(m, "path") != "":
		s = str(m, "path")
	case str(m, "path_separated_prefix") != "":
		s = str(m, "path_separated_prefix") + "/*"
	case str(m, "prefix") != "":
		s = str(m, "prefix") + "*"
	case str(m, "safe_regex", "regex") != "":
		s = "regex " + str(m, "safe_regex", "regex")
	}
	for _, h := range list(m, "headers") {
		s += " " + str(h, "name")
	}
	return s
}

// SecretRow is a line of proxy-config secret.
type SecretRow struct {
	Name, Type, Status, Valid, Serial, NotAfter, NotBefore, TrustDomain string
	Body                                                                any
}

// SecretRows lists secrets; now decides which certificates are valid.
func (d *Dump) SecretRows(now time.Time) (rows []SecretRow) {
	for _, s := range d.Secrets {
		r := SecretRow{Name: s.Name, Type: "Cert Chain", Status: "ACTIVE", Valid: "false", Serial: "-", NotAfter: "-", NotBefore: "-", Body: s.Body}
		if !s.Active {
			r.Status = "WARMING"
		}
		data := str(s.Body, "tls_certificate", "certificate_chain", "inline_bytes")
		if at(s.Body, "validation_context") != nil {
			r.Type = "CA"
			data = str(s.Body, "validation_context", "trusted_ca", "inline_bytes")
		}
		raw, err := base64.StdEncoding.DecodeString(data)
		if err == nil {
			if all, _ := certs.Certificates(raw); len(all) > 0 {
				cert := all[0]
				r.Serial = cert.SerialNumber.Text(16)
				r.NotAfter, r.NotBefore = cert.NotAfter.UTC().Format(time.RFC3339), cert.NotBefore.UTC().Format(time.RFC3339)
				r.Valid = fmt.Sprint(now.Before(cert.NotAfter) && now.After(cert.NotBefore))
				if len(cert.URIs) > 0 {
					r.TrustDomain = cert.URIs[0].Host
				}
			}
		}
		rows = append(rows, r)
	}
	sort.SliceStable(rows, func(i, j int) bool { return rows[i].Name < rows[j].Name })
	return rows
}

// EndpointRow is a line of proxy-config endpoint.
type EndpointRow struct {
	Address, Port, Status, Outlier, Cluster, Weight, Zone string
	Body                                                  any
}

// ParseEndpoints reads a proxy's answer to /clusters?format=json (envoy.admin.v3.Clusters).
func ParseEndpoints(b []byte) (rows []EndpointRow, err error) {
	root, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("the list of clusters is not JSON: %w", err)
	}
	for _, c := range list(root, "cluster_statuses") {
		for _, h := range list(c, "host_statuses") {
			r := EndpointRow{Cluster: str(c, "name"), Weight: or(str(h, "weight"), "1"), Zone: locality(at(h, "locality")), Body: h}
			switch {
			case str(h, "address", "socket_address", "address") != "":
				r.Address, r.Port = str(h, "address", "socket_address", "address"), str(h, "address", "socket_address", "port_value")
			case str(h, "address", "pipe", "path") != "":
				r.Address = "unix://" + str(h, "address", "pipe", "path")
			default:
				r.Address = str(h, "address", "envoy_internal_address", "server_listener_name")
			}
			health := at(h, "health_status")
			r.Status = or(str(health, "eds_health_status"), "HEALTHY")
			if failed, _ := at(health, "failed_active_health_check").(bool); failed {
				r.Status = "UNHEALTHY"
			}
			r.Outlier = "OK"
			if failed, _ := at(health, "failed_outlier_check").(bool); failed {
				r.Outlier = "FAILED"
			}
			rows = append(rows, r)
		}
	}
	sort.SliceStable(rows, func(i, j int) bool {
		if rows[i].Cluster != rows[j].Cluster {
			return rows[i].Cluster < rows[j].Cluster
		}
		return rows[i].HostPort() < rows[j].HostPort()
	})
	return rows, nil
}

// HostPort is ADDRESS:PORT, or what stands for it.
func (r EndpointRow) HostPort() string {
	if r.Port == "" {
		return r.Address
	}
	return net.JoinHostPort(r.Address, r.Port)
}

func locality(l any) string {
	return strings.TrimRight(str(l, "region")+"/"+str(l, "zone")+"/"+str(l, "sub_zone"), "/")
}

// Origins maps CLUSTERNAME and ADDRESS:PORT, joined by a space, to the mesh cluster that the
// endpoint is in, as the endpoints' metadata says (WORKLOAD;NAMESPACE;NAME;REVISION;CLUSTER).
func (d *Dump) Origins() map[string]string {
	out := map[string]string{}
	for _, cla := range d.Endpoints {
		for _, loc := range list(cla, "endpoints") {
			for _, e := range list(loc, "lb_endpoints") {
				addr := at(e, "endpoint", "address", "socket_address")
				w := strings.Split(str(e, "metadata", "filter_metadata", "istio", "workload"), ";")
				if len(w) == 5 {
					out[str(cla, "cluster_name")+" "+net.JoinHostPort(str(addr, "address"), str(addr, "port_value"))] = w[4]
				}
			}
		}
	}
	return out
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
