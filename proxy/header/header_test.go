package header

import (
	"strings"
	"testing"
)

func dump(h *Header) string { return string(h.AppendTo(nil)) }

func TestFields(t *testing.T) {
	var h Header
	h.SetPseudo(Path, "/x")
	h.Add("a", "1")
	h.Add("b", "2")
	h.Add("a", "3")
	h.Add("c", "")
	if got, want := dump(&h), "a: 1\r\nb: 2\r\na: 3\r\nc: \r\n"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	if v, ok := h.Header("a"); v != "1,3" || !ok {
		t.Errorf("joined: %q %v", v, ok)
	}
	if v, ok := h.Header(":path"); v != "/x" || !ok {
		t.Errorf(":path: %q %v", v, ok)
	}
	if _, ok := h.Header(":status"); ok {
		t.Error(":status is there")
	}
	if v, ok := h.Header("c"); v != "" || !ok {
		t.Errorf("empty value: %q %v", v, ok)
	}
	h.Set("a", "9")
	h.Remove("c")
	h.Set("z", h.First("b"))
	if got, want := dump(&h), "a: 9\r\nb: 2\r\nz: 2\r\n"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	var o Header
	o.CopyFrom(&h)
	h.Reset()
	h.Add("other", "value")
	if got, want := dump(&o), "a: 9\r\nb: 2\r\nz: 2\r\n"; got != want {
		t.Errorf("copy: got %q, want %q", got, want)
	}
	if h.Pseudo(Path) != "" || h.Len() != 1 {
		t.Error("Reset left something")
	}
}

func TestValid(t *testing.T) {
	for s, want := range map[string]bool{"a": true, "x-y": true, "A": false, "": false, "a b": false, "a:": false, "é": false} {
		if ValidName(s) != want {
			t.Errorf("ValidName(%q) = %v", s, !want)
		}
	}
	for s, want := range map[string]bool{"": true, "a b\tc": true, "é": true, "a\r": false, "a\nb": false, "\x00": false, "\x7f": false} {
		if ValidValue(s) != want {
			t.Errorf("ValidValue(%q) = %v", s, !want)
		}
	}
}

func BenchmarkForward(b *testing.B) {
	var h Header
	for _, n := range strings.Fields("user-agent accept accept-encoding x-b3-traceid x-b3-spanid cookie cache-control") {
		h.Add(n, "some value of it")
	}
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = h.AppendTo(dst[:0])
	}
}
