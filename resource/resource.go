// Package resource has one encoded xDS resource (type, name, version, bytes) and the lists
// of them that a proxy should hold. It knows nothing of what the bytes say.
package resource

import (
	"crypto/sha256"
	"encoding/hex"
)

// Type URLs of the resources that Carrick serves or takes (Envoy xDS v3).
const (
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	SecretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	EcdsType     = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// Resource is one encoded xDS resource. Immutable: whoever holds it may keep it for ever.
type Resource struct {
	Name    string
	Version string   // a hash of the content: equal versions are equal bytes
	Body    [][]byte // the encoding, in pieces that follow one another; shared, never written to
}

// New returns the resource of that encoding. It keeps pieces.
func New(name string, pieces ...[]byte) *Resource {
	h := sha256.New()
	for _, p := range pieces {
		h.Write(p)
	}
	return &Resource{Name: name, Version: hex.EncodeToString(h.Sum(nil)[:8]), Body: pieces}
}

// Size returns the length of the encoding in bytes.
func (r *Resource) Size() int {
	n := 0
	for _, p := range r.Body {
		n += len(p)
	}
	return n
}

// Bytes returns the encoding as one slice, a copy if it is in pieces.
func (r *Resource) Bytes() []byte {
	if len(r.Body) == 1 {
		return r.Body[0]
	}
	b := make([]byte, 0, r.Size())
	for _, p := range r.Body {
		b = append(b, p...)
	}
	return b
}
