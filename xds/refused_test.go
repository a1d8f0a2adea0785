package xds

import (
	"maps"
	"testing"
)

// A resource stands refused until a version of it is taken or it is removed, whatever else of its type is taken.
func TestRefusedResources(t *testing.T) {
	refuse := func(message string) *request { return &request{refused: true, message: message} }
	var m map[string]string
	for i, step := range []struct {
		names []string
		r     *request
		want  map[string]string
	}{
		{[]string{"a", "b"}, &request{}, nil},
		{[]string{"a", "b"}, refuse("a: no"), map[string]string{"a": "a: no"}},
		{[]string{"b"}, &request{}, map[string]string{"a": "a: no"}},
		{[]string{"c"}, refuse("no"), map[string]string{"a": "a: no", "c": "no"}},
		{[]string{"a"}, &request{}, map[string]string{"c": "no"}},
		{[]string{"c"}, &request{}, nil},
	} {
		if m = refusedAfter(m, step.names, step.r); !maps.Equal(m, step.want) {
			t.Errorf("step %d: %v, want %v", i, m, step.want)
		}
	}
}
