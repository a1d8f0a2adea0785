package xds

import (
	"context"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/structpb"
)

// Node is who a client says it is (envoy.config.core.v3.Node). A claim, not a fact.
type Node struct {
	ID       string // "sidecar~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN"
	Cluster  string
	Metadata *structpb.Struct // read only, may be nil
	Region   string
	Zone     string
	Subzone  string
	Agent    string // user agent and its version, "envoy 1.40.0"
	Asks     string // the type URL of its first request
}

// request is one request of either protocol.
type request struct {
	typeURL string
	node    Node
	nonce   string // of the response that it answers; empty if none
	refused bool   // it is a NACK
	message string // of the NACK

	// delta
	subscribe, unsubscribe []string
	initial                map[string]string // versions held from an earlier stream, by name

	// state of the world
	names   []string // all of the subscription
	version string   // last taken
}

func deltaRequest(r *discovery.DeltaDiscoveryRequest) *request {
	q := &request{
		typeURL: r.GetTypeUrl(), nonce: r.GetResponseNonce(),
		subscribe: r.GetResourceNamesSubscribe(), unsubscribe: r.GetResourceNamesUnsubscribe(),
		initial: r.GetInitialResourceVersions(),
	}
	if e := r.GetErrorDetail(); e != nil {
		q.refused, q.message = true, e.GetMessage()
	}
	q.node = nodeOf(r)
	return q
}

func sotwRequest(r *discovery.DiscoveryRequest) *request {
	q := &request{typeURL: r.GetTypeUrl(), nonce: r.GetResponseNonce(), names: r.GetResourceNames(), version: r.GetVersionInfo()}
	if e := r.GetErrorDetail(); e != nil {
		q.refused, q.message = true, e.GetMessage()
	}
	if r.GetNode() != nil {
		q.node = sotwNode(r)
	}
	return q
}

func nodeOf(r *discovery.DeltaDiscoveryRequest) Node {
	n := r.GetNode()
	l := n.GetLocality()
	return Node{
		ID: n.GetId(), Cluster: n.GetCluster(), Metadata: n.GetMetadata(),
		Region: l.GetRegion(), Zone: l.GetZone(), Subzone: l.GetSubZone(),
		Agent: agent(n.GetUserAgentName(), n.GetUserAgentVersion()),
		Asks:  r.GetTypeUrl(),
	}
}

func sotwNode(r *discovery.DiscoveryRequest) Node {
	return nodeOf(&discovery.DeltaDiscoveryRequest{Node: r.GetNode(), TypeUrl: r.GetTypeUrl()})
}

func agent(name, version string) string {
	if version == "" {
		return name
	}
	return name + " " + version
}

func peerAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }
