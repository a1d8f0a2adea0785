package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// Memory is given back after each burst of work, when it is over, and once more a little later, and not for what
// probes allocate.
func TestRest(t *testing.T) {
	const kib = 1 << 10
	var r rest
	for i, look := range []struct {
		allocated uint64 // since the last look
		gives     bool
	}{
		{8192 * kib, false}, // the start
		{10 * kib, true},
		{10 * kib, false}, {0, true}, // once more
		{4096 * kib, false}, {600 * kib, false}, // work
		{200 * kib, true}, // which has ended
		{200 * kib, false}, {200 * kib, true}, {200 * kib, false}, {200 * kib, false}, {200 * kib, false},
		{200 * kib, true},              // probes, for long
		{512 * kib, false}, {0, false}, // too little work
	} {
		if got := r.come(r.last + look.allocated); got != look.gives {
			t.Errorf("look %d, %d KiB allocated: gives back: %v", i, look.allocated/kib, got)
		}
	}
}

// TestHalf: the control group's bound counts where it is less than the machine's.
func TestHalf(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  int64
	}{
		{nil, 0},
		{map[string]string{"proc/meminfo": "MemFree: 1 kB\nMemTotal:  2048 kB\n"}, 1 << 20},
		{map[string]string{"proc/meminfo": "MemTotal: 2048 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 1 << 20},
		{map[string]string{"proc/meminfo": "MemTotal: 2048 kB\n", "sys/fs/cgroup/memory.max": "1000000\n"}, 500_000},
		{map[string]string{"proc/meminfo": "MemTotal: 2048 kB\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 1 << 20},
		{map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "4000\n"}, 2000},
	} {
		root := t.TempDir() + "/"
		for name, text := range c.files {
			if err := os.MkdirAll(filepath.Dir(root+name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(root+name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := half(root); got != c.want {
			t.Errorf("%v: %d, want %d", c.files, got, c.want)
		}
	}
}

// TestEnvoyGivesBack: the verb envoy collects what a burst of work has left as soon as it is at rest.
func TestEnvoyGivesBack(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the proxy waits for rest, some ten seconds")
	}
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- runEnvoy(ctx, environment{stdout: io.Discard, stderr: io.Discard}, []string{"--config-yaml", "static_resources: {}", "--concurrency", "1"})
	}()
	burst := new([8 << 20]byte)
	var gone atomic.Bool
	runtime.AddCleanup(burst, func(int) { gone.Store(true) }, 0)
	burst = nil
	for end := time.Now().Add(60 * time.Second); !gone.Load(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what the burst has left is still there after a minute")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
