package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/carrick-mesh/carrick/install"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

// TestGuideTable: kubectl get vs has the guide's columns, by the API server's own table.
func TestGuideTable(t *testing.T) {
	s, _ := server(t)
	ctx := t.Context()
	cfg, err := install.Resolve(nil, nil, "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	m, err := cfg.Render()
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range m.Objects() {
		if o.GetKind() == "CustomResourceDefinition" && o.GetName() == "virtualservices.networking.istio.io" {
			crds := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
			if _, err := crds.Create(ctx, o, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	vs := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(`apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: bookinfo, namespace: default}
spec:
  hosts: ["*"]
  gateways: [bookinfo-gateway]
  http: [{match: [{uri: {exact: /productpage}}], route: [{destination: {host: productpage, port: {number: 9080}}}]}]
`), &vs.Object); err != nil {
		t.Fatal(err)
	}
	api := client.Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1alpha3", Resource: "virtualservices"}).Namespace("default")
	for end := time.Now().Add(30 * time.Second); ; {
		if _, err = api.Create(ctx, vs, metav1.CreateOptions{}); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err) // the API server serves a new kind a moment later
		}
	}
	b, err := s.Client.Discovery().RESTClient().Get().AbsPath("/apis/networking.istio.io/v1alpha3/namespaces/default/virtualservices").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(b, &table); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range table.ColumnDefinitions {
		if c.Priority == 0 {
			names = append(names, strings.ToUpper(c.Name))
		}
	}
	if got := strings.Join(names, " "); got != "NAME GATEWAYS HOSTS AGE" || len(table.Rows) != 1 {
		t.Fatalf("columns %s, %d rows", got, len(table.Rows))
	}
	if row := table.Rows[0].Cells; row[0] != "bookinfo" || row[1] != `["bookinfo-gateway"]` || row[2] != `["*"]` {
		t.Errorf("the row is %v", row)
	}
}
