// Command carrick-proxy is what runs in a pod of the mesh: the agent with its proxy, the
// redirection of an init container, and small tools. The image has it under the name pilot-agent
// too, with the verbs that Istio's tools call by that name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build: -ldflags "-X main.version=0.1.0".
var version = "dev"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // the command line is wrong
)

const usage = `carrick-proxy runs beside a workload of the mesh.

  carrick-proxy proxy sidecar|router [flags]   run the proxy and all that belongs to it
  carrick-proxy init [flags]                   redirect the pod's TCP connections to the proxy
  carrick-proxy envoy -c FILE [flags]          run the built-in proxy from an Envoy bootstrap
  carrick-proxy request METHOD PATH [BODY]     ask the proxy's admin port
  carrick-proxy fetch [flags] URL              send requests as a workload would
  carrick-proxy echo HOST:PORT TEXT            answer HTTP requests with a text
  carrick-proxy wait [flags]                   return when the proxy is ready
  carrick-proxy version                        print the version

carrick-proxy VERB -h lists a verb's flags.
`

// verb runs one verb and returns its error; errUsage for a wrong command line that has been
// reported already.
type verb func(ctx context.Context, e environment, args []string) error

// environment is what the process is given, so that verbs do not reach for it.
type environment struct {
	getenv         func(string) string
	environ        func() []string
	stdout, stderr io.Writer
}

var errUsage = errors.New("wrong command line")

func verbs() map[string]verb {
	return map[string]verb{
		"proxy": runProxy, "init": runInit, "istio-iptables": runInit, "envoy": runEnvoy,
		"request": runRequest, "fetch": runFetch, "echo": runEcho, "wait": runWait, "version": runVersion,
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, environment{os.Getenv, os.Environ, os.Stdout, os.Stderr}, os.Args[1:]))
}

func run(ctx context.Context, e environment, args []string) int {
	if len(args) == 0 {
		fmt.Fprint(e.stderr, usage)
		return exitUsage
	}
	v := verbs()[args[0]]
	switch {
	case v != nil:
	case args[0] == "help" || args[0] == "-h" || args[0] == "--help":
		fmt.Fprint(e.stdout, usage)
		return exitOK
	default:
		fmt.Fprintf(e.stderr, "carrick-proxy: no verb %q\n\n%s", args[0], usage)
		return exitUsage
	}
	err := v(ctx, e, args[1:])
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		return exitUsage
	}
	fmt.Fprintf(e.stderr, "carrick-proxy: %v\n", err)
	return exitFailed
}

func runVersion(_ context.Context, e environment, _ []string) error {
	_, err := fmt.Fprintln(e.stdout, version)
	return err
}

// flags is a flag set whose names may have a short form, as in Istio's tools.
type flags struct{ *flag.FlagSet }

func newFlags(verb string, e environment) flags {
	f := flags{flag.NewFlagSet("carrick-proxy "+verb, flag.ContinueOnError)}
	f.SetOutput(e.stderr)
	return f
}

// text defines a string flag under one or two names.
func (f flags) text(name, short, value, help string) *string {
	p := f.String(name, value, help)
	if short != "" {
		f.StringVar(p, short, value, "short for --"+name)
	}
	return p
}

// yes defines a boolean flag under one or two names.
func (f flags) yes(name, short, help string) *bool {
	p := f.Bool(name, false, help)
	if short != "" {
		f.BoolVar(p, short, false, "short for --"+name)
	}
	return p
}

// accept defines flags that Istio's tool has and that mean nothing here.
func (f flags) accept(names ...string) {
	for _, n := range names {
		f.String(n, "", "accepted, without effect")
	}
}

// parse parses flags and at most that many arguments among them, in any order.
func (f flags) parse(args []string, most int) ([]string, error) {
	var rest []string
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, errUsage // the flag set has said what is wrong
		}
		args = f.Args()
		if len(args) > 0 {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	if len(rest) > most {
		fmt.Fprintf(f.Output(), "%s: unexpected argument %q\n", f.Name(), rest[most])
		return nil, errUsage
	}
	return rest, nil
}
