package compile

import (
	"fmt"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/carrick-mesh/carrick/resource"
)

// encode returns the encoding of a message that compile has built. It cannot fail but for a string that
// is not UTF-8, which no object from an API server has.
func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("compile: encoding %T: %v", m, err))
	}
	return b
}

func newResource(name string, m proto.Message) *resource.Resource {
	return resource.New(name, encode(m))
}

// field returns the encoding of m as one element of a repeated field.
func field(number protowire.Number, m proto.Message) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), encode(m))
}

func toAny(m proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: encode(m)}
}

func seconds(n int64) *durationpb.Duration      { return &durationpb.Duration{Seconds: n} }
func span(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
func u32(n uint32) *wrapperspb.UInt32Value      { return wrapperspb.UInt32(n) }
func wrapU64(n uint64) *wrapperspb.UInt64Value  { return wrapperspb.UInt64(n) }
func boolean(b bool) *wrapperspb.BoolValue      { return wrapperspb.Bool(b) }
func text(s string) *structpb.Value             { return structpb.NewStringValue(s) }
func structOf(kv ...any) *structpb.Value        { return structpb.NewStructValue(fields(kv...)) }
func listOf(vs ...*structpb.Value) *structpb.Value {
	return structpb.NewListValue(&structpb.ListValue{Values: vs})
}

// fields returns the struct of alternating keys and *structpb.Value.
func fields(kv ...any) *structpb.Struct {
	s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for i := 0; i < len(kv); i += 2 {
		s.Fields[kv[i].(string)] = kv[i+1].(*structpb.Value)
	}
	return s
}

func socketAddress(ip string, port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: ip, PortSpecifier: &core.SocketAddress_PortValue{PortValue: port},
	}}}
}

// ads is where Envoy asks for what else it needs: the stream that it already has.
func ads() *core.ConfigSource {
	return &core.ConfigSource{
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
		ResourceApiVersion:    core.ApiVersion_V3,
		InitialFetchTimeout:   seconds(0),
	}
}
