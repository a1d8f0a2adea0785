package diagnose

import (
	"encoding/json"
	"fmt"
	"strings"
)

// A tree is JSON as it came. Config dumps hold messages of any extension that a proxy may have,
// so they are read by the fields that are looked for, not by a schema.
type tree = map[string]any

// at follows keys; nil where there is nothing.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(tree)
		v = m[k]
	}
	return v
}

func str(v any, keys ...string) string {
	switch x := at(v, keys...).(type) {
	case string:
		return x
	case json.Number:
		return x.String()
	case float64:
		return fmt.Sprint(x)
	}
	return ""
}

func list(v any, keys ...string) []any {
	l, _ := at(v, keys...).([]any)
	return l
}

func strs(v any, keys ...string) (out []string) {
	for _, x := range list(v, keys...) {
		if s, ok := x.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// typeName is the last part of an Any's type.
func typeName(v any) string {
	t := str(v, "@type")
	return t[strings.LastIndexAny(t, "./")+1:]
}

// Camel returns v with the field names of the JSON mapping of protobuf (routeConfig for
// route_config), as istioctl prints resources. Keys that are users' data stay: those of structs
// (metadata, JSON log formats) and those of maps by extension name, which hold dots.
func Camel(v any) any {
	switch v := v.(type) {
	case tree:
		out := tree{}
		for k, x := range v {
			switch k {
			case "filter_metadata", "json_format", "typed_json_format", "value_struct":
				out[camelKey(k)] = x
			case "metadata":
				if _, typed := x.(tree)["filter_metadata"]; !typed && x != nil {
					out[k] = x // a node's
				} else {
					out[k] = Camel(x)
				}
			default:
				out[camelKey(k)] = Camel(x)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = Camel(x)
		}
		return out
	}
	return v
}

func camelKey(k string) string {
	if !strings.Contains(k, "_") || strings.ContainsAny(k, "./") || k != strings.ToLower(k) {
		return k
	}
	parts := strings.Split(k, "_")
	for i, p := range parts[1:] {
		if p != "" {
			parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
		}
	}
	return strings.Join(parts, "")
}
