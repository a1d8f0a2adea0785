package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/carrick-mesh/carrick/diagnose"
)

// judge says in one sentence what came of it.
func (f *traced) judge(source, last *diagnose.Point) {
	for _, h := range f.Hops {
		if !h.OK && (!f.OK || h.Role == "caller") {
			f.OK, f.Verdict = false, "the request failed at "+h.Pod+" in "+h.Cluster+": "+h.Verdict
			return
		}
	}
	switch {
	case source.Line == nil:
		f.OK, f.Verdict = false, "the caller's proxy logged no such request: is curl's connection redirected (init container istio-init, native sidecar), and the URL's port not excluded?"
	case !f.OK:
		f.Verdict = "the answer was " + f.Answer + ": it is the application's own, the mesh brought it there and back"
	case last == source:
		f.Verdict = "answered; the answering side logged nothing: it is outside the mesh, its access log is off, or it is in a cluster that was not asked (--peers)"
	case source.Gateway && len(f.Hops) < 3:
		f.Verdict = "answered in " + last.Cluster + ", through the gateway " + source.Namespace + "/" + source.Pod
	case last.Cluster != source.Cluster:
		f.Verdict = "answered by " + last.Cluster
		if len(f.Hops) > 2 {
			f.Verdict += ", through its gateway"
		}
	default:
		f.Verdict = "answered in the caller's own cluster, " + last.Cluster
	}
}

func (f *traced) print(out io.Writer, output string) error {
	var failed error
	if !f.OK {
		failed = silent{errors.New(f.Verdict)}
	}
	if structured(output) {
		if err := printValue(out, f, output); err != nil {
			return err
		}
		return failed
	}
	fmt.Fprintf(out, "%s: %s; request id %s\n", f.URL, f.Answer, f.RequestID)
	if f.Body != "" {
		fmt.Fprintf(out, "  %s\n", oneLine(errors.New(f.Body)))
	}
	for i, h := range f.Hops {
		mark := "✔"
		if !h.OK {
			mark = "✘"
		}
		fmt.Fprintf(out, "\n%d. %s in %s: %s %s\n", i+1, h.Pod, h.Cluster, mark, h.Verdict)
		var rows [][]string
		add := func(name, value string) {
			if value != "" && value != " " {
				rows = append(rows, []string{"   " + name, value})
			}
		}
		add("role", h.Role+map[bool]string{true: ", network " + h.Network}[h.Network != ""])
		add("identity", h.Identity)
		add("came from", h.From)
		add("came to", h.To)
		add("server name", h.SNI)
		add("listener", h.Listener)
		add("route", h.Route)
		add("cluster", h.Upstream)
		add("endpoint", h.Endpoint+map[bool]string{true: " (" + h.Whose + ")"}[h.Whose != ""])
		add("left from", h.Out)
		add("answer", strings.TrimSpace(h.Code+" "+h.Flags))
		if h.Start != "" {
			add("time", h.Start+", "+h.Millis+" ms")
		}
		add("fix", h.Fix)
		if err := table(out, strings.Join(rows[0], "\t"), rows[1:]); err != nil {
			return err
		}
	}
	fmt.Fprintln(out)
	if f.Clocks != "" {
		fmt.Fprintln(out, "Clocks: "+f.Clocks+".")
	}
	for _, n := range f.Notes {
		fmt.Fprintln(out, "Note: "+n+".")
	}
	if f.OK {
		fmt.Fprintf(out, "✔ %s.\n", f.Verdict)
	} else {
		fmt.Fprintf(out, "✘ %s.\n", strings.TrimSuffix(f.Verdict, "."))
	}
	return failed
}
