package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/diagnose"
	"github.com/google/uuid"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

func (c *cluster) httpClient() (*http.Client, error) {
	cfg := rest.CopyConfig(c.config)
	cfg.Timeout = 10 * time.Second
	return rest.HTTPClientFor(cfg)
}

// probe sends requests from each cluster to a Service and counts which cluster answered.
type probe struct {
	url, from string
	requests  int
}

func (p *probe) run(cmd *cobra.Command, a *app, ms []*member) (bad findings, err error) {
	var rows [][]string
	header := "REQUESTS FROM"
	for _, m := range ms {
		header += "\tTO " + strings.ToUpper(m.cfg.Cluster)
	}
	for _, m := range ms {
		counts, failed, err := p.send(cmd.Context(), a, m)
		if err != nil {
			bad.add("%s: no requests could be sent: %s", m.context, oneLine(err))
			continue
		}
		row := []string{m.cfg.Cluster}
		for _, to := range ms {
			n := counts[to.cfg.Cluster]
			row = append(row, fmt.Sprint(n))
			if n == 0 {
				bad.add("of %d requests from %s to %s none was answered by %s; follow one: carrick trace %s %[3]s --context=%[2]s", p.requests, m.context, p.url, to.context, p.from)
			}
		}
		if failed > 0 {
			bad.add("of %d requests from %s to %s %d failed; follow one: carrick trace %s %[3]s --context=%[2]s", p.requests, m.context, p.url, failed, p.from)
		}
		rows = append(rows, append(row, fmt.Sprint(failed)))
	}
	return bad, table(cmd.OutOrStdout(), header+"\tFAILED", rows)
}

// send counts answers by cluster, as the caller's proxy logs whom it chose.
func (p *probe) send(ctx context.Context, a *app, m *member) (counts map[string]int, failed int, err error) {
	namespace, pod, err := m.pod(ctx, p.from)
	if err != nil {
		return nil, 0, err
	}
	at := &atlas{names: map[string]string{}}
	if err := at.read(ctx, m.cluster, a.target.istioNamespace); err != nil {
		return nil, 0, m.wrong(err)
	}
	id := uuid.NewString()
	args := []string{"curl", "-s", "--max-time", "25", "-H", "x-request-id: " + id, "-w", "\ncode=%{http_code}\n"}
	for range p.requests {
		args = append(args, p.url)
	}
	out, err := m.exec(ctx, namespace, pod, "", args...)
	if err != nil && !strings.Contains(out, "code=") {
		return nil, 0, m.wrong(fmt.Errorf("pod %s/%s: %w", namespace, pod, err))
	}
	answered := strings.Count(out, "code=2")
	deadline := time.Now().Add(12 * time.Second)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		lines, err := m.linesOf(ctx, namespace, pod, id)
		if err != nil {
			return nil, 0, err
		}
		counts = countAnswers(lines, m.cfg.Cluster, at.place)
		if len(lines) >= answered || !time.Now().Before(deadline) {
			if answered > 0 && len(lines) == 0 {
				return nil, 0, m.wrong(errors.New("the requests were answered, but the access log is off or the pod has no sidecar: set accessLogFile: /dev/stdout in ConfigMap istio"))
			}
			return counts, p.requests - answered, nil
		}
		select {
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// countAnswers counts successful requests by the cluster of the endpoint.
func countAnswers(lines []*diagnose.Line, own string, place func(string) string) map[string]int {
	counts := map[string]int{}
	for _, l := range lines {
		if !strings.HasPrefix(l.Code, "2") {
			continue
		}
		to := own
		if rest, ok := strings.CutPrefix(place(l.UpstreamHost), "gateway of "); ok {
			to, _, _ = strings.Cut(rest, ",")
		}
		counts[to]++
	}
	return counts
}

// linesOf returns the lines of a request id in a proxy's log.
func (c *cluster) linesOf(ctx context.Context, namespace, pod, id string) (lines []*diagnose.Line, err error) {
	seconds, limit := int64(120), int64(8<<20)
	log, err := c.Kube.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: "istio-proxy", SinceSeconds: &seconds, LimitBytes: &limit}).DoRaw(ctx)
	if err != nil {
		return nil, c.wrong(fmt.Errorf("reading the log of the proxy of pod %s/%s: %w", namespace, pod, err))
	}
	for l := range strings.Lines(string(log)) {
		if !strings.Contains(l, id[15:]) {
			continue
		}
		if line, err := diagnose.ParseLine(l); err == nil && diagnose.SameRequest(line.RequestID, id) {
			lines = append(lines, line)
		}
	}
	return lines, nil
}
