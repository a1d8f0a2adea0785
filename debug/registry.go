package debug

import (
	"cmp"
	"fmt"
	"time"

	"github.com/carrick-mesh/carrick/identity"
	"github.com/carrick-mesh/carrick/mesh"
)

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

func (p *Pages) endpointz() any {
	type row struct {
		Service   string   `json:"svc"`
		Endpoints []string `json:"ep"`
	}
	rows := []row{}
	for h := range p.view.Snapshot().Hosts() {
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

func (p *Pages) networkz() any {
	type row struct {
		Network string `json:"network"`
		Cluster string `json:"cluster"`
		Address string `json:"addr"`
		Port    uint16 `json:"port"`
		Down    bool   `json:"down,omitempty"`
	}
	rows := []row{}
	for _, g := range p.view.Snapshot().Networks().Gateways {
		rows = append(rows, row{g.Network, g.Cluster, g.Address, g.Port, g.Down})
	}
	return rows
}
