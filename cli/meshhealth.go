package cli

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// health finds what is wrong within one cluster of a mesh: certificates that end, proxies that do
// not take what they are sent, other versions, an injector that nobody may call, a clock that is off.
func (a *app) health(ctx context.Context, m *member) (bad findings) {
	ns := a.target.istioNamespace
	for _, n := range caNotices(ctx, m.cluster, ns) {
		bad.add("%s: %s", m.context, n)
	}
	names, answers, err := m.debug(ctx, ns, "/debug/syncz")
	if err != nil {
		bad.add("%s", oneLine(err))
		return bad
	}
	all, err := syncStates(names, answers)
	if err != nil {
		bad.add("%s", oneLine(m.wrong(err)))
	}
	var v versions
	if err := v.ask(ctx, m.cluster, ns); err != nil {
		bad.add("%s", oneLine(err))
	}
	bad = append(bad, checkProxies(m.context, all, v.ControlPlane)...)
	hooks, err := m.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err == nil {
		hooks.Items = slices.DeleteFunc(hooks.Items, func(h admissionv1.MutatingWebhookConfiguration) bool {
			return !strings.HasPrefix(h.Name, "istio-sidecar-injector")
		})
	}
	switch {
	case err != nil:
		bad.add("%s: reading the injector's webhook: %s", m.context, oneLine(err))
	case len(hooks.Items) == 0:
		bad.add("%s has no injector (MutatingWebhookConfiguration istio-sidecar-injector), so new pods get no sidecar; carrick install --context=%[1]s", m.context)
	}
	for _, h := range hooks.Items {
		for _, w := range h.Webhooks {
			if len(w.ClientConfig.CABundle) == 0 {
				bad.add("%s: webhook %s of %s has no caBundle yet, so no pod can be made where it holds; see the control plane's log", m.context, w.Name, h.Name)
				break
			}
		}
	}
	bad = append(bad, a.held(ctx, m)...)
	if off, err := m.clock(ctx); err == nil && (off > clockBound || off < -clockBound) {
		bad.add("%s: the clock of its API server is %v off this machine's; certificates need right clocks: set up NTP on its nodes", m.context, off.Round(time.Second))
	}
	return bad
}

// clockBound is how far clocks may differ: certificates begin two minutes back.
const clockBound = time.Minute

// clock returns how far the API server's clock is ahead of this machine's, to about a second.
func (c *cluster) clock(ctx context.Context) (time.Duration, error) {
	rc, err := c.httpClient()
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.server, "/")+"/version", nil)
	if err != nil {
		return 0, err
	}
	resp, err := rc.Do(req)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	at, err := http.ParseTime(resp.Header.Get("Date"))
	return time.Until(at), err
}

// checkProxies finds proxies that do not follow the control plane, and those of another version.
func checkProxies(where string, all []syncState, control []string) (bad findings) {
	for _, s := range all {
		var stale []string
		for kind, nonces := range map[string][2]string{"CDS": {s.ClusterSent, s.ClusterAcked}, "LDS": {s.ListenerSent, s.ListenerAcked}, "EDS": {s.EndpointSent, s.EndpointAcked}, "RDS": {s.RouteSent, s.RouteAcked}} {
			if strings.HasPrefix(state(nonces[0], nonces[1]), "STALE") {
				stale = append(stale, kind)
			}
		}
		if s.Error != "" {
			bad.add("%s: proxy %s refused its configuration: %s", where, s.Proxy, s.Error)
		} else if len(stale) == 4 {
			bad.add("%s: proxy %s acknowledges nothing; see its log: kubectl --context=%[1]s logs %[2]s -c istio-proxy", where, s.Proxy)
		}
	}
	if len(control) > 1 {
		bad.add("%s runs control planes of versions %s; finish the upgrade: carrick upgrade --context=%[1]s", where, strings.Join(control, ", "))
	}
	count := map[string]int{}
	for _, s := range all {
		if s.Version != "" {
			count[s.Version]++
		}
	}
	if len(count) > 1 {
		bad.add("%s: its proxies are of versions %s; restart the workloads of the older ones: kubectl --context=%[1]s rollout restart deploy -n NAMESPACE, see carrick proxy-status", where, strings.Join(slices.Sorted(maps.Keys(count)), ", "))
	}
	return bad
}
