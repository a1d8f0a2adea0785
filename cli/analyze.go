package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carrick-mesh/carrick/compile"
	"github.com/carrick-mesh/carrick/install"
	"github.com/carrick-mesh/carrick/kube"
	"github.com/carrick-mesh/carrick/mesh"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// message is one finding, as analyze prints it.
type message struct {
	Level   string `json:"level"`  // Error: refused; Warning: does not fit
	Origin  string `json:"origin"` // KIND NAMESPACE/NAME
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
	return message{level, f.Object.Kind + " " + name, f.Object.Cluster, f.Field, f.Message, f.Fix}
}

func (a *app) analyze() *cobra.Command {
	var all, useKube bool
	var output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "analyze [FILE...]",
		Short: "Finds what is wrong with a mesh's configuration, in a cluster and in files",
		Long: `Reads a cluster as its control plane does, with the clusters that it watches, adds the objects of files
as if they were applied, and lists what is refused (Error) and what does not fit together (Warning). The
exit code is 1 if there is an Error. Without a cluster (--use-kube=false) objects are checked by themselves.`,
		Example: "  carrick analyze --context=cluster1 -A\n  carrick analyze gateway.yaml",
		RunE: func(cmd *cobra.Command, files []string) error {
			if output != "log" && output != "json" && output != "yaml" {
				return usagef("-o %s: is not log, json or yaml", output)
			}
			objects, found, err := readObjects(cmd, files)
			if err != nil {
				return err
			}
			namespace, cluster := "", "file"
			if !useKube {
				if len(files) == 0 {
					return usagef("there is nothing to analyze: give files, or leave --use-kube on")
				}
				s := mesh.New(mesh.Settings{Cluster: cluster}).Apply(events(objects, cluster)...)
				found = append(found, messages("Error", s.Findings())...)
			} else {
				c, err := a.target.connect(cmd)
				if err != nil {
					return err
				}
				if !all {
					namespace = c.namespace
				}
				live, err := a.live(cmd.Context(), c, objects, timeout)
				if err != nil {
					return c.wrong(err)
				}
				found = append(found, live...)
			}
			return printMessages(cmd.OutOrStdout(), found, namespace, output)
		},
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "objects of all namespaces (default that of --namespace or the context)")
	cmd.Flags().BoolVarP(&useKube, "use-kube", "k", true, "read the cluster")
	cmd.Flags().StringVarP(&output, "output", "o", "log", "log, json or yaml")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to read the clusters")
	return cmd
}

func (a *app) validate() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:     "validate -f FILE",
		Aliases: []string{"v"},
		Short:   "Checks Istio's objects in files, each by itself, without a cluster",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usagef("-f FILE is missing")
			}
			objects, found, err := readObjects(cmd, files)
			if err != nil {
				return err
			}
			s := mesh.New(mesh.Settings{Cluster: "file"}).Apply(events(objects, "file")...)
			return printMessages(cmd.OutOrStdout(), append(found, messages("Error", s.Findings())...), "", "log")
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "files to check; - is standard input")
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
func (a *app) live(ctx context.Context, c *cluster, objects []decoded, timeout time.Duration) (out []message, err error) {
	cfg, err := installed(ctx, c, a.target.istioNamespace, a.version)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	snap := mesh.New(mesh.Settings{Cluster: cfg.Cluster, SystemNamespace: a.target.istioNamespace})
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
	for settled := false; !settled; {
		select {
		case <-run.Done():
			settled = true
		case <-tick.C:
			settled = clusters.Settled()
		}
	}
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
	snap = snap.Apply(events(objects, cfg.Cluster)...)
	out = append(out, messages("Error", snap.Findings())...)
	return append(out, messages("Warning", compile.Check(snap))...), nil
}

// decoded is an object of a file; the cluster that it is for is not known yet.
type decoded struct {
	meta mesh.Meta
	spec proto.Message
}

func events(objects []decoded, cluster string) (es []mesh.Event) {
	for _, d := range objects {
		m := d.meta
		m.Cluster = cluster
		var o mesh.Object
		switch spec := d.spec.(type) {
		case *networking.Gateway:
			o = &mesh.Gateway{Meta: m, Spec: spec}
		case *networking.VirtualService:
			o = &mesh.VirtualService{Meta: m, Spec: spec}
		case *networking.DestinationRule:
			o = &mesh.DestinationRule{Meta: m, Spec: spec}
		case *security.PeerAuthentication:
			o = &mesh.PeerAuthentication{Meta: m, Spec: spec}
		}
		es = append(es, mesh.Event{Object: o})
	}
	return es
}

// readObjects reads the objects of Istio's kinds that the mesh knows; others are left out.
func readObjects(cmd *cobra.Command, files []string) (objects []decoded, found []message, err error) {
	for _, file := range files {
		b, err := readFile(cmd, file, install.MaxFile)
		if err != nil {
			return nil, nil, err
		}
		docs := kubeyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(b)))
		for n := 1; ; n++ {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, nil, fmt.Errorf("%s: document %d: %w", file, n, err)
			}
			u := &unstructured.Unstructured{}
			if err := yaml.Unmarshal(doc, &u.Object); err != nil {
				return nil, nil, fmt.Errorf("%s: document %d: %s", file, n, oneLine(err))
			}
			d, f, ok := decodeObject(u)
			if ok && f == nil {
				objects = append(objects, d)
			} else if f != nil {
				found = append(found, *f)
			}
		}
	}
	return objects, found, nil
}

func decodeObject(u *unstructured.Unstructured) (d decoded, bad *message, ok bool) {
	group, _, _ := strings.Cut(u.GetAPIVersion(), "/")
	switch group + " " + u.GetKind() {
	case "networking.istio.io Gateway":
		d.spec = &networking.Gateway{}
	case "networking.istio.io VirtualService":
		d.spec = &networking.VirtualService{}
	case "networking.istio.io DestinationRule":
		d.spec = &networking.DestinationRule{}
	case "security.istio.io PeerAuthentication":
		d.spec = &security.PeerAuthentication{}
	default:
		return d, nil, false
	}
	d.meta = mesh.Meta{Namespace: cmp.Or(u.GetNamespace(), "default"), Name: u.GetName(), Labels: u.GetLabels()}
	b, err := json.Marshal(u.Object["spec"])
	if err == nil && u.Object["spec"] != nil {
		err = protojson.Unmarshal(b, d.spec)
	}
	if err != nil {
		return d, &message{Level: "Error", Origin: u.GetKind() + " " + d.meta.Namespace + "/" + d.meta.Name, Field: "spec", Message: oneLine(err), Fix: "compare it with the kind's reference"}, true
	}
	return d, nil, true
}

func printMessages(out io.Writer, all []message, namespace, output string) error {
	all = slices.DeleteFunc(all, func(m message) bool {
		_, name, _ := strings.Cut(m.Origin, " ")
		in, _, inside := strings.Cut(name, "/")
		return namespace != "" && inside && in != namespace
	})
	slices.SortStableFunc(all, func(a, b message) int {
		return cmp.Or(strings.Compare(a.Level, b.Level), strings.Compare(a.Origin, b.Origin), strings.Compare(a.Field, b.Field))
	})
	all = slices.Compact(all)
	failed := slices.ContainsFunc(all, func(m message) bool { return m.Level == "Error" })
	if structured(output) {
		if err := printValue(out, append([]message{}, all...), output); err != nil {
			return err
		}
	} else {
		for _, m := range all {
			parts := []string{m.Level + " (" + strings.TrimSpace(m.Origin+" "+m.Cluster) + ")"}
			if m.Field != "" {
				parts = append(parts, m.Field+":")
			}
			parts = append(parts, m.Message)
			line := strings.Join(parts, " ")
			if m.Fix != "" {
				line += "; " + m.Fix
			}
			fmt.Fprintln(out, line)
		}
		if len(all) == 0 {
			where := "in all namespaces"
			if namespace != "" {
				where = "in namespace " + namespace
			}
			fmt.Fprintf(out, "✔ No issues found %s.\n", where)
		}
	}
	if failed {
		return silent{errors.New("errors were found")}
	}
	return nil
}
