// Package accesslog turns Envoy access-log formats into lines: it knows the format language and
// how lines reach a file. It does not know connections or requests; whoever serves them fills an Entry.
package accesslog

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// DefaultFormat is Envoy's own, for loggers that give none.
const DefaultFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" ` +
	`%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ` +
	`%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" ` +
	`"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"` + "\n"

// Options say how a format is used.
type Options struct {
	Headers     bool // for a header's value: like OmitEmpty and NoNewline
	OmitEmpty   bool // what is absent is left out instead of "-" (JSON: instead of null)
	NoNewline   bool // no newline after a JSON object
	JSONStrings bool // JSON values are all strings
}

// Format is a compiled format. Immutable, safe for concurrent use.
type Format struct {
	ops       []op
	object    *object // instead of ops, for JSON
	omitEmpty bool
}

// op is a literal or an operator.
type op struct {
	lit  string
	fn   valueFunc // nil for a literal
	max  int       // bytes kept of the value; 0: all
	kind kind
}

// valueFunc appends a value, or returns false if the entry does not have it.
type valueFunc func(dst []byte, e *Entry) ([]byte, bool)

// kind says how a value is written in JSON.
type kind uint8

const (
	text kind = iota
	number
)

// operator is Envoy's grammar: %NAME(ARGUMENT):LENGTH%.
var operator = regexp.MustCompile(`^%([A-Z0-9_]+)(?:\(([^)]*)\))?(?::([0-9]+))?%`)

// Parse compiles a text format.
func Parse(format string, o Options) (*Format, error) {
	ops, err := parse(format)
	if err != nil {
		return nil, err
	}
	return &Format{ops: ops, omitEmpty: o.OmitEmpty || o.Headers}, nil
}

func parse(format string) ([]op, error) {
	var ops []op
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			ops = append(ops, op{lit: lit.String()})
			lit.Reset()
		}
	}
	for i := 0; i < len(format); {
		if format[i] != '%' {
			lit.WriteByte(format[i])
			i++
			continue
		}
		if strings.HasPrefix(format[i:], "%%") {
			lit.WriteByte('%')
			i += 2
			continue
		}
		m := operator.FindStringSubmatchIndex(format[i:])
		if m == nil {
			return nil, fmt.Errorf("has no operator at %q", clip(format[i:]))
		}
		group := func(n int) (string, bool) {
			if m[2*n] < 0 {
				return "", false
			}
			return format[i+m[2*n] : i+m[2*n+1]], true
		}
		name, _ := group(1)
		arg, hasArg := group(2)
		length, _ := group(3)
		x, err := compileOperator(name, arg, hasArg)
		if err != nil {
			return nil, fmt.Errorf("%%%s%%: %w", name, err)
		}
		if length != "" {
			if x.max, err = strconv.Atoi(length); err != nil || x.max > 1<<20 {
				return nil, fmt.Errorf("%%%s%%: length %s is too large", name, length)
			}
			if x.max == 0 {
				x.fn = func(dst []byte, _ *Entry) ([]byte, bool) { return dst, true }
			}
		}
		flush()
		ops = append(ops, x)
		i += m[1]
	}
	flush()
	return ops, nil
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// Constant returns the text of a format without operators.
func (f *Format) Constant() (string, bool) {
	switch {
	case f.object != nil || len(f.ops) > 1 || len(f.ops) == 1 && f.ops[0].fn != nil:
		return "", false
	case len(f.ops) == 0:
		return "", true
	}
	return f.ops[0].lit, true
}

// Append appends the line of e.
func (f *Format) Append(dst []byte, e *Entry) []byte {
	if f.object != nil {
		return f.object.append(dst, e)
	}
	for i := range f.ops {
		dst = f.ops[i].append(dst, e, f.omitEmpty)
	}
	return dst
}

func (o *op) append(dst []byte, e *Entry, omitEmpty bool) []byte {
	if o.fn == nil {
		return append(dst, o.lit...)
	}
	start := len(dst)
	dst, ok := o.fn(dst, e)
	if !ok {
		if omitEmpty {
			return dst[:start]
		}
		return append(dst[:start], '-')
	}
	if o.max > 0 && len(dst)-start > o.max {
		dst = dst[:start+o.max]
	}
	return dst
}
