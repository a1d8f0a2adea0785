package schema

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

// Unused is a field that is set and has no effect.
type Unused struct {
	Path string // in YAML: http[0].fault.delay.exponentialDelay
	Why  string // what holds instead, as a sentence
}

func (u Unused) String() string { return u.Path + " has no effect: " + u.Why }

// ledger is fields.txt by message: what holds instead of a field, "" for one that has an effect.
var ledger = sync.OnceValue(func() map[protoreflect.FullName]map[protoreflect.Name]string {
	t := map[protoreflect.FullName]map[protoreflect.Name]string{}
	var m map[protoreflect.Name]string
	for line := range strings.Lines(fieldsText) {
		line = strings.TrimRight(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		head, rest, _ := strings.Cut(line, ":")
		if line[0] == '\t' {
			m[protoreflect.Name(head[1:])] = strings.TrimSpace(rest)
			continue
		}
		m = map[protoreflect.Name]string{}
		for _, f := range strings.Fields(rest) {
			m[protoreflect.Name(f)] = ""
		}
		t[protoreflect.FullName(head)] = m
	}
	return t
})

// WithoutEffect returns the fields that are set in a spec, a MeshConfig or MeshNetworks and have no effect,
// in the order of the API. A field that this version does not know is one of them.
func WithoutEffect(m proto.Message) []Unused {
	if m == nil {
		return nil
	}
	return walk(nil, m.ProtoReflect(), "")
}

func walk(found []Unused, m protoreflect.Message, at string) []Unused {
	known := ledger()[m.Descriptor().FullName()]
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		path := at + fd.JSONName()
		why, ok := known[fd.Name()]
		if !ok {
			why = "this version does not know it"
		}
		if why != "" {
			found = append(found, Unused{path, why})
			continue
		}
		found = walkValue(found, fd, m.Get(fd), path)
	}
	return found
}

func walkValue(found []Unused, fd protoreflect.FieldDescriptor, v protoreflect.Value, path string) []Unused {
	if fd.IsMap() {
		if !ours(fd.MapValue().Message()) {
			return found
		}
		v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
			found = walk(found, e.Message(), fmt.Sprintf("%s.%s.", path, k))
			return true
		})
		return found
	}
	if !ours(fd.Message()) {
		return found
	}
	if !fd.IsList() {
		return walk(found, v.Message(), path+".")
	}
	for i := range v.List().Len() {
		found = walk(found, v.List().Get(i).Message(), fmt.Sprintf("%s[%d].", path, i))
	}
	return found
}

// ours reports whether a message is Istio's, whose fields the ledger lists.
func ours(m protoreflect.MessageDescriptor) bool {
	return m != nil && m.FullName().Parent() != "google.protobuf"
}

// Inert is a field of a message of Istio's API that never has an effect.
type Inert struct{ Message, Field, Why string }

// Inerts returns all fields without effect of the messages that something reads, in the order of fields.txt.
func Inerts() (all []Inert) {
	message := ""
	for line := range strings.Lines(fieldsText) {
		head, rest, _ := strings.Cut(strings.TrimRight(line, "\n"), ":")
		switch {
		case head == "" || head[0] == '#':
		case head[0] == '\t':
			all = append(all, Inert{message, head[1:], strings.TrimSpace(rest)})
		default:
			message = head
		}
	}
	return all
}
