package compile

import (
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/carrick-mesh/carrick/mesh"
)

// Held endpoints are degraded: other clusters' healthy ones come first, and a gateway that does not answer
// stays unhealthy.
func TestHeldIsDegraded(t *testing.T) {
	pod := &mesh.Endpoint{Cluster: "b", Network: "n2", IPv4: "10.0.0.1", Held: true, Ready: true}
	if got := podEndpoint(pod, "10.0.0.1", 1).HealthStatus; got != core.HealthStatus_DEGRADED {
		t.Errorf("pod: %v", got)
	}
	for _, tt := range []struct {
		also *mesh.Endpoint
		down bool
		want core.HealthStatus
	}{
		{nil, false, core.HealthStatus_DEGRADED},
		{nil, true, core.HealthStatus_UNHEALTHY},
		{&mesh.Endpoint{Cluster: "c", Network: "n2", Ready: true}, false, core.HealthStatus_UNKNOWN},
	} {
		remotes := map[string]*remote{}
		count(remotes, pod, 0)
		if tt.also != nil {
			count(remotes, tt.also, 0)
		}
		v := endpointView{networks: &mesh.Networks{Gateways: []mesh.NetworkGateway{{Network: "n2", Address: "192.0.2.1", Port: 15443, Down: tt.down}}}}
		if got := gatewayEndpoints(v, "n2", remotes["n2"], 1)[0].HealthStatus; got != tt.want {
			t.Errorf("gateway, %+v: %v", tt, got)
		}
	}
}
