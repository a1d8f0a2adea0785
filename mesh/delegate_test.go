package mesh

import (
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	"sigs.k8s.io/yaml"

	"google.golang.org/protobuf/encoding/protojson"
)

// TestMergeMatches: what a delegate matches must be within what the route that delegates to it matches.
func TestMergeMatches(t *testing.T) {
	parse := func(text string) *networking.HTTPMatchRequest {
		t.Helper()
		j, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		m := &networking.HTTPMatchRequest{}
		if err := protojson.Unmarshal(j, m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, tt := range []struct {
		root, delegate, want string // "" where nothing matches both
	}{
		{"{uri: {prefix: /a}}", "{uri: {prefix: /a/b}}", "{uri: {prefix: /a/b}}"},
		{"{uri: {prefix: /a}}", "{uri: {exact: /ab}}", "{uri: {exact: /ab}}"},
		{"{uri: {prefix: /a/b}}", "{uri: {prefix: /a}}", ""},
		{"{uri: {prefix: /a}}", "{uri: {regex: /a.*}}", ""},
		{"{uri: {regex: /a.*}}", "{uri: {exact: /ab}}", ""},
		{"{uri: {regex: /a.*}}", "{}", "{uri: {regex: /a.*}}"},
		{"{uri: {exact: /a}}", "{uri: {exact: /a}}", "{uri: {exact: /a}}"},
		{"{uri: {exact: /a}}", "{uri: {prefix: /a}}", ""},
		{"{uri: {prefix: /a}, ignoreUriCase: true}", "{uri: {prefix: /a}}", ""},
		{"{uri: {prefix: /a}, ignoreUriCase: true}", "{method: {exact: GET}}", "{uri: {prefix: /a}, ignoreUriCase: true, method: {exact: GET}}"},
		{"{headers: {a: {exact: b}}}", "{headers: {a: {exact: c}}}", ""},
		{"{headers: {a: {prefix: b}}}", "{headers: {a: {exact: bc}, d: {}}}", "{headers: {a: {exact: bc}, d: {}}}"},
		{"{withoutHeaders: {a: {exact: b}}}", "{withoutHeaders: {a: {prefix: b}}}", "{withoutHeaders: {a: {prefix: b}}}"},
		{"{withoutHeaders: {a: {prefix: b}}}", "{withoutHeaders: {a: {exact: b}}}", ""},
		{"{queryParams: {a: {exact: b}}}", "{queryParams: {c: {exact: d}}}", "{queryParams: {a: {exact: b}, c: {exact: d}}}"},
		{"{port: 80}", "{port: 81}", ""},
		{"{port: 80}", "{}", "{port: 80}"},
		{"{sourceLabels: {a: b}}", "{sourceLabels: {a: c}}", ""},
		{"{sourceLabels: {a: b}, sourceNamespace: x}", "{sourceLabels: {c: d}}", "{sourceLabels: {a: b, c: d}, sourceNamespace: x}"},
		{"{sourceNamespace: x}", "{sourceNamespace: z}", ""},
		{"{gateways: [a, b]}", "{gateways: [b]}", "{gateways: [b]}"},
		{"{gateways: [a]}", "{gateways: [b]}", ""},
		{"{name: a, statPrefix: s}", "{name: b}", "{name: a-b, statPrefix: s}"},
	} {
		got, ok := mergeMatches([]*networking.HTTPMatchRequest{parse(tt.root)}, []*networking.HTTPMatchRequest{parse(tt.delegate)})
		if ok != (tt.want != "") || ok && !equal(&VirtualService{Spec: &networking.VirtualService{Http: []*networking.HTTPRoute{{Match: got}}}},
			&VirtualService{Spec: &networking.VirtualService{Http: []*networking.HTTPRoute{{Match: []*networking.HTTPMatchRequest{parse(tt.want)}}}}}) {
			t.Errorf("%s with %s: %v, want %q", tt.root, tt.delegate, got, tt.want)
		}
	}
	many := make([]*networking.HTTPMatchRequest, 100)
	for i := range many {
		many[i] = &networking.HTTPMatchRequest{}
	}
	if got, ok := mergeMatches(many, many); ok {
		t.Errorf("%d matches", len(got))
	}
}
