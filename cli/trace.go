package cli

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/google/uuid"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// traced is what trace found out, as -o json and yaml print it.
type traced struct {
	URL       string         `json:"url"`
	RequestID string         `json:"requestID"`
	Answer    string         `json:"answer"` // status code, or what went wrong
	Body      string         `json:"body,omitempty"`
	Hops      []diagnose.Hop `json:"hops"`
	Clocks    string         `json:"clocks,omitempty"`
	Notes     []string       `json:"notes,omitempty"`
	OK        bool           `json:"ok"`
	Verdict   string         `json:"verdict"`
}

// peer is a cluster that a request may go through, with what names there are.
type peer struct {
	*cluster
	name, network string
	at            *atlas
}

// tracer follows one request.
type tracer struct {
	app   *app
	peers []*peer // the caller's first
	url   *url.URL
	id    string
	began time.Time
	wait  time.Duration

	host      string // Host header; "" is the URL's
	ephemeral bool   // may add a container to a pod
}

// authority is the request's Host header.
func (t *tracer) authority() string { return cmp.Or(t.host, t.url.Host) }

func (a *app) trace() *cobra.Command {
	var contexts []string
	var container, output, host string
	var ephemeral bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "trace [POD.NAMESPACE] URL",
		Short: "Sends one request, from a pod or from here, and prints its hops",
		Long: `Sends one request from a pod and finds it again in the logs of the proxies on its way, by its request id,
also in the other clusters of the kubeconfig. For each hop it prints addresses, identity, listener, route
and cluster names, the endpoint that was chosen, and a verdict; and how far the clocks differ. Where the
access log is off it says what the proxy's configuration would do. The exit code is 1 if the request failed.

The request is sent by curl of the pod's own container, or, where that has none, by an ephemeral container
that may do nothing else; Kubernetes keeps it listed in the pod until the pod goes (--ephemeral=false: send
nothing, and say what the configuration would do). Without a pod the request is sent from this machine, to
a gateway.`,
		Example: `  carrick trace deploy/sleep.sample http://helloworld.sample:5000/hello --context=cluster1
  carrick trace http://10.10.50.75/productpage --context=cluster1`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target := args[len(args)-1]
			u, err := url.Parse(target)
			if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				return usagef("%q is not a URL with a host: want http://helloworld.sample:5000/hello", target)
			}
			if err := checkOutput(output, "", "table", "json", "yaml"); err != nil {
				return err
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
			t := &tracer{app: a, url: u, id: uuid.NewString(), began: time.Now(), wait: wait, host: host, ephemeral: ephemeral}
			found := &traced{URL: u.String(), RequestID: t.id}
			var namespace, name string
			if len(args) == 2 {
				if namespace, name, err = c.pod(cmd.Context(), args[0]); err != nil {
					return err
				}
			}
			if err := t.connect(cmd.Context(), c, contexts, found); err != nil {
				return err
			}
			if len(args) == 2 {
				err = t.run(cmd.Context(), namespace, name, container, found)
			} else {
				err = t.runOutside(cmd.Context(), found)
			}
			if err != nil {
				return err
			}
			return found.print(cmd.OutOrStdout(), output)
		},
	}
	cmd.Flags().StringSliceVar(&contexts, "peers", nil, "contexts to look for the request in (default all of the kubeconfig)")
	cmd.Flags().StringVar(&container, "container", "", "container to send from (default the first that is not a proxy)")
	cmd.Flags().StringVar(&host, "host", "", "Host header, where it is not the URL's")
	cmd.Flags().BoolVar(&ephemeral, "ephemeral", true, "send by an ephemeral container where the pod's own has no curl")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	cmd.Flags().DurationVar(&wait, "wait", 12*time.Second, "how long to look for log lines; Envoy writes them up to 10 s late")
	return cmd
}

// connect gathers the clusters that the request may go through. One that does not answer is left
// out with a note.
func (t *tracer) connect(ctx context.Context, c *cluster, contexts []string, found *traced) error {
	join := func(c *cluster) error {
		p := &peer{cluster: c, name: c.context, at: &atlas{names: map[string]string{}}}
		if cfg, err := installed(ctx, c, t.app.target.istioNamespace, t.app.version); err == nil {
			p.name, p.network = cfg.Cluster, cfg.Network
		}
		if err := p.at.read(ctx, c, t.app.target.istioNamespace); err != nil {
			return c.wrong(err)
		}
		t.peers = append(t.peers, p)
		return nil
	}
	if err := join(c); err != nil {
		return err
	}
	for _, name := range contexts {
		other, err := t.app.target.connectTo(name)
		if err != nil {
			return err
		}
		if other.server == c.server {
			continue
		}
		if err := join(other); err != nil {
			found.Notes = append(found.Notes, "not looked at: "+oneLine(err))
		}
	}
	return nil
}

// place names an address as a cluster's proxies see it.
func (t *tracer) place(p *peer) func(string) string {
	return func(address string) string {
		if p.at.place(address) != "" {
			return p.at.place(address)
		}
		for _, o := range t.peers {
			if n := o.at.place(address); strings.HasPrefix(n, "load balancer") {
				return n + " in " + o.name
			}
		}
		return ""
	}
}

func (t *tracer) run(ctx context.Context, namespace, name, container string, found *traced) error {
	here := t.peers[0]
	pod, err := here.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return here.wrong(err)
	}
	source := t.point(ctx, here, pod)
	sent, err := t.send(ctx, pod, container, found)
	if err != nil {
		return err
	}
	if !source.Proxy {
		found.Notes = append(found.Notes, fmt.Sprintf("pod %s/%s has no sidecar: label its namespace istio-injection=enabled and restart it", namespace, name))
		found.Verdict = "answered outside the mesh: " + found.Answer
		return nil
	}
	logs := source.Dump == nil || source.Dump.LogsAccess()
	if !sent || !logs {
		if !logs {
			found.Notes = append(found.Notes, "the access log is off in "+here.name+": set accessLogFile: /dev/stdout in data.mesh of ConfigMap istio, namespace "+t.app.target.istioNamespace)
		}
		return t.predict(ctx, source, found)
	}
	line, err := here.findLine(ctx, source.Namespace, source.Pod, t.key(), diagnose.Source, t.began, t.wait)
	if err != nil {
		return err
	}
	source.Line = line
	if line == nil && !found.OK && source.Dump != nil {
		found.Notes = append(found.Notes, "the caller's proxy logged no such request, so this is what its configuration says")
		return t.predict(ctx, source, found)
	}
	return t.tell(ctx, here, source, found)
}

// tell follows a request from the first proxy that it met, which is of a cluster, and says what it finds.
func (t *tracer) tell(ctx context.Context, here *peer, source *diagnose.Point, found *traced) error {
	points, err := t.follow(ctx, here, source)
	if err != nil {
		return err
	}
	for _, p := range points {
		for _, o := range t.peers {
			if o.name == p.Cluster {
				found.Hops = append(found.Hops, p.Hop(t.authority(), t.place(o)))
			}
		}
	}
	last := points[len(points)-1]
	if last != points[0] && last.Line != nil && last.Cluster != here.name {
		if atLeast, atMost, ok := diagnose.Skew(source.Line, last.Line); ok {
			found.Clocks, _ = diagnose.ClockNote(here.name, last.Cluster, atLeast, atMost, time.Second)
		}
	}
	found.judge(source, last)
	return nil
}

// point notes what is known of a pod, with the configuration of its proxy.
func (t *tracer) point(ctx context.Context, c *peer, pod *corev1.Pod) *diagnose.Point {
	p := &diagnose.Point{Cluster: c.name, Network: c.network, Namespace: pod.Namespace, Pod: pod.Name, Account: pod.Spec.ServiceAccountName}
	p.Gateway = strings.Contains(pod.Annotations["inject.istio.io/templates"], "gateway")
	for _, ct := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		p.Proxy = p.Proxy || ct.Name == "istio-proxy"
	}
	if !p.Proxy {
		return p
	}
	if b, err := c.fetch(ctx, pod.Namespace, pod.Name, 15000, "config_dump"); err == nil {
		if d, err := diagnose.ParseDump(b); err == nil {
			p.Dump = d
		}
	}
	return p
}

// follow finds the request in the logs at the place that the source's line names.
func (t *tracer) follow(ctx context.Context, here *peer, source *diagnose.Point) ([]*diagnose.Point, error) {
	points := []*diagnose.Point{source}
	if source.Line == nil {
		return points, nil
	}
	namespace := namespaceOf(source.Line.UpstreamCluster)
	if _, _, bad := diagnose.Remedy(source.Line); namespace == "" || bad && source.Line.UpstreamHost == "-" {
		return points, nil
	}
	deadline := time.Now().Add(t.wait)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		more, whole, err := t.answering(ctx, here, namespace, source)
		if err != nil || whole || !time.Now().Before(deadline) {
			return append(points, more...), err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// answering looks for the request at the pods of a namespace in every cluster, and for the gateway
// that it came through. whole is false as long as a line may still come.
func (t *tracer) answering(ctx context.Context, here *peer, namespace string, source *diagnose.Point) (points []*diagnose.Point, whole bool, err error) {
	host, _, _ := net.SplitHostPort(source.Line.UpstreamHost)
	local := strings.HasPrefix(here.at.place(source.Line.UpstreamHost), "pod ") // then no other pod answered
	for _, c := range t.peers {
		pods, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running", Limit: 200})
		if err != nil {
			return nil, false, c.wrong(fmt.Errorf("listing the pods of namespace %s: %w", namespace, err))
		}
		for i := range pods.Items {
			pod := &pods.Items[i]
			chosen := c == here && pod.Status.PodIP == host
			if pod.Name == source.Pod && pod.Namespace == source.Namespace && c == here {
				continue
			}
			if local && !chosen {
				continue
			}
			if pod.Labels["security.istio.io/tlsMode"] != "istio" {
				if chosen {
					return []*diagnose.Point{t.point(ctx, c, pod)}, true, nil // plain: it logs nothing
				}
				continue
			}
			line, err := c.findLine(ctx, pod.Namespace, pod.Name, t.key(), diagnose.Destination, t.began, 0)
			if err != nil || line == nil {
				if chosen && len(points) == 0 {
					points = []*diagnose.Point{t.point(ctx, c, pod)}
				}
				continue
			}
			p := t.point(ctx, c, pod)
			p.Line = line
			if g := t.gateway(ctx, c, line); g != nil && (g.Pod != source.Pod || g.Cluster != source.Cluster) {
				return []*diagnose.Point{g, p}, true, nil
			}
			return []*diagnose.Point{p}, true, nil
		}
	}
	return points, false, nil
}

// gateway finds the pod that connected to the answering side, if that is a gateway, and the line
// of its connection. The gateway logs a connection when it ends, which may be much later: then
// what the next hop saw of it stands for it.
func (t *tracer) gateway(ctx context.Context, c *peer, answer *diagnose.Line) *diagnose.Point {
	name, ok := strings.CutPrefix(c.at.place(answer.DownstreamRemote), "pod ")
	namespace, pod, ok2 := strings.Cut(name, "/")
	if !ok || !ok2 {
		return nil
	}
	p, err := c.Kube.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	g := t.point(ctx, c, p)
	if !g.Gateway {
		return nil
	}
	line, err := c.findLine(ctx, namespace, pod, " "+answer.DownstreamRemote+" ", diagnose.Passthrough, t.began.Add(-time.Hour), 0)
	if err != nil || line == nil {
		line = &diagnose.Line{UpstreamHost: answer.DownstreamLocal, UpstreamCluster: answer.ServerName, UpstreamLocal: answer.DownstreamRemote,
			DownstreamLocal: net.JoinHostPort(p.Status.PodIP, "15443"), ServerName: answer.ServerName}
	}
	g.Line = line
	return g
}

// predict says what the caller's proxy would do, by its configuration.
func (t *tracer) predict(ctx context.Context, source *diagnose.Point, found *traced) error {
	here := t.peers[0]
	found.OK = found.OK && source.Dump != nil
	if source.Dump == nil {
		found.Verdict = "the proxy of the pod does not answer on its admin port: see kubectl logs -c istio-proxy"
		return nil
	}
	port := t.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[t.url.Scheme]
	}
	address := net.JoinHostPort(t.url.Hostname(), port)
	if net.ParseIP(t.url.Hostname()) == nil {
		parts := strings.Split(t.url.Hostname(), ".")
		namespace := source.Namespace
		if len(parts) > 1 {
			namespace = parts[1]
		}
		svc, err := here.Kube.CoreV1().Services(namespace).Get(ctx, parts[0], metav1.GetOptions{})
		if err != nil {
			found.OK, found.Verdict = false, fmt.Sprintf("no Service %s/%s in %s: create it there, too; a name must be known where the caller is", namespace, parts[0], here.name)
			return nil
		}
		var ports []string
		for _, p := range svc.Spec.Ports {
			ports = append(ports, fmt.Sprint(p.Port))
		}
		if !slices.Contains(ports, port) {
			found.OK, found.Verdict = false, fmt.Sprintf("Service %s/%s has no port %s; it has %s", namespace, parts[0], port, strings.Join(ports, ", "))
			return nil
		}
		address = net.JoinHostPort(svc.Spec.ClusterIP, port)
	}
	way := source.Dump.Way(address, t.authority(), t.url.Path)
	h := diagnose.Hop{Pod: source.Namespace + "/" + source.Pod, Cluster: here.name, Network: here.network, Role: "caller", Identity: source.Dump.Identity().Name,
		To: address, Listener: way.Listener, Route: strings.Trim(strings.Join([]string{way.RouteConfig, way.VirtualHost, way.Route}, " / "), " /"), Upstream: way.Cluster}
	b, err := here.fetch(ctx, source.Namespace, source.Pod, 15000, "clusters?format=json")
	if err != nil {
		return here.wrong(err)
	}
	all, err := diagnose.ParseEndpoints(b)
	if err != nil {
		return here.wrong(err)
	}
	var choice []string
	for _, e := range all {
		if e.Cluster == way.Cluster && e.Status == "HEALTHY" && e.Outlier == "OK" {
			s := e.HostPort()
			if n := t.place(here)(s); n != "" {
				s += " (" + n + ")"
			}
			choice = append(choice, s)
		}
	}
	h.Endpoint = strings.Join(choice, ", ")
	h.OK = len(choice) > 0 || way.Cluster == "PassthroughCluster"
	switch {
	case way.Cluster == "PassthroughCluster":
		h.Verdict = "knows no such Service: would send it on as it is, without mutual TLS"
	case h.OK:
		h.Verdict = "would send it to one of these endpoints"
	case way.Cluster == "":
		h.Verdict, h.Fix = "has no route for it", "check host and port of the URL against carrick proxy-config route"
	default:
		h.Verdict, h.Fix = "has no healthy endpoint for it", "are pods ready, and has each other network a gateway with an address? carrick mesh check"
	}
	found.Hops = []diagnose.Hop{h}
	found.Verdict = "by configuration: the proxy of " + h.Pod + " " + h.Verdict
	found.OK = found.OK && h.OK
	return nil
}

// namespaceOf takes the namespace from outbound|PORT|SUBSET|NAME.NAMESPACE.svc.DOMAIN.
func namespaceOf(clusterName string) string {
	_, _, _, fqdn := diagnose.SplitName(clusterName)
	if p := strings.Split(fqdn, "."); len(p) > 2 && p[2] == "svc" {
		return p[1]
	}
	return ""
}

// key is the part of the request id by which log lines are looked for: Envoy writes into the 15th
// character.
func (t *tracer) key() string {
	if len(t.id) == 36 {
		return t.id[15:]
	}
	return t.id
}

// findLine looks in a proxy's log for the access-log line of a side that holds a text; nil if there
// is none in that time. An application that passes the request's headers on has its proxy log lines of
// its own requests with the same id.
func (c *cluster) findLine(ctx context.Context, namespace, pod, text string, side diagnose.Side, since time.Time, wait time.Duration) (*diagnose.Line, error) {
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
				if line, err := diagnose.ParseLine(l); err == nil && (line.Side() == side || line.Side() == diagnose.Unknown) {
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
