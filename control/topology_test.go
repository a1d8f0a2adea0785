package control

import (
	"testing"

	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/carrick-mesh/carrick/compile"
)

// A gateway's own configuration says what stands before it; what cannot be read says nothing.
func TestTopologyOf(t *testing.T) {
	for json, want := range map[string]compile.Topology{
		`{}`:                                   {},
		`{"PROXY_CONFIG": {"concurrency": 2}}`: {},
		`{"PROXY_CONFIG": {"gatewayTopology": {"numTrustedProxies": "many"}}}`: {},
		`{"PROXY_CONFIG": {"gatewayTopology": {"numTrustedProxies": 2, "later": 1, "forwardClientCertDetails": "SANITIZE", "proxyProtocol": {}}}}`: {
			Said: true, Hops: 2, ClientCert: meshconfig.ForwardClientCertDetails_SANITIZE, ProxyProtocol: true},
	} {
		meta := &structpb.Struct{}
		if err := meta.UnmarshalJSON([]byte(json)); err != nil {
			t.Fatal(err)
		}
		if got := topologyOf(meta.Fields); got != want {
			t.Errorf("%s: %+v, want %+v", json, got, want)
		}
	}
}
