package control

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	admin "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	csds "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrick-mesh/carrick/identity"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/xds"
)

// page is one of /debug/.
type page struct {
	name, help string
	serve      func(w http.ResponseWriter, r *http.Request)
}

func (c *Control) pages() []page {
	data := func(get func() any) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) { writeJSON(w, get()) }
	}
	return []page{
		{"syncz", "where each proxy stands with each type", data(func() any { return c.syncz() })},
		{"adsz", "the connected proxies", data(func() any { return c.adsz() })},
		{"connections", "the connected proxies, in short", data(func() any { return c.connections() })},
		{"clusterz", "the clusters that are watched", data(func() any { return c.clusterz() })},
		{"networkz", "the gateways of networks", data(func() any { return c.networkz() })},
		{"registryz", "hosts and their Services", data(func() any { return registryz(c.Snapshot()) })},
		{"endpointz", "hosts and their endpoints", data(func() any { return c.endpointz() })},
		{"configz", "users' objects", data(func() any { return configz(c.Snapshot()) })},
		{"config_dump", "what the proxy of ?proxyID=POD.NAMESPACE was sent, as Envoy's config dump", c.configDump},
		{"force_disconnect", "ends the streams of the proxy of ?proxyID=POD.NAMESPACE, or of all; they come back", c.forceDisconnect},
		{"mesh", "the mesh's settings in effect", func(w http.ResponseWriter, r *http.Request) { writeProto(w, c.Snapshot().Config().Spec) }},
		{"push_status", "what is wrong with users' objects", data(func() any { return c.pushStatus() })},
		{"list", "these pages", data(func() any {
			var names []string
			for _, p := range c.pages() {
				names = append(names, "/debug/"+p.name)
			}
			return names
		})},
		{"pprof/", "profiles of the control plane", pprof.Index},
		{"pprof/cmdline", "", pprof.Cmdline},
		{"pprof/profile", "", pprof.Profile},
		{"pprof/symbol", "", pprof.Symbol},
		{"pprof/trace", "", pprof.Trace},
	}
}

// Debug serves istiod's /debug/ pages to clients of this machine or Pod, which port forwarding is,
// too. Nothing in them is secret, but it is not for everybody in the cluster either.
func (c *Control) Debug() http.Handler {
	mux := http.NewServeMux()
	var index strings.Builder
	for _, p := range c.pages() {
		mux.HandleFunc("/debug/"+p.name, p.serve)
		if p.help != "" {
			fmt.Fprintf(&index, "/debug/%-12s %s\n", p.name, p.help)
		}
	}
	mux.HandleFunc("/debug", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, index.String()) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil || !net.ParseIP(host).IsLoopback() {
			http.Error(w, "only from localhost: use kubectl port-forward or exec", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(append(b, '\n'))
}

func writeProto(w http.ResponseWriter, m proto.Message) {
	w.Header().Set("Content-Type", "application/json")
	b, err := protojson.MarshalOptions{Multiline: true}.Marshal(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(append(b, '\n'))
}

// proxies returns the clients in the order of their names.
func (c *Control) proxies() []*xds.Client {
	cs := c.server.Clients()
	slices.SortFunc(cs, func(a, b *xds.Client) int {
		return strings.Compare(proxyName(a)+a.ConnectionID, proxyName(b)+b.ConnectionID)
	})
	return cs
}

// proxyName returns a client's name as istioctl shows it: POD.NAMESPACE.
func proxyName(c *xds.Client) string {
	if p := strings.Split(c.Node.ID, "~"); len(p) == 4 {
		return p[2]
	}
	return c.Node.ID
}

func (c *Control) peerOf(client *xds.Client) *Peer {
	if p, ok := client.Identity.(*Peer); ok {
		return p
	}
	return &Peer{}
}

// syncStatus has the names of Istio's own.
type syncStatusRow struct {
	ClusterID            string `json:"cluster_id,omitempty"`
	Proxy                string `json:"proxy,omitempty"`
	ProxyType            string `json:"proxy_type,omitempty"`
	ProxyVersion         string `json:"proxy_version,omitempty"`
	IstioVersion         string `json:"istio_version,omitempty"`
	ClusterSent          string `json:"cluster_sent,omitempty"`
	ClusterAcked         string `json:"cluster_acked,omitempty"`
	ListenerSent         string `json:"listener_sent,omitempty"`
	ListenerAcked        string `json:"listener_acked,omitempty"`
	RouteSent            string `json:"route_sent,omitempty"`
	RouteAcked           string `json:"route_acked,omitempty"`
	EndpointSent         string `json:"endpoint_sent,omitempty"`
	EndpointAcked        string `json:"endpoint_acked,omitempty"`
	ExtensionConfigSent  string `json:"extensionconfig_sent,omitempty"`
	ExtensionConfigAcked string `json:"extensionconfig_acked,omitempty"`
	Error                string `json:"error,omitempty"` // Carrick's own: what the proxy refuses, and its words
}

func (c *Control) syncz() []syncStatusRow {
	rows := []syncStatusRow{}
	for _, client := range c.proxies() {
		st := client.Status()
		r := syncStatusRow{
			ClusterID: c.peerOf(client).Cluster, Proxy: proxyName(client), ProxyType: c.peerOf(client).Kind,
			ProxyVersion: client.Node.Agent, IstioVersion: text(client.Node.Metadata.GetFields(), "ISTIO_VERSION"),
		}
		r.ClusterSent, r.ClusterAcked = st[resource.ClusterType].Sent, st[resource.ClusterType].Acked
		r.ListenerSent, r.ListenerAcked = st[resource.ListenerType].Sent, st[resource.ListenerType].Acked
		// Type by type as Envoy asks: a proxy without route names asks for none.
		r.RouteSent, r.RouteAcked = st[resource.RouteType].Sent, st[resource.RouteType].Acked
		r.EndpointSent, r.EndpointAcked = st[resource.EndpointType].Sent, st[resource.EndpointType].Acked
		r.ExtensionConfigSent, r.ExtensionConfigAcked = st[resource.EcdsType].Sent, st[resource.EcdsType].Acked
		var refused []string
		for _, t := range slices.Sorted(maps.Keys(st)) {
			if n := st[t].Nack; n != "" {
				refused = append(refused, t[strings.LastIndexByte(t, '.')+1:]+": "+n)
			}
		}
		r.Error = strings.Join(refused, "; ")
		rows = append(rows, r)
	}
	return rows
}

type adsClient struct {
	ConnectionID string                    `json:"connectionId"`
	ConnectedAt  time.Time                 `json:"connectedAt"`
	Address      string                    `json:"address"`
	Cluster      string                    `json:"cluster"`
	Pod          string                    `json:"pod"`
	Delta        bool                      `json:"delta"`
	Metadata     json.RawMessage           `json:"metadata,omitempty"`
	Types        map[string]xds.TypeStatus `json:"types,omitempty"`
}

func (c *Control) adsz() any {
	out := struct {
		Total   int         `json:"totalClients"`
		Clients []adsClient `json:"clients"`
	}{}
	for _, client := range c.proxies() {
		p := c.peerOf(client)
		a := adsClient{ConnectionID: client.ConnectionID, ConnectedAt: client.ConnectedAt, Address: client.Peer, Cluster: p.Cluster,
			Pod: p.Namespace + "/" + p.Pod, Delta: client.Delta, Types: client.Status()}
		if m := client.Node.Metadata; m != nil {
			if b, err := protojson.Marshal(m); err == nil {
				a.Metadata = b
			}
		}
		out.Clients = append(out.Clients, a)
	}
	out.Total = len(out.Clients)
	return out
}

func (c *Control) connections() any {
	all := c.adsz().(struct {
		Total   int         `json:"totalClients"`
		Clients []adsClient `json:"clients"`
	})
	for i := range all.Clients {
		all.Clients[i].Metadata, all.Clients[i].Types = nil, nil
	}
	return all
}

type clusterRow struct {
	ID      string `json:"id"`
	Secret  string `json:"secretName"`
	Status  string `json:"syncStatus"`
	Server  string `json:"server,omitempty"`
	Network string `json:"network,omitempty"`
	Message string `json:"message,omitempty"`
	Note    string `json:"note,omitempty"`
}

func (c *Control) clusterz() []clusterRow {
	rows := []clusterRow{}
	networks := c.Snapshot().Networks()
	for _, s := range c.clusters.Status() {
		rows = append(rows, clusterRow{s.ID, s.Secret, string(s.Status), s.Server, networks.Of(s.ID), s.Message, s.Note})
	}
	return rows
}

func (c *Control) networkz() any {
	type row struct {
		Network string `json:"network"`
		Cluster string `json:"cluster"`
		Address string `json:"addr"`
		Port    uint16 `json:"port"`
		Down    bool   `json:"down,omitempty"`
	}
	rows := []row{}
	for _, g := range c.Snapshot().Networks().Gateways {
		rows = append(rows, row{g.Network, g.Cluster, g.Address, g.Port, g.Down})
	}
	return rows
}

// registryService is a host as istiod has it (model.Service); Kiali reads it. What Carrick does not know of
// is left out.
type registryService struct {
	Attributes struct {
		ServiceRegistry, Name, Namespace string
		Labels, LabelSelectors           map[string]string   `json:",omitempty"`
		ExportTo                         map[string]struct{} // namespaces; "*" is all, "." its own
		ClusterExternalAddresses         addressMap
	}
	Ports           []registryPort `json:"ports,omitempty"`
	ServiceAccounts []string       `json:"serviceAccounts,omitempty"`
	CreationTime    time.Time      `json:"creationTime"`
	Hostname        string         `json:"hostname"`
	ClusterVIPs     addressMap     `json:"clusterVIPs"`
	DefaultAddress  string         `json:"defaultAddress,omitempty"`
	Resolution      int            // 0: the proxy chooses among endpoints; 1: by DNS; 3: the client has chosen
	MeshExternal    bool           // never: there is no ServiceEntry
	ResourceVersion string         // "": a host is of several clusters
}

type registryPort struct {
	Name     string `json:"name,omitempty"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol,omitempty"`
}

type addressMap struct {
	Addresses map[string][]string `json:",omitempty"` // by cluster
}

func (m *addressMap) add(cluster string, addresses []string) {
	if len(addresses) == 0 {
		return
	}
	if m.Addresses == nil {
		m.Addresses = map[string][]string{}
	}
	m.Addresses[cluster] = addresses
}

func registryz(s *mesh.Snapshot) []registryService {
	rows := []registryService{}
	for h := range s.Hosts() {
		if h.Service == nil {
			continue
		}
		first := h.Service.Parts[0]
		r := registryService{Hostname: h.Name, CreationTime: first.Created}
		r.Attributes.ServiceRegistry, r.Attributes.Name, r.Attributes.Namespace = "Kubernetes", h.Service.Name, h.Service.Namespace
		r.Attributes.Labels, r.Attributes.LabelSelectors = first.Labels, first.Selector
		r.Attributes.ExportTo = map[string]struct{}{}
		for _, ns := range h.Service.ExportTo {
			r.Attributes.ExportTo[ns] = struct{}{}
		}
		if h.Service.ExportTo == nil {
			r.Attributes.ExportTo["*"] = struct{}{}
		}
		for _, p := range first.Ports {
			r.Ports = append(r.Ports, registryPort{p.Name, p.Number, cmp.Or(string(p.Protocol()), "UnsupportedProtocol")})
		}
		for _, a := range h.Accounts.List {
			id := identity.Identity{TrustDomain: s.Config().TrustDomain, Namespace: a.Namespace, ServiceAccount: a.Name}
			r.ServiceAccounts = append(r.ServiceAccounts, id.String())
		}
		for _, p := range h.Service.Parts {
			r.ClusterVIPs.add(p.Cluster, p.ClusterIPs)
			r.Attributes.ClusterExternalAddresses.add(p.Cluster, p.Addresses)
		}
		switch {
		case first.Type == mesh.ExternalName:
			r.Resolution = 1
		case first.Headless:
			r.Resolution, r.DefaultAddress = 3, "0.0.0.0"
		case len(first.ClusterIPs) > 0:
			r.DefaultAddress = first.ClusterIPs[0]
		}
		rows = append(rows, r)
	}
	return rows
}

func (c *Control) endpointz() any {
	type row struct {
		Service   string   `json:"svc"`
		Endpoints []string `json:"ep"`
	}
	rows := []row{}
	for h := range c.Snapshot().Hosts() {
		if h.Service == nil {
			continue
		}
		r := row{Service: h.Name, Endpoints: []string{}}
		for _, e := range h.Endpoints.List {
			pod := ""
			if e.Pod != nil {
				pod = e.Pod.Namespace + "/" + e.Pod.Name
			}
			for _, ip := range []string{e.IPv4, e.IPv6} {
				if ip != "" {
					r.Endpoints = append(r.Endpoints, fmt.Sprintf("%s port=%d servicePort=%d cluster=%s network=%s ready=%v tls=%v locality=%s pod=%s",
						ip, e.Port, e.ServicePort, e.Cluster, e.Network, e.Ready, e.TLS, e.Locality, pod))
				}
			}
		}
		rows = append(rows, r)
	}
	return rows
}

func (c *Control) pushStatus() any {
	found := c.Findings()
	out := map[string][]string{}
	for k, fs := range found {
		for _, f := range fs {
			out[k.String()] = append(out[k.String()], f.String())
		}
	}
	st := c.state.Load()
	return map[string]any{"version": st.version, "at": st.at, "findings": out}
}

func (c *Control) forceDisconnect(w http.ResponseWriter, r *http.Request) {
	id, n := r.URL.Query().Get("proxyID"), 0
	for _, client := range c.server.Clients() {
		if id == "" || proxyName(client) == id {
			client.Disconnect()
			n++
		}
	}
	if id != "" && n == 0 {
		http.Error(w, fmt.Sprintf("no proxy %q is connected here: see /debug/connections", id), http.StatusNotFound)
		return
	}
	writeJSON(w, map[string]int{"disconnected": n})
}

func (c *Control) configDump(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("proxyID")
	if id == "" {
		http.Error(w, "name a proxy: ?proxyID=POD.NAMESPACE", http.StatusBadRequest)
		return
	}
	dump, err := c.dump(id)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	b, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true}.Marshal(dump) // as Envoy has it
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(append(b, '\n'))
}

// dump returns what a proxy was sent in the form of Envoy's /config_dump. Secrets are left out but
// for their names.
func (c *Control) dump(id string) (*admin.ConfigDump, error) {
	for _, client := range c.server.Clients() {
		b := client.Bundle()
		if proxyName(client) != id || b == nil {
			continue
		}
		at := timestamppb.New(client.ConnectedAt)
		clusters := &admin.ClustersConfigDump{VersionInfo: b.Version}
		listeners := &admin.ListenersConfigDump{VersionInfo: b.Version}
		routes := &admin.RoutesConfigDump{}
		endpoints := &admin.EndpointsConfigDump{}
		secrets := &admin.SecretsConfigDump{}
		for x := range b.Lists[resource.ClusterType].All() {
			clusters.DynamicActiveClusters = append(clusters.DynamicActiveClusters, &admin.ClustersConfigDump_DynamicCluster{VersionInfo: x.Version, Cluster: anyOf(resource.ClusterType, x), LastUpdated: at})
		}
		for x := range b.Lists[resource.ListenerType].All() {
			listeners.DynamicListeners = append(listeners.DynamicListeners, &admin.ListenersConfigDump_DynamicListener{Name: x.Name,
				ActiveState: &admin.ListenersConfigDump_DynamicListenerState{VersionInfo: x.Version, Listener: anyOf(resource.ListenerType, x), LastUpdated: at}})
		}
		for x := range b.Lists[resource.RouteType].All() {
			routes.DynamicRouteConfigs = append(routes.DynamicRouteConfigs, &admin.RoutesConfigDump_DynamicRouteConfig{VersionInfo: x.Version, RouteConfig: anyOf(resource.RouteType, x), LastUpdated: at})
		}
		for x := range b.Lists[resource.EndpointType].All() {
			endpoints.DynamicEndpointConfigs = append(endpoints.DynamicEndpointConfigs, &admin.EndpointsConfigDump_DynamicEndpointConfig{VersionInfo: x.Version, EndpointConfig: anyOf(resource.EndpointType, x), LastUpdated: at})
		}
		for x := range b.Lists[resource.SecretType].All() {
			secrets.DynamicActiveSecrets = append(secrets.DynamicActiveSecrets, &admin.SecretsConfigDump_DynamicSecret{Name: x.Name, VersionInfo: x.Version, LastUpdated: at})
		}
		dump := &admin.ConfigDump{}
		for _, m := range []proto.Message{clusters, listeners, routes, endpoints, secrets} {
			a, err := anypb.New(m)
			if err != nil {
				return nil, fmt.Errorf("dump of %s: %w", id, err)
			}
			dump.Configs = append(dump.Configs, a)
		}
		return dump, nil
	}
	return nil, fmt.Errorf("no proxy %q is connected to this control plane (%s)", id, strings.Join(c.names(), ", "))
}

func (c *Control) names() []string {
	names := map[string]bool{}
	for _, client := range c.server.Clients() {
		names[proxyName(client)] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func anyOf(typeURL string, r *resource.Resource) *anypb.Any {
	return &anypb.Any{TypeUrl: typeURL, Value: r.Bytes()}
}

// debugType begins the types under which istioctl asks for debug pages over ADS.
const debugType = "istio.io/debug"

// answer serves debug pages over ADS, as istioctl asks for them: syncz and config_dump in messages
// of Envoy's, any other as the bytes of the page. Only authenticated clients of the control plane's
// own namespace get answers.
func (c *Control) answer(_ context.Context, client *xds.Client, typeURL string, names []string) ([]*anypb.Any, bool) {
	name, ok := strings.CutPrefix(typeURL, debugType)
	if !ok || name != "" && name[0] != '/' {
		return nil, false
	}
	if p := c.peerOf(client); !p.Authenticated || p.Namespace != c.Snapshot().Settings().SystemNamespace {
		return nil, true
	}
	if name = strings.TrimPrefix(name, "/"); name == "" && len(names) == 1 { // the page's name is the resource's
		return c.page(typeURL, names[0]), true
	}
	switch name, query, _ := strings.Cut(name, "?"); name {
	case "syncz":
		return c.clientConfigs(), true
	case "config_dump":
		id := strings.TrimPrefix(query, "proxyID=")
		if len(names) == 1 {
			id = names[0]
		}
		dump, err := c.dump(id)
		if err != nil {
			return nil, true
		}
		return dump.Configs, true
	}
	return c.page(typeURL, name), true
}

// page returns a debug page, with its query, as one resource.
func (c *Control) page(typeURL, path string) []*anypb.Any {
	r, err := http.NewRequest(http.MethodGet, "/debug/"+path, nil)
	if err != nil {
		return nil
	}
	for _, p := range c.pages() {
		if r.URL.Path == "/debug/"+p.name && !strings.HasPrefix(p.name, "pprof") {
			w := &capture{header: http.Header{}}
			p.serve(w, r)
			return []*anypb.Any{{TypeUrl: typeURL, Value: w.body}}
		}
	}
	return nil
}

// clientConfigs is syncz as Envoy's client status.
func (c *Control) clientConfigs() (out []*anypb.Any) {
	for _, client := range c.proxies() {
		st := client.Status()
		cc := &csds.ClientConfig{}
		node := cc.ProtoReflect().Mutable(cc.ProtoReflect().Descriptor().Fields().ByName("node")).Message()
		node.Set(node.Descriptor().Fields().ByName("id"), protoreflect.ValueOfString(proxyName(client)))
		node.Set(node.Descriptor().Fields().ByName("metadata"), protoreflect.ValueOfMessage(c.shown(client).ProtoReflect()))
		for _, t := range []string{resource.ListenerType, resource.RouteType, resource.EndpointType, resource.ClusterType, resource.EcdsType} {
			g := &csds.ClientConfig_GenericXdsConfig{TypeUrl: t, ConfigStatus: csds.ConfigStatus_NOT_SENT}
			if s := st[t]; s.Sent != "" {
				g.ConfigStatus = csds.ConfigStatus_STALE
				if s.Nack != "" {
					g.ConfigStatus = csds.ConfigStatus_ERROR
				} else if s.Synced() {
					g.ConfigStatus = csds.ConfigStatus_SYNCED
				}
			}
			cc.GenericXdsConfigs = append(cc.GenericXdsConfigs, g)
		}
		a, err := anypb.New(cc)
		if err == nil {
			out = append(out, a)
		}
	}
	return out
}

// shown returns what istioctl shows of a proxy: its cluster, namespace and version.
func (c *Control) shown(client *xds.Client) *structpb.Struct {
	p, meta := c.peerOf(client), client.Node.Metadata.GetFields()
	fields := map[string]*structpb.Value{}
	for k, v := range map[string]string{"CLUSTER_ID": p.Cluster, "NAMESPACE": p.Namespace, "ISTIO_VERSION": cmp.Or(text(meta, "ISTIO_VERSION"), text(meta, "CARRICK_VERSION"))} {
		fields[k] = structpb.NewStringValue(v)
	}
	return &structpb.Struct{Fields: fields}
}

// capture is a ResponseWriter that keeps what is written.
type capture struct {
	header http.Header
	body   []byte
}

func (c *capture) Header() http.Header         { return c.header }
func (c *capture) WriteHeader(int)             {}
func (c *capture) Write(b []byte) (int, error) { c.body = append(c.body, b...); return len(b), nil }
