package config

import (
	"errors"
	"math"

	overload "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	connections "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heap "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
)

// Overload is what the bootstrap bounds for the whole process.
type Overload struct {
	// Heap is how large the heap may become, in bytes; 0: as the proxy decides.
	Heap int64
	// Connections is how many clients' connections there may be; 0: any number.
	Connections int64
}

func compileOverload(m *overload.OverloadManager) (o Overload, err error) {
	for i, r := range m.GetResourceMonitors() {
		if err := o.monitor(r); err != nil {
			return o, inIndex("resource_monitors", i, err)
		}
	}
	return o, nil
}

func (o *Overload) monitor(r *overload.ResourceMonitor) error {
	m, err := unpack(r.GetTypedConfig())
	if err != nil {
		return in("typed_config", err)
	}
	switch m := m.(type) {
	case *heap.FixedHeapConfig:
		if m.MaxHeapSizeBytes == 0 || m.MaxHeapSizeBytes > math.MaxInt64 {
			return in("typed_config.max_heap_size_bytes", errors.New("must be greater than 0"))
		}
		o.Heap = int64(m.MaxHeapSizeBytes)
	case *connections.DownstreamConnectionsConfig:
		if m.MaxActiveDownstreamConnections <= 0 {
			return in("typed_config.max_active_downstream_connections", errors.New("must be greater than 0"))
		}
		o.Connections = m.MaxActiveDownstreamConnections
	default:
		return in("typed_config", errNotSupported)
	}
	return nil
}
