package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// checkOutput refuses a value of -o that is not one of may, of which "" stands for none.
func checkOutput(have string, may ...string) error {
	if slices.Contains(may, have) {
		return nil
	}
	may = slices.DeleteFunc(slices.Clone(may), func(s string) bool { return s == "" })
	last := len(may) - 1
	return usagef("-o %s: is not %s or %s", have, strings.Join(may[:last], ", "), may[last])
}

// structured reports whether a value of -o asks for JSON or YAML.
func structured(output string) bool { return output == "json" || output == "yaml" }

// printValue prints a value as JSON or YAML.
func printValue(w io.Writer, v any, output string) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil && output == "yaml" {
		b, err = yaml.JSONToYAML(b)
	}
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	_, err = fmt.Fprintln(w, strings.TrimSpace(string(b)))
	return err
}

// survey asks the cluster that the flags pick, or with all every one of the kubeconfig, and prints
// the answers: shown, each under a line that names its cluster, or as one JSON or YAML value, with
// all an object with a field for each context.
func survey[T any](t *targetFlags, cmd *cobra.Command, all bool, output string, ask func(*cluster) (T, error), show func(T) error) error {
	if !structured(output) {
		return t.each(cmd, all, func(c *cluster) error {
			v, err := ask(c)
			if err != nil {
				return err
			}
			return show(v)
		})
	}
	if !all {
		c, err := t.connect(cmd)
		if err != nil {
			return err
		}
		v, err := ask(c)
		if err != nil {
			return err
		}
		return printValue(cmd.OutOrStdout(), v, output)
	}
	names, err := t.everyContext(cmd)
	if err != nil {
		return err
	}
	answers := map[string]T{}
	var errs []error
	for _, name := range names {
		c, err := t.connectTo(name)
		if err == nil {
			var v T
			if v, err = ask(c); err == nil {
				answers[name] = v
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, printValue(cmd.OutOrStdout(), answers, output))...)
}

// everyContext returns the contexts for --all-contexts.
func (t *targetFlags) everyContext(cmd *cobra.Command) ([]string, error) {
	if f := cmd.Flag("context"); f != nil && f.Changed {
		return nil, usagef("--context and --all-contexts exclude each other; leave one out")
	}
	names, err := t.contexts()
	if err == nil && len(names) == 0 {
		err = errNoCluster
	}
	return names, err
}

var errNoCluster = errors.New("no cluster is configured; set KUBECONFIG, or give --kubeconfig FILE")
