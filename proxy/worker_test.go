package proxy

import "testing"

// A free list forgets a burst, and keeps what is used all the time.
func TestFreeList(t *testing.T) {
	var f freeList[int]
	use := func(n int) (made int) {
		var xs []int
		for i := range n {
			x, ok := f.get()
			if !ok {
				x = i
				made++
			}
			xs = append(xs, x)
		}
		for _, x := range xs {
			f.put(x)
		}
		return made
	}
	if made := use(1000); made != 1000 || len(f.items) != maxFree {
		t.Fatalf("made %d of 1000, kept %d", made, len(f.items))
	}
	f.trim()
	for range 10 {
		use(8)
		f.trim()
	}
	if n := len(f.items); n != 8 {
		t.Errorf("%d are kept of a burst, 8 are in use", n)
	}
	if made := use(8); made != 0 {
		t.Errorf("%d were made anew", made)
	}
	for range 10 {
		f.trim()
	}
	if len(f.items) != 0 {
		t.Errorf("%d are kept at rest", len(f.items))
	}
	for _, x := range f.items[:cap(f.items)] {
		if x != 0 {
			t.Fatal("what was let go of is still referred to")
		}
	}
}
