package compile

import (
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
)

// routeRow is what the routes to a host depend on.
type routeRow struct {
	svc     *mesh.HostService // nil if the host is not a Service: then route says what there is
	host    string            // of one that is not a Service
	route   *mesh.Route
	targets *mesh.Targets
	choice         // where a rule says to choose endpoints by a hash of the request
	local   bool   // the client is in the service's namespace, and may use its short name
	client  string // its namespace, where a match names it
}

// routeView is what of a proxy its outbound routes depend on.
type routeView struct {
	dialect  Dialect
	router   bool
	cluster  string
	families Family
	allowAny bool
	retry    *networking.HTTPRetry // MeshConfig's default; nil for Istio's
	labels   string
}

func toRouteRow(h *mesh.Host, client string) (r routeRow, ok bool) {
	if h.Service == nil {
		r.host = h.Name
	} else if r.svc = h.Service; !r.svc.Visible(client) {
		return r, false
	} else {
		r.local = client == r.svc.Namespace
	}
	if x := routeOf(h, client); x != nil && len(x.Spec.GetHttp()) > 0 {
		r.route, r.targets = x, h.Targets
		if namesNamespace(x.VirtualService, client) {
			r.client = client
		}
	}
	if r.svc == nil {
		return r, r.route != nil
	}
	r.choice = choiceOf(h, client).where(hashes)
	return r, true
}

// routeOf returns the VirtualService that holds for a client: the first that it sees.
func routeOf(h *mesh.Host, client string) *mesh.Route {
	for _, r := range h.Routes {
		if r.Visible(client) {
			return r
		}
	}
	return nil
}

// namesNamespace reports whether some match of a VirtualService names the client's namespace.
func namesNamespace(v *mesh.VirtualService, client string) bool {
	for ns := range v.SourceNamespaces() {
		if ns == client {
			return true
		}
	}
	return false
}

// sourceLabels returns the label keys that some match of a VirtualService names, sorted, joined by commas.
func sourceLabels(v *mesh.VirtualService) string {
	var keys []string
	add := func(labels map[string]string) { keys = append(keys, sortedKeys(labels)...) }
	for _, http := range v.Spec.GetHttp() {
		for _, m := range http.GetMatch() {
			add(m.GetSourceLabels())
		}
	}
	for _, tcp := range v.Spec.GetTcp() {
		for _, m := range tcp.GetMatch() {
			add(m.GetSourceLabels())
		}
	}
	for _, tls := range v.Spec.GetTls() {
		for _, m := range tls.GetMatch() {
			add(m.GetSourceLabels())
		}
	}
	return sortedSet(strings.Join(keys, ","))
}

func toRouteView(s *mesh.Snapshot, p Proxy, _ *workload) routeView {
	c := s.Config()
	return routeView{p.Dialect.form(), p.Router, p.Cluster, p.Families, c.AllowAny, c.Retry, p.Labels}
}

func (r routeRow) need() need {
	n := need{cluster: true, router: true, labels: r.labels()}
	if r.route != nil {
		n.labels = union(n.labels, sourceLabels(r.route.VirtualService))
	}
	return n
}

func (v routeView) narrow(n need) routeView {
	if v.router && v.dialect != GRPC {
		return routeView{router: true} // a gateway's routes are its own
	}
	v.labels = pick(v.labels, n.labels)
	return v
}

const virtualHostsField = 2 // RouteConfiguration.virtual_hosts

// buildRoutes makes a virtual host for each port: a fragment of that port's RouteConfiguration.
func buildRoutes(r routeRow, v routeView) (m made) {
	if v.router && v.dialect != GRPC {
		return m
	}
	if r.svc == nil {
		return r.named(v)
	}
	r.choice = r.of(v.labels)
	for _, p := range r.svc.Concrete().In(v.cluster).Ports {
		proto := p.Protocol()
		if v.dialect == GRPC && proto != mesh.UDP {
			m.resources = append(m.resources, grpcRoutes(r.taken(v, p, &m.faults), p, r.svc.Host))
			continue
		}
		host := r.taken(v, p, &m.faults)
		switch {
		case proto.IsHTTP():
			m.fragments = append(m.fragments, fragment{group: strconv.Itoa(int(p.Number)), bytes: field(virtualHostsField, host)})
		case proto == mesh.Auto && r.svc.Alias == nil: // the table of a listener of its own
			host.Domains = []string{"*"}
			table := routeTable(host.Name)
			table.VirtualHosts = []*routev3.VirtualHost{host}
			m.resources = append(m.resources, newResource(table.Name, table))
		}
	}
	return m
}

// taken returns the virtual host that proxies take: without what they would refuse.
func (r routeRow) taken(v routeView, p mesh.ServicePort, f *faults) *routev3.VirtualHost {
	host := r.virtualHost(v, p)
	if r.route == nil && r.rule == nil {
		return host
	}
	err := refusal(host)
	if err == nil {
		return host
	}
	if bare := r; r.rule != nil {
		bare.choice = choice{}
		if host := bare.virtualHost(v, p); refusal(host) == nil {
			f.add(r.rule.Key(), err)
			return host
		}
	}
	if r.route != nil {
		f.add(r.route.Key(), err)
	}
	r.route, r.choice = nil, choice{}
	return r.virtualHost(v, p)
}

func (r routeRow) virtualHost(v routeView, p mesh.ServicePort) *routev3.VirtualHost {
	host := &routev3.VirtualHost{
		Name:                       r.svc.Host + ":" + strconv.Itoa(int(p.Number)),
		Domains:                    r.domains(v, p),
		IncludeRequestAttemptCount: true,
	}
	if r.route != nil {
		host.Routes = r.routesOn(v, p.Number)
	}
	if len(host.Routes) == 0 {
		host.Routes = []*routev3.Route{r.defaultRoute(v, p)}
	}
	return host
}

// namedPort is the port that hosts that are not Services are routed on: what their port is, nothing says.
const namedPort = 80

// named returns the virtual host of a host that is not a Service, on port 80 and the HTTP ports of Services that its
// VirtualService is for also.
func (r routeRow) named(v routeView) (m made) {
	if v.dialect == GRPC {
		return m
	}
	ports := map[uint16]bool{namedPort: true}
	for _, name := range r.route.Spec.GetHosts() {
		s := r.targets.Service(r.route.Resolve(name))
		if s == nil {
			continue
		}
		for _, p := range s.Concrete().In(v.cluster).Ports {
			if p.Protocol().IsHTTP() {
				ports[p.Number] = true
			}
		}
	}
	for port := range ports {
		n := strconv.Itoa(int(port))
		host := &routev3.VirtualHost{
			Name: r.host + ":" + n, Domains: []string{r.host}, IncludeRequestAttemptCount: true, Routes: r.routesOn(v, port),
		}
		if !strings.HasPrefix(r.host, "*") {
			host.Domains = append(host.Domains, r.host+".")
		}
		if err := refusal(host); err != nil {
			m.faults.add(r.route.Key(), err)
		} else if len(host.Routes) > 0 {
			m.fragments = append(m.fragments, fragment{group: n, bytes: field(virtualHostsField, host)})
		}
	}
	return m
}

// routesOn translates the host's VirtualService for one port.
func (r routeRow) routesOn(v routeView, port uint16) []*routev3.Route {
	t := translation{
		service: r.route.VirtualService, resolve: r.route.Resolve, target: r.targets.Service, port: port, retry: v.retry,
		labels: labelMap(v.labels), client: r.client, gateways: []string{"mesh"},
		rule: func(host string) *mesh.Rule {
			if r.svc == nil || host != r.svc.Concrete().Host {
				return nil
			}
			return r.rule
		},
	}
	return t.routes()
}

// domains returns the names of a host, short, long and with the dot at the end that says that a name is whole,
// and its addresses. A gRPC client compares them with its target, port and all; proxies leave the port out.
func (r routeRow) domains(v routeView, p mesh.ServicePort) (domains []string) {
	port := ":" + strconv.Itoa(int(p.Number))
	add := func(d string) {
		domains = append(domains, d)
		if v.dialect == GRPC {
			domains = append(domains, d+port)
		}
	}
	svc := r.svc
	names := []string{svc.Host, svc.Name + "." + svc.Namespace + ".svc", svc.Name + "." + svc.Namespace}
	if r.local {
		names = append(names, svc.Name)
	}
	names = append(names, svc.Host+".")
	for _, n := range names {
		add(n)
	}
	part := svc.In(v.cluster)
	if part.Headless {
		for _, n := range names {
			add("*." + n)
		}
	}
	if part.Cluster != v.cluster {
		return domains // its addresses are of another cluster
	}
	for _, ip := range part.ClusterIPs {
		switch {
		case !hasFamily(ip, v.families):
		case strings.Contains(ip, ":"):
			add("[" + ip + "]")
		default:
			add(ip)
		}
	}
	return domains
}

func (r routeRow) defaultRoute(v routeView, p mesh.ServicePort) *routev3.Route {
	to := r.svc.Concrete().Host
	action := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: clusterName(p.Number, "", to)},
		RetryPolicy:      retryPolicy(nil, v.retry, false),
		HashPolicy:       hashPolicy(r.rule, nil, p.Number),
	}
	setTimeout(action, nil)
	return &routev3.Route{
		Name:      "default",
		Match:     &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Decorator: &routev3.Decorator{Operation: to + ":" + strconv.Itoa(int(p.Number)) + "/*"},
		Action:    &routev3.Route_Route{Route: action},
	}
}

func routeTable(name string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: name, ValidateClusters: boolean(false), MaxDirectResponseBodySizeBytes: u32(1 << 20)}
}

// routeFrame returns the table of one port, but for the services: what is left goes where it was going,
// or nowhere.
func routeFrame(group string, v routeView) frame {
	rest := &routev3.VirtualHost{Name: "allow_any", Domains: []string{"*"}, IncludeRequestAttemptCount: true}
	r := &routev3.Route{Name: "allow_any", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}}
	if v.allowAny {
		r.Action = &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: passthrough}, Timeout: seconds(0), MaxGrpcTimeout: seconds(0),
		}}
	} else {
		rest.Name, r.Name = "block_all", "block_all"
		r.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 502}}
	}
	rest.Routes = []*routev3.Route{r}
	t := routeTable(group)
	t.IgnorePortInHostMatching = true
	return frame{head: encode(t), tail: field(virtualHostsField, rest)}
}

// grpcRoutes returns the routes of one port for a gRPC client, which asks for them by the cluster's name.
func grpcRoutes(host *routev3.VirtualHost, p mesh.ServicePort, service string) *resource.Resource {
	for _, x := range host.Routes {
		if x.GetMatch().GetPrefix() == "/" {
			x.Match.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: ""}
		}
	}
	name := clusterName(p.Number, "", service)
	return newResource(name, &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{host}})
}
