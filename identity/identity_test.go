package identity

import "testing"

func TestParse(t *testing.T) {
	const id = "spiffe://cluster.local/ns/sample/sa/helloworld"
	got, err := Parse(id)
	if want := (Identity{"cluster.local", "sample", "helloworld"}); err != nil || got != want {
		t.Fatalf("Parse(%q) = %v, %v", id, got, err)
	}
	if got.String() != id {
		t.Errorf("String() = %q, want %q", got.String(), id)
	}
	for _, bad := range []string{"", "cluster.local/ns/a/sa/b", "spiffe://td/ns/a", "spiffe://td/sa/a/ns/b", "spiffe://td/ns//sa/b", "https://td/ns/a/sa/b"} {
		if got, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", bad, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/sample/sa/helloworld")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := Parse(s); err == nil && id.String() != s {
			t.Errorf("Parse(%q).String() = %q", s, id.String())
		}
	})
}
