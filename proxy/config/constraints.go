package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/envoyproxy/protoc-gen-validate/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// constrain holds m, and the messages in it, to the constraints that Envoy's API itself states: what
// Envoy refuses for its value is refused here by its path.
func constrain(m proto.Message) error { return constrainMessage(m.ProtoReflect()) }

func constrainMessage(m protoreflect.Message) error {
	d := m.Descriptor()
	known, ok := fields()[d.FullName()]
	if !ok {
		return nil
	}
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		if u, ok := known[fd.Name()]; !ok || u == inert || unneeded(fd.Name()) {
			continue
		}
		if err := constrainField(m, fd); err != nil {
			return err
		}
	}
	return nil
}

// unneeded are names that Envoy wants for its statistics and genuine istiod does not always give;
// nothing here depends on them.
func unneeded(n protoreflect.Name) bool { return n == "stat_prefix" || n == "cluster_name" }

func constrainField(m protoreflect.Message, fd protoreflect.FieldDescriptor) error {
	rules, _ := proto.GetExtension(fd.Options(), validate.E_Rules).(*validate.FieldRules)
	name, set := string(fd.Name()), m.Has(fd)
	switch {
	case fd.IsMap(), fd.ContainingOneof() != nil && !set:
		return nil
	case fd.IsList():
		l := m.Get(fd).List()
		if r := rules.GetRepeated(); uint64(l.Len()) < r.GetMinItems() {
			return in(name, errors.New("is empty"))
		}
		for i := range l.Len() {
			if err := constrainValue(fd, rules.GetRepeated().GetItems(), l.Get(i)); err != nil {
				return inIndex(name, i, err)
			}
		}
		return nil
	case fd.Message() != nil && !set:
		if rules.GetMessage().GetRequired() || rules.GetDuration().GetRequired() {
			return in(name, errors.New("is missing"))
		}
		return nil
	}
	return in(name, constrainValue(fd, rules, m.Get(fd)))
}

func constrainValue(fd protoreflect.FieldDescriptor, rules *validate.FieldRules, v protoreflect.Value) error {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return constrainMessageValue(rules, v.Message())
	case protoreflect.StringKind:
		return constrainString(rules.GetString_(), v.String())
	case protoreflect.Uint32Kind:
		return constrainUint32(rules.GetUint32(), v.Uint())
	}
	return nil
}

func constrainString(r *validate.StringRules, v string) error {
	switch {
	case uint64(len(v)) < max(r.GetMinLen(), r.GetMinBytes()) && !r.GetIgnoreEmpty():
		return errors.New("is empty")
	case r.GetWellKnownRegex() != validate.KnownRegex_UNKNOWN && strings.ContainsAny(v, "\r\n\x00"):
		return errors.New("has a control character")
	}
	return nil
}

// constrainMessageValue looks into wrappers and durations, and into other messages.
func constrainMessageValue(rules *validate.FieldRules, m protoreflect.Message) error {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Duration":
		return constrainDuration(rules.GetDuration(), m.Interface())
	case "google.protobuf.UInt32Value":
		return constrainUint32(rules.GetUint32(), m.Get(m.Descriptor().Fields().ByName("value")).Uint())
	}
	return constrainMessage(m)
}

func constrainDuration(r *validate.DurationRules, m proto.Message) error {
	d, ok := m.(*durationpb.Duration)
	if !ok {
		return nil
	}
	switch t := d.AsDuration(); {
	case d.CheckValid() != nil:
		return errors.New("is not a duration")
	case t < 0:
		return fmt.Errorf("is negative: %v", t)
	case r.GetGt() != nil && t <= r.Gt.AsDuration():
		return fmt.Errorf("%v is not above %v", t, r.Gt.AsDuration())
	case r.GetGte() != nil && t < r.Gte.AsDuration():
		return fmt.Errorf("%v is below %v", t, r.Gte.AsDuration())
	}
	return nil
}

func constrainUint32(r *validate.UInt32Rules, v uint64) error {
	if r == nil || v == 0 && r.GetIgnoreEmpty() {
		return nil
	}
	low, high := uint64(r.GetGte()), uint64(1<<32-1)
	if r.Gt != nil {
		low = uint64(*r.Gt) + 1
	}
	if r.Lte != nil {
		high = uint64(*r.Lte)
	}
	if r.Lt != nil {
		high = uint64(*r.Lt) - 1
	}
	switch {
	case v >= low && v <= high:
		return nil
	case high == 1<<32-1:
		return fmt.Errorf("%d is below %d", v, low)
	}
	return fmt.Errorf("%d is out of range (%d-%d)", v, low, high)
}
