package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
)

const (
	// lookEvery is how often the process looks whether it is at rest.
	lookEvery = 5 * time.Second
	// quiet is how many bytes it allocates at most in that time while it is: probes and scrapes do.
	quiet = 256 << 10
	// worth is after how many bytes of allocation giving back is worth a collection.
	worth = 1 << 20
	// later is how many looks after giving back it does so once more: what timers of ended connections held
	// is free by then.
	later = 2
)

// giveBack returns memory to the kernel when the process has come to rest, until ctx ends. The
// runtime by itself keeps at rest what the last burst of work took: it collects again only when the
// heap has grown by half, or after minutes.
func giveBack(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	var r rest
	for {
		select {
		case <-t.C:
			if r.come(allocated()) {
				runtime.GC() // what lies in a sync.Pool outlives one collection
				debug.FreeOSMemory()
			}
		case <-ctx.Done():
			return
		}
	}
}

// rest decides when to give memory back.
type rest struct {
	last  uint64 // bytes ever allocated, at the last look
	given uint64 // and when memory was given back
	again int    // looks at rest until it is given back once more; 0: not to be
}

// come takes how many bytes the process has ever allocated and reports whether it should give back
// now: it works no longer, and has worked since it gave back last, or gave back a little while ago.
func (r *rest) come(allocated uint64) bool {
	still := allocated-r.last <= quiet
	r.last = allocated
	switch {
	case !still:
		return false
	case allocated-r.given >= worth:
		r.given, r.again = allocated, later
		return true
	case r.again > 0:
		r.again--
		return r.again == 0
	}
	return false
}

// allocated returns how many bytes the process has ever allocated on the heap.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// machine is the root of the files that say how much memory there is.
const machine = "/"

// half returns half of the memory that this process may use: what its control group allows, else what
// the machine has; 0 if neither is known. The other half is the garbage collector's and the configuration's.
func half(root string) int64 {
	least := int64(0)
	for _, f := range []string{"sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(root + f)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 { // or "max"
			least = n
		}
	}
	b, err := os.ReadFile(root + "proc/meminfo")
	if err != nil {
		return least / 2
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil && (least == 0 || n<<10 < least) {
				least = n << 10
			}
		}
	}
	return least / 2
}

// bound returns what connections and requests may hold where the heap may become so large: half of it, for
// the garbage collector needs the other; 0: half of the memory there is.
func bound(heap int64) int64 {
	if heap > 0 {
		return heap / 2
	}
	return half(machine)
}
