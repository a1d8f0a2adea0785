// Package debug serves istiod's /debug pages, over HTTP and over ADS as istioctl asks for them. It reads a
// narrow view of the control plane and changes nothing but to end streams when it is told to.
package debug

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/xds"
)

// View is what the pages show of a control plane.
type View interface {
	Snapshot() *mesh.Snapshot
	Findings() map[mesh.Key][]mesh.Finding
	Published() (version uint64, at time.Time)
	Clients() []*xds.Client
	Peer(*xds.Client) Peer
	WatchedClusters() []Cluster
}

// Peer is who a connected client is.
type Peer struct {
	Authenticated           bool // by a token that an API server vouches for
	Cluster, Namespace, Pod string
	Kind                    string // "sidecar", "router"; "debug" for one that only asks
}

// Cluster is one that is watched.
type Cluster struct {
	ID      string `json:"id"`
	Secret  string `json:"secretName"`
	Status  string `json:"syncStatus"`
	Server  string `json:"server,omitempty"`
	Network string `json:"network,omitempty"`
	Message string `json:"message,omitempty"`
	Note    string `json:"note,omitempty"`
}

// Pages are the debug pages of one control plane.
type Pages struct{ view View }

// New returns the pages that show v.
func New(v View) *Pages { return &Pages{v} }

// page is one of /debug/.
type page struct {
	name, help string
	serve      func(w http.ResponseWriter, r *http.Request)
}

func (p *Pages) pages() []page {
	data := func(get func() any) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) { writeJSON(w, get()) }
	}
	return []page{
		{"syncz", "where each proxy stands with each type", data(func() any { return p.syncz() })},
		{"adsz", "the connected proxies", data(func() any { return p.adsz() })},
		{"connections", "the connected proxies, in short", data(func() any { return p.connections() })},
		{"clusterz", "the clusters that are watched", data(func() any { return p.view.WatchedClusters() })},
		{"networkz", "the gateways of networks", data(func() any { return p.networkz() })},
		{"registryz", "hosts and their Services", data(func() any { return registryz(p.view.Snapshot()) })},
		{"endpointz", "hosts and their endpoints", data(func() any { return p.endpointz() })},
		{"configz", "users' objects", data(func() any { return configz(p.view.Snapshot()) })},
		{"config_dump", "what the proxy of ?proxyID=POD.NAMESPACE was sent, as Envoy's config dump", p.configDump},
		{"force_disconnect", "ends the streams of the proxy of ?proxyID=POD.NAMESPACE, or of all; they come back", p.forceDisconnect},
		{"mesh", "the mesh's settings in effect", func(w http.ResponseWriter, r *http.Request) { writeProto(w, p.view.Snapshot().Config().Spec) }},
		{"push_status", "what is wrong with users' objects", data(func() any { return p.pushStatus() })},
		{"list", "these pages", data(func() any {
			var names []string
			for _, page := range p.pages() {
				names = append(names, "/debug/"+page.name)
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

// Handler serves istiod's /debug/ pages to clients of this machine or Pod, which port forwarding is,
// too. Nothing in them is secret, but it is not for everybody in the cluster either.
func (p *Pages) Handler() http.Handler {
	mux := http.NewServeMux()
	var index strings.Builder
	for _, page := range p.pages() {
		mux.HandleFunc("/debug/"+page.name, page.serve)
		if page.help != "" {
			fmt.Fprintf(&index, "/debug/%-12s %s\n", page.name, page.help)
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

func (p *Pages) pushStatus() any {
	found := p.view.Findings()
	out := map[string][]string{}
	for k, fs := range found {
		for _, f := range fs {
			out[k.String()] = append(out[k.String()], f.String())
		}
	}
	version, at := p.view.Published()
	return map[string]any{"version": version, "at": at, "findings": out}
}

func (p *Pages) forceDisconnect(w http.ResponseWriter, r *http.Request) {
	id, n := r.URL.Query().Get("proxyID"), 0
	for _, client := range p.view.Clients() {
		if id == "" || ProxyName(client) == id {
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
