package compile

import (
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/carrick-mesh/carrick/mesh"
)

// Topology is what stands before a gateway, as its own configuration says (ProxyConfig.gatewayTopology); where it
// does not, MeshConfig does. Comparable.
type Topology struct {
	Said          bool
	Hops          uint32 // proxies that are trusted to say who the client is
	ClientCert    meshconfig.ForwardClientCertDetails
	ProxyProtocol bool // connections begin with a PROXY header
}

// TopologyOf returns what a ProxyConfig says.
func TopologyOf(t *meshconfig.Topology) Topology {
	if t == nil {
		return Topology{}
	}
	return Topology{true, t.GetNumTrustedProxies(), t.GetForwardClientCertDetails(), t.GetProxyProtocol() != nil}
}

// topology returns that of a gateway.
func (p *Proxy) topology(c *mesh.Config) Topology {
	switch {
	case !p.Router:
		return Topology{}
	case p.Topology.Said:
		return p.Topology
	}
	return TopologyOf(c.Spec.GetDefaultConfig().GetGatewayTopology())
}

// clientCertDetails returns what becomes of the header that names clients' certificates, and whether that of the
// connection's own client is written into it. What nobody is trusted to have said is dropped by default.
func clientCertDetails(d meshconfig.ForwardClientCertDetails) (as hcmv3.HttpConnectionManager_ForwardClientCertDetails, adds bool) {
	switch d {
	case meshconfig.ForwardClientCertDetails_SANITIZE:
		return hcmv3.HttpConnectionManager_SANITIZE, false
	case meshconfig.ForwardClientCertDetails_FORWARD_ONLY:
		return hcmv3.HttpConnectionManager_FORWARD_ONLY, false
	case meshconfig.ForwardClientCertDetails_APPEND_FORWARD:
		return hcmv3.HttpConnectionManager_APPEND_FORWARD, true
	case meshconfig.ForwardClientCertDetails_ALWAYS_FORWARD_ONLY:
		return hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY, false
	}
	return hcmv3.HttpConnectionManager_SANITIZE_SET, true
}
