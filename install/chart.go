package install

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Charts renders the Helm charts base, istiod and gateway, with the names that Istio's charts give
// their values. Their templates are what Render gives for settings that are marks, with the marks
// replaced by expressions, so that a chart holds what an installation holds. Keys are paths like
// istiod/templates/default.yaml. version is the charts' and the default tag.
func Charts(version string) (map[string][]byte, error) {
	files := map[string][]byte{}
	release := version
	if !strings.ContainsAny(version, ".") {
		release = "0.0.0-" + version // of a build from source; Helm wants a semantic version
	}
	for _, add := range []func(version string, files map[string][]byte) error{chartBase, chartIstiod, chartGateway} {
		if err := add(version, files); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"base", "istiod", "gateway"} {
		files[name+"/Chart.yaml"] = []byte(fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\nappVersion: %q\ndescription: %s\nkubeVersion: \">=1.22.0-0\"\n", name, release, version, map[string]string{
			"base": "CRDs and what all control planes of a cluster share", "istiod": "Carrick's control plane", "gateway": "A gateway of Carrick's",
		}[name]))
	}
	return files, nil
}

// mark stands for an expression until the YAML is written. It is a word that no setting has, and
// passes for a name.
func mark(name string) string { return "MARK" + name + "KRAM" }

// chart turns objects with marks into a template.
type chart struct {
	inline map[string]string // marks within a value: an expression
	lines  map[string]string // marks that are a whole value: template text for the line, with ‹key› and ‹in›, its indent
}

// hole marks the value at a path of an object, to be replaced by text. It returns an error if the path
// leads nowhere.
func (t *chart) hole(o *unstructured.Unstructured, path, text string) error {
	m := mark(fmt.Sprintf("%d", len(t.lines)))
	t.lines[m] = text
	out, err := setPath(o.Object, path, m)
	if err != nil {
		return fmt.Errorf("chart: %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	o.Object = out.(map[string]any)
	return nil
}

// template writes objects, each in the condition that when gives for it ("" for always).
func (t *chart) template(objs []*unstructured.Unstructured, when func(*unstructured.Unstructured) string) (string, error) {
	var b strings.Builder
	for _, o := range objs {
		y, err := yaml.Marshal(o.Object)
		if err != nil {
			return "", err
		}
		text := t.fill(string(y))
		if cond := when(o); cond != "" {
			fmt.Fprintf(&b, "{{- if %s }}\n---\n%s{{- end }}\n", cond, text)
		} else {
			fmt.Fprintf(&b, "---\n%s", text)
		}
	}
	return b.String(), nil
}

func (t *chart) fill(text string) string {
	var b strings.Builder
next:
	for line := range strings.Lines(text) {
		for m, with := range t.lines {
			if !strings.Contains(line, m) {
				continue
			}
			body := strings.TrimLeft(line, " ")
			indent := line[:len(line)-len(body)]
			if first, ok := strings.CutPrefix(body, "- "); ok { // of an item, which stands on a line of its own
				b.WriteString(indent + "-\n")
				indent, body = indent+"  ", first
			}
			key, _, _ := strings.Cut(body, ":")
			with = strings.ReplaceAll(with, "‹in›", indent)
			b.WriteString(strings.ReplaceAll(with, "‹key›", key) + "\n")
			continue next
		}
		b.WriteString(t.fillInline(line))
	}
	return b.String()
}

// fillInline puts expressions in the place of marks, in quotes where one is the whole value.
func (t *chart) fillInline(s string) string {
	for m, expr := range t.inline {
		s = strings.ReplaceAll(s, ": "+m+"\n", ": {{ "+expr+" | quote }}\n")
		s = strings.ReplaceAll(s, m, "{{ "+expr+" }}")
	}
	return s
}

// expr writes a value with marks as an expression.
func (t *chart) expr(v any) string {
	switch v := v.(type) {
	case map[string]any:
		s := "(dict"
		for _, k := range slices.Sorted(maps.Keys(v)) {
			s += fmt.Sprintf(" %q %s", k, t.expr(v[k]))
		}
		return s + ")"
	case []any:
		s := "(list"
		for _, x := range v {
			s += " " + t.expr(x)
		}
		return s + ")"
	case string:
		return t.concat(v)
	}
	return fmt.Sprint(v)
}

// concat writes a string with marks as an expression.
func (t *chart) concat(s string) string {
	for _, m := range slices.Sorted(maps.Keys(t.inline)) {
		if before, after, ok := strings.Cut(s, m); ok {
			if before == "" && after == "" {
				return "(" + t.inline[m] + ")"
			}
			return fmt.Sprintf("(print %s (%s) %s)", t.concat(before), t.inline[m], t.concat(after))
		}
	}
	return fmt.Sprintf("%q", s)
}

// with is the text of a key that is there if a value is not empty.
func with(value string) string {
	return "{{- with " + value + " }}\n‹in›‹key›:\n{{ toYaml . | indent WIDTH }}\n{{- end }}"
}

// block is with, indented for a key at a depth.
func block(value string, depth int) string {
	return strings.ReplaceAll(with(value), "WIDTH", fmt.Sprint(2*depth))
}

func always(*unstructured.Unstructured) string { return "" }

// pullSecretsText lists values as references of Secrets.
func pullSecretsText(value string) string {
	return "{{- with " + value + " }}\n‹in›‹key›:\n{{- range . }}\n‹in›- name: {{ . }}\n{{- end }}\n{{- end }}"
}

func chartBase(version string, files map[string][]byte) error {
	t := &chart{inline: map[string]string{mark("namespace"): ".Release.Namespace"}, lines: map[string]string{}}
	c, err := Resolve(nil, []string{"profile=empty", "components.base.enabled=true", "values.global.imagePullSecrets=[\"" + mark("pull") + "\"]", "namespace=" + mark("namespace")}, version)
	if err != nil {
		return err
	}
	m, err := c.Render()
	if err != nil {
		return err
	}
	var crds, rest []*unstructured.Unstructured
	for _, o := range m.Objects() {
		switch o.GetKind() {
		case "Namespace": // helm install --create-namespace
		case "CustomResourceDefinition":
			a := o.GetAnnotations()
			if a == nil {
				a = map[string]string{}
			}
			a["helm.sh/resource-policy"] = "keep" // users' objects would go with it
			o.SetAnnotations(a)
			crds = append(crds, o)
		default:
			if o.GetKind() == "ServiceAccount" {
				if err := t.hole(o, "imagePullSecrets", pullSecretsText(".Values.global.imagePullSecrets")); err != nil {
					return err
				}
			}
			rest = append(rest, o)
		}
	}
	for name, objs := range map[string][]*unstructured.Unstructured{"crds": crds, "reader": rest} {
		text, err := t.template(objs, always)
		if err != nil {
			return err
		}
		files["base/templates/"+name+".yaml"] = []byte(text)
	}
	files["base/values.yaml"] = []byte("global:\n  imagePullSecrets: []\n")
	return nil
}

// webhookText writes webhooks as a list whose last item is there on a condition.
func (t *chart) webhookText(hooks []any, last string) (string, error) {
	var b strings.Builder
	b.WriteString("‹in›‹key›:\n")
	for i, h := range hooks {
		y, err := yaml.Marshal([]any{h})
		if err != nil {
			return "", err
		}
		text := t.fillInline(string(y))
		if i == len(hooks)-1 && last != "" {
			text = "{{- if " + last + " }}\n" + text + "{{- end }}\n"
		}
		b.WriteString(text)
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// envText writes a list of environment variables, of which a map of values replaces some and adds
// others.
func (t *chart) envText(env []any, values string, depth int) (string, error) {
	var b strings.Builder
	indent := strings.Repeat(" ", 2*depth)
	fmt.Fprintf(&b, "{{- $env := %s | default dict }}\n‹in›‹key›:\n", values)
	for _, e := range env {
		y, err := yaml.Marshal([]any{e})
		if err != nil {
			return "", err
		}
		name := e.(map[string]any)["name"]
		fmt.Fprintf(&b, "{{- if not (hasKey $env %q) }}\n", name)
		for line := range strings.Lines(t.fillInline(string(y))) {
			b.WriteString(indent + line)
		}
		b.WriteString("{{- end }}\n")
	}
	fmt.Fprintf(&b, "{{- range $k, $v := $env }}\n%s- name: {{ $k }}\n%[1]s  value: {{ $v | quote }}\n{{- end }}", indent)
	return b.String(), nil
}

// jsonTree returns v as a tree of JSON's types.
func jsonTree(v any) (out any, err error) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	return out, err
}
