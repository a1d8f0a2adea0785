package xds

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
)

// FuzzEncode compares the encoding in pieces with protobuf's own reading of it.
func FuzzEncode(f *testing.F) {
	f.Add("type", "v1", "n1", "name", "other", []byte("body"), []byte(""))
	f.Add("", "", "", "", "", []byte(nil), []byte("x"))
	f.Fuzz(func(t *testing.T, typeURL, version, nonce, name, removed string, one, two []byte) {
		r := &response{delta: true, typeURL: typeURL, version: version, nonce: nonce, removed: []string{removed},
			resources: []*resource.Resource{resource.New(name, one, two), resource.New("", two), resource.New("x")}}
		want := &discovery.DeltaDiscoveryResponse{SystemVersionInfo: version, TypeUrl: typeURL, Nonce: nonce, RemovedResources: r.removed}
		whole := &discovery.DiscoveryResponse{VersionInfo: version, TypeUrl: typeURL, Nonce: nonce}
		for _, x := range r.resources {
			a := &anypb.Any{TypeUrl: typeURL, Value: x.Bytes()}
			want.Resources = append(want.Resources, &discovery.Resource{Name: x.Name, Version: x.Version, Resource: a})
			whole.Resources = append(whole.Resources, a)
		}
		var got discovery.DeltaDiscoveryResponse
		if _, err := proto.Marshal(want); err != nil {
			return // not UTF-8
		}
		if err := proto.Unmarshal(r.encode().Materialize(), &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, &got, protocmp.Transform()); d != "" {
			t.Errorf("delta (-want +got):\n%s", d)
		}
		w := *r
		w.delta, w.removed = false, nil
		var gotWhole discovery.DiscoveryResponse
		if err := proto.Unmarshal(w.encode().Materialize(), &gotWhole); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(whole, &gotWhole, protocmp.Transform()); d != "" {
			t.Errorf("state of the world (-want +got):\n%s", d)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	r := &response{delta: true, typeURL: resource.EndpointType, version: "1", nonce: "2"}
	body := make([]byte, 1000)
	for range 1000 {
		r.resources = append(r.resources, resource.New("outbound|80||service.namespace.svc.cluster.local", body))
	}
	b.ReportAllocs()
	for b.Loop() {
		r.encode()
	}
}
