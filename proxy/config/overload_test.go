package config

import (
	"fmt"
	"strings"
	"testing"
)

// TestOverload: the bounds of the process are read from the bootstrap; monitors that the proxy does not
// have, and bounds that are none, are refused by their path.
func TestOverload(t *testing.T) {
	const of = "type.googleapis.com/envoy.extensions.resource_monitors."
	monitor := func(typed string) string {
		return fmt.Sprintf("overload_manager: {refresh_interval: 0.25s, resource_monitors: [{name: m, typed_config: {%s}}], actions: [{name: a, triggers: [{name: m, threshold: {value: 0.9}}]}]}", typed)
	}
	for in, want := range map[string]Overload{
		"{}": {},
		monitor(`"@type": ` + of + `fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1000`):                                    {Heap: 1000},
		monitor(`"@type": ` + of + `downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 7`): {Connections: 7},
	} {
		b, err := ParseBootstrap([]byte(in))
		if err != nil || b.Overload != want {
			t.Errorf("%s: %+v, %v", in, b, err)
		}
	}
	for in, want := range map[string]string{
		monitor(`"@type": ` + of + `fixed_heap.v3.FixedHeapConfig`):                                                                        "overload_manager.resource_monitors[0].typed_config.max_heap_size_bytes: must be greater than 0",
		monitor(`"@type": ` + of + `downstream_connections.v3.DownstreamConnectionsConfig`):                                                "overload_manager.resource_monitors[0].typed_config.max_active_downstream_connections: must be greater than 0",
		monitor(`"@type": ` + of + `cpu_utilization.v3.CpuUtilizationConfig`):                                                              "",
		monitor(`"@type": ` + of + `fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1, max_heap_size_bytes_runtime: {runtime_key: k}`): "max_heap_size_bytes_runtime",
	} {
		if _, err := ParseBootstrap([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}
