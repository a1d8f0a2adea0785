package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// locate says where in a document the fault is that keeps it from being a message of type d. It
// returns err, which names only a place in JSON that nobody wrote, if it does not find the field.
func locate(doc any, d protoreflect.MessageDescriptor, err error) error {
	if found := misfit(doc, d); found != nil {
		return found
	}
	return err
}

// misfit finds the first field, in the order of names, that is not of the type.
func misfit(doc any, d protoreflect.MessageDescriptor) error {
	if d.FullName() == "google.protobuf.Any" {
		return misfitAny(doc)
	}
	m, ok := doc.(map[string]any)
	if !ok || d.FullName().Parent() == "google.protobuf" {
		return decodes(doc, d)
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fd := d.Fields().ByTextName(k)
		if fd == nil {
			fd = d.Fields().ByJSONName(k)
		}
		if fd == nil {
			return in(k, errors.New("no such field; check its spelling and indentation"))
		}
		if err := misfitField(m[k], fd); err != nil {
			return in(string(fd.Name()), err)
		}
	}
	return decodes(doc, d)
}

func misfitField(v any, fd protoreflect.FieldDescriptor) error {
	list, isList := v.([]any)
	switch {
	case v == nil || fd.IsMap() && fd.MapValue().Message() == nil:
	case fd.IsMap():
		m, _ := v.(map[string]any)
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if err := misfit(m[k], fd.MapValue().Message()); err != nil {
				return inKey("", k, err)
			}
		}
	case fd.IsList() && fd.Message() != nil && isList:
		for i, x := range list {
			if err := misfit(x, fd.Message()); err != nil {
				return inIndex("", i, err)
			}
		}
	case !fd.IsList() && fd.Message() != nil:
		return misfit(v, fd.Message())
	}
	return decodes(map[string]any{string(fd.Name()): v}, fd.ContainingMessage())
}

// misfitAny looks into an Any by the type that it names.
func misfitAny(doc any) error {
	m, ok := doc.(map[string]any)
	url, named := m["@type"].(string)
	if !ok || !named {
		return errors.New("is not a message with an @type")
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		return notSupported(url)
	}
	rest := maps.Clone(m)
	delete(rest, "@type")
	return misfit(rest, mt.Descriptor())
}

// decodes tries to make a message of a document.
func decodes(doc any, d protoreflect.MessageDescriptor) error {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(b, mt.New().Interface()); err != nil {
		return errors.New(jsonPlace.ReplaceAllString(strings.ReplaceAll(err.Error(), "\u00a0", " "), ""))
	}
	return nil
}

// jsonPlace is what protojson says of itself and of the place.
var jsonPlace = regexp.MustCompile(`^proto:\s*|(syntax error )?\(line \d+:\d+\): `)

// decodeBootstrap makes m of JSON, and says by its path what does not fit.
func decodeBootstrap(data []byte, m proto.Message) error {
	err := protojson.Unmarshal(data, m)
	if err == nil {
		return nil
	}
	var doc any
	if json.Unmarshal(data, &doc) != nil {
		return fmt.Errorf("bootstrap: decoding: %w", err)
	}
	err = locate(doc, m.ProtoReflect().Descriptor(), err)
	var fe *fieldError
	if errors.As(err, &fe) {
		return &Error{Kind: "bootstrap", Path: fe.path, Err: fe.err}
	}
	return fmt.Errorf("bootstrap: decoding: %w", err)
}
