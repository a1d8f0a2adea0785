package main

import "testing"

// Memory is given back once after each burst of work, when it is over, and not for what probes allocate.
func TestRest(t *testing.T) {
	const kib = 1 << 10
	var r rest
	for i, look := range []struct {
		allocated uint64 // since the last look
		gives     bool
	}{
		{8192 * kib, false}, // the start
		{10 * kib, true},
		{10 * kib, false}, {0, false},
		{4096 * kib, false}, {600 * kib, false}, // work
		{200 * kib, true}, // which has ended
		{200 * kib, false}, {200 * kib, false}, {200 * kib, false}, {200 * kib, false}, {200 * kib, false},
		{200 * kib, true},              // probes, for long
		{512 * kib, false}, {0, false}, // too little work
	} {
		if got := r.come(r.last + look.allocated); got != look.gives {
			t.Errorf("look %d, %d KiB allocated: gives back: %v", i, look.allocated/kib, got)
		}
	}
}
