package compile

import (
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/mesh"
)

// refused are specs that the mesh's own rules let pass and every proxy would refuse.
var refused = map[string]string{
	"rewrite names a group": `kind: VirtualService
spec: {hosts: [web], http: [{match: [{uri: {prefix: /}}], rewrite: {uriRegexRewrite: {match: /a, rewrite: '\1'}}, route: [{destination: {host: web}}]}]}`,
	"regex too large": `kind: VirtualService
spec: {hosts: [web], http: [{match: [{uri: {regex: '[\pL]{1000}'}}], route: [{destination: {host: web}}]}]}`,
	"second match": `kind: VirtualService
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}, {match: [{uri: {prefix: /}}, {uri: {exact: /x}, gateways: [other]}], rewrite: {uriRegexRewrite: {match: '', rewrite: /}}, route: [{destination: {host: web}}]}]}`,
	"pseudo header": `kind: VirtualService
spec: {hosts: [web], http: [{headers: {request: {set: {':path': /x}}}, route: [{destination: {host: web}}]}]}`,
	"body too long": `kind: VirtualService
spec: {hosts: [web], http: [{directResponse: {status: 200, body: {string: "` + strings.Repeat("x", 1<<20+1) + `"}}}]}`,
	"weights too large": `kind: VirtualService
spec: {hosts: [web], http: [{route: [{destination: {host: web}, weight: 2147483647}, {destination: {host: web}, weight: 2147483647}, {destination: {host: web}, weight: 2147483647}]}]}`,
	"TCP weights too large": `kind: VirtualService
spec: {hosts: [web], tcp: [{route: [{destination: {host: web}, weight: 2147483647}, {destination: {host: web}, weight: 2147483647}, {destination: {host: web}, weight: 2147483647}]}]}`,
	"maglev table": `kind: DestinationRule
spec: {host: web, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x, maglev: {tableSize: 100}}}}}`,
	"maglev table of a subset": `kind: DestinationRule
spec: {host: web, subsets: [{name: v1, trafficPolicy: {portLevelSettings: [{port: {number: 8080}, loadBalancer: {consistentHash: {httpHeaderName: x, maglev: {tableSize: 100}}}}]}}]}`,
	"server name": `kind: DestinationRule
spec: {host: web, trafficPolicy: {tls: {mode: SIMPLE, sni: "` + strings.Repeat("a", 256) + `"}}}`,
}

// TestTrial: what a proxy would refuse is found in an object by itself, whoever it is for.
func TestTrial(t *testing.T) {
	for name, spec := range refused {
		o := load(t, []byte("cluster: cluster1\nmetadata: {name: bad, namespace: shop}\n"+spec))[0].Object
		if s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(mesh.Event{Object: o}); len(s.Findings()) > 0 {
			t.Logf("%s: the mesh's own rules refuse it by now: %v", name, s.Findings())
		}
		found := Trial(o)
		if len(found) != 1 || found[0].Object != o.Key() || found[0].Field == "" || found[0].Fix == "" {
			t.Errorf("%s: found %v", name, found)
		}
		if name == "second match" && len(found) == 1 && found[0].Field != "spec.http[1]" {
			t.Errorf("%s: found in %s", name, found[0].Field)
		}
	}
}

// TestTrialRefuses: with the trial as the mesh's check, the last good object stays.
func TestTrialRefuses(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1", Check: Trial}).Apply(load(t, []byte(`
cluster: cluster1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{route: [{destination: {host: good}}]}]}
---
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{match: [{uri: {prefix: /}}], rewrite: {uriRegexRewrite: {match: /a, rewrite: '\1'}}, route: [{destination: {host: bad}}]}]}
`))...)
	if f := s.Findings(); len(f) != 1 || f[0].Field != "spec.http[0]" || !strings.Contains(f[0].Message, "group 1") {
		t.Errorf("found %v", f)
	}
	if v := s.VirtualServices().Get("shop/web"); v.Spec.Http[0].Route[0].Destination.Host != "good" {
		t.Errorf("the mesh holds %v", v.Spec)
	}
}

func BenchmarkTrial(b *testing.B) {
	es := loadFile(b, "testdata/features.in.yaml")
	for b.Loop() {
		for _, e := range es {
			Trial(e.Object)
		}
	}
}
