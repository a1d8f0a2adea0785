package inject

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// maxManifest bounds one document.
const maxManifest = 16 << 20

// Manifest reads YAML or JSON documents and writes them as YAML with every pod template in
// them injected: Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController,
// Job, CronJob, and Lists of these. Other documents are written unchanged. warn (may be nil)
// is told what was left without a proxy, and why.
func Manifest(in io.Reader, out io.Writer, p Params, warn func(string)) error {
	if warn == nil {
		warn = func(string) {}
	}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(io.LimitReader(in, maxManifest)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		result, err := manifestDoc(doc, p, warn)
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		if _, err := fmt.Fprintf(out, "%s\n---\n", bytes.TrimRight(result, "\n")); err != nil {
			return err
		}
	}
}

func manifestDoc(doc []byte, p Params, warn func(string)) ([]byte, error) {
	var obj map[string]any
	if err := yaml.Unmarshal(doc, &obj); err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	changed, err := injectObject(obj, p, warn)
	if err != nil {
		return nil, err
	}
	if !changed {
		return doc, nil
	}
	result, err := yaml.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("writing YAML: %w", err)
	}
	return result, nil
}

// templatePath is where a kind keeps its pod.
var templatePath = map[string][]string{
	"Pod":                   {},
	"Deployment":            {"spec", "template"},
	"StatefulSet":           {"spec", "template"},
	"DaemonSet":             {"spec", "template"},
	"ReplicaSet":            {"spec", "template"},
	"ReplicationController": {"spec", "template"},
	"Job":                   {"spec", "template"},
	"CronJob":               {"spec", "jobTemplate", "spec", "template"},
}

// injectObject changes obj in place.
func injectObject(obj map[string]any, p Params, warn func(string)) (changed bool, err error) {
	kind, _ := obj["kind"].(string)
	if kind == "List" {
		items, _ := obj["items"].([]any)
		for i, it := range items {
			item, ok := it.(map[string]any)
			if !ok {
				return false, fmt.Errorf("List: items[%d] is no object", i)
			}
			c, err := injectObject(item, p, warn)
			if err != nil {
				return false, fmt.Errorf("items[%d]: %w", i, err)
			}
			changed = changed || c
		}
		return changed, nil
	}
	path, ok := templatePath[kind]
	if !ok {
		return false, nil
	}
	meta, _ := obj["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	namespace, _ := meta["namespace"].(string)
	version, _ := obj["apiVersion"].(string)
	at := obj
	for _, step := range path {
		if at, ok = at[step].(map[string]any); !ok {
			return false, fmt.Errorf("%s %s: %s is missing", kind, name, strings.Join(path, "."))
		}
	}
	var pod corev1.Pod
	data, err := json.Marshal(map[string]any{"metadata": at["metadata"], "spec": at["spec"]})
	if err == nil {
		err = json.Unmarshal(data, &pod)
	}
	if err != nil {
		return false, fmt.Errorf("%s %s: its pod: %w", kind, name, err)
	}
	if ok, why := Wanted(&pod, namespace, p); !ok {
		warn(fmt.Sprintf("%s %s is not injected: %s", kind, name, why))
		return false, nil
	}
	for _, n := range Notes(&pod, namespace, p) {
		warn(fmt.Sprintf("%s %s: %s", kind, name, n))
	}
	w := Workload{APIVersion: version, Kind: kind, Name: name}
	result, err := injectFor(&pod, namespace, w, p)
	if err != nil {
		return false, fmt.Errorf("%s %s: %w", kind, name, err)
	}
	g, err := generic(result)
	if err != nil {
		return false, fmt.Errorf("%s %s: %w", kind, name, err)
	}
	if m, ok := g["metadata"].(map[string]any); ok {
		delete(m, "creationTimestamp")
	}
	at["metadata"], at["spec"] = g["metadata"], g["spec"]
	return true, nil
}
