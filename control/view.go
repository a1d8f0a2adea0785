package control

import (
	"net/http"
	"time"

	"github.com/carrick-mesh/carrick/debug"
	"github.com/carrick-mesh/carrick/xds"
)

// view is what the debug pages may see of a control plane.
type view struct{ *Control }

// Debug serves the debug pages to clients of this machine or Pod.
func (c *Control) Debug() http.Handler { return c.pages.Handler() }

// Published implements debug.View.
func (v view) Published() (version uint64, at time.Time) {
	st := v.state.Load()
	return st.version, st.at
}

// Clients implements debug.View.
func (v view) Clients() []*xds.Client { return v.server.Clients() }

// Peer implements debug.View.
func (v view) Peer(client *xds.Client) debug.Peer {
	p, ok := client.Identity.(*Peer)
	if !ok {
		return debug.Peer{}
	}
	return debug.Peer{Authenticated: p.Authenticated, Cluster: p.Cluster, Namespace: p.Namespace, Pod: p.Pod, Kind: p.Kind}
}

// WatchedClusters implements debug.View.
func (v view) WatchedClusters() []debug.Cluster {
	rows := []debug.Cluster{}
	networks := v.Snapshot().Networks()
	for _, s := range v.clusters.Status() {
		rows = append(rows, debug.Cluster{
			ID: s.ID, Secret: s.Secret, Status: string(s.Status), Server: s.Server,
			Network: networks.Of(s.ID), Message: s.Message, Note: s.Note,
		})
	}
	return rows
}
