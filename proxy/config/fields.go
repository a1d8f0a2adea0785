package config

import (
	_ "embed"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

//go:embed fields.txt
var fieldsText string

// use says what becomes of a field: it is used, or it has no effect and why is known.
type use bool

const (
	inert use = false
	used  use = true
)

// fields is fields.txt by message and field name.
var fields = sync.OnceValue(func() map[protoreflect.FullName]map[protoreflect.Name]use {
	t := map[protoreflect.FullName]map[protoreflect.Name]use{}
	var m map[protoreflect.Name]use
	for line := range strings.Lines(fieldsText) {
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			continue
		}
		head, rest, _ := strings.Cut(line, ":")
		if line[0] == '\t' {
			m[protoreflect.Name(head[1:])] = inert
			continue
		}
		m = map[protoreflect.Name]use{}
		for _, f := range strings.Fields(rest) {
			m[protoreflect.Name(f)] = used
		}
		t[protoreflect.FullName(head)] = m
	}
	return t
})

// check refuses fields of m and of the messages in it that fields.txt does not list. It does not look
// into Any, Struct and the like: whoever unpacks an Any checks what comes out.
func check(m proto.Message) error {
	if err := checkMessage(m.ProtoReflect()); err != nil {
		return err
	}
	return constrain(m)
}

func checkMessage(m protoreflect.Message) error {
	name := m.Descriptor().FullName()
	if name.Parent() == "google.protobuf" {
		return nil
	}
	known, ok := fields()[name]
	if !ok {
		return errNotSupported
	}
	if u := m.GetUnknown(); len(u) > 0 {
		return fmt.Errorf("has a field that this version does not know")
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		field := string(fd.Name())
		u, ok := known[fd.Name()]
		switch {
		case !ok:
			err = in(field, errNotSupported)
		case u == inert:
		case fd.Enum() != nil && !fd.IsList() && fd.Enum().Values().ByNumber(v.Enum()) == nil:
			err = in(field, notSupported(fmt.Sprint(v.Enum())))
		case fd.Message() == nil:
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
					err = inKey(field, k.String(), checkMessage(v.Message()))
					return err == nil
				})
			}
		case fd.IsList():
			for i := range v.List().Len() {
				if err = inIndex(field, i, checkMessage(v.List().Get(i).Message())); err != nil {
					break
				}
			}
		default:
			err = in(field, checkMessage(v.Message()))
		}
		return err == nil
	})
	return err
}
