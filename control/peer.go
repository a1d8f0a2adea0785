package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/debug"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/xds"
)

// Peer is who a connected client is.
type Peer struct {
	// Authenticated tells that the rest is what an API server said of the client's token. On the
	// plaintext port it is what the client says, and it gets no secrets.
	Authenticated  bool
	Cluster        string
	Namespace      string
	ServiceAccount string
	Pod            string // empty for a workload that is no Pod
	Kind           string // "sidecar", "router"; "debug" for one that only asks
	node           compile.Node
	address        string // of the Node's ID
}

// authorize says who opens a stream.
func (c *Control) authorize(ctx context.Context, n xds.Node) (any, error) {
	parts := strings.Split(n.ID, "~")
	if len(parts) != 4 {
		return nil, status.Errorf(codes.InvalidArgument, "node id %q is not TYPE~IP~POD.NAMESPACE~DOMAIN", n.ID)
	}
	// istioctl asks for debug pages in the name of no proxy.
	asks := strings.HasPrefix(n.Asks, debug.TypePrefix)
	if parts[0] != "sidecar" && parts[0] != "router" && !asks {
		return nil, status.Errorf(codes.InvalidArgument, "node id %q is of type %q; sidecar and router are known", n.ID, parts[0])
	}
	meta := n.Metadata.GetFields()
	p := &Peer{Kind: parts[0], address: parts[1], node: compile.Node{Router: parts[0] == "router", Dialect: dialect(meta), View: text(meta, "REQUESTED_NETWORK_VIEW"), SNI: sendsSNI(n), Topology: topologyOf(meta), HTTP1: http1Of(meta, c.config.HTTP10)}}
	pod, namespace, _ := cutLast(parts[2], ".")
	if v := text(meta, "NAMESPACE"); v != "" {
		namespace = v
	}
	cluster := text(meta, "CLUSTER_ID")
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("clusterid"); len(v) > 0 {
		cluster = v[0]
	}
	if !encrypted(ctx) {
		p.Cluster, p.Namespace, p.Pod, p.ServiceAccount = c.cluster(cluster), namespace, pod, text(meta, "SERVICE_ACCOUNT")
		if asks {
			p.Kind = "debug"
		}
		return p, nil
	}
	token := ""
	for _, v := range md.Get("authorization") {
		if scheme, t, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "bearer") {
			token = strings.TrimSpace(t)
		}
	}
	if token == "" {
		return nil, status.Error(codes.Unauthenticated, "no bearer token in metadata authorization")
	}
	who, err := c.clusters.Review(ctx, cluster, token, c.config.Audience)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if asks {
		return &Peer{Authenticated: true, Cluster: who.Cluster, Namespace: who.Namespace, ServiceAccount: who.ServiceAccount, Kind: "debug"}, nil
	}
	if namespace != who.Namespace {
		return nil, status.Errorf(codes.PermissionDenied, "node %s says namespace %q, its token is of %s/%s", n.ID, namespace, who.Namespace, who.ServiceAccount)
	}
	if sa := text(meta, "SERVICE_ACCOUNT"); sa != "" && sa != who.ServiceAccount {
		return nil, status.Errorf(codes.PermissionDenied, "node %s says service account %q, its token is of %s/%s", n.ID, sa, who.Namespace, who.ServiceAccount)
	}
	p.Authenticated, p.Cluster, p.Namespace, p.ServiceAccount, p.Pod = true, who.Cluster, who.Namespace, who.ServiceAccount, who.Pod
	return p, nil
}

// http1Of reads what a proxy's owner asks for HTTP/1, by ISTIO_META_HTTP10, ISTIO_META_IDLE_TIMEOUT and the
// ProxyConfig. What cannot be read asks for nothing.
func http1Of(meta map[string]*structpb.Value, http10 bool) compile.HTTP1 {
	headers := meta["PROXY_CONFIG"].GetStructValue().GetFields()["proxyHeaders"].GetStructValue().GetFields()
	h := compile.HTTP1{Accept10: http10 || text(meta, "HTTP10") == "1", KeepCase: headers["preserveHttp1HeaderCase"].GetBoolValue()}
	if d, err := time.ParseDuration(text(meta, "IDLE_TIMEOUT")); err == nil && d > 0 {
		h.Idle = d
	}
	return h
}

// topologyOf reads what a gateway's own ProxyConfig says of what stands before it. What cannot be read says nothing.
func topologyOf(meta map[string]*structpb.Value) compile.Topology {
	v := meta["PROXY_CONFIG"].GetStructValue().GetFields()["gatewayTopology"]
	if v.GetStructValue() == nil {
		return compile.Topology{}
	}
	j, err := v.MarshalJSON()
	t := &meshconfig.Topology{}
	if err != nil || (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(j, t) != nil {
		return compile.Topology{}
	}
	return compile.TopologyOf(t)
}

// cluster returns the ID of a cluster by one of its names: former names, "Kubernetes" and none are
// the own cluster's.
func (c *Control) cluster(name string) string {
	for _, s := range c.clusters.Status() {
		if s.ID == name {
			return name
		}
	}
	return c.config.Mesh.Cluster
}

func encrypted(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	return ok && info.State.Version >= tls.VersionTLS12
}

func dialect(meta map[string]*structpb.Value) compile.Dialect {
	switch {
	case text(meta, "CARRICK_VERSION") != "":
		return compile.Carrick
	case text(meta, "GENERATOR") == "grpc":
		return compile.GRPC
	}
	return compile.Envoy
}

// sendsSNI reports whether a gRPC client sends the server names it is told to (gRFC A101): its agent has
// asked it to, and it is of a release that can. In grpc-go that is 1.82.
func sendsSNI(n xds.Node) bool {
	var major, minor int
	fmt.Sscanf(n.Agent, "gRPC Go %d.%d", &major, &minor)
	return text(n.Metadata.GetFields(), "GRPC_SNI") == "true" && (major > 1 || major == 1 && minor >= 82)
}

func text(meta map[string]*structpb.Value, key string) string { return meta[key].GetStringValue() }

// cutLast cuts around the last separator.
func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// seen is what the loop knows of a client.
type seen struct {
	pod      *mesh.Pod // nil if it has not been seen
	network  string
	locality mesh.Locality
	proxy    compile.Proxy
	since    time.Time
	warned   bool
}

// see looks up the Pod that a client is.
func (l *loop) see(client *xds.Client) *seen {
	last := l.seen[client]
	if last == nil {
		last = &seen{since: time.Now()}
	}
	p, ok := client.Identity.(*Peer)
	if !ok || p.Kind == "debug" {
		return last
	}
	pod := l.podOf(p, client, last.pod)
	if pod == nil {
		return last // not there yet, or gone already: then it goes on with what it was while it shuts down
	}
	network, locality := l.snap.PodNetwork(pod), l.snap.PodLocality(pod)
	if pod == last.pod && network == last.network && locality == last.locality && l.snap.PodNode(pod) == last.proxy.Node {
		return last
	}
	return &seen{pod: pod, network: network, locality: locality, since: last.since, proxy: compile.Of(l.snap, pod, p.node)}
}

// podOf returns the client's Pod, nil if it is not (or no longer) there. A client that is no Pod, or
// that nobody vouches for and that is none we know, is taken for one as its Node describes it.
func (l *loop) podOf(p *Peer, client *xds.Client, last *mesh.Pod) *mesh.Pod {
	if p.Pod != "" {
		if pod := l.snap.Pod(p.Cluster, p.Namespace, p.Pod); pod != nil || p.Authenticated {
			return pod
		}
	}
	if last != nil {
		return last
	}
	meta := client.Node.Metadata.GetFields()
	pod := &mesh.Pod{Cluster: p.Cluster, Namespace: p.Namespace, Name: p.Pod, ServiceAccount: p.ServiceAccount,
		Labels: map[string]string{}, Workload: text(meta, "WORKLOAD_NAME"), Ready: true}
	for k, v := range meta["LABELS"].GetStructValue().GetFields() {
		pod.Labels[k] = v.GetStringValue()
	}
	for ip := range strings.SplitSeq(text(meta, "INSTANCE_IPS"), ",") {
		if _, err := netip.ParseAddr(ip); err == nil {
			pod.IPs = append(pod.IPs, ip)
		}
	}
	if _, err := netip.ParseAddr(p.address); err == nil && len(pod.IPs) == 0 {
		pod.IPs = []string{p.address}
	}
	return pod
}

// missing tells of clients whose Pod does not come, or goes back to look for those that have come.
func (l *loop) missing() {
	for client, s := range l.seen {
		if s.pod == nil && !s.warned && client.Identity.(*Peer).Kind != "debug" && time.Since(s.since) > settling {
			s.warned = true
			p := client.Identity.(*Peer)
			l.config.Log.Warn("a proxy is connected whose Pod has not been seen; it gets no configuration until then",
				"proxy", client.Node.ID, "cluster", p.Cluster, "pod", p.Namespace+"/"+p.Pod)
		}
	}
}
