// Command lab brings real Kubernetes clusters up on one Linux machine, each on
// a LAN segment of its own, and takes them away again without a trace.
package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/carrick-mesh/carrick/lab/build"
	"github.com/carrick-mesh/carrick/lab/node"
	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/supervisor"
	"github.com/carrick-mesh/carrick/lab/topo"
	"github.com/carrick-mesh/carrick/lab/wan"
)

// source is what the nodes' programs are built from.
//
//go:embed go.mod go.sum kube134.mod kube134.sum kube coredns pause probe
var source embed.FS

const usage = `lab: real Kubernetes clusters on this machine, joined only by a routed LAN

usage: lab [--run-id ID] VERB ...

  up [--clusters N] [--nodes N] [--distinct] [--overlay] [--proxy nftables|iptables]
     [--kubernetes 1.37|1.34]
                        bring clusters up (2, of one node each); builds what is missing
  down                  take them away, with everything of theirs
  status [-o json]      what is up
  kubeconfig            print the kubeconfig's path; contexts cluster1, cluster2, ...
  kubectl ARGS...       kubectl with that kubeconfig
  exec HOST CMD...      run a command in cluster1, cluster1-w1, client1, router, ...
  node stop|start NODE  cut a node's power, give it back
  wan [WORD...]         faults between the segments: ` + wan.Usage + `
  image load FILE...    give every node an image archive
  image build [-add SRC[:DST]] [-elf FILE[:DST]] [-deb PKG,...] [-link PATH=TARGET] [-env K=V] [-user UID]
              [-o FILE] NAME:TAG[,NAME:TAG] CMD...
  build [--install] [--kubernetes 1.37|1.34]
                        build the nodes' programs (with --install: what that needs, first)
  deps                  install the Debian packages that a lab needs
  prove                 check that the lab that is up can do what a mesh needs

Labs with different run ids do not meet. The default is "main", or the value of
CARRICK_LAB.
`

// invocation is one call of the program.
type invocation struct {
	ctx  context.Context
	lab  state.Lab
	args []string // after the verb
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		var code exitCode
		if errors.As(err, &code) {
			os.Exit(int(code))
		}
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// exitCode is the end of a command whose own output has said why.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprint("exit code ", int(e)) }

func run(args []string) error {
	id := os.Getenv("CARRICK_LAB")
	if id == "" {
		id = "main"
	}
	args, err := takeRunID(args, &id)
	if err != nil {
		return err
	}
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		fmt.Print(usage)
		return nil
	}
	verb := args[0]
	if args, err = takeRunID(args[1:], &id); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	in := invocation{ctx, state.Of(id), args}
	verbs := map[string]func(invocation) error{
		"up": up, "down": down, "status": status, "kubeconfig": kubeconfig, "kubectl": kubectl,
		"exec": execute, "node": nodePower, "wan": wanFaults, "image": images, "build": buildSet, "deps": deps, "prove": proveLab,
		superviseVerb: supervise, supervisor.NodeVerb: beNode,
	}
	f, ok := verbs[verb]
	if !ok {
		return fmt.Errorf("unknown verb %q; see lab help", verb)
	}
	return f(in)
}

// takeRunID takes --run-id ID or --run-id=ID off the front of args.
func takeRunID(args []string, id *string) ([]string, error) {
	if len(args) > 0 {
		name, value, inline := strings.Cut(args[0], "=")
		if name == "--run-id" || name == "-run-id" {
			switch {
			case inline:
				args = args[1:]
			case len(args) > 1:
				value, args = args[1], args[2:]
			default:
				return nil, errors.New("--run-id needs a value")
			}
			*id = value
		}
	}
	// Anything that is no run id must not become a path.
	_, err := topo.New(topo.Options{RunID: *id, Clusters: 1, Nodes: 1, Proxy: "nftables"})
	return args, err
}

func builder(kubernetes string, progress func(string, ...any)) build.Builder {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/var/cache" // no HOME, as in a service
	}
	return build.Builder{Source: source, Cache: filepath.Join(cache, "carrick-lab"), Kubernetes: kubernetes, Progress: progress}
}

// progress returns a function that prints lines with the time since begin.
func progress(begin time.Time) func(string, ...any) {
	return func(format string, args ...any) {
		fmt.Printf("%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
}

// beNode is a node's process 1.
func beNode(in invocation) error {
	b, err := os.ReadFile(in.args[0])
	if err != nil {
		return err
	}
	var s node.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	return node.Run(s, os.Stdin, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}
