package debug

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	csds "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"

	"github.com/carrick-mesh/carrick/resource"
	"github.com/carrick-mesh/carrick/xds"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// proxies returns the clients in the order of their names.
func (p *Pages) proxies() []*xds.Client {
	cs := p.view.Clients()
	slices.SortFunc(cs, func(a, b *xds.Client) int {
		return strings.Compare(ProxyName(a)+a.ConnectionID, ProxyName(b)+b.ConnectionID)
	})
	return cs
}

// ProxyName returns a client's name as istioctl shows it: POD.NAMESPACE.
func ProxyName(c *xds.Client) string {
	if p := strings.Split(c.Node.ID, "~"); len(p) == 4 {
		return p[2]
	}
	return c.Node.ID
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

func (p *Pages) syncz() []syncStatusRow {
	rows := []syncStatusRow{}
	for _, client := range p.proxies() {
		st := client.Status()
		r := syncStatusRow{
			ClusterID: p.view.Peer(client).Cluster, Proxy: ProxyName(client), ProxyType: p.view.Peer(client).Kind,
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
			if n := st[t].Refusal(); n != "" {
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

func (p *Pages) adsz() any {
	out := struct {
		Total   int         `json:"totalClients"`
		Clients []adsClient `json:"clients"`
	}{}
	for _, client := range p.proxies() {
		peer := p.view.Peer(client)
		a := adsClient{ConnectionID: client.ConnectionID, ConnectedAt: client.ConnectedAt, Address: client.Peer, Cluster: peer.Cluster,
			Pod: peer.Namespace + "/" + peer.Pod, Delta: client.Delta, Types: client.Status()}
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

func (p *Pages) connections() any {
	all := p.adsz().(struct {
		Total   int         `json:"totalClients"`
		Clients []adsClient `json:"clients"`
	})
	for i := range all.Clients {
		all.Clients[i].Metadata, all.Clients[i].Types = nil, nil
	}
	return all
}

// clientConfigs is syncz as Envoy's client status.
func (p *Pages) clientConfigs() (out []*anypb.Any) {
	for _, client := range p.proxies() {
		st := client.Status()
		cc := &csds.ClientConfig{}
		node := cc.ProtoReflect().Mutable(cc.ProtoReflect().Descriptor().Fields().ByName("node")).Message()
		node.Set(node.Descriptor().Fields().ByName("id"), protoreflect.ValueOfString(ProxyName(client)))
		node.Set(node.Descriptor().Fields().ByName("metadata"), protoreflect.ValueOfMessage(p.shown(client).ProtoReflect()))
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
func (p *Pages) shown(client *xds.Client) *structpb.Struct {
	peer, meta := p.view.Peer(client), client.Node.Metadata.GetFields()
	fields := map[string]*structpb.Value{}
	for k, v := range map[string]string{"CLUSTER_ID": peer.Cluster, "NAMESPACE": peer.Namespace, "ISTIO_VERSION": cmp.Or(text(meta, "ISTIO_VERSION"), text(meta, "CARRICK_VERSION"))} {
		fields[k] = structpb.NewStringValue(v)
	}
	return &structpb.Struct{Fields: fields}
}

func text(meta map[string]*structpb.Value, key string) string { return meta[key].GetStringValue() }
