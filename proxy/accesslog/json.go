package accesslog

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"
)

// object is a JSON object with a compiled value for each key, in the order of the keys.
type object struct {
	members   []member
	omitEmpty bool
	strings   bool
	newline   bool
}

type member struct {
	key   string // quoted, with the colon
	value jsonValue
}

// jsonValue is one of: an operator or text, an object, a list, constant JSON.
type jsonValue struct {
	ops    []op
	object *object
	list   []jsonValue
	fixed  string
}

// ParseJSON compiles a JSON format: an object whose strings are formats. A string that is a single
// operator gives a value of the operator's own type, or null where it is absent.
func ParseJSON(s *structpb.Struct, o Options) (*Format, error) {
	obj, err := parseObject(s, o)
	if err != nil {
		return nil, err
	}
	obj.newline = !o.NoNewline && !o.Headers
	return &Format{object: obj}, nil
}

func parseObject(s *structpb.Struct, o Options) (*object, error) {
	obj := &object{omitEmpty: o.OmitEmpty, strings: o.JSONStrings}
	for k, v := range s.GetFields() {
		x, err := parseValue(v, o)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", k, err)
		}
		obj.members = append(obj.members, member{quote(k) + ":", x})
	}
	slices.SortFunc(obj.members, func(a, b member) int {
		if a.key < b.key {
			return -1
		}
		return 1
	})
	return obj, nil
}

func parseValue(v *structpb.Value, o Options) (x jsonValue, err error) {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		if x.ops, err = parse(k.StringValue); err == nil && len(x.ops) == 0 {
			x.fixed = `""`
		}
	case *structpb.Value_StructValue:
		x.object, err = parseObject(k.StructValue, o)
	case *structpb.Value_ListValue:
		x.list = []jsonValue{}
		for i, e := range k.ListValue.GetValues() {
			y, err := parseValue(e, o)
			if err != nil {
				return x, fmt.Errorf("[%d]: %w", i, err)
			}
			x.list = append(x.list, y)
		}
	case *structpb.Value_NumberValue:
		x.fixed = strconv.FormatFloat(k.NumberValue, 'g', -1, 64)
	case *structpb.Value_BoolValue:
		x.fixed = strconv.FormatBool(k.BoolValue)
	default:
		x.fixed = "null"
	}
	return x, err
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // cannot happen for a string
		return `""`
	}
	return string(b)
}

func (o *object) append(dst []byte, e *Entry) []byte {
	dst = append(dst, '{')
	first := true
	for i := range o.members {
		m := &o.members[i]
		start := len(dst)
		if !first {
			dst = append(dst, ',')
		}
		dst = append(dst, m.key...)
		var ok bool
		if dst, ok = m.value.append(dst, e, o); !ok && o.omitEmpty {
			dst = dst[:start]
			continue
		}
		first = false
	}
	dst = append(dst, '}')
	if o.newline {
		dst = append(dst, '\n')
	}
	return dst
}

// append returns false if the value is absent, having appended what stands for that.
func (v *jsonValue) append(dst []byte, e *Entry, o *object) ([]byte, bool) {
	switch {
	case v.object != nil:
		return v.object.append(dst, e), true
	case v.list != nil:
		dst = append(dst, '[')
		for i := range v.list {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst, _ = v.list[i].append(dst, e, o)
		}
		return append(dst, ']'), true
	case v.ops == nil:
		return append(dst, v.fixed...), true
	case len(v.ops) == 1 && v.ops[0].fn != nil && !o.strings:
		return v.ops[0].appendJSON(dst, e)
	}
	dst = append(dst, '"')
	start := len(dst)
	for i := range v.ops {
		dst = v.ops[i].append(dst, e, o.omitEmpty)
	}
	return append(escape(dst, start), '"'), true
}

func (x *op) appendJSON(dst []byte, e *Entry) ([]byte, bool) {
	start := len(dst)
	if x.kind == text {
		dst = append(dst, '"')
	}
	value := len(dst)
	dst, ok := x.fn(dst, e)
	if !ok {
		return append(dst[:start], "null"...), false
	}
	if x.kind == number {
		return dst, true
	}
	if x.max > 0 && len(dst)-value > x.max {
		dst = dst[:value+x.max]
	}
	return append(escape(dst, value), '"'), true
}

const hexDigits = "0123456789abcdef"

// escape escapes what follows start in dst for a JSON string. Bytes that are not UTF-8 become \u00XX.
func escape(dst []byte, start int) []byte {
	i := start
	for i < len(dst) {
		c := dst[i]
		if c < 0x20 || c == '"' || c == '\\' {
			break
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(dst[i:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			i += n
			continue
		}
		i++
	}
	if i == len(dst) {
		return dst
	}
	rest := string(dst[i:]) // copied: what follows writes over it
	dst = dst[:i]
	for len(rest) > 0 {
		c := rest[0]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c >= utf8.RuneSelf:
			r, n := utf8.DecodeRuneInString(rest)
			if r == utf8.RuneError && n == 1 {
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
				break
			}
			dst = append(dst, rest[:n]...)
			rest = rest[n:]
			continue
		default:
			dst = append(dst, c)
		}
		rest = rest[1:]
	}
	return dst
}
