package xds

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/carrick-mesh/carrick/resource"
)

// codec is the usual protobuf codec, save that a *response is sent in its pieces: a list of
// thousands of resources is neither joined nor copied for each client.
type codec struct{}

func (codec) Name() string { return proto.Name }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*response); ok {
		return r.encode(), nil
	}
	return encoding.GetCodecV2(proto.Name).Marshal(v)
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	return encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
}

// response is one response of either protocol.
type response struct {
	delta     bool
	typeURL   string
	version   string
	nonce     string
	resources []*resource.Resource
	removed   []string     // delta only
	answers   []*anypb.Any // state of the world only: resources of types of their own
	server    string       // state of the world only: control_plane.identifier, left out if empty
}

// Field numbers of envoy.service.discovery.v3: DiscoveryResponse, DeltaDiscoveryResponse,
// Resource; and of google.protobuf.Any.
const (
	sotwVersion, sotwResources, sotwType, sotwNonce, sotwServer      = 1, 2, 4, 5, 6
	deltaVersion, deltaResources, deltaType, deltaNonce, deltaGone   = 1, 2, 4, 5, 6
	resourceVersion, resourceBody, resourceName, anyType, anyContent = 1, 2, 3, 1, 2
)

// encode returns the encoding, whose pieces are the resources' own bytes and, between them,
// pieces of one buffer made for the rest.
func (r *response) encode() mem.BufferSlice {
	out := make(mem.BufferSlice, 0, 2+2*len(r.resources))
	b := make([]byte, 0, 128+len(r.resources)*(len(r.typeURL)+120))
	done := 0
	cut := func() { // what was appended since the last cut becomes a piece
		if done < len(b) {
			out = append(out, mem.SliceBuffer(b[done:len(b):len(b)]))
			done = len(b)
		}
	}
	str := func(field protowire.Number, s string) {
		if s != "" {
			b = protowire.AppendTag(b, field, protowire.BytesType)
			b = protowire.AppendString(b, s)
		}
	}
	if r.delta {
		str(deltaVersion, r.version)
		str(deltaType, r.typeURL)
		str(deltaNonce, r.nonce)
	} else {
		str(sotwVersion, r.version)
		str(sotwType, r.typeURL)
		str(sotwNonce, r.nonce)
	}
	for _, x := range r.resources {
		size := x.Size()
		any := field(len(r.typeURL)) + field(size)
		if r.delta {
			b = protowire.AppendTag(b, deltaResources, protowire.BytesType)
			b = protowire.AppendVarint(b, uint64(field(len(x.Version))+field(len(x.Name))+1+protowire.SizeBytes(any)))
			str(resourceVersion, x.Version)
			str(resourceName, x.Name)
			b = protowire.AppendTag(b, resourceBody, protowire.BytesType)
		} else {
			b = protowire.AppendTag(b, sotwResources, protowire.BytesType)
		}
		b = protowire.AppendVarint(b, uint64(any))
		str(anyType, r.typeURL)
		if size == 0 {
			continue
		}
		b = protowire.AppendTag(b, anyContent, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
		cut()
		for _, p := range x.Body {
			if len(p) > 0 {
				out = append(out, mem.SliceBuffer(p))
			}
		}
	}
	for _, a := range r.answers {
		b = protowire.AppendTag(b, sotwResources, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(field(len(a.TypeUrl))+field(len(a.Value))))
		str(anyType, a.TypeUrl)
		if len(a.Value) > 0 {
			b = protowire.AppendTag(b, anyContent, protowire.BytesType)
			b = protowire.AppendBytes(b, a.Value)
		}
	}
	if r.server != "" {
		b = protowire.AppendTag(b, sotwServer, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(field(len(r.server))))
		str(1, r.server) // ControlPlane.identifier
	}
	for _, name := range r.removed {
		b = protowire.AppendTag(b, deltaGone, protowire.BytesType)
		b = protowire.AppendString(b, name)
	}
	cut()
	return out
}

// field is the encoded size of a length-delimited field with a number below 16, which is left
// out if it is empty.
func field(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(n)
}
