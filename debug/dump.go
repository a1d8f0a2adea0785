package debug

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	admin "github.com/envoyproxy/go-control-plane/envoy/admin/v3"

	"github.com/carrick-mesh/carrick/resource"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (p *Pages) configDump(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("proxyID")
	if id == "" {
		http.Error(w, "name a proxy: ?proxyID=POD.NAMESPACE", http.StatusBadRequest)
		return
	}
	dump, err := p.dump(id)
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
func (p *Pages) dump(id string) (*admin.ConfigDump, error) {
	for _, client := range p.view.Clients() {
		b := client.Bundle()
		if ProxyName(client) != id || b == nil {
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
	return nil, fmt.Errorf("no proxy %q is connected to this control plane (%s)", id, strings.Join(p.names(), ", "))
}

func (p *Pages) names() []string {
	names := map[string]bool{}
	for _, client := range p.view.Clients() {
		names[ProxyName(client)] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func anyOf(typeURL string, r *resource.Resource) *anypb.Any {
	return &anypb.Any{TypeUrl: typeURL, Value: r.Bytes()}
}
