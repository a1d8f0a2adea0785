package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/google/uuid"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// hop is one proxy's log line of a traced request.
type hop struct {
	where string
	line  *diagnose.Line
	at    *atlas
}

func (a *app) trace() *cobra.Command {
	var contexts []string
	var container string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "trace POD.NAMESPACE URL",
		Short: "Sends one request from a pod and prints its hops",
		Long: `Sends one request by curl from a container of the pod, and finds it again in the logs of the proxies on
its way, by its request id, also in the other clusters of the kubeconfig. The access log must be on.`,
		Example: `  carrick trace deploy/sleep.sample http://helloworld.sample:5000/hello --context=cluster1`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := url.Parse(args[1])
			if err != nil || u.Host == "" {
				return usagef("%q is not a URL with a host: want http://helloworld.sample:5000/hello", args[1])
			}
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			if len(contexts) == 0 {
				if contexts, err = a.target.contexts(); err != nil {
					return err
				}
			}
			return a.runTrace(cmd, c, contexts, args[0], container, u, wait)
		},
	}
	cmd.Flags().StringSliceVar(&contexts, "peers", nil, "contexts to look for the request in (default all of the kubeconfig)")
	cmd.Flags().StringVar(&container, "container", "", "container to send from (default the first that is not a proxy)")
	cmd.Flags().DurationVar(&wait, "wait", 5*time.Second, "how long to look for log lines")
	return cmd
}

func (a *app) runTrace(cmd *cobra.Command, c *cluster, contexts []string, source, container string, u *url.URL, wait time.Duration) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	namespace, pod, err := c.pod(ctx, source)
	if err != nil {
		return err
	}
	p, err := c.Kube.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return c.wrong(err)
	}
	if container == "" {
		for _, ct := range p.Spec.Containers {
			if ct.Name != "istio-proxy" {
				container = ct.Name
				break
			}
		}
	}
	id, began := uuid.NewString(), time.Now()
	answer, err := c.exec(ctx, namespace, pod, container,
		"curl", "-sS", "-o", "/dev/null", "--max-time", "15", "-H", "x-request-id: "+id, "-w", "%{http_code} in %{time_total} s", u.String())
	if code := new(exec.CodeExitError); errors.As(err, code) && code.Code < 126 {
		answer, err = "with an error: "+oneLine(err), nil // curl's: the logs may say more
	}
	if err != nil {
		return c.wrong(fmt.Errorf("sending from container %s of pod %s/%s (has it curl?): %w", container, namespace, pod, err))
	}
	fmt.Fprintf(out, "%s answered %s; request id %s\n", u, strings.TrimSpace(answer), id)

	hops, err := a.findHops(ctx, c, contexts, p, id, began, wait)
	if err != nil {
		return err
	}
	for i, h := range hops {
		fmt.Fprintf(out, "\n%d. %s\n", i+1, h.where)
		var rows [][]string
		for _, f := range h.line.Explain(h.at.place) {
			switch f.Field {
			case "(log)", "response code", "response flags", "transport failure", "upstream host", "upstream cluster", "downstream local address", "downstream remote address", "requested server name", "route name", "duration":
				rows = append(rows, []string{"   " + f.Field, f.Value, f.Meaning})
			}
		}
		if err := table(out, "   FIELD\tVALUE\tMEANING", rows); err != nil {
			return err
		}
	}
	fmt.Fprintln(out)
	return verdict(cmd, hops, strings.HasPrefix(answer, "2"))
}

func verdict(cmd *cobra.Command, hops []hop, answered bool) error {
	out := cmd.OutOrStdout()
	var source, destination *diagnose.Line
	for _, h := range hops {
		switch h.line.Side() {
		case diagnose.Source:
			source = h.line
		case diagnose.Destination:
			destination = h.line
		}
	}
	switch {
	case source == nil:
		fmt.Fprintln(out, "No proxy logged the request. Has the pod a sidecar, and is the access log on (meshConfig accessLogFile: /dev/stdout)?")
		return silent{errors.New("not logged")}
	case !answered:
		fmt.Fprintf(out, "✘ The request failed: response code %s, flags %s.\n", source.Code, source.Flags)
		return silent{errors.New("failed")}
	case destination == nil:
		fmt.Fprintln(out, "✔ The request was answered. The answering side logged nothing: it has no sidecar, its access log is off, or it is in a cluster that was not asked (--peers).")
	case strings.HasSuffix(source.UpstreamHost, ":15443"):
		fmt.Fprintln(out, "✔ The request was answered by another network, through its gateway.")
	default:
		fmt.Fprintln(out, "✔ The request was answered in its own network.")
	}
	return nil
}

// findHops looks for the lines of a request: in the source's log first, then in those of all pods
// with a sidecar in the namespace that the request went to.
func (a *app) findHops(ctx context.Context, c *cluster, contexts []string, source *corev1.Pod, id string, began time.Time, wait time.Duration) ([]hop, error) {
	here := &atlas{names: map[string]string{}}
	if err := here.read(ctx, c, a.target.istioNamespace); err != nil {
		return nil, c.wrong(err)
	}
	var hops []hop
	line, err := c.findLine(ctx, source.Namespace, source.Name, id, began, wait)
	if err != nil || line == nil {
		return nil, err
	}
	hops = append(hops, hop{fmt.Sprintf("%s, pod %s/%s, its sidecar", c.context, source.Namespace, source.Name), line, here})
	namespace := namespaceOf(line.UpstreamCluster)
	if namespace == "" {
		return hops, nil
	}
	// Proxies write their logs with some delay.
	deadline := time.Now().Add(wait)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		more, err := a.farHops(ctx, contexts, namespace, source, id, began)
		if err != nil || len(more) > 0 || !time.Now().Before(deadline) {
			return append(hops, more...), err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// farHops looks for the request in the sidecars of a namespace, in every cluster, and for the
// gateway that it came through.
func (a *app) farHops(ctx context.Context, contexts []string, namespace string, source *corev1.Pod, id string, began time.Time) ([]hop, error) {
	for _, name := range contexts {
		peer, err := a.target.connectTo(name)
		if err != nil {
			return nil, err
		}
		opts := metav1.ListOptions{LabelSelector: "security.istio.io/tlsMode=istio", FieldSelector: "status.phase=Running"}
		pods, err := peer.Kube.CoreV1().Pods(namespace).List(ctx, opts)
		if err != nil {
			continue // a cluster that does not answer is not on the way of a request that was answered
		}
		for _, p := range pods.Items {
			if p.UID == source.UID {
				continue
			}
			line, err := peer.findLine(ctx, p.Namespace, p.Name, id, began, 0)
			if err != nil || line == nil {
				continue
			}
			at := &atlas{names: map[string]string{}}
			if err := at.read(ctx, peer, a.target.istioNamespace); err != nil {
				return nil, peer.wrong(err)
			}
			var hops []hop
			if g := peer.gatewayHop(ctx, a.target.istioNamespace, line, at, began); g != nil {
				hops = append(hops, *g)
			}
			return append(hops, hop{fmt.Sprintf("%s, pod %s/%s, its sidecar", peer.context, p.Namespace, p.Name), line, at}), nil
		}
	}
	return nil, nil
}

// gatewayHop finds the line of the connection by which a request came through a gateway. The
// gateway logs a connection when it ends, which may be much later: then there is no line yet.
func (c *cluster) gatewayHop(ctx context.Context, namespace string, destination *diagnose.Line, at *atlas, began time.Time) *hop {
	name, ok := strings.CutPrefix(at.place(destination.DownstreamRemote), "pod ")
	ns, pod, ok2 := strings.Cut(name, "/")
	if !ok || !ok2 || ns != namespace {
		return nil
	}
	where := fmt.Sprintf("%s, pod %s/%s, the gateway between the networks", c.context, ns, pod)
	line, err := c.findLine(ctx, ns, pod, " "+destination.DownstreamRemote+" ", began.Add(-time.Hour), 0)
	if err != nil || line == nil {
		where += " (its own line comes when the connection ends; this is what the next hop saw of it)"
		line = &diagnose.Line{UpstreamHost: destination.DownstreamLocal, UpstreamCluster: destination.ServerName, UpstreamLocal: destination.DownstreamRemote, ServerName: destination.ServerName}
	}
	return &hop{where, line, at}
}

// namespaceOf takes the namespace from outbound|PORT|SUBSET|NAME.NAMESPACE.svc.DOMAIN.
func namespaceOf(clusterName string) string {
	_, _, _, fqdn := diagnose.SplitName(clusterName)
	if p := strings.Split(fqdn, "."); len(p) > 2 && p[2] == "svc" {
		return p[1]
	}
	return ""
}

// findLine looks in a proxy's log for the access-log line that holds a text; nil if there is none
// in that time.
func (c *cluster) findLine(ctx context.Context, namespace, pod, text string, since time.Time, wait time.Duration) (*diagnose.Line, error) {
	deadline := time.Now().Add(wait)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	from := metav1.NewTime(since.Add(-time.Minute)) // clocks may differ
	limit := int64(8 << 20)
	for {
		log, err := c.Kube.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: "istio-proxy", SinceTime: &from, LimitBytes: &limit}).DoRaw(ctx)
		if err != nil {
			return nil, c.wrong(fmt.Errorf("reading the log of the proxy of pod %s/%s: %w", namespace, pod, err))
		}
		for l := range strings.Lines(string(log)) {
			if strings.Contains(l, text) {
				if line, err := diagnose.ParseLine(l); err == nil {
					return line, nil
				}
			}
		}
		if !time.Now().Before(deadline) {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// exec runs a command in a container and returns what it printed.
func (c *cluster) exec(ctx context.Context, namespace, pod, container string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", req.URL())
	if err != nil {
		return "", err
	}
	executor := spdy
	if ws, err := remotecommand.NewWebSocketExecutor(c.config, "GET", req.URL().String()); err == nil {
		if both, err := remotecommand.NewFallbackExecutor(ws, spdy, upgradeFailed); err == nil {
			executor = both
		}
	}
	var stdout, stderr bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.String(), nil
}
