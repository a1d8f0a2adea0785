package diagnose

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// Difference is how two dumps differ in one kind of resources; no lines: they do not.
type Difference struct {
	Kind  string // Clusters, Listeners or Routes
	Lines []string
}

// maxLines bounds what Compare says of a kind, and of a resource.
const maxLines = 40

// Compare says how what a proxy has differs from what the control plane sent it: which clusters,
// listeners and route configurations are at one side only, and which fields have other values.
// Resources of the proxy's own bootstrap are left out.
func Compare(sent, has *Dump) []Difference {
	return []Difference{
		compareKind("Clusters", sent.Clusters, has.Clusters, func(n string) bool { return has.own["clusters/"+n] }),
		compareKind("Listeners", sent.Listeners, has.Listeners, func(n string) bool { return has.own["listeners/"+n] }),
		compareKind("Routes", sent.Routes, has.Routes, func(n string) bool { return n == "" }),
	}
}

func compareKind(kind string, sent, has []any, own func(string) bool) Difference {
	d := Difference{Kind: kind}
	byName := func(all []any) map[string]any {
		m := map[string]any{}
		for _, r := range all {
			if n := str(r, "name"); !own(n) {
				m[n] = r
			}
		}
		return m
	}
	a, b := byName(sent), byName(has)
	names := slices.Collect(maps.Keys(a))
	for n := range b {
		if a[n] == nil {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		switch {
		case b[n] == nil:
			d.Lines = append(d.Lines, n+": the control plane sent it, the proxy does not have it")
		case a[n] == nil && kind == "Routes":
			// Those inside of listeners are listed by proxies, too.
		case a[n] == nil:
			d.Lines = append(d.Lines, n+": the proxy has it, the control plane did not send it")
		default:
			var lines []string
			compareTrees("", normal(a[n]), normal(b[n]), &lines)
			for _, l := range lines {
				d.Lines = append(d.Lines, n+l)
			}
		}
	}
	if n := len(d.Lines); n > maxLines {
		d.Lines = append(d.Lines[:maxLines], fmt.Sprintf("… and %d more", n-maxLines))
	}
	return d
}

// normal drops what dumps say in different ways: types of the outermost message.
func normal(v any) any {
	m, ok := v.(tree)
	if !ok {
		return v
	}
	m = maps.Clone(m)
	delete(m, "@type")
	return m
}

// compareTrees appends ": PATH: sent X, has Y" for each leaf that differs.
func compareTrees(path string, a, b any, lines *[]string) {
	if len(*lines) >= maxLines {
		return
	}
	switch x := a.(type) {
	case tree:
		if y, ok := b.(tree); ok {
			keys := slices.Collect(maps.Keys(x))
			for k := range y {
				if _, ok := x[k]; !ok {
					keys = append(keys, k)
				}
			}
			slices.Sort(keys)
			for _, k := range keys {
				compareTrees(path+"."+k, x[k], y[k], lines)
			}
			return
		}
	case []any:
		if y, ok := b.([]any); ok && len(x) == len(y) {
			for i := range x {
				compareTrees(fmt.Sprintf("%s[%d]", path, i), x[i], y[i], lines)
			}
			return
		}
	}
	s, t := short(a), short(b)
	if full(a) != full(b) {
		*lines = append(*lines, fmt.Sprintf(": %s: sent %s, has %s", path[min(1, len(path)):], s, t))
	}
}

func full(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

func short(v any) string {
	s := full(v)
	if v == nil {
		s = "nothing"
	}
	if len(s) > 120 {
		s = s[:120] + "…"
	}
	return s
}
