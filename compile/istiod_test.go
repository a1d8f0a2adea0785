package compile

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrick-mesh/carrick/mesh"
)

// TestLikeIstiod compares with what a genuine istiod sent in the same state of the same mesh, by meaning:
// all that differs on purpose is taken out of both sides, and listed here with its reason.
func TestLikeIstiod(t *testing.T) {
	s := mesh.New(mesh.Settings{Cluster: "cluster1"}).Apply(loadFile(t, "testdata/walkthrough.in.yaml")...)
	for dump, who := range map[string]string{
		"sidecar-helloworld": "sidecar cluster1/sample/helloworld-v1-1",
		"gateway-eastwest":   "router cluster1/istio-system/istio-eastwestgateway-1 network1",
		"gateway-ingress":    "router cluster1/istio-system/istio-ingressgateway-1",
	} {
		t.Run(dump, func(t *testing.T) {
			var theirs map[string][]map[string]any
			b, err := os.ReadFile("testdata/istiod/" + dump + ".json")
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &theirs); err != nil {
				t.Fatal(err)
			}
			ours := decode(t, New().Pass(s, []Proxy{ask(t, s, who)})[0])
			for _, kind := range []string{"clusters", "endpoints", "listeners", "routes"} {
				want, got := map[string]any{}, map[string]any{}
				for _, r := range theirs[kind] {
					name, _ := r["name"].(string)
					if kind == "endpoints" {
						name = r["cluster_name"].(string)
					}
					want[name] = normal(r)
				}
				for name, m := range ours[kind] {
					j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
					if err != nil {
						t.Fatal(err)
					}
					var x map[string]any
					if err := json.Unmarshal(j, &x); err != nil {
						t.Fatal(err)
					}
					got[name] = normal(x)
				}
				if a, b := slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)); !slices.Equal(a, b) {
					t.Errorf("%s (-istiod +carrick):\n%s", kind, cmp.Diff(a, b))
				}
				for name, w := range want {
					if strings.HasPrefix(name, "outbound_") && kind == "clusters" {
						delete(w.(map[string]any), "typed_extension_protocol_options") // passed through, it is no HTTP here
					}
					if g, ok := got[name]; ok && !cmp.Equal(w, g) {
						t.Errorf("%s %s (-istiod +carrick):\n%s", kind, name, cmp.Diff(w, g))
					}
				}
			}
		})
	}
}

// normal takes out of a resource what differs on purpose.
func normal(x any) any {
	switch x := x.(type) {
	case []any:
		out := []any{}
		for _, v := range x {
			if m, ok := v.(map[string]any); ok && istioOnly(m) {
				continue
			}
			n := normal(v)
			if m, ok := n.(map[string]any); ok && (len(m) == 0 || len(m) == 1 && m["locality"] != nil) {
				continue // a locality of which nothing is left
			}
			out = append(out, n)
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k, v := range x {
			switch k {
			case "alt_stat_name", // 1.15 names statistics by cluster
				"tracing",                                 // no span is exported
				"alpn_protocols",                          // stock Envoy has no istio.alpn, so the cluster's own list says it
				"retriable_status_codes",                  // 1.15 retries on 503
				"ignore_port_in_host_matching",            // 1.15 lists each domain with and without the port
				"max_grpc_timeout", "max_stream_duration", // 1.15 uses the latter
				"config",                      // the path in metadata names the API's version
				"upstream_connection_options": // a cut between networks is noticed by keepalive
				continue
			case "domains": // see above; and 1.15 has no names with a trailing dot
				v = plainDomains(v.([]any))
			case "match_subject_alt_names", "match_typed_subject_alt_names": // the former is deprecated
				k, v = "subject_alt_names", sans(v.([]any))
			case "stat_prefix":
				v = strings.TrimSuffix(v.(string), ";")
			case "inline_string":
				v = strings.ReplaceAll(v.(string), "%UPSTREAM_CLUSTER_RAW%", "%UPSTREAM_CLUSTER%") // as in 1.15
			case "upstream_bind_config":
				if m := v.(map[string]any); m["socket_options"] != nil { // TCP_USER_TIMEOUT, see above
					continue
				}
			case "retry_policy":
				if v.(map[string]any)["retry_on"] == "reset-before-request" { // inbound, after 1.15
					continue
				}
			}
			n := normal(v)
			if l, ok := n.([]any); ok && (k == "lb_endpoints" || k == "domains" || k == "virtual_hosts" || k == "filter_chains") { // in no order
				slices.SortFunc(l, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
			if m, ok := n.(map[string]any); ok && len(m) == 0 && k != "ads" {
				continue
			}
			if l, ok := n.([]any); ok && len(l) == 0 {
				continue
			}
			out[k] = n
		}
		return out
	}
	return x
}

// istioOnly reports whether an element is a filter that stock Envoy does not have, or that does nothing
// but count.
func istioOnly(m map[string]any) bool {
	name, _ := m["name"].(string)
	return strings.HasPrefix(name, "istio.") || name == "envoy.filters.http.grpc_stats"
}

func plainDomains(all []any) []any {
	var out []string
	for _, d := range all {
		d := strings.TrimSuffix(d.(string), ".")
		if host, _, ok := strings.Cut(d, ":"); ok {
			d = host
		}
		out = append(out, d)
	}
	slices.Sort(out)
	var list []any
	for _, d := range slices.Compact(out) {
		list = append(list, d)
	}
	return list
}

func sans(all []any) []any {
	for i, x := range all {
		if m, ok := x.(map[string]any)["matcher"]; ok {
			all[i] = m
		}
	}
	return all
}
