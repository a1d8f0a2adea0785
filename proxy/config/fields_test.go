package config

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

// selectors returns every name that the package selects (x.Name) outside of tests.
func selectors(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				names[s.Sel.Name] = true
			}
			return true
		})
	}
	return names
}

// TestEveryField walks through all messages that fields.txt lists: a field that is not listed is refused
// by its path, one without effect is taken and says why, and one that counts as used is read
// somewhere.
func TestEveryField(t *testing.T) {
	read := selectors(t)
	for name, known := range fields() {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
		if err != nil {
			t.Errorf("%s: not a message of the API: %v", name, err)
			continue
		}
		fds := mt.Descriptor().Fields()
		for f := range known {
			if fds.ByName(f) == nil {
				t.Errorf("%s has no field %s", name, f)
			}
		}
		for i := range fds.Len() {
			fd := fds.Get(i)
			m := dynamicpb.NewMessage(mt.Descriptor())
			setField(m, fd)
			u, ok := known[fd.Name()]
			err := checkMessage(m)
			switch {
			case !ok:
				var fe *fieldError
				if !errors.As(err, &fe) || fe.path != string(fd.Name()) || !errors.Is(err, errNotSupported) {
					t.Errorf("%s.%s: %v, want a refusal", name, fd.Name(), err)
				}
			case u == inert && err != nil:
				t.Errorf("%s.%s: %v, though it is without effect", name, fd.Name(), err)
			case u == used && !isRead(read, fd) && name != "envoy.config.core.v3.Node": // which goes to the server as it is
				t.Errorf("%s.%s counts as used, but nothing reads it", name, fd.Name())
			}
		}
	}
	why := 0
	for line := range strings.Lines(fieldsText) {
		if line[0] == '\t' {
			if _, reason, _ := strings.Cut(line, ":"); strings.TrimSpace(reason) == "" {
				t.Errorf("no reason: %s", line)
			}
			why++
		}
	}
	if why == 0 {
		t.Error("no field is without effect")
	}
}

// setField gives a field a value that is not its default.
func setField(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case fd.IsMap():
		m.Mutable(fd).Map().Set(protoreflect.MapKey(someScalar(fd.MapKey()).MapKey()), someValue(m, fd.MapValue()))
	case fd.IsList():
		if fd.Message() != nil {
			l := m.Mutable(fd).List()
			l.Append(l.NewElement())
		} else {
			m.Mutable(fd).List().Append(someScalar(fd))
		}
	case fd.Message() != nil:
		m.Mutable(fd)
	default:
		m.Set(fd, someScalar(fd))
	}
}

func someValue(m protoreflect.Message, fd protoreflect.FieldDescriptor) protoreflect.Value {
	if fd.Message() != nil {
		return protoreflect.ValueOfMessage(dynamicpb.NewMessage(fd.Message()))
	}
	return someScalar(fd)
}

func someScalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.EnumKind:
		vs := fd.Enum().Values()
		return protoreflect.ValueOfEnum(vs.Get(vs.Len() - 1).Number())
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(1)
	}
	return protoreflect.ValueOfUint64(1)
}

// isRead reports whether the package selects the field, its getter or its oneof's wrapper.
func isRead(read map[string]bool, fd protoreflect.FieldDescriptor) bool {
	name := goName(string(fd.Name()))
	wrapper := strings.ReplaceAll(strings.TrimPrefix(string(fd.Parent().FullName()), string(fd.ParentFile().Package())+"."), ".", "_") + "_" + name
	return read[name] || read["Get"+name] || read[wrapper] || read[wrapper+"_"]
}

// goName is protoc-gen-go's name of a field.
func goName(s string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '_' && i+1 < len(s) && s[i+1] >= 'a' && s[i+1] <= 'z':
		case c >= '0' && c <= '9':
			b = append(b, c)
		case c == '_':
			b = append(b, c)
		case i == 0 || s[i-1] == '_' || s[i-1] >= '0' && s[i-1] <= '9':
			b = append(b, c&^0x20)
		default:
			b = append(b, c)
		}
	}
	return string(b)
}
