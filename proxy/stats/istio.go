package stats

import (
	"strconv"
	"strings"
	"sync"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
)

// Workload is one end of a request as Istio's metrics name it. Empty fields are "unknown".
type Workload struct {
	Workload, Namespace, Principal, App, Version, CanonicalService, CanonicalRevision, Cluster string
}

// ParseWorkload reads an endpoint's metadata istio.workload:
// "workload;namespace;canonical-service;canonical-revision;cluster".
func ParseWorkload(s string) Workload {
	f := strings.Split(s, ";")
	for len(f) < 5 {
		f = append(f, "")
	}
	return Workload{Workload: f[0], Namespace: f[1], CanonicalService: f[2], CanonicalRevision: f[3], Cluster: f[4], App: f[2], Version: f[3]}
}

// Local is the workload of this proxy.
type Local Workload

// Reporter is the side that reports.
type Reporter uint8

// Reporters.
const (
	Source Reporter = iota
	Destination
	Waypoint
)

// Key is what the series of Istio's metrics differ by in one proxy.
type Key struct {
	Reporter      Reporter
	Peer          string // metadata istio.workload of the other end; empty: unknown
	PeerPrincipal string // SPIFFE ID of the other end
	OwnPrincipal  string
	// Service that is called: host, name, namespace.
	Host, Name, Namespace string
	Protocol              string // "http", "grpc", "tcp"
	Status                int    // 0 for TCP
	Flags                 accesslog.Flags
	GRPCStatus            string // of gRPC, by number
	MTLS                  bool   // of the downstream connection; only a Destination knows
}

// Requests are the metrics of HTTP and gRPC requests.
type Requests struct {
	Total            Counter
	Milliseconds     Histogram
	RequestBytes     Histogram
	ResponseBytes    Histogram
	RequestMessages  Counter
	ResponseMessages Counter
}

// Connections are the metrics of TCP connections.
type Connections struct {
	Opened, Closed, Sent, Received Counter
}

// maxSeries bounds the series of one loop: beyond it peers are no longer told apart.
const maxSeries = 4096

// Istio is Istio's standard metrics, in shards.
type Istio struct {
	local  Local
	shards []istioShard
}

type istioShard struct {
	mu          sync.Mutex // contended only while the metrics are read
	requests    map[Key]*Requests
	connections map[Key]*Connections
}

func newIstio(shards int, local Local) *Istio {
	x := &Istio{local: local, shards: make([]istioShard, shards)}
	for i := range x.shards {
		x.shards[i].requests, x.shards[i].connections = map[Key]*Requests{}, map[Key]*Connections{}
	}
	return x
}

// Requests returns the metrics of such requests in loop i.
func (x *Istio) Requests(i int, k *Key) *Requests {
	s := &x.shards[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	return series1(s.requests, k)
}

// Connections returns the metrics of such connections in loop i.
func (x *Istio) Connections(i int, k *Key) *Connections {
	s := &x.shards[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	return series1(s.connections, k)
}

func series1[T any](m map[Key]*T, k *Key) *T {
	if t := m[*k]; t != nil {
		return t
	}
	key := *k
	if len(m) >= maxSeries {
		key.Peer, key.PeerPrincipal = "", ""
		if t := m[key]; t != nil {
			return t
		}
	}
	// The caller's strings may lie in a buffer that it uses again.
	for _, s := range []*string{&key.Peer, &key.PeerPrincipal, &key.OwnPrincipal, &key.Host, &key.Name, &key.Namespace, &key.Protocol, &key.GRPCStatus} {
		*s = strings.Clone(*s)
	}
	t := new(T)
	m[key] = t
	return t
}

func known(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func (x *Istio) labels(k *Key) []label {
	own, peer := Workload(x.local), ParseWorkload(k.Peer)
	own.Principal, peer.Principal = k.OwnPrincipal, k.PeerPrincipal
	reporter, src, dst := "source", own, peer
	if k.Reporter != Source {
		reporter, src, dst = "destination", peer, own
	}
	if k.Reporter == Waypoint {
		reporter = "waypoint"
	}
	if src.Namespace == "" {
		src.Namespace = namespaceOf(src.Principal)
	}
	security := "unknown"
	if k.Reporter != Source {
		security = "none"
		if k.MTLS {
			security = "mutual_tls"
		}
	}
	out := []label{
		{"reporter", reporter},
		{"source_workload", known(src.Workload)}, {"source_canonical_service", known(src.CanonicalService)},
		{"source_canonical_revision", known(src.CanonicalRevision)}, {"source_workload_namespace", known(src.Namespace)},
		{"source_principal", known(src.Principal)}, {"source_app", known(src.App)}, {"source_version", known(src.Version)},
		{"source_cluster", known(src.Cluster)},
		{"destination_workload", known(dst.Workload)}, {"destination_workload_namespace", known(dst.Namespace)},
		{"destination_principal", known(dst.Principal)}, {"destination_app", known(dst.App)}, {"destination_version", known(dst.Version)},
		{"destination_service", known(k.Host)}, {"destination_canonical_service", known(dst.CanonicalService)},
		{"destination_canonical_revision", known(dst.CanonicalRevision)}, {"destination_service_name", known(k.Name)},
		{"destination_service_namespace", known(k.Namespace)}, {"destination_cluster", known(dst.Cluster)},
		{"request_protocol", known(k.Protocol)}, {"response_flags", k.Flags.String()},
		{"connection_security_policy", security},
	}
	if k.Protocol != "tcp" {
		out = append(out, label{"response_code", strconv.Itoa(k.Status)}, label{"grpc_response_status", k.GRPCStatus})
	}
	return out
}

// namespaceOf returns the namespace of spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT, or "".
func namespaceOf(principal string) string {
	_, rest, ok := strings.Cut(principal, "/ns/")
	if !ok {
		return ""
	}
	ns, _, _ := strings.Cut(rest, "/")
	return ns
}

// read returns the metrics of all shards together.
func (x *Istio) read() []*metric {
	total := &metric{name: "istio_requests_total"}
	duration := &metric{name: "istio_request_duration_milliseconds", kind: histogram}
	reqBytes := &metric{name: "istio_request_bytes", kind: histogram}
	respBytes := &metric{name: "istio_response_bytes", kind: histogram}
	reqMsgs := &metric{name: "istio_request_messages_total"}
	respMsgs := &metric{name: "istio_response_messages_total"}
	opened := &metric{name: "istio_tcp_connections_opened_total"}
	closed := &metric{name: "istio_tcp_connections_closed_total"}
	sent := &metric{name: "istio_tcp_sent_bytes_total"}
	received := &metric{name: "istio_tcp_received_bytes_total"}

	requests, rkeys := gather(x.shards, func(s *istioShard) map[Key]*Requests { return s.requests })
	for _, k := range rkeys {
		ls := x.labels(&k)
		var n, rm, sm int64
		var d, rb, sb distribution
		for _, r := range requests[k] {
			n += int64(r.Total.Value())
			rm += int64(r.RequestMessages.Value())
			sm += int64(r.ResponseMessages.Value())
			d.add(&r.Milliseconds)
			rb.add(&r.RequestBytes)
			sb.add(&r.ResponseBytes)
		}
		total.series = append(total.series, series{ls, n, nil})
		duration.series = append(duration.series, series{ls, 0, &d})
		reqBytes.series = append(reqBytes.series, series{ls, 0, &rb})
		respBytes.series = append(respBytes.series, series{ls, 0, &sb})
		if k.Protocol == "grpc" {
			reqMsgs.series = append(reqMsgs.series, series{ls, rm, nil})
			respMsgs.series = append(respMsgs.series, series{ls, sm, nil})
		}
	}
	connections, ckeys := gather(x.shards, func(s *istioShard) map[Key]*Connections { return s.connections })
	for _, k := range ckeys {
		ls := x.labels(&k)
		var o, c, tx, rx int64
		for _, r := range connections[k] {
			o += int64(r.Opened.Value())
			c += int64(r.Closed.Value())
			tx += int64(r.Sent.Value())
			rx += int64(r.Received.Value())
		}
		opened.series = append(opened.series, series{ls, o, nil})
		closed.series = append(closed.series, series{ls, c, nil})
		sent.series = append(sent.series, series{ls, tx, nil})
		received.series = append(received.series, series{ls, rx, nil})
	}
	var out []*metric
	for _, m := range []*metric{total, duration, reqBytes, respBytes, reqMsgs, respMsgs, opened, closed, sent, received} {
		if len(m.series) > 0 {
			out = append(out, m)
		}
	}
	return out
}

// gather returns the values of each key over all shards, and the keys, in no order.
func gather[T any](shards []istioShard, of func(*istioShard) map[Key]*T) (map[Key][]*T, []Key) {
	all := map[Key][]*T{}
	var keys []Key
	for i := range shards {
		s := &shards[i]
		s.mu.Lock()
		for k, v := range of(s) {
			if all[k] == nil {
				keys = append(keys, k)
			}
			all[k] = append(all[k], v)
		}
		s.mu.Unlock()
	}
	return all, keys
}
