package cli

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const offlineFiles = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: prod}
spec:
  hosts: [reviews]
  http:
  - match: [{port: 7070}, {uri: {exact: /EmptyCart}}]
    route: [{destination: {host: reviews, port: {number: 7070}, subset: v2}}]
  - match: [{port: 7070}, {uri: {exact: /GetCart}}]
    route: [{destination: {host: reviews, port: {number: 7071}}}]
  - match: [{uri: {exact: /GetCart}}]
    route: [{destination: {host: reviews, port: {number: 7071}}}]
  - route: [{destination: {host: reviews, port: {number: 7070}}}]
  - match: [{uri: {exact: /late}}]
    route: [{destination: {host: reviews, port: {number: 7070}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: lost, namespace: prod}
spec: {hosts: [site.example.net], gateways: [nosuch], http: [{route: [{destination: {host: nosuch}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: prod}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: prod}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: prod}
spec: {selector: {app: r}, ports: [{name: grpc, port: 7070}, {name: foo-http, port: 7071}]}
`

const offlinePolicy = `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: httpbin, namespace: shop}
spec: {selector: {matchLabels: {app: httpbin}}, portLevelMtls: {8000: {mode: STRICT}}}
---
apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: shop}
spec: {selector: {app: httpbin}, ports: [{name: http, port: 8000, targetPort: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: httpbin, namespace: shop}
spec:
  selector: {matchLabels: {app: httpbin}}
  template: {metadata: {labels: {app: httpbin}}, spec: {containers: [{name: h, image: h, ports: [{containerPort: 80}]}]}}
`

func documents(t *testing.T, text string) (objects []*unstructured.Unstructured) {
	t.Helper()
	for _, doc := range strings.Split(text, "\n---") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		if len(u.Object) > 0 {
			objects = append(objects, u)
		}
	}
	return objects
}

// Without a cluster, what objects of files refer to is looked for in the files, with istioctl's codes.
func TestObjectsOfFilesAgainstEachOther(t *testing.T) {
	var got []string
	for _, m := range inOrder(alone(documents(t, offlineFiles)), "") {
		got = append(got, m.Level+" "+m.Code+" "+m.Origin+" "+m.Field)
	}
	want := []string{
		"Error IST0101 VirtualService prod/lost spec.gateways[0]",
		"Error IST0101 VirtualService prod/lost spec.http[0].route[0].destination.host",
		"Error IST0101 VirtualService prod/reviews spec.http[0].route[0].destination.subset",
		"Warning IST0130 VirtualService prod/reviews spec.http[2]",
		"Warning IST0130 VirtualService prod/reviews spec.http[4]",
		"Info IST0118 Service prod/reviews spec.ports[1].name",
		"Info IST0131 VirtualService prod/reviews spec.http[1].match[0]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, m := range mild(alone(documents(t, offlineFiles))) {
		if m.Level == "Error" {
			t.Errorf("validate takes what the files do not have for an error: %v", m)
		}
	}
	found := alone(documents(t, offlinePolicy))
	if !slices.ContainsFunc(found, func(m message) bool {
		return m.Origin == "PeerAuthentication shop/httpbin" && strings.HasPrefix(m.Field, "spec.portLevelMtls")
	}) {
		t.Errorf("a port of the Service in portLevelMtls: %v", found)
	}
}
