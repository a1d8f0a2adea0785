package resource

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func names(rs []*Resource) (out []string) {
	for _, r := range rs {
		out = append(out, r.Name)
	}
	slices.Sort(out)
	return out
}

func TestSince(t *testing.T) {
	a, b, c := New("a", []byte("1")), New("b", []byte("2")), New("c", []byte("3"))
	again, other := New("b", []byte("2")), New("b", []byte("x"))
	kept := &Part{[]*Resource{a}}
	for _, test := range []struct {
		name             string
		old, now         *List
		changed, removed []string
	}{
		{"from nothing", nil, Of(a, b), []string{"a", "b"}, nil},
		{"to nothing", Of(a, b), nil, nil, []string{"a", "b"}},
		{"nothing", nil, nil, nil, nil},
		{"made again", &List{[]*Part{kept, {[]*Resource{b}}}}, &List{[]*Part{kept, {[]*Resource{again}}}}, nil, nil},
		{"changed", &List{[]*Part{kept, {[]*Resource{b}}}}, &List{[]*Part{kept, {[]*Resource{other}}}}, []string{"b"}, nil},
		{"moved to another part", &List{[]*Part{{[]*Resource{a, b}}, {[]*Resource{c}}}}, &List{[]*Part{{[]*Resource{a}}, {[]*Resource{b, c}}}}, nil, nil},
		{"one more, one less", Of(a, b), Of(b, c), []string{"c"}, []string{"a"}},
	} {
		d := test.now.Since(test.old)
		slices.Sort(d.Removed)
		if diff := cmp.Diff(test.changed, names(d.Changed)); diff != "" {
			t.Errorf("%s: changed: %s", test.name, diff)
		}
		if diff := cmp.Diff(test.removed, d.Removed); diff != "" {
			t.Errorf("%s: removed: %s", test.name, diff)
		}
	}
}

func TestPieces(t *testing.T) {
	whole, pieces := New("a", []byte("one two")), New("a", []byte("one "), []byte("two"))
	if whole.Version != pieces.Version || string(pieces.Bytes()) != "one two" || pieces.Size() != 7 {
		t.Errorf("in pieces: version %s, bytes %q, size %d; want those of the whole: %s", pieces.Version, pieces.Bytes(), pieces.Size(), whole.Version)
	}
}
