package prove

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/topo"
)

// noAnswer is what the probe prints when no connection came about.
const noAnswer = `000 [0-9.]+s`

func (p *prover) first() *topo.Cluster { return p.topology.Clusters[0] }

// basics are a cluster's services, DNS, logs, exec and port-forward.
func (p *prover) basics() {
	for _, c := range p.topology.Clusters {
		p.eventually(c.Name+": ClusterIP and DNS", "^200 .*version: "+c.Name, func() (string, error) {
			return p.inClient(c, "get", "http://hello.prove:5000/hello")
		})
	}
	c := p.first()
	p.eventually("both replicas are picked", "^2$", func() (string, error) {
		out, err := p.inClient(c, "get", "http://hello.prove:5000/hello", "30")
		names := map[string]bool{}
		for _, l := range strings.Split(out, "\n") {
			names[l[strings.LastIndex(l, " ")+1:]] = true
		}
		return fmt.Sprint(len(names)), err
	})
	p.check("pods reach each other by address and see each other's", "^200 .* 10\\.", func() (string, error) {
		ips, err := p.kube(c, "get", "pod", "-l", "app=hello", "-o", "jsonpath={.items[*].status.podIP}")
		if err != nil {
			return "", err
		}
		me, err := p.kube(c, "get", "pod", "client", "-o", "jsonpath={.status.podIP}")
		if err != nil {
			return "", err
		}
		for _, ip := range strings.Fields(ips) {
			out, err := p.inClient(c, "get", "http://"+ip+":5000/from")
			if err != nil {
				return "", err
			}
			if !strings.Contains(out, " "+me+":") {
				return "at " + ip + " not as " + me + ": " + out, nil
			}
		}
		return "200  " + me, nil
	})
	p.check("a large packet passes between pods", "bytes/s", func() (string, error) {
		return p.inClient(c, "get", "http://hello.prove:5000/bytes?n=10000000")
	})
	p.check("logs", "listening on :5000", func() (string, error) { return p.kube(c, "logs", "deploy/hello") })
	p.check("exec gives the exit code", "exit status 1", func() (string, error) { return p.inClient(c, "cat", "/nothing") })
	p.check("port-forward", "Hello version: "+c.Name, func() (string, error) { return p.portForward(c) })
}

func (p *prover) portForward(c *topo.Cluster) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.lab.Path("bin", "kubectl"), "--kubeconfig", p.lab.Kubeconfig(), "--context", c.Name,
		"-n", "prove", "port-forward", "deploy/hello", fmt.Sprintf("%d:5000", port))
	if err := cmd.Start(); err != nil {
		return "", err
	}
	defer func() { cancel(); cmd.Wait() }()
	var out string
	for begin := time.Now(); time.Since(begin) < patience; time.Sleep(pause) {
		if out, err = p.command("", p.lab.Program("probe"), "get", fmt.Sprintf("http://127.0.0.1:%d/hello", port)); err == nil {
			break
		}
	}
	return out, err
}

// tokens are projected for the mesh's CA and reviewed by the cluster that made
// them only.
func (p *prover) tokens() {
	c := p.first()
	token, err := p.inClient(c, "cat", "/var/run/secrets/tokens/istio-token")
	p.check("a projected token for istio-ca", `"aud":\["istio-ca"\]`, func() (string, error) {
		if err != nil {
			return "", err
		}
		parts := strings.Split(token, ".")
		if len(parts) != 3 {
			return "no JWT", nil
		}
		b, err := base64.RawURLEncoding.DecodeString(parts[1])
		return string(b), err
	})
	review := func(c *topo.Cluster, audience string) (string, error) {
		return p.kubeInput(c, fmt.Sprintf(`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":%q,"audiences":[%q]}}`, token, audience),
			"create", "-o", "jsonpath={.status}", "-f", "-")
	}
	p.check("TokenReview: the right audience", `"authenticated":true.*system:serviceaccount:prove:client`, func() (string, error) {
		return review(c, "istio-ca")
	})
	p.check("TokenReview: another audience", "error", func() (string, error) { return review(c, "other") })
	if len(p.topology.Clusters) > 1 {
		p.check("TokenReview: another cluster", "error", func() (string, error) { return review(p.topology.Clusters[1], "istio-ca") })
	}
}

// redirection is by nftables in an init container with two capabilities.
func (p *prover) redirection() {
	c := p.first()
	err := p.apply(c, "redirect.yaml")
	if err == nil {
		_, err = p.kube(c, "wait", "pod/redirect", "--for=condition=Ready", "--timeout=40s")
	}
	ip, ierr := p.kube(c, "get", "pod", "redirect", "-o", "jsonpath={.status.podIP}")
	p.check("an init container lays nftables rules", "^10\\.", func() (string, error) {
		if err != nil {
			return "", err
		}
		return ip, ierr
	})
	in := func(container string, args ...string) (string, error) {
		return p.kube(c, append([]string{"exec", "redirect", "-c", container, "--", "/probe"}, args...)...)
	}
	p.check("outbound is redirected, its destination known", "caught from .* to 198.51.100.9:80", func() (string, error) {
		return in("app", "get", "http://198.51.100.9/")
	})
	p.check("uid 1337 is let out", "Hello version", func() (string, error) { return in("out", "get", "http://hello.prove:5000/hello") })
	p.check("inbound is redirected, its destination known", "caught from .* to "+ip+":5000", func() (string, error) {
		return p.inClient(c, "get", "http://"+ip+":5000/hello")
	})
}

// pods are probes, native sidecars and limits.
func (p *prover) pods() {
	c := p.first()
	err := p.apply(c, "misc.yaml", "@NODE", c.Nodes[0].Name, "@LB", c.Pool[1].String())
	read := func(object, path string) func() (string, error) {
		return func() (string, error) {
			if err != nil {
				return "", err
			}
			return p.kube(c, "get", object, "-o", "jsonpath="+path)
		}
	}
	p.eventually("a failing liveness probe restarts", "^[1-9]", read("pod/badlive", "{.status.containerStatuses[0].restartCount}"))
	p.eventually("a job with a native sidecar ends", "^1", read("job/sidecar", "{.status.succeeded}"))
	p.check("its sidecar was up before it", "Hello", func() (string, error) { return p.kube(c, "logs", "job/sidecar", "-c", "job") })
	p.eventually("a memory limit kills", "OOMKilled", read("pod/oom", "{.status.containerStatuses[0].state.terminated.reason}"))
}

// webhooks are called by the API server at a Service and at a host of the LAN.
func (p *prover) webhooks() {
	c := p.first()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	address := c.Client.Address.String()
	host := exec.CommandContext(ctx, p.self, "--run-id", p.lab.ID, "exec", c.Client.Name, p.lab.Program("probe"), "webhook", address+":9443", address)
	bundle := make(chan string, 1)
	host.Stdout = firstLine{bundle}
	err := host.Start()
	if err == nil {
		defer func() { cancel(); host.Wait() }()
	}
	p.check("webhooks at a Service and on the LAN both change a pod", "byservice.*byurl|byurl.*byservice", func() (string, error) {
		if err != nil {
			return "", err
		}
		if _, err := p.kube(c, "rollout", "status", "deploy/webhook", "--timeout=40s"); err != nil {
			return "", err
		}
		logs, err := p.kube(c, "logs", "deploy/webhook")
		if err != nil {
			return "", err
		}
		ca, _, _ := strings.Cut(logs, "\n")
		if err := p.apply(c, "webhook.yaml", "@LABEL", "byservice", "@CA", ca,
			"@TARGET", "service: {name: webhook, namespace: prove, path: /mutate/byservice}"); err != nil {
			return "", err
		}
		select {
		case ca = <-bundle:
		case <-time.After(patience):
			return "the webhook on the LAN does not start", nil
		}
		if err := p.apply(c, "webhook.yaml", "@LABEL", "byurl", "@CA", ca,
			"@TARGET", "url: https://"+address+":9443/mutate/byurl"); err != nil {
			return "", err
		}
		if _, err := p.kube(c, "create", "namespace", "prove-hooked"); err != nil {
			return "", err
		}
		if _, err := p.kube(c, "label", "namespace", "prove-hooked", "prove=hooked"); err != nil {
			return "", err
		}
		// The API server takes a moment to know new webhooks and labels.
		var labels string
		for begin := time.Now(); time.Since(begin) < patience; time.Sleep(pause) {
			labels, err = p.kube(c, "run", "x", "-n", "prove-hooked", "--image=lab/prove:1", "--dry-run=server", "-o", "jsonpath={.metadata.labels}")
			if strings.Contains(labels, "byservice") && strings.Contains(labels, "byurl") {
				break
			}
		}
		return labels, err
	})
}

// firstLine passes on the first line written to it.
type firstLine struct{ to chan<- string }

func (f firstLine) Write(b []byte) (int, error) {
	line, _, _ := strings.Cut(string(b), "\n")
	select {
	case f.to <- line:
	default:
	}
	return len(b), nil
}

// betweenClusters is what one cluster's pods see of another, through an
// address that only ARP knows.
func (p *prover) betweenClusters() {
	c, far := p.first(), p.topology.Clusters[1]
	p.check("a pod reaches the other API server", "^$", func() (string, error) {
		return p.inClient(c, "tcp", far.Nodes[0].Address.String()+":6443")
	})
	p.check("a LoadBalancer stays pending by itself", "pending", func() (string, error) { return p.kube(far, "get", "svc", "gateway") })
	lb := far.Pool[0].String()
	url := "http://" + lb + ":15443"
	get := func(path string, n ...string) func() (string, error) {
		return func() (string, error) { return p.inClient(c, append([]string{"get", url + path}, n...)...) }
	}
	p.check("its address answers nothing yet", noAnswer, get("/hello"))
	node, err := p.kube(far, "get", "pod", "-l", "app=hello", "-o", "jsonpath={.items[0].spec.nodeName}")
	if err == nil {
		err = p.apply(far, "misc.yaml", "@NODE", node, "@LB", lb)
	}
	if err == nil {
		_, err = p.kube(far, "wait", "pod/announcer", "--for=condition=Ready", "--timeout=40s")
	}
	if err == nil {
		_, err = p.kube(far, "patch", "svc", "gateway", "--subresource=status", "--type=merge",
			"-p", fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, lb))
	}
	p.check("a pod of the host's network with NET_RAW announces it", "^<nil>$", func() (string, error) { return fmt.Sprint(err), nil })
	p.eventually("then it answers the other cluster", "Hello version: "+far.Name, get("/hello"))
	p.check("it sees the client's node, not its own", c.Nodes[0].Address.String()[:9], get("/from"))
	p.check("it answers a plain host of its LAN", "Hello", func() (string, error) { return p.onHost(far.Client.Name, "get", url+"/hello") })
	pod, err := p.kube(far, "get", "pod", "-l", "app=hello", "-o", "jsonpath={.items[0].status.podIP}")
	p.check("pod addresses do not answer outside", noAnswer, func() (string, error) {
		if err != nil {
			return "", err
		}
		return p.onHost(topo.RouterName, "get", "http://"+pod+":5000/hello")
	})
	wan := func(words ...string) { p.verb(append([]string{"wan"}, words...)...) }
	p.check("connecting is fast", `^200 0\.00`, get("/hello"))
	wan("delay=50ms", "jitter=5ms")
	p.check("50 ms each way", `^200 0\.(09|10|11)`, get("/hello"))
	wan("off", "loss=40%")
	p.eventually("lost packets are sent again", `(^|\n)200 [1-9]`, get("/hello", "5"))
	wan("off", "rate=8mbit")
	p.check("8 Mbit/s", `(^|\n)200 .* (9|10)[0-9]{5} bytes/s`, get("/bytes?n=3000000"))
	wan("off")
	p.check("fast again", `^200 0\.00`, get("/hello"))
	wan("cut")
	p.check("a cut link is silent", noAnswer, get("/hello"))
	wan("restore")
	p.eventually("and heals", "^200", get("/hello"))
	p.verb("exec", topo.RouterName, "ip", "link", "set", node, "down")
	p.check("a pulled cable", noAnswer, get("/hello"))
	p.verb("exec", topo.RouterName, "ip", "link", "set", node, "up")
	p.eventually("plugged in again", "^200", get("/hello"))
}

// faultsOfNodes ends programs and nodes.
func (p *prover) faultsOfNodes() {
	c := p.first()
	err := p.killProgram(c.Nodes[0].Name, "kube-apiserver")
	p.eventually("a killed API server comes back", "^ok", func() (string, error) {
		if err != nil {
			return "", err
		}
		return p.kube(c, "get", "--raw=/readyz")
	})
	if len(c.Nodes) == 1 {
		return
	}
	victim := c.Nodes[len(c.Nodes)-1].Name
	ready := func() (string, error) {
		return p.kube(c, "get", "node", victim, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	}
	_, err = p.verb("node", "stop", victim)
	p.eventually("a node without power is found out", "Unknown", ready)
	if err == nil {
		_, err = p.verb("node", "start", victim)
	}
	p.eventually("and comes back", "True", func() (string, error) {
		if err != nil {
			return "", err
		}
		return ready()
	})
	p.eventually("with pods that run", `^(\S+ True )+\S+ True$`, func() (string, error) {
		return p.kube(c, "get", "pod", "-l", "app=hello", "-o",
			`jsonpath={range .items[*]}{.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status} {end}`)
	})
}

// killProgram ends one of a node's Kubernetes programs.
func (p *prover) killProgram(node, program string) error {
	own := func(pid string) string { s, _ := os.Readlink(filepath.Join("/proc", pid, "ns/pid")); return s }
	want := own(fmt.Sprint(state.PID(p.lab.Node(node, "pid"))))
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range pids {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		argv := strings.Split(string(cmdline), "\x00")
		if len(argv) > 1 && argv[1] == program && own(filepath.Base(dir)) == want {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil {
				return err
			}
			return syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return fmt.Errorf("%s does not run on %s", program, node)
}
