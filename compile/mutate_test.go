package compile

import (
	"math"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// mutate sets one field somewhere in a message to another value, or takes it away.
func (m mutator) mutate(msg protoreflect.Message) {
	if d, ok := msg.Interface().(*durationpb.Duration); ok {
		proto.Reset(d)
		proto.Merge(d, m.duration())
		return
	}
	fields := msg.Descriptor().Fields()
	if fields.Len() == 0 {
		return
	}
	var inner []func()
	msg.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
					inner = append(inner, func() { m.mutate(x.Message()) })
					return true
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				inner = append(inner, func() { m.mutate(v.List().Get(i).Message()) })
			}
		default:
			inner = append(inner, func() { m.mutate(v.Message()) })
		}
		return true
	})
	if len(inner) > 0 && m.IntN(4) > 0 {
		inner[m.IntN(len(inner))]()
		return
	}
	f := fields.Get(m.IntN(fields.Len()))
	if m.IntN(8) == 0 {
		msg.Clear(f)
		return
	}
	m.set(msg, f, 3)
}

// set gives a field a random value.
func (m mutator) set(msg protoreflect.Message, f protoreflect.FieldDescriptor, depth int) {
	switch {
	case f.IsMap():
		entries := msg.Mutable(f).Map()
		key := m.scalar(f.MapKey()).MapKey()
		if f.MapValue().Message() != nil {
			entries.Set(key, protoreflect.ValueOfMessage(m.message(entries.NewValue().Message(), depth)))
		} else {
			entries.Set(key, m.scalar(f.MapValue()))
		}
	case f.IsList():
		l := msg.Mutable(f).List()
		if l.Len() > 0 && m.IntN(2) == 0 {
			l.Truncate(l.Len() - 1)
		}
		if f.Message() != nil {
			l.Append(protoreflect.ValueOfMessage(m.message(l.NewElement().Message(), depth)))
		} else {
			l.Append(m.scalar(f))
		}
	case f.Message() != nil:
		msg.Set(f, protoreflect.ValueOfMessage(m.message(msg.NewField(f).Message(), depth)))
	default:
		msg.Set(f, m.scalar(f))
	}
}

// message fills an empty message.
func (m mutator) message(msg protoreflect.Message, depth int) protoreflect.Message {
	if d, ok := msg.Interface().(*durationpb.Duration); ok {
		proto.Merge(d, m.duration())
		return msg
	}
	fields := msg.Descriptor().Fields()
	for range min(fields.Len(), 3) {
		if depth > 0 {
			m.set(msg, fields.Get(m.IntN(fields.Len())), depth-1)
		}
	}
	return msg
}

func (m mutator) duration() *durationpb.Duration {
	return &durationpb.Duration{
		Seconds: pickOf[int64](m.Rand, 0, 0, 1, 5, -1, 3600, 86400*365, 9223372035, 9223372036, 315576000000, 315576000001),
		Nanos:   pickOf[int32](m.Rand, 0, 0, 0, 1, 1000000, -1, 999999999),
	}
}

func (m mutator) scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	n := pickOf[int64](m.Rand, 0, 1, 2, 80, 100, 101, 443, 503, 599, 600, 7000, 8080, 15006, 15021, 15443, 65535, 65536, math.MaxInt32, -1)
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(m.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(m.IntN(f.Enum().Values().Len() + 1)))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(pickOf[float32](m.Rand, 0, 0.5, 50, 100, 101, -1, float32(math.NaN()), float32(math.Inf(1))))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(pickOf(m.Rand, 0, 0.0001, 0.5, 50, 99.9999, 100, 101, -1, math.NaN(), math.Inf(1)))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(strings.Repeat("b", pickOf(m.Rand, 0, 1, 1<<20, 1<<20+1))))
	}
	name := string(f.Name())
	if p, ok := f.Parent().(protoreflect.MessageDescriptor); ok && p.IsMapEntry() {
		name = "" // a name or a value of anything
	}
	return protoreflect.ValueOfString(strings.ToValidUTF8(m.text(name), "?"))
}
