// Package cli is the command line of carrick: istioctl's verbs, flags and tables, one file for
// each verb. It knows how to ask and to print; what it asks and decides is in the other packages.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/klog/v2"
)

// app is what all commands share: the version of the build and the flags that pick a cluster.
type app struct {
	version string
	target  targetFlags
}

// New returns the root command. version is the build's, and the tag of the images it installs.
func New(version string) *cobra.Command {
	a := &app{version: version}
	root := &cobra.Command{
		Use:           "carrick",
		Short:         "Joins Kubernetes clusters into one service mesh",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			klog.SetOutput(io.Discard) // client-go's log: what fails is returned as an error
			klog.LogToStderr(false)
		},
	}
	a.target.add(root.PersistentFlags())
	experimental := &cobra.Command{Use: "experimental", Aliases: []string{"x", "exp"}, Short: "Commands that Istio keeps under x"}
	experimental.AddCommand(a.precheck(), a.createRemoteSecret(), a.checkInject(), a.injector())
	root.AddCommand(
		a.install(), a.uninstall(), a.manifest(), a.loadBalancer(), a.eastwest(), a.authority(),
		a.createRemoteSecret(), a.remoteClusters(), a.proxyStatus(), a.proxyConfig(),
		a.versionCommand(), a.kubeInject(), a.mesh(), a.explain(), a.analyze(), a.validate(), a.trace(), a.upgrade(), a.tag(), a.dashboard(), a.image(), experimental,
	)
	refuseUnknown(root)
	return root
}

// Execute runs the command of the arguments and returns the exit code: 0, 1 for what failed, 2
// for what was asked wrongly.
func Execute(ctx context.Context, root *cobra.Command) int {
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see: %s --help", err, cmd.CommandPath())}
	})
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !errors.As(err, new(silent)) {
		fmt.Fprintln(root.ErrOrStderr(), "Error: "+oneLine(err))
	}
	if errors.As(err, new(usageError)) {
		return 2
	}
	return 1
}

// usageError is of someone who asked wrongly.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// silent is an error whose message has been printed: only the exit code is left.
type silent struct{ error }

func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}

// table prints aligned columns, as istioctl does.
func table(w io.Writer, header string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 5, ' ', 0)
	fmt.Fprintln(tw, header)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// terminal reports whether f, if it is a file, is a terminal.
func terminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
