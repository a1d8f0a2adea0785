package xdsclient

import (
	"errors"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
)

// A resource of which every version was refused is missing, until one is taken or it is removed.
func TestMissing(t *testing.T) {
	var refuse error
	s := newState(Options{Types: []string{resource.ClusterType}, Decode: func(string, *resource.Resource) ([]Name, error) { return nil, refuse }})
	come := func(names ...string) {
		r := &discovery.DeltaDiscoveryResponse{TypeUrl: resource.ClusterType}
		for _, n := range names {
			r.Resources = append(r.Resources, &discovery.Resource{Name: n, Resource: &anypb.Any{TypeUrl: resource.ClusterType, Value: []byte(n)}})
		}
		s.take(r, time.Now())
	}
	come("a")
	refuse = errors.New("no")
	come("a", "b", "c")
	if got := s.missing(); len(got) != 2 || got[0].Name != "b" || got[1].Name != "c" {
		t.Errorf("missing %v, want b and c: of a there is an earlier version", got)
	}
	refuse = nil
	come("b")
	s.changed = false
	s.take(&discovery.DeltaDiscoveryResponse{TypeUrl: resource.ClusterType, RemovedResources: []string{"c"}}, time.Now())
	if got := s.missing(); len(got) != 0 || !s.changed {
		t.Errorf("missing %v; changed %v", got, s.changed)
	}
}
