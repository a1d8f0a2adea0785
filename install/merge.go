package install

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// overlay returns base with over laid on it: maps merge key by key, null removes, lists replace,
// but lists of named things that files extend (gateways, env) merge by name.
func overlay(base, over map[string]any) map[string]any {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range over {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			b, _ := out[k].(map[string]any)
			out[k] = overlay(b, v)
		case []any:
			if b, ok := out[k].([]any); ok && (k == "ingressGateways" || k == "egressGateways" || k == "env") {
				out[k] = overlayNamed(b, v)
			} else {
				out[k] = v
			}
		default:
			out[k] = v
		}
	}
	return out
}

func overlayNamed(base, over []any) []any {
	out := append([]any(nil), base...)
next:
	for _, o := range over {
		om, _ := o.(map[string]any)
		for i, b := range out {
			bm, _ := b.(map[string]any)
			if bm != nil && om != nil && bm["name"] == om["name"] {
				if _, env := om["value"]; env {
					out[i] = om
				} else {
					out[i] = overlay(bm, om)
				}
				continue next
			}
		}
		out = append(out, o)
	}
	return out
}

// Set applies one --set argument, PATH=VALUE, to an IstioOperator file's spec, and returns the
// new spec. PATH is keys joined by dots (\. is a dot in a key), each with an optional [INDEX] or
// [KEY:VALUE] for a list: components.ingressGateways[name:istio-ingressgateway].enabled=false. In a list of
// scalars [:REGEXP] is the first item that it matches, as in Istio: args.[:--domain].
// VALUE is true, false, a number, JSON that starts with [ or {, or a string.
func Set(spec map[string]any, arg string) (map[string]any, error) {
	path, value, ok := strings.Cut(arg, "=")
	if !ok || path == "" {
		return nil, fmt.Errorf("--set %s: want PATH=VALUE", arg)
	}
	path = strings.TrimPrefix(path, "spec.")
	v, err := setValue(value)
	if err != nil {
		return nil, fmt.Errorf("--set %s: %w", arg, err)
	}
	out, err := setPath(spec, path, v)
	if err != nil {
		return nil, fmt.Errorf("--set %s: %w", arg, err)
	}
	return out.(map[string]any), nil
}

func setValue(s string) (any, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	case "null":
		return nil, nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && strconv.FormatInt(n, 10) == s {
		return n, nil
	}
	if strings.HasPrefix(s, "[") || strings.HasPrefix(s, "{") {
		var v any
		if err := json.Unmarshal([]byte(s), &v); err != nil {
			return nil, fmt.Errorf("value is not JSON: %w", err)
		}
		return v, nil
	}
	return s, nil
}

// A step of a path goes into a map by key, or into a list by index or by an item's field.
type step struct {
	key        string
	index      int // in a list, if key is ""; -1 with match
	field, val string
	leaf       *regexp.Regexp // matches one scalar of a list, instead of the above
}

func parsePath(path string) (steps []step, err error) {
	var key strings.Builder
	flush := func() {
		if key.Len() > 0 {
			steps = append(steps, step{key: key.String()})
			key.Reset()
		}
	}
	for i := 0; i < len(path); i++ {
		switch c := path[i]; c {
		case '\\':
			if i++; i < len(path) {
				key.WriteByte(path[i])
			}
		case '.':
			if key.Len() == 0 && (i == 0 || path[i-1] == '.') {
				return nil, fmt.Errorf("path %q has an empty part", path)
			}
			flush()
		case '[':
			flush()
			end := strings.IndexByte(path[i:], ']')
			if end < 0 {
				return nil, fmt.Errorf("path %q: [ without ]", path)
			}
			in := path[i+1 : i+end]
			i += end
			if v, ok := strings.CutPrefix(in, ":"); ok {
				leaf, err := regexp.Compile(v)
				if err != nil || v == "" {
					return nil, fmt.Errorf("path %q: [%s] is not a regular expression that selects an item", path, in)
				}
				steps = append(steps, step{index: -1, leaf: leaf})
			} else if f, v, ok := strings.Cut(in, ":"); ok && f != "" {
				steps = append(steps, step{index: -1, field: f, val: v})
			} else if n, err := strconv.Atoi(in); err == nil && n >= 0 && n < 1000 {
				steps = append(steps, step{index: n})
			} else if strings.Contains(in, ".") || strings.Contains(in, "/") {
				steps = append(steps, step{key: in}) // a key that holds dots
			} else {
				return nil, fmt.Errorf("path %q: [%s] is neither an index nor KEY:VALUE", path, in)
			}
		default:
			key.WriteByte(c)
		}
	}
	flush()
	if len(steps) == 0 {
		return nil, fmt.Errorf("path %q is empty", path)
	}
	return steps, nil
}

// setPath returns tree with v at path; a nil v removes. It does not write to tree.
func setPath(tree any, path string, v any) (any, error) {
	steps, err := parsePath(path)
	if err != nil {
		return nil, err
	}
	return setSteps(tree, steps, v, "")
}

func setSteps(tree any, steps []step, v any, at string) (any, error) {
	if len(steps) == 0 {
		return v, nil
	}
	s, rest := steps[0], steps[1:]
	if s.key != "" {
		m, ok := tree.(map[string]any)
		if !ok && tree != nil {
			return nil, fmt.Errorf("%s is not a map", strings.TrimPrefix(at, "."))
		}
		m = maps.Clone(m)
		if m == nil {
			m = map[string]any{}
		}
		x, err := setSteps(m[s.key], rest, v, at+"."+s.key)
		if err != nil {
			return nil, err
		}
		if m[s.key] = x; x == nil {
			delete(m, s.key)
		}
		return m, nil
	}
	l, ok := tree.([]any)
	if !ok && tree != nil {
		return nil, fmt.Errorf("%s is not a list", strings.TrimPrefix(at, "."))
	}
	l = append([]any(nil), l...)
	i := s.index
	switch {
	case s.leaf != nil:
		if i = slices.IndexFunc(l, s.selects); i < 0 {
			return nil, fmt.Errorf("%s has no item that matches %s", strings.TrimPrefix(at, "."), s.leaf)
		}
	case i < 0:
		for i = 0; i < len(l); i++ {
			if m, ok := l[i].(map[string]any); ok && fmt.Sprint(m[s.field]) == s.val {
				break
			}
		}
		if i == len(l) {
			l = append(l, map[string]any{s.field: s.val})
		}
	}
	if i > len(l) {
		return nil, fmt.Errorf("%s has %d items, no [%d]", strings.TrimPrefix(at, "."), len(l), i)
	}
	if i == len(l) {
		l = append(l, nil)
	}
	x, err := setSteps(l[i], rest, v, fmt.Sprintf("%s[%d]", at, i))
	if err != nil {
		return nil, err
	}
	if x == nil {
		return append(l[:i], l[i+1:]...), nil
	}
	l[i] = x
	return l, nil
}

// selects reports whether an item of a list is a scalar that the step's expression matches.
func (s step) selects(item any) bool {
	switch item.(type) {
	case map[string]any, []any:
		return false
	}
	return s.leaf.MatchString(fmt.Sprint(item))
}
