// Package prove checks, with real pods, that a lab that is up can do what a
// mesh needs of it. It uses no more than a user has: kubectl and the lab's own
// verbs.
package prove

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/lab/image"
	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/topo"
)

//go:embed manifests
var manifests embed.FS

// Run runs every check and writes a line about each to out. It returns an error
// if one fails.
func Run(ctx context.Context, lab state.Lab, self string, out io.Writer) error {
	t, err := lab.Topology()
	if err != nil {
		return err
	}
	p := &prover{ctx: ctx, lab: lab, topology: t, self: self, out: out}
	return p.run()
}

// prover runs checks one after the other.
type prover struct {
	ctx      context.Context
	lab      state.Lab
	topology *topo.Topology
	self     string // the lab program
	out      io.Writer

	passed, failed int
}

// Limits of the loops below.
const (
	patience = 40 * time.Second
	pause    = 200 * time.Millisecond
)

// command runs a program and returns what it printed, errors included.
func (p *prover) command(stdin string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(p.ctx, 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(b))
	if err != nil {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return text, err
}

// kube runs kubectl on a cluster, in namespace prove.
func (p *prover) kube(c *topo.Cluster, args ...string) (string, error) {
	return p.kubeInput(c, "", args...)
}

func (p *prover) kubeInput(c *topo.Cluster, stdin string, args ...string) (string, error) {
	return p.command(stdin, append([]string{p.lab.Path("bin", "kubectl"),
		"--kubeconfig", p.lab.Kubeconfig(), "--context", c.Name, "-n", "prove"}, args...)...)
}

// apply applies one of the manifests with words of it replaced.
func (p *prover) apply(c *topo.Cluster, name string, replace ...string) error {
	b, err := manifests.ReadFile("manifests/" + name)
	if err != nil {
		return err
	}
	_, err = p.kubeInput(c, strings.NewReplacer(replace...).Replace(string(b)), "apply", "-f", "-")
	return err
}

// verb runs the lab program itself.
func (p *prover) verb(args ...string) (string, error) {
	return p.command("", append([]string{p.self, "--run-id", p.lab.ID}, args...)...)
}

// inClient runs the probe in a cluster's client pod.
func (p *prover) inClient(c *topo.Cluster, args ...string) (string, error) {
	return p.kube(c, append([]string{"exec", "client", "--", "/probe"}, args...)...)
}

// onHost runs the probe on one of the lab's hosts.
func (p *prover) onHost(host string, args ...string) (string, error) {
	return p.verb(append([]string{"exec", host, p.lab.Program("probe")}, args...)...)
}

// check runs f once; what it returns must match a pattern.
func (p *prover) check(name, pattern string, f func() (string, error)) {
	p.report(name, pattern, false, f)
}

// eventually runs f until what it returns matches a pattern.
func (p *prover) eventually(name, pattern string, f func() (string, error)) {
	p.report(name, pattern, true, f)
}

func (p *prover) report(name, pattern string, again bool, f func() (string, error)) {
	begin := time.Now()
	re := regexp.MustCompile(pattern)
	var text string
	var err error
	for {
		// A command that fails may be what the check is about: its words count.
		if text, err = f(); err != nil {
			text = err.Error()
		}
		if re.MatchString(text) || !again || time.Since(begin) > patience || p.ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
		}
	}
	verdict, width := "PASS", 100
	if re.MatchString(text) {
		p.passed++
	} else {
		p.failed++
		verdict, width = "FAIL", 1000
	}
	text = strings.ReplaceAll(text, "\n", " | ")
	fmt.Fprintf(p.out, "%s  %-60s %5.1fs  %.*s\n", verdict, name, time.Since(begin).Seconds(), width, text)
}

func (p *prover) run() error {
	if err := p.loadImage(); err != nil {
		return fmt.Errorf("making the checks' image: %w", err)
	}
	defer p.cleanUp()
	begin := time.Now()
	for _, c := range p.topology.Clusters {
		if err := p.apply(c, "sample.yaml", "@CLUSTER", c.Name); err != nil {
			return fmt.Errorf("%s: applying the sample: %w", c.Name, err)
		}
	}
	for _, c := range p.topology.Clusters {
		if _, err := p.kube(c, "rollout", "status", "deploy/hello", "--timeout=60s"); err != nil {
			return fmt.Errorf("%s: waiting for the sample: %w", c.Name, err)
		}
		if _, err := p.kube(c, "wait", "pod/client", "--for=condition=Ready", "--timeout=60s"); err != nil {
			return fmt.Errorf("%s: waiting for the sample: %w", c.Name, err)
		}
	}
	fmt.Fprintf(p.out, "      deployed in %.1fs\n", time.Since(begin).Seconds())
	p.basics()
	p.tokens()
	p.redirection()
	p.pods()
	p.webhooks()
	if len(p.topology.Clusters) > 1 {
		p.betweenClusters()
	}
	p.faultsOfNodes()
	fmt.Fprintf(p.out, "%d passed, %d failed\n", p.passed, p.failed)
	if p.failed > 0 {
		return errors.New("the lab cannot do all that a mesh needs")
	}
	return p.ctx.Err()
}

// loadImage gives every node the image that all checks use: the probe, and nft
// as an init container's program.
func (p *prover) loadImage() error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return err
	}
	var b image.Builder
	b.Entrypoint = []string{"/probe"}
	if err := b.Add(p.lab.Program("probe"), "/probe"); err != nil {
		return err
	}
	if err := b.AddProgram(nft, "/usr/sbin/nft"); err != nil {
		return err
	}
	file := filepath.Join(p.lab.Dir, "prove.tar")
	if err := b.WriteFile(file, "docker.io/lab/prove:1"); err != nil {
		return err
	}
	_, err = p.verb("image", "load", file)
	return err
}

func (p *prover) cleanUp() {
	p.verb("wan", "restore", "off")
	for _, c := range p.topology.Clusters {
		p.kube(c, "delete", "mutatingwebhookconfiguration", "prove-byservice", "prove-byurl", "--ignore-not-found")
		p.kube(c, "delete", "namespace", "prove", "prove-hooked", "--ignore-not-found", "--wait=false")
	}
}
