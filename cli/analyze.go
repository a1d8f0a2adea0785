package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/carrick-mesh/carrick/schema"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// message is one finding, as analyze prints it.
type message struct {
	Level   string `json:"level"`          // Error, Warning, Info: as istioctl has them
	Code    string `json:"code,omitempty"` // Istio's, such as IST0101
	Origin  string `json:"origin"`         // KIND NAMESPACE/NAME
	Cluster string `json:"cluster,omitempty"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

func messageOf(level string, f mesh.Finding) message {
	name := f.Object.Name
	if f.Object.Namespace != "" {
		name = f.Object.Namespace + "/" + name
	}
	code := f.Code
	if code == "" && level == "Error" {
		code = "IST0106" // what is refused is what Istio's schema refuses
	}
	if f.Level != "" {
		level = f.Level
	}
	if l := levels[code]; l != "" {
		level = l
	}
	return message{level, code, f.Object.Kind + " " + name, f.Object.Cluster, f.Field, f.Message, f.Fix}
}

func (a *app) analyze() *cobra.Command {
	var all, useKube, recursive, everywhere bool
	var output, threshold string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "analyze [FILE...]",
		Short: "Finds what is wrong with a mesh's configuration, in a cluster and in files",
		Long: `Reads a cluster as its control plane does, with the clusters that it watches, adds the objects of files
as if they were applied, and lists what is refused, what does not fit together, and what keeps sidecars out
of where they are meant to be, with the codes and levels of istioctl. The exit code is 1 if there is an Error
(--failure-threshold: or a Warning, or an Info). Files may be directories, of which the .yaml, .yml and .json
files are read, with --recursive also those below. Without a cluster (--use-kube=false) objects are checked
by themselves and against each other: what they refer to has to be in the files.`,
		Example: "  carrick analyze --context=cluster1 -A\n  carrick analyze gateway.yaml\n  carrick analyze --use-kube=false --recursive config/",
		RunE: func(cmd *cobra.Command, files []string) error {
			if err := checkOutput(output, "log", "json", "yaml"); err != nil {
				return err
			}
			threshold := slices.Index(order, threshold)
			if threshold < 0 {
				return usagef("--failure-threshold: is not Info, Warning or Error")
			}
			objects, err := readDocuments(cmd, files, recursive)
			if err != nil {
				return err
			}
			if !useKube {
				if len(files) == 0 {
					return usagef("there is nothing to analyze: give files, or leave --use-kube on")
				}
				return printMessages(cmd.OutOrStdout(), alone(objects), "", output, threshold)
			}
			ask := func(c *cluster) ([]message, error) {
				found, err := a.live(cmd.Context(), c, objects, timeout)
				if err != nil {
					return nil, c.wrong(err)
				}
				namespace := ""
				if !all {
					namespace = c.namespace
				}
				return inOrder(found, namespace), nil
			}
			if !everywhere {
				c, err := a.target.connect(cmd)
				if err != nil {
					return err
				}
				found, err := ask(c)
				if err != nil {
					return err
				}
				namespace := ""
				if !all {
					namespace = c.namespace
				}
				return printMessages(cmd.OutOrStdout(), found, namespace, output, threshold)
			}
			failed := false
			err = survey(&a.target, cmd, true, output, func(c *cluster) ([]message, error) {
				found, err := ask(c)
				failed = failed || reaches(found, threshold)
				return found, err
			}, func(found []message) error {
				printLines(cmd.OutOrStdout(), found, "")
				return nil
			})
			if err == nil && failed {
				err = silent{errFound}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&everywhere, "all-contexts", false, "analyze every cluster of the kubeconfig")
	cmd.Flags().BoolVarP(&recursive, "recursive", "R", false, "read directories with those below them")
	cmd.Flags().StringVar(&threshold, "failure-threshold", "Error", "the lowest level that makes the exit code 1: Info, Warning or Error")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "objects of all namespaces (default that of --namespace or the context)")
	cmd.Flags().BoolVarP(&useKube, "use-kube", "k", true, "read the cluster")
	cmd.Flags().StringVarP(&output, "output", "o", "log", "log, json or yaml")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to read the clusters")
	return cmd
}

func (a *app) validate() *cobra.Command {
	var files []string
	var recursive bool
	var output string
	cmd := &cobra.Command{
		Use:     "validate -f FILE",
		Aliases: []string{"v"},
		Short:   "Checks Istio's objects in files, and against each other, without a cluster",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usagef("-f FILE is missing")
			}
			if err := checkOutput(output, "log", "json", "yaml"); err != nil {
				return err
			}
			objects, err := readDocuments(cmd, files, recursive)
			if err != nil {
				return err
			}
			return printMessages(cmd.OutOrStdout(), mild(alone(objects)), "", output, slices.Index(order, "Error"))
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "files and directories to check; - is standard input")
	cmd.Flags().BoolVarP(&recursive, "recursive", "R", false, "read directories with those below them")
	cmd.Flags().StringVarP(&output, "output", "o", "log", "log, json or yaml")
	return cmd
}

func messages(level string, fs []mesh.Finding) (out []message) {
	for _, f := range fs {
		out = append(out, messageOf(level, f))
	}
	return out
}

// live reads the clusters as the control plane does until there is nothing more to read, then
// applies the objects of files on top.
func (a *app) live(ctx context.Context, c *cluster, objects []*unstructured.Unstructured, timeout time.Duration) (out []message, err error) {
	cfg, err := installed(ctx, c, a.target.istioNamespace, a.version)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	snap := mesh.New(mesh.Settings{Cluster: cfg.Cluster, SystemNamespace: a.target.istioNamespace, Domain: cfg.Domain(), Check: compile.Trial})
	said := map[mesh.Key][]mesh.Finding{}
	sink := kube.Sink{
		Events:   func(es []mesh.Event) { mu.Lock(); defer mu.Unlock(); snap = snap.Apply(es...) },
		Findings: func(k mesh.Key, fs []mesh.Finding) { mu.Lock(); defer mu.Unlock(); said[k] = fs },
	}
	clusters := kube.NewClusters(kube.Local{ID: cfg.Cluster, Config: c.config, Namespace: a.target.istioNamespace}, sink, slog.New(slog.DiscardHandler))
	run, stop := context.WithTimeout(ctx, timeout)
	done := make(chan error, 1)
	go func() { done <- clusters.Run(run) }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	settle := func() {
		for !clusters.Settled() {
			select {
			case <-run.Done():
				return
			case <-tick.C:
			}
		}
	}
	settle()
	es, bad := decode(objects, cfg.Cluster)
	mu.Lock()
	namespaces := compile.CredentialNamespaces(snap.Apply(es...))
	mu.Unlock()
	clusters.ReadCredentials(namespaces)
	settle()
	unreadable := clusters.Unreadable()
	late := run.Err() != nil
	stop()
	if err := <-done; err != nil {
		return nil, err
	}
	if late {
		return nil, fmt.Errorf("the clusters could not be read within %v; give a longer --timeout, and see carrick remote-clusters --context=%s", timeout, c.context)
	}
	for _, fs := range said {
		out = append(out, messages("Warning", fs)...)
	}
	snap = snap.Apply(es...)
	out = append(append(out, bad...), messages("Error", snap.Findings())...)
	out = append(out, messages("Warning", slices.Concat(snap.WithoutEffect(), compile.Check(snap, unreadable)))...)
	out = append(out, a.analyzeProxies(ctx, c)...)
	more, err := a.analyzeInjection(ctx, c, cfg.Cluster)
	return append(out, more...), err
}

// readDocuments reads the objects of files. What is no YAML is an error.
func readDocuments(cmd *cobra.Command, names []string, recursive bool) (objects []*unstructured.Unstructured, err error) {
	files, err := filesOf(names, recursive)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		b, err := readFile(cmd, file, install.MaxFile)
		if err != nil {
			return nil, err
		}
		docs := kubeyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(b)))
		for n := 1; ; n++ {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: document %d: %w", file, n, err)
			}
			u := &unstructured.Unstructured{}
			if err := yaml.Unmarshal(doc, &u.Object); err != nil {
				return nil, fmt.Errorf("%s: document %d: %s", file, n, oneLine(err))
			}
			if k, _ := schema.Of(u.GroupVersionKind().Group, u.GetKind()); u.GetNamespace() == "" && !k.ClusterScoped {
				u.SetNamespace("default")
			}
			objects = append(objects, u)
		}
	}
	return objects, nil
}

// decode reads objects of files as the control plane of the cluster would, and what kubectl would
// not let pass. Kinds that the mesh has nothing to do with are left out.
func decode(objects []*unstructured.Unstructured, cluster string) (es []mesh.Event, bad []message) {
	for _, u := range objects {
		o, found, _ := kube.Decode(cluster, u)
		bad = append(bad, messages("Error", found)...)
		if o != nil {
			es = append(es, mesh.Event{Object: o})
		}
	}
	return es, bad
}

// filesOf replaces directories by the files in them that may hold objects.
func filesOf(names []string, recursive bool) (files []string, err error) {
	for _, name := range names {
		if st, err := os.Stat(name); name == "-" || err != nil || !st.IsDir() {
			files = append(files, name) // what is not there is said when it is read
			continue
		}
		before := len(files)
		err := filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && path != name && !recursive:
				return filepath.SkipDir
			case !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(files) == before {
			return nil, fmt.Errorf("directory %s has no .yaml, .yml or .json file; check the name, or give --recursive", name)
		}
	}
	return files, nil
}

// order is of the levels, from the least.
var order = []string{"Info", "Warning", "Error"}

var errFound = errors.New("errors were found")

// reaches reports whether a message is at least of a level, as an index of order.
func reaches(all []message, threshold int) bool {
	return slices.ContainsFunc(all, func(m message) bool { return slices.Index(order, m.Level) >= threshold })
}

// inOrder returns the messages of a namespace, or with "" all, the worst first.
func inOrder(all []message, namespace string) []message {
	all = slices.DeleteFunc(all, func(m message) bool {
		kind, name, _ := strings.Cut(m.Origin, " ")
		in, _, inside := strings.Cut(name, "/")
		return namespace != "" && (inside && in != namespace || kind == "Namespace" && name != namespace)
	})
	slices.SortStableFunc(all, func(a, b message) int {
		return cmp.Or(slices.Index(order, b.Level)-slices.Index(order, a.Level), strings.Compare(a.Origin, b.Origin), strings.Compare(a.Field, b.Field))
	})
	return slices.Compact(all)
}

func printMessages(out io.Writer, all []message, namespace, output string, threshold int) error {
	all = inOrder(all, namespace)
	if structured(output) {
		if err := printValue(out, append([]message{}, all...), output); err != nil {
			return err
		}
	} else {
		printLines(out, all, namespace)
	}
	if reaches(all, threshold) {
		return silent{errFound}
	}
	return nil
}

// String returns a line as istioctl's: LEVEL [CODE] (OBJECT) TEXT.
func (m message) String() string {
	parts := []string{m.Level}
	if m.Code != "" {
		parts = append(parts, "["+m.Code+"]")
	}
	parts = append(parts, "("+strings.TrimSpace(m.Origin+" "+m.Cluster)+")")
	if m.Field != "" {
		parts = append(parts, m.Field+":")
	}
	line := strings.Join(append(parts, m.Message), " ")
	if m.Fix != "" {
		line += "; " + m.Fix
	}
	return line
}

// printLines prints messages, one a line.
func printLines(out io.Writer, all []message, namespace string) {
	for _, m := range all {
		fmt.Fprintln(out, m.String())
	}
	if len(all) == 0 {
		where := "in all namespaces"
		if namespace != "" {
			where = "in namespace " + namespace
		}
		fmt.Fprintf(out, "✔ No issues found %s.\n", where)
	}
}
